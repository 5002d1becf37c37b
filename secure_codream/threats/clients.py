"""Malicious clients: colluding, lying about shares, speaking for others, leaving, sending nonsense or poison."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np

from codream_protocols import messages, ring
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import ProtocolError, RemoteProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import word_type
from codream_protocols.messages import (
    Advertisement,
    Broadcast,
    MaskedInput,
    PlanOffer,
    Shares,
    SurvivorSignature,
    UnmaskShares,
    encode_message,
)
from codream_protocols.secret import Secret
from codream_protocols.vectors import decode_vector
from secure_codream.threats import adversary
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.dropouts import VICTIM, all_but
from secure_codream.threats.evidence import Vector, counted, recovered
from secure_codream.threats.federation import Federation, Packet, Stuck, snapshot
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.switches import Switch

# -- collusion ---------------------------------------------


class Colluders(Attack):
    """As many as the plan tolerates tell the server everything."""

    name = "colluders-within-the-promise"
    adversary = "c clients with the server"
    goal = "Unmask a client with all that the tolerated colluders hold, and different questions to the others."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P9", "P1")
    defences = ("plan-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Split the honest clients; without the check the plan's threshold is one that tolerates fewer."""
        cohort = laboratory.cohort
        laboratory.need(cohort.colluders > 0, "no colluder is tolerated")
        low = (cohort.clients + cohort.colluders) // 2
        threshold = cohort.threshold if defences.stands("plan-check") else low
        least = min(cohort.least_survivors, cohort.clients - 1)

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences, threshold=threshold, least_survivors=least, policy=None)
            return adversary.split_and_collude(federation.masked(), VICTIM, last(federation, cohort.colluders))

        return recovered(attempt)


class TooManyColluders(Attack):
    """One more than the threshold withstands."""

    name = "colluders-beyond-the-promise"
    adversary = "more than c clients with the server"
    goal = "Unmask a client with the help of as many colluders as it takes: 2 * threshold - n."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("L4",)
    defences = ("more-than-c",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Split the honest clients; the control keeps to the tolerated number of colluders."""
        cohort = laboratory.cohort
        enough = 2 * cohort.threshold - cohort.clients
        laboratory.need(cohort.colluders < enough <= cohort.clients - 2, "fewer than two honest clients would be left")
        laboratory.need(cohort.spare >= 1, "nobody may be missing")
        number = enough if defences.stands("more-than-c") else cohort.colluders

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            return adversary.split_and_collude(federation, VICTIM, last(federation, number))

        evidence = recovered(attempt)
        learned = f"with {number} of {cohort.clients} colluding: {evidence.learned}"
        return dataclasses.replace(evidence, learned=learned)


def last(federation: Federation, count: int) -> tuple[int, ...]:
    """The last `count` members."""
    return all_but(federation)[len(federation.clients) - count :]


# -- nonsense ---------------------------------------------


class MalformedVectors(Attack):
    """Masked inputs that are none."""

    name = "malformed-vectors"
    adversary = "malicious client"
    goal = "Get a vector of another size, step or broadcast, or with bits outside the ring, into the sum."
    promises = ("P8",)
    defences = ("frame-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Seven of them to a server that collects; it must stay as it was."""

        def attempt(how: str) -> bool:
            federation = laboratory.federation(defences)
            federation.set_up()
            federation.begin_step()
            good = next(iter(collect(federation, MaskedInput).values()))
            message, frame = messages.decode_to_server(good.data), good.frames[0]
            changed, frames = {
                "too short": (message, (frame[:-1],)),
                "too long": (message, (frame + b"\0",)),
                "bits outside the ring": (message, (frame[:-1] + b"\xff",)),
                "no vector": (message, ()),
                "two vectors": (message, (frame, frame)),
                "of another broadcast": (msgspec.structs.replace(message, broadcast=bytes(32)), (frame,)),
                "of a later step": (msgspec.structs.replace(message, step=2), (frame,)),
            }[how]
            before = snapshot(federation.server)
            try:
                federation.server.receive(good.member, changed, frames)
            except RemoteProtocolError:
                if snapshot(federation.server) != before:
                    return True
                raise
            return snapshot(federation.server) != before

        plan = laboratory.federation().plan
        ways = ["too short", "too long", "no vector", "two vectors", "of another broadcast", "of a later step"]
        if plan.spec(0).length * plan.modulus_bits % 8:
            ways.append("bits outside the ring")
        return counted({how: partial(attempt, how) for how in ways}, what="malformed vectors")


def collect(federation: Federation, kind: type) -> dict[int, Packet]:
    """Run until every client has sent a message of this kind, and take these messages off the wire."""
    taken: dict[int, Packet] = {}
    while federation.wire:
        item = federation.wire.pop(0)
        if item.kind is kind:
            taken[item.member] = item
        else:
            federation.deliver(item)
    return taken


def hostile_messages(data: bytes, chance: random.Random) -> dict[str, bytes]:
    """What a hostile peer may make of a good message."""
    flipped, tag = bytearray(data), bytearray(data)
    flipped[0] ^= 0x40  # the array's header
    tag[3] ^= 0x01  # a letter of the tag
    return {
        "nothing": b"",
        "noise": chance.randbytes(200),
        "half a message": data[: len(data) // 2],
        "a byte too many": data + b"\x00",
        "a bit flipped in its header": bytes(flipped),
        "a bit flipped in its tag": bytes(tag),
        "an array said to hold 2^32 - 1 elements": b"\xdd\xff\xff\xff\xff" + data,
        "5000 nested arrays": b"\x91" * 5000,
        "a ciphertext larger than any": msgspec.msgpack.encode(["shares", bytes(32), [[0, bytes(300_000)]]]),
        "a member that cannot be": msgspec.msgpack.encode(["survivors", bytes(32), 0, [0, 1, 1 << 40]]),
        "text for a key": msgspec.msgpack.encode(["beat", "more"]),
    }


class MalformedMessages(Attack):
    """Bytes that are no message, to both sides."""

    name = "malformed-messages"
    adversary = "malicious client, or server"
    goal = "Crash a party, make it allocate without bound, or get an impossible message past its decoder."
    promises = ("P8",)
    defences = ("schema",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Decode each, and hand it to the machine; only a typed refusal is right."""
        federation = laboratory.federation(defences)
        federation.emit(federation.server.start())
        good = encode_message(PlanOffer(federation.plan))

        def attempt(data: bytes, to_server: bool) -> bool:
            try:
                if to_server:
                    federation.server.receive(VICTIM, messages.decode_to_server(data))
                else:
                    federation.clients[VICTIM].receive(messages.decode_to_client(data))
            except ProtocolError as error:
                if isinstance(error, RemoteProtocolError) and error.code == "malformed":
                    raise
            except Exception:
                return True  # an error that nobody catches: the party is down
            return True

        tries = {
            f"{how}, to the {'server' if to_server else 'client'}": partial(attempt, data, to_server)
            for how, data in hostile_messages(good, laboratory.random(self.name)).items()
            for to_server in (False, True)
        }
        return counted(tries, what="hostile messages")


class SpeaksForAnother(Attack):
    """A member says another member's words."""

    name = "speaks-for-another"
    adversary = "malicious client"
    goal = "Enrol another member with keys that it never chose for this connection."
    promises = ("P5", "P7")
    defences = ("speaker-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send member 1's very advertisement, and one of the own over its number, over member 0's connection."""

        def attempt(own: bool) -> bool:
            federation = laboratory.federation(defences)
            federation.emit(federation.server.start())
            items = adversary.advertised(federation)
            stolen = items[1]
            if own:
                stolen = msgspec.structs.replace(items[0], member=1)
                signature = federation.signers[0].sign("advertisement", *stolen.signed_parts())
                stolen = msgspec.structs.replace(stolen, signature=signature)
            federation.server.receive(0, stolen)
            return 1 in federation.server._advertised

        return counted(
            {"another's words": partial(attempt, False), "own words in its name": partial(attempt, True)},
            what="impersonations",
        )


# -- wrong and missing answers ---------------------------------------------


class WrongAnswers(Attack):
    """Shares that are not what was dealt."""

    name = "wrong-answers"
    adversary = "malicious client"
    goal = "Answer with wrong shares, so that a wrong sum is taken for the true one."
    paper = "McEliece and Sarwate, CACM 1981"
    promises = ("P10",)
    defences = ("commitments",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One liar answers first; then as many as leave too few honest answers."""
        cohort = laboratory.cohort
        shares = []
        for liars in (1, cohort.clients - cohort.threshold + 1):
            federation = laboratory.federation(defences)
            federation.set_up()
            federation.begin_step()
            answers = collect(federation, UnmaskShares)
            for member in cohort.members:
                message = messages.decode_to_server(answers[member].data)
                if member < liars:
                    noise = laboratory.random(f"{self.name} {member}").randbytes(KEY_BYTES * cohort.clients)
                    message = UnmaskShares(federation.plan.digest, 0, noise)
                federation.emit(federation.server.receive(member, message))
            truth = federation.plain_sum(0, cohort.members)
            shares += [float(np.mean(reveal.total != truth)) for reveal in federation.reveals]
            if not federation.reveals and not federation.failures:
                raise Stuck("the step neither opened nor failed")
        worst = max(shares, default=0.0)
        return Evidence(
            measure="coordinates of a revealed sum that are wrong, share",
            value=worst,
            success=0.0,
            learned=f"a sum that is wrong in {worst:.0%} of its coordinates and passes for true"
            if worst
            else "nothing: one liar is left out, and with too many the step fails without a sum",
        )


class WrongDealer(ClientProtocol):
    """Shares secrets that are not those it advertised."""

    def _seal_shares(self, epoch: Any, advertised: Any) -> Any:
        return super()._seal_shares(dataclasses.replace(epoch, seed=Secret(b"\x0d" * KEY_BYTES)), advertised)


class WrongShares(Attack):
    """A client deals shares of other secrets than it advertised."""

    name = "wrong-dealer"
    adversary = "malicious client"
    goal = "Stop the federation by dealing wrong shares of its own secrets, which is noticed when a sum is rebuilt."
    promises = ("L1",)
    defences = ("wrong-dealer",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Run a step with the dealer; the control's clients are all honest."""
        size = laboratory.cohort.clients
        classes: list[type[ClientProtocol]] = [ClientProtocol] * size
        if defences.stands("wrong-dealer"):
            classes[1] = WrongDealer
        federation = laboratory.federation(defences, client_class=classes)
        federation.set_up()
        reveal = federation.step()
        lost = float(reveal is None)
        return Evidence(
            measure="steps lost of those begun, share",
            value=lost,
            success=0.5,
            learned=f"how to stop the others: the epoch ends without a sum ({federation.failures[0]})"
            if lost
            else "nothing is lost",
        )


class DropsAtEachPhase(Attack):
    """A client leaves, at every point where it can."""

    name = "drop-at-each-phase"
    adversary = "malicious or failing client"
    goal = "Leave at a moment at which the others' sum cannot be rebuilt, or comes out wrong."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P10", "P8")
    defences = ("dropped-masks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Lose one member's message of each kind; the others' sum must be theirs."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")
        leaver = laboratory.cohort.clients - 1
        phases: dict[str, set[tuple[int, type]]] = {
            "advertising": {(leaver, Advertisement)},
            "sharing": {(leaver, Shares)},
            "the broadcast": {(leaver, Broadcast)},
            "its input": {(leaver, MaskedInput)},
            "its answer": {(leaver, UnmaskShares)},
        }
        if laboratory.cohort.spare >= 2:
            phases["its signature"] = {(leaver - 1, MaskedInput), (leaver, SurvivorSignature)}
        spoilt = []
        for phase, lost in phases.items():
            federation = laboratory.federation(defences)
            federation.set_up(lost)
            reveal = federation.step(lost)
            if reveal is None or (reveal.total != federation.plain_sum(0, reveal.survivors)).any():
                spoilt.append(phase)
        return Evidence(
            measure=f"of {len(phases)} phases after which the others have no true sum, number",
            value=float(len(spoilt)),
            success=0.0,
            learned=f"the others get no true sum when it leaves at {', '.join(spoilt)}"
            if spoilt
            else "nothing: the others go on each time",
        )


# -- poison ---------------------------------------------


def shifted_by(laboratory: Laboratory, poison: Callable[[Federation], Vector]) -> float:
    """By how much, in clips, one member's vector moves the mean coordinate of the sum away from its being zero."""
    federation = laboratory.federation()
    federation.set_up()
    chance = laboratory.generator("honest inputs")
    federation.input_of = lambda member, compute: {"dream": chance.uniform(-0.5, 0.5, 20) * compute.clips[0]}
    compute_vector = federation.provide

    def provide(member: int, effect: Any) -> list[Any]:
        if member != VICTIM:
            return compute_vector(member, effect)
        vector = poison(federation)
        federation.vectors[effect.step, member] = vector
        return federation.clients[member].provide(effect.step, vector)

    federation.provide = provide  # type: ignore[method-assign]
    reveal = federation.step()
    if reveal is None:
        raise Stuck(f"the step failed: {federation.failures}")
    plan, clip = federation.plan, reveal.clips[0]
    others = [member for member in reveal.survivors if member != VICTIM]
    found = decode_vector(plan, 0, reveal.clips, reveal.total, len(reveal.survivors))["dream"]
    honest = federation.plain_sum(0, others).astype(word_type(plan.modulus_bits))
    without = decode_vector(plan, 0, reveal.clips, honest, len(others))["dream"]
    return float(np.mean(found - without)) / clip


class PoisonedValues(Attack):
    """The package as it is, fed with huge values."""

    name = "poisoned-values"
    adversary = "client with poisoned data"
    goal = "Shift the sum as far as an unchanged client lets hostile values go."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("clip",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Offer three clips in every coordinate; the control encodes without a clip."""

        def poison(federation: Federation) -> Vector:
            plan, clip = federation.plan, federation.plan.spec(0).blocks[0].clip
            top, size = (1 << plan.value_bits) - 1, 1 << plan.modulus_bits
            values = np.full(20, 3 * clip)
            if defences.stands("clip"):
                chance = laboratory.generator(self.name)
                return ring.encode(
                    values, clip, value_bits=plan.value_bits, modulus_bits=plan.modulus_bits, rounding=chance
                )
            scaled = np.round((values + clip) * (top / (2 * clip))).astype(np.int64) % size
            return scaled.astype(word_type(plan.modulus_bits))

        shift = shifted_by(laboratory, poison)
        return Evidence(
            measure="shift of each coordinate of the sum by one client, in clips",
            value=abs(shift),
            success=0.5,
            learned=f"the sum moves by {shift:+.2f} clips in every coordinate, "
            f"the mean by {shift / laboratory.cohort.clients:+.3f}",
        )


class PoisonedRing(Attack):
    """A changed client sends whatever ring element it likes."""

    name = "poisoned-ring-elements"
    adversary = "malicious client"
    goal = "Shift the sum by as much as the ring allows, which has to have room for everybody's clip."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("beyond-the-clip",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Aim at the lowest sum there is, from the others' expected one; the control keeps to its clip."""

        def poison(federation: Federation) -> Vector:
            plan = federation.plan
            top, size = (1 << plan.value_bits) - 1, 1 << plan.modulus_bits
            expected = round((laboratory.cohort.clients - 1) * top / 2)
            aim = (-expected + (laboratory.cohort.clients * top) // 10) % size  # a tenth above the least, to be safe
            element = aim if defences.stands("beyond-the-clip") else 0
            return np.full(20, element, dtype=word_type(plan.modulus_bits))

        shift = shifted_by(laboratory, poison)
        return Evidence(
            measure="shift of each coordinate of the sum by one client, in clips",
            value=abs(shift),
            success=1.5,
            learned=f"the sum moves by {shift:+.2f} clips in every coordinate, "
            f"the mean by {shift / laboratory.cohort.clients:+.3f}",
        )


SWITCHES = {
    "more-than-c": Switch("The control keeps to the tolerated number of colluders."),
    "wrong-dealer": Switch("The control's clients deal the shares that they should."),
    "clip": Switch("Values are clipped before they are encoded."),
    "beyond-the-clip": Switch("The control's client keeps to its clip."),
}

ATTACKS: tuple[Attack, ...] = (
    Colluders(),
    TooManyColluders(),
    MalformedVectors(),
    MalformedMessages(),
    SpeaksForAnother(),
    WrongAnswers(),
    WrongShares(),
    DropsAtEachPhase(),
    PoisonedValues(),
    PoisonedRing(),
)
