"""A server that cheats with what it tells of the course: states, sums, histories, certificates, epochs without end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from codream_protocols.charter import Policy
from codream_protocols.client import Certified, State
from codream_protocols.messages import Certificate, EpochRecord, Published, Seals, SignedBy, Survivors, Vote
from codream_protocols.packing import pack, unpack
from codream_protocols.record import Kept, replay
from codream_protocols.server import InMemory, ServerProtocol
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, in_mode, lockstep, resilient, signs
from secure_codream.threats.attacks.enrolment import COLLUDER, noised
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
            second = unpack(effect.frames[0], len(first), federation.plan.modulus_bits)
            return adversary.reduce(federation, first - second), truth

        return recovered(attempt)


# -- sums ---------------------------------------------


def _scaled(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    words = unpack(item.frames[0], federation.plan.spec(0).words, federation.plan.modulus_bits)
    return _as_told(item, pack(words // 2, federation.plan.modulus_bits))


def _nothing(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    return _as_told(item, bytes(len(item.frames[0])))


def _other_tag(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    message, frame = _as_told(item, item.frames[0])
    return msgspec.structs.replace(message, tag=bytes([message.tag[0] ^ 1]) + message.tag[1:]), frame


def _without_one_input(federation: Federation, item: Packet) -> tuple[Published, bytes]:
    known = federation.vectors[0, COLLUDER].astype(np.int64)
    change = {place: -int(value) for place, value in enumerate(known)}
    return altered(federation, item, change)


def _as_told(item: Packet, frame: bytes) -> tuple[Published, bytes]:
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
            message, frame = _as_told(item, item.frames[0])
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
            most = (1 << federation.plan.modulus_bits) - 1
            item = federation.published(0)
            words = unpack(item.frames[0], federation.plan.spec(0).words, federation.plan.modulus_bits)
            change = {0: most - int(words[0])}
            message, frame = altered(federation, item, change, told_group_key(federation, COLLUDER))
            return takes(federation, VICTIM, message, frame)

        return counted({"an element near the modulus": attempt}, what="impossible sums")


# -- what is learnt ---------------------------------------------


def votes_of(federation: Federation) -> dict[int, SignedBy]:
    """The newest vote of each member, off the wire."""
    found = {}
    for item in federation.sent:
        message = item.message if item.kind is Vote else None
        if isinstance(message, Vote):
            found[item.member] = SignedBy(item.member, message.signature)
    return found


class LastStepSplit(Attack):
    """The last sum, told in two ways."""

    name = "last-step-split"
    adversary = "malicious server with a colluding client"
    goal = "Have one half of the clients learn other labels than the other half."
    promises = ("P4",)
    defences = ("_rule_certificate",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A colluder tags a second last sum; each half is handed its own votes as the certificate."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences, steps=2).masked(1)
            item = federation.published(1)
            key = told_group_key(federation, COLLUDER)
            told = {0: _as_told(item, item.frames[0]), 1: altered(federation, item, {0: 1}, key)}
            halves: dict[int, list[SignedBy]] = {0: [], 1: []}
            for member in federation.everybody:
                message, frame = told[member % 2]
                vote = said(federation.tell(member, message, (frame,)))
                halves[member % 2].append(SignedBy(member, vote.signature))
            heads = set()
            for member in federation.everybody:
                effects = federation.tell(member, Certificate(federation.plan.digest, tuple(halves[member % 2])))
                heads |= {effect.head for effect in effects if isinstance(effect, Certified)}
            return len(heads) == 2

        return counted({"each half with its own votes": attempt}, what="split ends")


class TwoCertificates(Attack):
    """Two epochs at one head, both voted for by everybody."""

    name = "two-certificates-at-one-head"
    adversary = "malicious server"
    goal = "Withhold a certificate, have a second epoch voted for at the same head, and let clients learn either."
    promises = ("P3", "P4")
    defences = ("_rule_bound_by_vote",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two epochs to their votes; then one half is shown the first record and the other half the second."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences, steps=1).voted()
            kept = [_certified(federation)]
            federation.wire.clear()
            federation.server = ServerProtocol(
                federation.charter, federation.roster, federation.course, journal=InMemory()
            )
            federation.server._next_epoch = 1
            federation.emit(federation.server.open_epoch(federation.everybody))
            federation.drain()
            raise_refusal(federation)
            federation.compute()
            federation.drain(hold=(Vote,))
            kept.append(_certified(federation))
            for member in federation.everybody:
                federation.tell(member, *kept[member % 2])
            return len({client.head for client in federation.clients}) == 2

        return counted({"a second epoch at the head of a vote": attempt}, what="second certificates")


def _certified(federation: Federation) -> Kept:
    """The record of the epoch that everybody has just voted for, with all votes."""
    public = federation.clients[VICTIM]._vote
    if public is None:
        raise Stuck("the victim has not voted")
    return public[0].record([vote for _, vote in sorted(votes_of(federation).items())])


class TooFewVotes(Attack):
    """Certificates without enough votes."""

    name = "too-few-votes"
    adversary = "malicious server with colluding clients"
    goal = "Have a client learn from an epoch that others may have seen otherwise."
    promises = ("P4",)
    defences = ("_rule_certificate",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """No vote, the victim's own, all but one of those that are needed; in both modes."""

        def attempt(mode: str, count: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing).voted()
            votes = tuple(vote for _, vote in sorted(votes_of(federation).items()))
            chosen = votes[: count if count >= 0 else federation.charter.quorum + count]
            effects = federation.tell(VICTIM, Certificate(federation.plan.digest, chosen))
            return isinstance(effects[0], Certified)

        tries = {
            f"{mode}, {how}": Try(partial(attempt, mode, count), self.defences)
            for mode in ("lockstep", "resilient")
            for how, count in (("none", 0), ("its own", 1), ("one too few", -1))
        }
        return counted(tries, what="certificates without enough votes", defences=defences)


class ForgedVotes(Attack):
    """Certificates whose votes nobody gave."""

    name = "forged-votes"
    adversary = "malicious server with colluding clients"
    goal = "Have a client learn with votes that are copied, of another epoch, for other sums or of another kind."
    promises = ("P4", "P5")
    defences = ("vote-signatures",)
    ways = ("one in all names", "of the epoch before", "for other sums", "under another label", "the server's own")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each forgery, in place of all votes but the victim's."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            federation.run()
            before = votes_of(federation)
            federation.voted()
            votes = votes_of(federation)
            public = federation.clients[VICTIM]._vote
            if public is None:
                raise Stuck("the victim has not voted")
            head, plan, chain = public[0].plan.offer.head, public[0].plan.digest, public[0].chain
            colluder = federation.signers[COLLUDER]
            ways: dict[str, Callable[[int], bytes]] = {
                "one in all names": lambda member: votes[VICTIM].signature,
                "of the epoch before": lambda member: before[member].signature,
                "for other sums": lambda member: federation.signers[member].sign("vote", head, plan, bytes(32)),
                "under another label": lambda member: federation.signers[member].sign("survivors", head, plan, chain),
                "the server's own": lambda member: colluder.sign("vote", head, plan, chain),
            }
            forged = ways[how]
            items = [votes[VICTIM], *(SignedBy(one, forged(one)) for one in all_but(federation, VICTIM))]
            effects = federation.tell(VICTIM, Certificate(federation.plan.digest, tuple(items)))
            return isinstance(effects[0], Certified)

        tries = {how: Try(partial(attempt, how), self.defences) for how in self.ways}
        return counted(tries, what="forged certificates", defences=defences)


def _forged_record(federation: Federation, voters: tuple[int, ...], place: int = 0) -> tuple[EpochRecord, Any]:
    """The record of the finished epoch with another last sum, and these members' votes for that."""
    server = federation.server
    epoch = server._epoch
    if epoch is None or epoch.public is None:
        raise Stuck("no epoch to forge")
    record, frames = epoch.public.record()
    item = federation.published(len(frames) - 1)
    _, frame = altered(federation, item, {place: 1})
    frames = (*frames[:-1], frame)
    public = replay(
        federation.charter,
        federation.roster,
        federation.course,
        (record, frames),
        head=server.head,
        certified=server.certified,
        last=server.publication,
    )
    statement = (server.head, public.plan.digest, public.chain)
    votes = [SignedBy(one, federation.signers[one].sign("vote", *statement)) for one in voters]
    return public.record(votes)


def _away(federation: Federation) -> None:
    """The victim is not in the epoch, whose sums are all out."""
    rest = without_block(federation, VICTIM)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(rest))
    federation.drain()
    while federation.server.step is not None:
        federation.step()


def _nobody_voted(federation: Federation) -> bool:
    _away(federation)
    message, frames = _forged_record(federation, ())
    return isinstance(said(federation.tell(VICTIM, message, frames)), Vote)


def _strangers_voted(federation: Federation) -> bool:
    _away(federation)
    block = tuple(one for one in federation.everybody if one not in without_block(federation, VICTIM))
    message, frames = _forged_record(federation, (block[1],))
    return isinstance(said(federation.tell(VICTIM, message, frames)), Vote)


def _after_a_wrong_sum(federation: Federation) -> bool:
    federation.masked(2)
    item = federation.published(2)
    message, frame = altered(federation, item, {0: 1})
    federation.tell(VICTIM, message, (frame,))
    for member in all_but(federation, VICTIM):
        federation.perform(member, federation.tell(member, item.message, item.frames))  # type: ignore[arg-type]
    record, frames = _forged_record(federation, (COLLUDER,), place=1)
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


def _one_that_it_is_in(federation: Federation) -> bool:
    federation.masked(2)
    record, frames = _forged_record(federation, (COLLUDER,))
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


def _one_that_it_was_in(federation: Federation) -> bool:
    federation.masked(2)
    record, frames = _forged_record(federation, (COLLUDER,))
    # The first sum is another too, so that what the victim began of the last step was at another history.
    forged = list(frames)
    words = unpack(forged[0], federation.plan.spec(0).words, federation.plan.modulus_bits).astype(np.int64)
    words[0] += 1 if words[0] == 0 else -1
    forged[0] = pack(words.astype(np.uint32), federation.plan.modulus_bits)
    public = replay(
        federation.charter,
        federation.roster,
        federation.course,
        (record, tuple(forged)),
        head=federation.server.head,
        certified=0,
        last=None,
    )
    signature = federation.signers[COLLUDER].sign("vote", federation.server.head, public.plan.digest, public.chain)
    federation.restart(VICTIM)
    return isinstance(said(federation.tell(VICTIM, *public.record([SignedBy(COLLUDER, signature)]))), Vote)


def _never_masked(federation: Federation) -> bool:
    federation.masked(2)
    twin = federation.diaries[VICTIM].memory
    record, frames = _forged_record(federation, (COLLUDER,))
    federation.diaries[VICTIM].memory = type(twin)(next_epoch=twin.next_epoch, attempts=twin.attempts)
    federation.restart(VICTIM)  # killed in the set-up: it has begun no step of this epoch
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


RECORDS: Mapping[str, tuple[Callable[[Federation], bool], tuple[str, ...], str]] = {
    "an epoch that nobody has voted for": (_nobody_voted, ("_rule_others_vote",), "resilient"),
    "one that only a stranger to it has voted for": (_strangers_voted, ("_rule_others_vote",), "resilient"),
    "after a wrong sum, with a colluder's vote": (_after_a_wrong_sum, ("_rule_others_vote",), "lockstep"),
    "another last sum, while it is in the epoch": (_one_that_it_is_in, ("_rule_known_epoch",), "lockstep"),
    "another history than it saw, once restarted": (_one_that_it_was_in, ("_rule_known_epoch",), "lockstep"),
    "a lockstep epoch whose steps it never began": (
        _never_masked,
        ("_rule_known_epoch", "_rule_others_vote"),
        "lockstep",
    ),
}


class ForgedRecords(Attack):
    """Records of epochs as they were not."""

    name = "forged-records"
    adversary = "malicious server with a colluding client"
    goal = "Have a client vote for sums that it has not checked, and that the members it trusts have not voted for."
    promises = ("P4", "P10")
    defences = tuple(dict.fromkeys(rule for _, rules, _ in RECORDS.values() for rule in rules))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each record, to a client that stands where it might believe it."""

        def attempt(say: Callable[[Federation], bool], mode: str, standing: Defences) -> bool:
            return say(in_mode(mode, laboratory, standing))

        tries = {how: Try(partial(attempt, say, mode), rules) for how, (say, rules, mode) in RECORDS.items()}
        return counted(tries, what="forged records", defences=defences)


# -- no end ---------------------------------------------


class EndlessEpochs(Attack):
    """Ever new epochs, each within the policy."""

    name = "endless-epochs"
    adversary = "malicious server"
    goal = "Keep clients answering for ever, so that many sums together tell what one does not."
    promises = ("P6",)
    defences = ("_rule_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five epochs of three steps, where the policy allows seven steps in all."""
        allowed = 7
        federation = lockstep(laboratory, defences, policy=Policy(most_total_steps=allowed), steps=3)
        answered = 0
        for _ in range(5):
            if not federation.set_up():
                break
            while federation.server.step is not None:
                answered += federation.step() is not None
            federation.finish()
        refused = [error for member, error in federation.refusals if member == VICTIM]
        return Evidence(
            measure=f"steps answered beyond the {allowed} that the policy allows, number",
            value=float(max(0, answered - allowed)),
            success=0.0,
            learned=f"{answered} sums where the policy allows {allowed}",
            refusal=f"{type(refused[0]).__name__}: {refused[0]}" if refused else "",
        )


class StartsAsQueries(Attack):
    """Epochs that are given up, again and again."""

    name = "starts-as-queries"
    adversary = "malicious server with a colluding client"
    goal = "Give epochs up until one starts where the server would have it, or until many first steps have told enough."
    promises = ("P4", "P6")
    defences = ("_rule_attempts",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Give up eight epochs after their first sum, where the charter permits five starts."""
        allowed = 5
        federation = lockstep(laboratory, defences, attempts=allowed)
        for _ in range(8):
            if federation.set_up():
                federation.step()
            if federation.server.plan is not None:
                federation.emit(federation.server._give_up("it did not start where it should"))
                federation.drain()
        refused = [error for member, error in federation.refusals if member == VICTIM]
        return Evidence(
            measure=f"first sums beyond the {allowed} starts that the charter permits, number",
            value=float(max(0, len(federation.reveals) - allowed)),
            success=0.0,
            learned=f"the first sums of {len(federation.reveals)} starts where the charter permits {allowed}",
            refusal=f"{type(refused[0]).__name__}: {refused[0]}" if refused else "",
        )


class OverspentBudget(Attack):
    """Ever new epochs of noised sums."""

    name = "overspent-privacy-budget"
    adversary = "malicious server"
    goal = "Keep clients adding to noised sums until the noise averages out, beyond the privacy budget of their policy."
    paper = "Bun and Steinke, TCC 2016 (composition of zCDP)"
    promises = ("P15", "P6")
    defences = ("_rule_privacy_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five epochs of one step, where the budget is for two and a half."""
        honest = lockstep(laboratory, Defences()).charter.least_honest
        options: dict[str, Any] = {"steps": 1, "specs": noised(1.0, honest)}
        budget = 2.5 * lockstep(laboratory, Defences(), **options).plan.total_rho
        federation = lockstep(laboratory, defences, policy=Policy(most_rho=budget), **options)
        for _ in range(5):
            if not federation.set_up():
                break
            federation.step()
            federation.finish()
        spent = federation.clients[VICTIM].spent_rho
        refused = [error for member, error in federation.refusals if member == VICTIM]
        return Evidence(
            measure="zCDP spent over the policy's budget, ratio",
            value=spent / budget,
            success=1.0,
            learned=f"sums that cost the client {spent / budget:.0%} of its budget",
            refusal=f"{type(refused[0]).__name__}: {refused[0]}" if refused else "",
        )


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
    message, frame = _as_told(item, item.frames[0])
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
    LastStepSplit(),
    TwoCertificates(),
    TooFewVotes(),
    ForgedVotes(),
    ForgedRecords(),
    EndlessEpochs(),
    StartsAsQueries(),
    OverspentBudget(),
    MessagesOfOtherPlans(),
)
