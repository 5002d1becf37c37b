"""Writes the project's own test vectors from fixed inputs: `python tests/protocols/pin_vectors.py`; then read the diff.

A changed vector means that two versions of the protocol no longer understand each other: raise the version in
`keyschedule.PROTOCOL` when that is intended. One thing cannot be fixed, ML-KEM's encapsulation: secrets and ciphertexts
that the files have are taken from there, and drawn anew only where there are none for a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import mock

import msgspec
import numpy as np

from codream_protocols import chain, hybrid, keyschedule, packing, shamir, starts
from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks
from codream_protocols.client import Certified, ClientProtocol, Compute, Send
from codream_protocols.courses.sums import Sums
from codream_protocols.encoding import integers
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.keyschedule import StepKeys
from codream_protocols.masks import SUITES, add_mask, word_type
from codream_protocols.messages import Hello, MaskedInput, Seals, decode_to_client, decode_to_server, encode_message
from codream_protocols.record_file import record_bytes
from codream_protocols.secret import Secret
from codream_protocols.server import Effect, EpochCertified, Phase, SendTo, ServerProtocol, StepFinished
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.tag import TagKey, tag_bytes

Cases = list[dict[str, Any]]
Mode = Literal["lockstep", "resilient"]

DIRECTORY = Path(__file__).parent / "vectors"
SEED, PLAN, TRANSCRIPT, CHAIN, HEAD = (bytes([value]) * 32 for value in (0x11, 0x22, 0x33, 0x44, 0x55))
PRIVATE, PEER = bytes(range(32)), bytes(range(32, 64))
LOWER, HIGHER, CIPHERTEXT = bytes([0x66]) * 32, bytes([0x77]) * 32, bytes([0x88]) * hybrid.KEM_CIPHERTEXT_BYTES
MEMBERS = (0, 1, 4)
VALUES = [bytes([0x90 + member]) * 32 for member in MEMBERS]


def counting(count: int) -> bytes:
    """Fixed bytes in place of random ones: 1, 2, 3, ... modulo 251."""
    return bytes((position + 1) % 251 for position in range(count))


def fixed(label: str) -> Callable[[int], bytes]:
    """A generator of fixed bytes: SHA-256 of the label and a counter, one block after the other."""
    blocks = (hashlib.sha256(f"{label} {count}".encode()).digest() for count in range(1 << 20))
    return lambda size: b"".join(next(blocks) for _ in range(-(-size // 32)))[:size]


def named(pairs: Iterable[tuple[str, bytes]]) -> Cases:
    """One case a value."""
    return [{"name": name, "output": value.hex()} for name, value in pairs]


# -- derivations ---------------------------------------------


def key_schedule() -> Cases:
    """Each derivation once, and the ratchets over three steps; inputs as at the top of this file."""
    return named(_key_schedule())


def _key_schedule() -> Iterator[tuple[str, bytes]]:
    yield "labelled", keyschedule.labelled("label", b"", b"ab", b"c")
    yield "digest", keyschedule.digest("label", b"", b"ab", b"c")
    agreed = keyschedule.agree(PRIVATE, keyschedule.public_key(PEER))
    yield "agreed", agreed
    yield (
        "seal key from 5 to 2",
        hybrid.seal_key(agreed, LOWER, transcript=TRANSCRIPT, sender=5, receiver=2, ciphertext=CIPHERTEXT),
    )
    root = hybrid.pair_root(agreed, LOWER, HIGHER, transcript=TRANSCRIPT, pair=(5, 2))
    for step in range(3):
        key = hybrid.pair_mask_key(root, step, CHAIN)
        yield f"pair root of step {step}", root
        yield f"pair mask key of step {step}", key
        yield f"tag mask of step {step}", tag_bytes(hybrid.tag_mask(key))
        root = hybrid.next_root(root)
    for member, value in zip(MEMBERS, VALUES, strict=True):
        share = hybrid.start_share(value)
        yield f"commitment of {member}", hybrid.commit(PLAN, member, value)
        yield f"start share of {member}", share
        yield f"start commitment of {member}", hybrid.commit_start(PLAN, member, share)
    group_key = hybrid.group_key(TRANSCRIPT, MEMBERS, VALUES)
    yield "group key", group_key
    yield "start seed", hybrid.start_seed(TRANSCRIPT, MEMBERS, b"".join(map(hybrid.start_share, VALUES)))
    yield "tag secret of step 7", hybrid.tag_secret(group_key, 7, CHAIN)
    seed = Secret(SEED)
    for step in range(3):
        keys = StepKeys(seed, PLAN, step)
        self_mask, private = keys.self_mask.reveal(), keys.mask_private.reveal()
        yield f"seed of step {step}", seed.reveal()
        yield f"mask key of step {step}", private
        yield f"public mask key of step {step}", keyschedule.public_key(private)
        yield f"self mask of step {step}", self_mask
        yield f"self mask commitment of step {step}", keyschedule.self_mask_commitment(self_mask, PLAN, step)
        yield f"self mask stream of step {step}", keyschedule.self_mask_key(self_mask, PLAN, step, CHAIN)
        seed = keyschedule.ratchet(seed, PLAN, step)
    pairwise_key = keyschedule.pairwise_mask_key(
        PRIVATE,
        keyschedule.public_key(PEER),
        plan=PLAN,
        transcript=TRANSCRIPT,
        step=7,
        broadcast=CHAIN,
        pair=(5, 2),
    )
    yield "pairwise mask of 5 and 2, step 7", pairwise_key


def states() -> dict[str, np.ndarray[Any, Any]]:
    """A state with each type that there is."""
    types = ("<f4", "<f8", "<i8", "<i4", "|u1", "<u4")
    return {f"a{place}": np.arange(6, dtype=kind).reshape(2, 3) for place, kind in enumerate(types)}


def chains() -> Cases:
    """Transcript, links, head and what a vote signs."""
    signer, state = Signer(PRIVATE), states()
    first = chain.first_link(TRANSCRIPT, SEED, MEMBERS, state)
    last = chain.next_link(first, MEMBERS[1:], b"frame", bytes(range(16)), {})
    vote = chain.vote_statement(HEAD, PLAN, last)
    return named(
        [
            ("transcript of two", chain.transcript(PLAN, [SEED, HEAD])),
            ("first link", first),
            ("next link, empty state", last),
            ("next head", chain.next_head(HEAD, PLAN, last)),
            ("statement of a vote", keyschedule.labelled("vote", *vote)),
            ("vote", signer.sign("vote", *vote)),
        ]
    )


def tagged(length: int, bits: int) -> list[int]:
    """Integers below 2^bits."""
    return [(position * 0x9E3779B1 + 12345) % (1 << bits) for position in range(length)]


def tags() -> Cases:
    """a' X b of `tagged` numbers, pads of members, and the tag of one; 2,050 numbers are two rows."""
    cases = []
    for length, bits in [(1, 8), (9, 10), (2050, 25), (2050, 32)]:
        key, values = TagKey(SEED, length), tagged(length, bits)
        array = np.array(values, dtype=np.int64)
        case = {"length": length, "bits": bits, "product": tag_bytes(key.of(array)).hex()}
        pads = {str(member): tag_bytes(key.pad(member)).hex() for member in (0, 1, 199)}
        cases.append({**case, "pads": pads, "tag of 1": tag_bytes(key.tag(1, array)).hex()})
    signed = np.array([-1, 2, -(1 << 24)], dtype=np.int64)
    cases.append({"length": 3, "values": signed.tolist(), "product": tag_bytes(TagKey(SEED, 3).of(signed)).hex()})
    return cases


def start_images() -> Cases:
    """The first two start images of a seed, as bytes of little-endian float32."""
    rules = {name: starts.start_rule(name) for name in ("noise", "strokes", "shapes")}
    shape = (1, 4, 4)
    return [
        {"rule": name, "shape": shape, "images": rule(SEED, 2, shape).astype("<f4").tobytes().hex()}
        for name, rule in rules.items()
    ]


# -- arithmetic ---------------------------------------------


def masks() -> Cases:
    """The first 40 bytes of the first two pieces of each suite's stream, read as words of 16 and of 32 bits."""
    cases = []
    for suite in SUITES:
        for modulus_bits in (16, 32):
            words, piece = 40 * 8 // modulus_bits, (1 << 18) * 8 // modulus_bits
            vector = np.zeros(piece + words, dtype=word_type(modulus_bits))
            add_mask(vector, PRIVATE, suite=suite)
            first, second = vector[:words].tolist(), vector[piece:].tolist()
            cases.append({"suite": suite, "modulus_bits": modulus_bits, "words": first, "second piece": second})
    return cases


def packed() -> Cases:
    """Ten elements at each width."""
    cases = []
    for bits in range(1, 33):
        elements = tagged(10, bits)
        data = packing.pack(np.array(elements, dtype=word_type(bits)), bits)
        cases.append({"bits": bits, "elements": elements, "packed": data.hex()})
    return cases


def shares() -> Cases:
    """Two secrets of four bytes at several thresholds; coefficients from `counting`."""
    secrets = np.array([[0, 1, 2, 255], [83, 202, 17, 128]], dtype=np.uint8)
    cases = []
    for threshold, points in [(1, [1, 2]), (2, [1, 2, 3]), (3, [1, 2, 5, 255]), (5, [9, 8, 7, 6, 5, 4])]:
        split = shamir.split(secrets, threshold, points, counting)
        cases.append(
            {
                "threshold": threshold,
                "secrets": [row.tobytes().hex() for row in secrets],
                "shares": {str(point): [row.tobytes().hex() for row in rows] for point, rows in split.items()},
            }
        )
    return cases


# -- epochs ---------------------------------------------


class Encapsulations:
    """Secrets and ciphertexts, in the order in which they are needed: those of a file first, then fresh ones.

    Args:
        name: the file of vectors.
    """

    def __init__(self, name: str) -> None:
        path = DIRECTORY / f"{name}.json"
        content = {case["name"]: case for case in json.loads(path.read_text())["cases"]} if path.exists() else {}
        sent = [entry for entry in content.get("messages", {}).get("record", []) if entry["kind"] == "Seals"]
        ciphertexts = [
            (entry["from"], item.kem)
            for entry in sent
            for item in msgspec.msgpack.decode(bytes.fromhex(entry["data"]), type=Seals).items
        ]
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

    vectors: ClassVar = {
        "visits": (Block("hours", 5, 1.0), Block("patients", 2, 300, "count")),
        "scores": (Block("score", 3, 0.5),),
    }
    policy = Policy()
    number = 5

    def __init__(self, mode: Mode) -> None:
        self.mode, size = mode, 3 if mode == "lockstep" else 6
        self.members = range(size)
        self.lost = (5, 1) if mode == "resilient" else None  # member and step
        self.identities = [fixed(f"identity {member}")(32) for member in self.members]
        administrator = Signer(fixed("administrator")(32))
        signers = [Signer(private) for private in self.identities]
        self.roster = Roster(
            "vectors",
            7,
            ServerEntry("tcp://127.0.0.1:5555", fixed("server transport")(32)),
            tuple(
                Member(f"client-{member}", signers[member].public, fixed(f"transport {member}")(32))
                for member in self.members
            ),
            administrators=(administrator.public,),
            expires="2030-12-31",
            revoked=(Member("left", fixed("left")(32), fixed("left transport")(32)),),
        )
        self.roster_file = sign_roster(self.roster, administrator)
        self.administrator = administrator.public
        self.course = _Sums(self.vectors)
        self.charter = Charter(
            roster=self.roster.hash,
            members=size,
            settings=fixed("settings")(32),
            aggregation=Aggregation(mode=mode, value_bits=8),
            blocks=even_blocks(size, 1),
        )
        self.random: list[list[str]] = [[] for _ in self.members]
        self.clients = [self.client(member, self.noted(member)) for member in self.members]
        self.server = ServerProtocol(self.charter, self.roster, self.course)
        self.server._next_epoch = self.number
        self.encapsulations = Encapsulations(f"epoch_{mode}")
        self.record: Cases = []
        self.inputs: dict[tuple[int, int], list[int]] = {}
        self.sums: list[StepFinished] = []
        self.certified: list[EpochCertified] = []

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
            self.carry(self.server.open_epoch(self.charter.everybody))
            while self.server.phase is not Phase.IDLE:
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
                lost = isinstance(answer.message, MaskedInput) and (member, answer.message.step) == self.lost
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
        entry: dict[str, Any] = {"kind": type(effect.message).__name__, "data": data.hex()}
        if effect.frames:
            entry["frames"] = [frame.hex() for frame in effect.frames]
        for earlier in self.record:
            if "to" in earlier and "to" in way and {**earlier, "to": 0} == {**entry, "to": 0}:
                earlier["to"] += way["to"]
                return data
        self.record.append({**way, **entry})
        return data

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
            *(
                {
                    "name": f"sum of step {finished.step}",
                    "survivors": finished.survivors,
                    "total": finished.total.tolist(),
                    "decoded": {name: array.tolist() for name, array in finished.sums.items()},
                }
                for finished in self.sums
            ),
            {
                "name": "record",
                "votes": [vote.member for vote in record.votes],
                "file": record_bytes(certified.kept).hex(),
            },
        ]

    @property
    def links(self) -> list[bytes]:
        """chain_0, chain_1, chain_2, as a member that catches up computes them."""
        client = self.client(0, counting)
        (certified,) = self.certified
        return client.history.replay(certified.kept).links


def epoch(mode: Mode) -> Cases:
    """A whole epoch, byte for byte."""
    return json.loads(json.dumps(Epoch(mode).done.cases()))  # type: ignore[no-any-return]


PINNED: dict[str, Callable[[], Cases]] = {
    "chain": chains,
    "epoch_lockstep": partial(epoch, "lockstep"),
    "epoch_resilient": partial(epoch, "resilient"),
    "key_schedule": key_schedule,
    "masks": masks,
    "packing": packed,
    "shamir": shares,
    "starts": start_images,
    "tag": tags,
}

if __name__ == "__main__":
    for name, make in PINNED.items():
        content = {
            "origin": f"{keyschedule.PROTOCOL}, computed by tests/protocols/pin_vectors.py from the inputs fixed there",
            "cases": make(),
        }
        (DIRECTORY / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
