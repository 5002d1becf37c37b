"""Malicious clients: colluding, speaking for others, leaving, sending nonsense, answering wrongly."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np

from codream_protocols import charter as charter_module
from codream_protocols import hybrid, messages
from codream_protocols import server as server_module
from codream_protocols.charter import Plan
from codream_protocols.errors import ProtocolError, RemoteProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import (
    Advertisement,
    Invitation,
    MaskedInput,
    SealDelivery,
    Seals,
    SurvivorSignature,
    UnmaskShares,
    encode_message,
)
from codream_protocols.packing import packed_size
from codream_protocols.resilient import ResilientKeys
from codream_protocols.secret import Secret
from codream_protocols.server import ServerProtocol
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, lockstep, resilient
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, numbered, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import SWITCHES as COMMON
from secure_codream.threats.laboratory.switches import Switch, elements_bits

# -- collusion ---------------------------------------------


class Colluders(Attack):
    """As many as the charter tolerates tell the server everything."""

    name = "colluders-within-the-promise"
    adversary = "c clients with the server"
    goal = "Unmask a client with all that the tolerated colluders hold, and different questions to the others."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P9", "P1")
    defences = ("threshold-rule",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Split the honest clients; without the rule the plan's threshold is one that tolerates fewer."""

        def attempt() -> tuple[Vector, Vector]:
            federation = resilient(laboratory, defences)
            colluders = last(federation, federation.charter.aggregation.colluders)
            return adversary.split_and_collude(federation.masked(), VICTIM, colluders)

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
        federation = resilient(laboratory, defences)
        clients, colluders = len(federation.clients), federation.charter.aggregation.colluders
        enough = 2 * federation.plan.threshold - clients
        laboratory.need(colluders < enough <= clients - 2, "fewer than two honest clients would be left")
        number = enough if defences.stands("more-than-c") else colluders

        def attempt() -> tuple[Vector, Vector]:
            return adversary.split_and_collude(federation.masked(), VICTIM, last(federation, number))

        evidence = recovered(attempt)
        learned = f"with {number} of {clients} colluding: {evidence.learned}"
        return dataclasses.replace(evidence, learned=learned)


def last(federation: Federation, count: int) -> tuple[int, ...]:
    """The last `count` members."""
    return all_but(federation)[len(federation.clients) - count :]


class AllButTwoCollude(Attack):
    """Lockstep: everybody but two tells the server all there is to tell."""

    name = "all-but-two-collude"
    adversary = "n - 2 clients with the server"
    goal = "Take all masks that colluders know off a client's vector, where one other client stays honest."
    paper = "Bell et al., CCS 2020"
    promises = ("P1", "P9")
    defences = ("another-honest",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each colluder tells the key that it shares with the victim; in the control nobody else is honest."""
        federation = lockstep(laboratory, defences)
        if not federation.set_up():
            raise Stuck(f"the set-up failed: {federation.failures}")
        honest = {VICTIM, 1} if defences.stands("another-honest") else {VICTIM}
        told = {
            member: _pair_key(federation, member, VICTIM) for member in federation.everybody if member not in honest
        }
        federation.compute()
        opened = adversary.masked_input(federation, 0, VICTIM)
        for member, key in told.items():
            add_mask(opened, key, suite=federation.plan.aggregation.suite, negative=member > VICTIM)
        return recovered(lambda: (adversary.reduce(federation, opened), federation.vectors[0, VICTIM]))


def _pair_key(federation: Federation, member: int, other: int) -> bytes:
    """The mask key of step 0 that `member` shares with `other`."""
    epoch = federation.clients[member]._epoch
    if epoch is None or epoch.public is None:
        raise Stuck(f"member {member} is in no epoch")
    return hybrid.pair_mask_key(epoch.keys._roots[other].reveal(), 0, epoch.public.chain)


# -- nonsense ---------------------------------------------


Contexts = Mapping[str, Callable[[], AbstractContextManager[Any]]]


@contextmanager
def alone(standing: Defences, contexts: Contexts) -> Iterator[None]:
    """Those of these defences that are off for one try, and for no other: the suite itself leaves them in place."""
    with ExitStack() as stack:
        for name, off in contexts.items():
            if not standing.stands(name):
                stack.enter_context(off())
        yield


def _put_right(change: Callable[[ServerProtocol, Any, Any], tuple[Any, Any]]) -> AbstractContextManager[Any]:
    """A server that puts a masked input right before it looks at it, and so does not see what is wrong with it."""
    handler = server_module._HANDLERS[MaskedInput]

    def lenient(self: ServerProtocol, member: int, message: Any, frames: Any) -> Any:
        return handler(self, member, *change(self, message, frames))

    return patch.dict(server_module._HANDLERS, {MaskedInput: lenient})


def _first_frame(server: ServerProtocol, message: Any, frames: Any) -> tuple[Any, Any]:
    assert server.plan is not None  # noqa: S101 - asked while it collects
    size = packed_size(server.plan.spec(message.step).words, server.plan.modulus_bits(message.step))
    return message, (*frames, bytes(size))[:1]


def _of_this_plan(server: ServerProtocol, message: Any, frames: Any) -> tuple[Any, Any]:
    assert server.plan is not None  # noqa: S101 - asked while it collects
    return msgspec.structs.replace(message, plan=server.plan.digest), frames


def _of_this_step(server: ServerProtocol, message: Any, frames: Any) -> tuple[Any, Any]:
    return msgspec.structs.replace(message, step=server.step), frames


def _at_this_state(server: ServerProtocol, message: Any, frames: Any) -> tuple[Any, Any]:
    public = server._epoch.public if server._epoch else None
    return (message if public is None else msgspec.structs.replace(message, chain=public.chain)), frames


_VECTOR_CHECKS: Contexts = {
    "frame-check": COMMON["frame-check"].off,
    "one-frame": partial(_put_right, _first_frame),
    "same-plan": partial(_put_right, _of_this_plan),
    "same-step": partial(_put_right, _of_this_step),
    "same-state": partial(_put_right, _at_this_state),
}
_BAD_VECTORS: Mapping[str, str] = {
    "too short": "frame-check",
    "too long": "frame-check",
    "bits outside the ring": "frame-check",
    "no vector": "one-frame",
    "two vectors": "one-frame",
    "of another plan": "same-plan",
    "of a later step": "same-step",
    "at another state": "same-state",
}


def _outside(plan: Plan) -> Vector:
    """Which bits of a first step's packed vector no element has, as ones."""
    return ~elements_bits(plan.spec(0).words, plan.modulus_bits(0))


class MalformedVectors(Attack):
    """Masked inputs that are none."""

    name = "malformed-vectors"
    adversary = "malicious client"
    goal = "Get a vector of another size, plan, step or state, or with bits outside the ring, into the sum."
    promises = ("P8",)
    defences = tuple(_VECTOR_CHECKS)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each to a server that collects; it may be counted for none of them, and none may change it."""

        def attempt(how: str, standing: Defences) -> bool:
            with alone(standing, _VECTOR_CHECKS):
                return self._counted(how, lockstep(laboratory, Defences()))

        spare = _outside(lockstep(laboratory, Defences()).plan).any()
        tries = {
            how: Try(partial(attempt, how), (defence,))
            for how, defence in _BAD_VECTORS.items()
            if spare or how != "bits outside the ring"
        }
        return counted(tries, what="malformed vectors", defences=defences)

    def _counted(self, how: str, federation: Federation) -> bool:
        if not federation.set_up():
            raise Stuck(f"the set-up failed: {federation.failures}")
        federation.compute()
        vectors = collect(federation, MaskedInput)
        federation.deliver(vectors[1])
        message, (frame,) = vectors[VICTIM].message, vectors[VICTIM].frames
        replace, outside = msgspec.structs.replace, _outside(federation.plan)
        changed, frames = {
            "too short": (message, (frame[:-1],)),
            "too long": (message, (frame + b"\0",)),
            "bits outside the ring": (message, ((np.frombuffer(frame, dtype=np.uint8) | outside).tobytes(),)),
            "no vector": (message, ()),
            "two vectors": (message, (frame, frame)),
            "of another plan": (replace(message, plan=bytes(32)), (frame,)),
            "of a later step": (replace(message, step=2), (frame,)),
            "at another state": (replace(message, chain=bytes(32)), (frame,)),
        }[how]
        before = snapshot(federation.server)
        try:
            federation.server.receive(VICTIM, changed, frames)  # type: ignore[arg-type]
        except RemoteProtocolError:
            if snapshot(federation.server) != before:
                return True
            raise
        epoch = federation.server._epoch  # given up where a member stands at another state, as it should be
        return epoch is not None and epoch.step is not None and VICTIM in epoch.step.inputs


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
        "a ciphertext larger than any": msgspec.msgpack.encode(
            ["seals", bytes(32), [[0, bytes(1088), bytes(300_000), bytes(64)]]]
        ),
        "a member that cannot be": msgspec.msgpack.encode(["survivors", bytes(32), 0, [0, 1, 1 << 40]]),
        "text for a key": msgspec.msgpack.encode(["beat", "more", 0]),
        "a number for sums that cannot be": msgspec.msgpack.encode(["beat", b"", 1 << 20]),
    }


class MalformedMessages(Attack):
    """Bytes that are no message, to both sides."""

    name = "malformed-messages"
    adversary = "malicious client, or server"
    goal = "Crash a party, or get an impossible message past its decoder."
    promises = ("P8",)
    defences = ("schema",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Decode each, and hand it to the machine; only a typed refusal is right."""
        federation = laboratory.federation(defences)
        federation.hello()
        good = encode_message(Invitation(federation.offer()))

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
    defences = ("speaker-check", "server-signatures")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send member 1's very advertisement, and one of the own over its number, over member 0's connection."""

        def attempt(own: bool, standing: Defences) -> bool:
            with alone(standing, _SPEAKER_CHECKS):
                federation = laboratory.federation(Defences())
                federation.hello()
                federation.drain()
                federation.emit(federation.server.open_epoch(federation.everybody))
                asked = [item for item in federation.wire if item.kind is Invitation]
                items = {item.member: adversary.said(federation.tell(item.member, item.message)) for item in asked[:2]}  # type: ignore[arg-type]
                stolen = items[1]
                if own:
                    stolen = msgspec.structs.replace(items[0], member=1)
                    signature = federation.signers[0].sign("advertisement", *stolen.signed_parts())
                    stolen = msgspec.structs.replace(stolen, signature=signature)
                federation.server.receive(0, stolen)
                epoch = federation.server._epoch
                return epoch is not None and 1 in epoch.advertised

        tries = {
            "another's words": Try(partial(attempt, False), ("speaker-check",)),
            "own words in its name": Try(partial(attempt, True), ("speaker-check", "server-signatures")),
        }
        return counted(tries, what="impersonations", defences=defences)


_SPEAKER_CHECKS: Contexts = {"speaker-check": COMMON["speaker-check"].off, "server-signatures": adversary.credulous}


class AnotherCharter(Attack):
    """A member whose files say something else."""

    name = "hello-of-another-charter"
    adversary = "misled or malicious client"
    goal = "Be counted as present under another charter, so that each set-up with it fails."
    promises = ("P8",)
    defences = ("charter-at-hello",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Say Hello with the digest of a charter that differs in its settings alone."""

        def attempt() -> bool:
            federation = laboratory.federation(defences)
            hello = federation.clients[VICTIM].hello()
            federation.server.hello(VICTIM, msgspec.structs.replace(hello, charter=bytes(32)))
            return VICTIM not in federation.server.absent

        return counted({"another charter's Hello": attempt}, what="other charters")


# -- wrong and missing answers ---------------------------------------------


class WrongAnswers(Attack):
    """Shares that are not what was dealt."""

    name = "wrong-answers"
    adversary = "malicious client"
    goal = "Answer with wrong shares, so that a wrong sum is taken for the true one."
    paper = "McEliece and Sarwate, CACM 1981"
    promises = ("P10",)
    defences = ("commitments", "range-check")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One liar answers first; then as many as leave too few honest answers.

        What wrong shares make of a sum is noise, most of it out of range: both checks have to be gone.
        """
        shares = []
        size = len(resilient(laboratory, defences).clients)
        threshold = resilient(laboratory, defences).plan.threshold
        for liars in (1, size - threshold + 1):
            federation = resilient(laboratory, defences)
            federation.set_up()
            federation.compute()
            answers = collect(federation, UnmaskShares)
            for member in federation.everybody:
                message: Any = answers[member].message
                if member < liars:
                    noise = laboratory.random(f"{self.name} {member}").randbytes(KEY_BYTES * size)
                    message = UnmaskShares(federation.plan.digest, 0, noise)
                try:
                    federation.emit(federation.server.receive(member, message))
                except RemoteProtocolError:
                    continue  # the step has failed already
            truth = federation.plain_sum(0, federation.everybody)
            shares += [float(np.mean(reveal.total != truth)) for reveal in federation.reveals]
            if not federation.reveals and not federation.failures:
                raise Stuck("the step neither opened nor failed")
        worst = max(shares, default=0.0)
        return numbered(
            "coordinates of a published sum that are wrong, share",
            worst,
            found=f"a sum that is wrong in {worst:.0%} of its coordinates and passes for true",
            otherwise="nothing: one liar is left out, and with too many the step fails without a sum",
        )


def wrong_dealer(member: int) -> Callable[[], AbstractContextManager[Any]]:
    """A member that shares other secrets than those it advertised."""
    plaintexts = ResilientKeys._plaintexts

    def deal(self: ResilientKeys, receivers: tuple[int, ...]) -> dict[int, bytes]:
        if self._member != member:
            return plaintexts(self, receivers)
        seed, self._seed = self._seed, Secret(b"\x0d" * KEY_BYTES)
        try:
            return plaintexts(self, receivers)
        finally:
            self._seed = seed

    return lambda: patch.object(ResilientKeys, "_plaintexts", deal)


class WrongShares(Attack):
    """A client deals shares of other secrets than it advertised."""

    name = "wrong-dealer"
    adversary = "malicious client"
    goal = "Stop the federation by dealing wrong shares of its own secrets, which is noticed when a sum is rebuilt."
    promises = ("L1",)
    defences = ("wrong-dealer",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Run a step with the dealer; the control's clients are all honest."""
        with wrong_dealer(1)() if defences.stands("wrong-dealer") else nullcontext():
            federation = resilient(laboratory, defences)
            federation.set_up()
            return _lost(federation, federation.step())


class Absent(Attack):
    """Lockstep: a member that just does not answer."""

    name = "silent-member"
    adversary = "malicious or failing client"
    goal = "Stop the federation by saying nothing, where every sum is everybody's."
    promises = ("L1",)
    defences = ("silent",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Withhold one member's vector; the control withholds nothing."""
        federation = lockstep(laboratory, defences)
        federation.set_up()
        lost = {(VICTIM, MaskedInput)} if defences.stands("silent") else set()
        return _lost(federation, federation.step(lost))


def _lost(federation: Federation, sums: object | None) -> Evidence:
    """Whether the others were stopped: there is no sum of their step."""
    return Evidence(
        measure="steps lost of those begun, share",
        value=float(sums is None),
        success=0.5,
        learned=f"how to stop the others: {federation.failures[0]}" if sums is None else "nothing is lost",
    )


class DropsAtEachPhase(Attack):
    """A client leaves, at every point where it can."""

    name = "drop-at-each-phase"
    adversary = "malicious or failing client"
    goal = "Leave at a moment at which the others' sum cannot be rebuilt, or comes out wrong."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P10", "P8")
    defences = ("dropped-masks", "new-set-up")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Lose one member's message of each kind; the sum that the others get then must be theirs."""
        leaver = laboratory.cohort.clients - 1
        in_set_up: dict[str, set[tuple[int, type]]] = {
            "advertising": {(leaver, Advertisement)},
            "sealing": {(leaver, Seals)},
        }
        in_step: dict[str, set[tuple[int, type]]] = {
            "the seals": {(leaver, SealDelivery)},
            "its input": {(leaver, MaskedInput)},
            "its signature": {(leaver - 1, MaskedInput), (leaver, SurvivorSignature)},
            "its answer": {(leaver, MaskedInput), (leaver, UnmaskShares)},
        }

        def attempt(lost: set[tuple[int, type]], standing: Defences) -> bool:
            with alone(standing, {"dropped-masks": COMMON["dropped-masks"].off}):
                federation = resilient(laboratory, Defences())
                if not federation.set_up(lost) and standing.stands("new-set-up"):
                    federation.set_up(cohort=adversary.without_block(federation, leaver))
                reveal = federation.step(lost)
                return reveal is None or bool((reveal.total != federation.plain_sum(0, reveal.survivors)).any())

        tries = {f"at {how}": Try(partial(attempt, lost), ("new-set-up",)) for how, lost in in_set_up.items()}
        tries |= {f"at {how}": Try(partial(attempt, lost), ("dropped-masks",)) for how, lost in in_step.items()}
        return counted(tries, what="departures that spoil the others' sum", defences=defences)


def _low_threshold() -> AbstractContextManager[Any]:
    """Thresholds with which c colluders and two halves of the honest members have both kinds of share."""

    def threshold(cohort: int, colluders: int) -> int:
        return (cohort + colluders) // 2

    return patch.object(charter_module, "default_threshold", threshold)


SWITCHES = {
    "threshold-rule": Switch("A secret is rebuilt from more than (n + c) / 2 shares.", _low_threshold),
    "more-than-c": Switch("The control keeps to the tolerated number of colluders."),
    "another-honest": Switch("One more client is honest; in the control all others collude."),
    "wrong-dealer": Switch("The control's clients deal the shares that they should."),
    "silent": Switch("The control's member answers."),
    "frame-check": Switch(COMMON["frame-check"].what),
    "one-frame": Switch("A vector is one frame."),
    "same-plan": Switch("A vector of another plan is refused."),
    "same-step": Switch("A vector of another step is refused."),
    "same-state": Switch("A vector that was computed at another state or history is told apart."),
    "speaker-check": Switch(COMMON["speaker-check"].what),
    "server-signatures": Switch("The server checks signatures too, so that what it hands on is taken."),
    "dropped-masks": Switch(COMMON["dropped-masks"].what),
    "new-set-up": Switch("A set-up that fails is made again, without whoever was lost."),
}

ATTACKS: tuple[Attack, ...] = (
    Colluders(),
    TooManyColluders(),
    AllButTwoCollude(),
    MalformedVectors(),
    MalformedMessages(),
    SpeaksForAnother(),
    AnotherCharter(),
    WrongAnswers(),
    WrongShares(),
    Absent(),
    DropsAtEachPhase(),
)
