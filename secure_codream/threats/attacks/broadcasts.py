"""A server that cheats with what it tells of the course: states, sums, histories, certificates, epochs without end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import numpy as np

from codream_protocols.client import State
from codream_protocols.messages import Published, Seals, Survivors
from codream_protocols.packing import pack, unpack
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, in_mode, lockstep, resilient, signs
from secure_codream.threats.attacks.enrolment import COLLUDER
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.adversary import (
    advertised,
    altered,
    delivered,
    said,
    shown,
    told_group_key,
    without_block,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory


def raise_refusal(federation: Federation, member: int = VICTIM) -> None:
    """Let what a member refused leave as an exception; nothing if it refused nothing."""
    for number, error in federation.refusals:
        if number == member:
            raise error


# -- states ---------------------------------------------


class DifferentStates(Attack):
    """Model inconsistency: the victim alone stands at a state that asks for an answer."""

    name = "different-states"
    adversary = "malicious server"
    goal = "Tell the victim another sum than all others, so that at its state only its own input is not zero."
    paper = "Pasquini, Francati, Ateniese, CCS 2022"
    promises = ("P4",)
    defences = ("_rule_true_sum", "chain-binding")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Fork the state in the first step; add what is sent in the second."""

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences).masked()
            item = federation.published(0)
            forged, frame = altered(federation, item, {0: 1})
            values = signs(laboratory, self.name, federation)[VICTIM]
            federation.input_of = lambda member, compute: {
                "dream": values if member == VICTIM else np.full(len(values), -1.0)
            }  # the others' answer at the state that all but the victim stand at: the clip's lower end, encoded as zero
            for member in all_but(federation, VICTIM):
                federation.perform(member, federation.tell(member, item.message, item.frames))  # type: ignore[arg-type]
            federation.perform(VICTIM, federation.tell(VICTIM, forged, (frame,)))
            if VICTIM not in federation.computing:
                raise_refusal(federation)
                return np.zeros(1), np.ones(1)
            federation.compute()
            vectors = (adversary.masked_input(federation, 1, member) for member in federation.everybody)
            return adversary.ring_sum(federation, vectors), federation.vectors[1, VICTIM]

        return recovered(attempt)


class AskedTwice(Attack):
    """A question that comes again."""

    name = "asked-twice"
    adversary = "malicious server"
    goal = "Have two inputs masked with the same keys: their difference, one of them foreseeable, is the other."
    paper = "Bonawitz et al., CCS 2017, section 4 (one-time use of masks)"
    promises = ("P3",)
    defences = ("one-mask-a-step",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Deliver the seals again once the victim has masked; subtract its answers."""

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences)
            values = laboratory.generator(self.name).uniform(-0.9, 1, federation.plan.spec(0).length)
            federation.input_of = lambda member, compute: {"dream": values}
            federation.masked()
            first, truth = adversary.masked_input(federation, 0, VICTIM), federation.vectors[0, VICTIM]
            federation.input_of = lambda member, compute: {"dream": np.full(compute.spec.length, -1.0)}
            (effect,) = federation.ask(VICTIM, delivered(federation, VICTIM))
            second = unpack(effect.frames[0], len(first), federation.plan.modulus_bits(0))
            return adversary.reduce(federation, first - second), truth

        return recovered(attempt)


# -- sums ---------------------------------------------


def _scaled(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    words = unpack(item.frames[0], federation.plan.spec(0).words, federation.plan.modulus_bits(0))
    return as_told(item, pack(words // 2, federation.plan.modulus_bits(0)))


def _nothing(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    return as_told(item, bytes(len(item.frames[0])))


def _other_tag(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    message, frame = as_told(item, item.frames[0])
    return msgspec.structs.replace(message, tag=bytes([message.tag[0] ^ 1]) + message.tag[1:]), frame


def _without_one_input(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    known = federation.vectors[0, COLLUDER].astype(np.int64)
    change = {place: -int(value) for place, value in enumerate(known)}
    return altered(federation, item, change)


def as_told(item: Packet, frame: bytes) -> tuple[Published, bytes]:
    """A sum with another frame, and all else as it was told."""
    message = item.message
    if not isinstance(message, Published):
        raise Stuck("no published sum")
    return message, frame


SUMS: Mapping[str, Callable[[Federation, Packet], tuple[Published, bytes]]] = {
    "one element more by one": lambda federation, item: altered(federation, item, {0: 1}),
    "two elements exchanged by one": lambda federation, item: altered(federation, item, {0: 1, 1: -1}),
    "halved": _scaled,
    "all zeros": _nothing,
    "without a colluder's input": _without_one_input,
    "the true sum with another tag": _other_tag,
}


def takes(federation: Federation, member: int, message: Published, frame: bytes) -> bool:
    """Whether a client goes on with a sum; what it ended with leaves as nothing."""
    client = federation.clients[member]
    before = client.progress
    federation.perform(member, federation.tell(member, message, (frame,)))
    return client.state is State.VOTED or (client.progress[0] == before[0] and client.progress[1] == before[1] + 1)


class UntrueSums(Attack):
    """Sums that are not the sum of the survivors' inputs."""

    name = "untrue-sums"
    adversary = "malicious server"
    goal = "Have clients go on with a sum that is scaled, shifted, incomplete or made up, one of them or all alike."
    paper = "Xu et al., VerifyNet, TIFS 2020; Bell et al., ACORN, USENIX Security 2023"
    promises = ("P10",)
    defences = ("_rule_true_sum",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Tell each such sum to the victim alone, then to everybody; in both modes."""

        def attempt(mode: str, how: str, told: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing)
            federation.masked()
            if mode == "resilient":
                for member, answer in adversary.agree_and_answer(federation, federation.everybody).items():
                    if federation.server.step == 0:
                        federation.emit(federation.server.receive(member, answer))
            message, frame = SUMS[how](federation, federation.published(0))
            members = federation.everybody[:told]
            return all(takes(federation, member, message, frame) for member in members)

        tries = {
            f"{mode}, {how}, {'to one' if told == 1 else 'to all'}": Try(
                partial(attempt, mode, how, told), self.defences
            )
            for mode, ways in (("lockstep", tuple(SUMS)), ("resilient", ("one element more by one", "halved")))
            for how in ways
            for told in (1, 1000)
        }
        return counted(tries, what="untrue sums", defences=defences)


class OtherSurvivors(Attack):
    """A true sum with others' names on it."""

    name = "other-survivors"
    adversary = "malicious server"
    goal = "Tell a client whose input came too late that the sum is over others than it is."
    promises = ("P10",)
    defences = ("_rule_true_sum",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The victim has not sent its vector; the sum is over all other blocks, and told as everybody's or others'."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = resilient(laboratory, standing)
            federation.set_up()
            federation.compute(all_but(federation, VICTIM))
            federation.drain(lost={(VICTIM, kind) for kind in (Survivors, Published)})
            federation.emit(federation.server.lost(VICTIM))
            federation.drain(lost={(VICTIM, kind) for kind in (Survivors, Published)})
            item = federation.published(0)
            last = federation.everybody[-1]
            others = federation.everybody if how == "everybody" else without_block(federation, last)
            message, frame = as_told(item, item.frames[0])
            return takes(federation, VICTIM, msgspec.structs.replace(message, members=others), frame)

        tries = {how: Try(partial(attempt, how), self.defences) for how in ("everybody", "as many others")}
        return counted(tries, what="sums under others' names", defences=defences)


class ImpossibleSums(Attack):
    """Sums that no inputs have."""

    name = "sums-out-of-range"
    adversary = "malicious server with a colluding client"
    goal = "Move the state beyond what all inputs together could, with a sum whose tag a colluder has made."
    promises = ("P10",)
    defences = ("_rule_true_sum", "range-check")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Have the colluder tell the group key, and tag a sum with an element near the modulus."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences).masked()
            most = (1 << federation.plan.modulus_bits(0)) - 1
            item = federation.published(0)
            words = unpack(item.frames[0], federation.plan.spec(0).words, federation.plan.modulus_bits(0))
            change = {0: most - int(words[0])}
            message, frame = altered(federation, item, change, told_group_key(federation, COLLUDER))
            return takes(federation, VICTIM, message, frame)

        return counted({"an element near the modulus": attempt}, what="impossible sums")


# -- what is learnt ---------------------------------------------


# -- no end ---------------------------------------------


# -- messages that do not fit ---------------------------------------------


def _strange_advertisements(federation: Federation) -> bool:
    message = msgspec.structs.replace(shown(federation, advertised(federation)), plan=bytes(32))
    return isinstance(said(federation.tell(VICTIM, message)), Seals)


def _strange_survivors(federation: Federation) -> bool:
    federation.masked()
    return bool(federation.tell(VICTIM, Survivors(bytes(32), 0, federation.everybody)))


def _strange_sum(federation: Federation) -> bool:
    federation.masked()
    for member, answer in adversary.agree_and_answer(federation, federation.everybody).items():
        if federation.server.step == 0:
            federation.emit(federation.server.receive(member, answer))
    item = federation.published(0)
    message, frame = as_told(item, item.frames[0])
    return takes(federation, VICTIM, msgspec.structs.replace(message, plan=bytes(32)), frame)


class MessagesOfOtherPlans(Attack):
    """Messages that name another plan."""

    name = "messages-of-other-plans"
    adversary = "malicious server"
    goal = "Have a client take what belongs to another epoch for what belongs to its own."
    promises = ("P3", "P8")
    defences = ("context-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each kind of message, right in all but the plan."""

        def attempt(say: Callable[[Federation], bool], standing: Defences) -> bool:
            return say(resilient(laboratory, standing))

        ways = {
            "advertisements": _strange_advertisements,
            "survivors": _strange_survivors,
            "a sum": _strange_sum,
        }
        tries = {how: Try(partial(attempt, say), self.defences) for how, say in ways.items()}
        return counted(tries, what="messages of other plans", defences=defences)


ATTACKS: tuple[Attack, ...] = (
    DifferentStates(),
    AskedTwice(),
    UntrueSums(),
    OtherSurvivors(),
    ImpossibleSums(),
    MessagesOfOtherPlans(),
)
