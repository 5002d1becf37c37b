"""The epochs of the test vectors: real machines on fixed inputs, with every message written down.

One thing cannot be fixed, ML-KEM's encapsulation: secrets and ciphertexts that the files have are taken from there, and
drawn anew only where there are none for a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import mock

import msgspec
import numpy as np

from codream_protocols import hybrid
from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks
from codream_protocols.client import Certified, ClientProtocol, Compute, Send
from codream_protocols.courses.sums import Sums
from codream_protocols.encoding import integers
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.messages import (
    Advertisement,
    Hello,
    MaskedInput,
    SealDelivery,
    Seals,
    SurvivorSignature,
    ToServer,
    UnmaskShares,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.record import Trajectory
from codream_protocols.record_file import record_bytes
from codream_protocols.server import Effect, EpochCertified, Phase, SendTo, ServerProtocol, StepFinished
from codream_protocols.specs import Block, VectorSpec

Cases = list[dict[str, Any]]
Mode = Literal["lockstep", "resilient"]

DIRECTORY = Path(__file__).parent / "vectors"


def fixed(label: str) -> Callable[[int], bytes]:
    """A generator of fixed bytes: SHA-256 of the label and a counter, one block after the other."""
    blocks = (hashlib.sha256(f"{label} {count}".encode()).digest() for count in range(1 << 20))
    return lambda size: b"".join(next(blocks) for _ in range(-(-size // 32)))[:size]


class Encapsulations:
    """Secrets and ciphertexts, in the order in which they are needed: those of a file first, then fresh ones.

    Args:
        name: the file of vectors.
        ring: whether the file has but one member's, those that it sent, and those that it was sent.
    """

    def __init__(self, name: str, *, ring: bool = False) -> None:
        path = DIRECTORY / f"{name}.json"
        content = {case["name"]: case for case in json.loads(path.read_text())["cases"]} if path.exists() else {}
        ciphertexts = []
        for entry in content.get("messages", {}).get("record", []):
            if entry["kind"] == "Seals":
                message = decode_to_server(bytes.fromhex(entry["data"]))
                assert isinstance(message, Seals)
                ciphertexts += [(entry["from"], item.kem) for item in message.items]
            elif entry["kind"] == "SealDelivery" and ring:
                told = decode_to_client(bytes.fromhex(entry["data"]))
                assert isinstance(told, SealDelivery)
                ciphertexts += [(item.member, item.kem) for item in told.items]
        drawn = content.get("encapsulated", {}).get("pairs", [])
        self._known = {
            (sender, pair["key"]): (bytes.fromhex(pair["secret"]), ciphertext)
            for pair, (sender, ciphertext) in zip(drawn, ciphertexts, strict=True)
            if sender == pair["sender"]
        }
        self._draw, self.pairs = hybrid.encapsulate, list[dict[str, Any]]()
        self.sender = 0

    def __call__(self, public: bytes) -> tuple[bytes, bytes]:
        """Stands for `hybrid.encapsulate`."""
        key = hashlib.sha256(public).hexdigest()
        secret, ciphertext = self._known.get((self.sender, key)) or self._draw(public)
        self.pairs.append({"sender": self.sender, "key": key, "secret": secret.hex()})
        return secret, ciphertext


class _Sums(Sums):
    """Sums, of which the last vector has a resolution of its own."""

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        *others, last = super().specs(honest)
        return *others, msgspec.structs.replace(last, value_bits=10)


class Epoch:
    """An epoch of two steps in one mode, with a course of sums: three members, or six of whom one drops out.

    In resilient mode nobody drops in the first step; in the second the last member's masked input never arrives, which
    takes its block along. Everything that is random is fixed here and written down, and each message is decoded from
    the bytes in the record.
    """

    vectors: ClassVar[dict[str, tuple[Block, ...]]] = {
        "visits": (Block("hours", 5, 1.0), Block("patients", 2, 300, "count")),
        "scores": (Block("score", 3, 0.5),),
    }
    policy = Policy()
    number = 5

    def __init__(self, mode: Mode) -> None:
        size = 3 if mode == "lockstep" else 6
        self._make(mode, range(size), size)
        self.lost: Collection[tuple[int, type, int | None]] = {(5, MaskedInput, 1)} if mode == "resilient" else ()
        self.encapsulations = Encapsulations(f"epoch_{mode}")

    def _make(self, mode: Mode, members: Collection[int], size: int) -> None:
        """Roster, charter, course, and the machines of the server and of these members of so many."""
        self.mode, self.members = mode, members
        identities = [fixed(f"identity {member}")(32) for member in range(size)]
        self.identities = {member: identities[member] for member in members}
        self._signer = Signer(fixed("administrator")(32))
        self.administrator = self._signer.public
        self.roster = Roster(
            "vectors",
            7,
            ServerEntry("tcp://127.0.0.1:5555", fixed("server transport")(32)),
            tuple(
                Member(f"client-{member}", Signer(identity).public, fixed(f"transport {member}")(32))
                for member, identity in enumerate(identities)
            ),
            administrators=(self.administrator,),
            expires="2030-12-31",
            revoked=(Member("left", fixed("left")(32), fixed("left transport")(32)),),
        )
        self.course = _Sums(self.vectors)
        self.charter = Charter(
            roster=self.roster.hash,
            members=size,
            settings=fixed("settings")(32),
            aggregation=Aggregation(mode=mode, value_bits=8),
            blocks=even_blocks(size, 1),
        )
        self.random: dict[int, list[str]] = {member: [] for member in members}
        self.clients = {member: self.client(member, self.noted(member)) for member in members}
        self.server = ServerProtocol(self.charter, self.roster, self.course)
        self.server._next_epoch = self.number
        self.record: Cases = []
        self.inputs: dict[tuple[int, int], list[int]] = {}
        self.sums: list[StepFinished] = []
        self.certified: list[EpochCertified] = []

    @property
    def roster_file(self) -> bytes:
        """The signed roster."""
        return sign_roster(self.roster, self._signer)

    def is_lost(self, member: int, message: ToServer) -> bool:
        """Whether a message never arrives."""
        return (member, type(message), getattr(message, "step", None)) in self.lost

    def client(self, member: int, random_bytes: Callable[[int], bytes]) -> ClientProtocol:
        """A member's machine."""
        return ClientProtocol(
            charter=self.charter,
            roster=self.roster,
            course=self.course,
            member=member,
            signer=Signer(self.identities[member]),
            policy=self.policy,
            random_bytes=random_bytes,
        )

    def noted(self, member: int) -> Callable[[int], bytes]:
        """A member's generator, of which each answer is written down."""
        generator = fixed(f"random {member}")

        def draw(size: int) -> bytes:
            drawn = generator(size)
            self.random[member].append(drawn.hex())
            return drawn

        return draw

    @staticmethod
    def values(member: int, compute: Compute) -> dict[str, np.ndarray[Any, Any]]:
        """A member's numbers."""
        found: dict[str, np.ndarray[Any, Any]] = {}
        for block in compute.spec.blocks:
            places = np.arange(block.length)
            if block.kind == "count":
                found[block.name] = (97 * member + 53 * places + 11) % int(block.clip)
            else:
                found[block.name] = (((7 * member + 5 * places + 3) % 17) / 8.0 - 1.0) * block.clip
        return found

    @cached_property
    def done(self) -> Epoch:
        """The whole epoch."""
        with mock.patch.object(hybrid, "encapsulate", self.encapsulations):
            for member in self.members:
                self.carry(self.server.hello(member, self.clients[member].hello()))
            self.record.clear()  # what is said before the epoch has nothing to do with it
            self.carry(self.server.open_epoch(tuple(self.members)))
            while self.server.phase not in (Phase.VOTING, Phase.IDLE):
                self.carry(self.server.expire())
        return self

    def carry(self, effects: Iterable[Effect]) -> None:
        """Carry messages to and fro until nobody says anything more."""
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            if isinstance(effect, StepFinished):
                self.sums.append(effect)
            elif isinstance(effect, EpochCertified):
                self.certified.append(effect)
            elif isinstance(effect, SendTo):
                waiting += self.deliver(effect)

    def deliver(self, effect: SendTo) -> list[Effect]:
        """Hand a message to a member; what the server does about its answers."""
        member, waiting = effect.member, list[Effect]()
        data = self.note({"to": [member]}, effect)
        self.encapsulations.sender = member
        answers = self.clients[member].receive(decode_to_client(data), effect.frames)
        while answers:
            answer = answers.pop(0)
            if isinstance(answer, Compute):
                answers += self.provide(member, answer)
            elif isinstance(answer, Send) and not isinstance(answer.message, Hello):  # after the course's last epoch
                lost = self.is_lost(member, answer.message)
                sent = self.note({"from": member, "lost": True} if lost else {"from": member}, answer)
                if not lost:
                    waiting += self.server.receive(member, decode_to_server(sent), answer.frames)
            else:
                assert isinstance(answer, Certified | Send)
        return waiting

    def provide(self, member: int, compute: Compute) -> list[Any]:
        """A member's vector; what it is encoded to is written down."""
        client = self.clients[member]

        def noting(plan: Any, step: int, values: Any) -> Any:
            vector, replaced = ClientProtocol._encode(client, plan, step, values)
            self.inputs[member, step] = integers(plan, step, vector).tolist()
            return vector, replaced

        with mock.patch.object(client, "_encode", noting):
            return client.provide(compute.plan, compute.step, self.values(member, compute))

    def note(self, way: dict[str, Any], effect: SendTo | Send) -> bytes:
        """Write a message down, once for all who are sent the same; returns its bytes."""
        data = encode_message(effect.message)
        entry = self.entry(way, type(effect.message).__name__, data, effect.frames)
        for earlier in self.record:
            if "to" in earlier and "to" in way and {**earlier, "to": 0} == {**entry, "to": 0}:
                earlier["to"] += way["to"]
                return data
        self.record += [{**way, **entry}] if entry else []
        return data

    def entry(self, way: dict[str, Any], kind: str, data: bytes, frames: tuple[bytes, ...]) -> dict[str, Any]:
        """What is written down of a message; nothing if empty."""
        packed = {"frames": [frame.hex() for frame in frames]} if frames else {}
        return {"kind": kind, "data": data.hex(), **packed}

    def cases(self) -> Cases:
        """What is fixed, each message in order, sums, chain, and the record."""
        (certified,) = self.certified
        record, _ = certified.kept

        return [
            {"name": "roster", "administrator": self.administrator.hex(), "file": self.roster_file.decode()},
            {
                "name": "charter",
                "settings": self.charter.settings.hex(),
                "mode": self.mode,
                "value_bits": 8,
                "blocks": self.charter.blocks,
            },
            {
                "name": "digests",
                "roster": self.roster.hash.hex(),
                "charter": self.charter.digest.hex(),
                "first head": self.charter.first_head.hex(),
                "links": [link.hex() for link in self.links],
                "head": self.server.head.hex(),
            },
            *(
                {
                    "name": f"member {member}",
                    "identity": self.identities[member].hex(),
                    "random": self.random[member],
                    "integers": [self.inputs[member, step] for step in range(2)],
                }
                for member in self.members
            ),
            {"name": "encapsulated", "pairs": self.encapsulations.pairs},
            {"name": "messages", "record": self.record},
            *self.sum_cases(),
            {
                "name": "record",
                "votes": [vote.member for vote in record.votes],
                "file": record_bytes(certified.kept).hex(),
            },
        ]

    def sum_cases(self) -> Cases:
        """Each step's sum."""
        return [
            {
                "name": f"sum of step {finished.step}",
                "survivors": finished.survivors,
                "total": finished.total.tolist(),
                "decoded": {name: array.tolist() for name, array in finished.sums.items()},
            }
            for finished in self.sums
        ]

    @property
    def links(self) -> list[bytes]:
        """chain_0, chain_1, chain_2, as a member that catches up computes them."""
        client = self.client(0, fixed("nothing of its own"))
        (certified,) = self.certified
        return client.history.replay(certified.kept).links


class RingEpoch(Epoch):
    """An epoch of two steps on a ring: of 300 members ten blocks are invited, with numbers up to 299.

    Two advertisements never arrive, so that a block is not shown; its third member votes by the record. In the second
    step one member falls silent, which takes its block along. Of all seals those of one member are written down, whole,
    and of the other messages their digests: seals alone hang on what cannot be fixed. Not certified, which takes more
    votes than are there.
    """

    cohort = tuple(one for block in (1, 13, 27, 40, 66, 84, 85, 86, 95, 99) for one in range(3 * block, 3 * block + 3))
    watched = 285

    def __init__(self) -> None:
        self._make("resilient", self.cohort, 300)
        silent = {(40, kind, 1) for kind in (MaskedInput, SurvivorSignature, UnmaskShares)}
        self.lost = {(120, Advertisement, None), (121, Advertisement, None), *silent}
        self.encapsulations = Encapsulations("epoch_ring", ring=True)

    @property
    def public(self) -> Trajectory:
        """What is public of the epoch."""
        assert self.server._epoch is not None and self.server._epoch.public is not None
        return self.server._epoch.public

    def entry(self, way: dict[str, Any], kind: str, data: bytes, frames: tuple[bytes, ...]) -> dict[str, Any]:
        """See `Epoch`: of a seal that is not the watched member's nothing, and of all else digests."""
        if kind in ("Seals", "SealDelivery"):
            own = self.watched in (way.get("from"), *way.get("to", ()))
            return {"kind": kind, "data": data.hex()} if own else {}
        digests = [hashlib.sha256(part).hexdigest() for part in (data, *frames)]
        return {"kind": kind, "bytes": len(data), "digests": digests}

    def cases(self) -> Cases:
        """See `Epoch`."""
        public, found = self.public, self.server._epoch
        assert found is not None and found.ring is not None and public.plan.degree is not None
        own = hashlib.sha256(found.advertised[self.watched].kem_key).hexdigest()
        pairs = self.encapsulations.pairs
        return [
            {
                "name": "charter",
                "roster": self.roster.hash.hex(),
                "members": self.charter.members,
                "settings": self.charter.settings.hex(),
                "mode": self.mode,
                "value_bits": 8,
                "digest": self.charter.digest.hex(),
            },
            {
                "name": "random",
                "rule": "of member M each draw is SHA-256 of 'random M B', in ASCII, for B = 0, 1, ..., of as many "
                "blocks as it needs, joined and cut to its size; the next draw begins with the next block",
            },
            {
                "name": "ring",
                "neighbours": public.plan.degree.neighbours,
                "threshold": public.plan.degree.threshold,
                "signers": public.plan.least_signers,
                "of": {member: found.ring.of(member) for member in found.ring.members},
            },
            {
                "name": "digests",
                "plan": public.plan.digest.hex(),
                "transcript": found.transcript.hex(),
                "links": [link.hex() for link in public.links],
            },
            *(
                {
                    "name": f"member {member}",
                    "identity": self.identities[member].hex(),
                    "integers": [self.inputs[member, step] for step in range(2)] if member in public.members else [],
                }
                for member in self.members
            ),
            {
                "name": "encapsulated",
                "pairs": [
                    *(pair for pair in pairs if pair["sender"] == self.watched),
                    *(pair for pair in pairs if pair["key"] == own),
                ],
            },
            {
                "name": "messages",
                "lost": sorted((member, kind.__name__) for member, kind, _ in self.lost),
                "record": self.record,
            },
            *self.sum_cases(),
        ]
