"""The second implementation on a ring: the recorded epoch, of 30 invited members of 300, and among real machines.

Of the recorded messages the file has digests, so that the whole epoch is played anew: every member, from the random
bytes that the file states, and the server. Seals cannot be made again but with the recorded secrets of their ML-KEM
ciphertexts; those of one member are in the file.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from codream_protocols.neighbours import least_degree
from tests.protocols.recorded_epochs import DIRECTORY, RingEpoch
from tests.protocols.second_graph import degree
from tests.protocols.second_implementation import Federation, Member, chartered
from tests.protocols.second_server import Server
from tests.protocols.second_together import Together

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((DIRECTORY / "epoch_ring.json").read_text())["cases"]
}
COHORT = [int(name.removeprefix("member ")) for name in CASES if name.startswith("member ")]
WATCHED = 285
KINDS = {"unmask": "UnmaskShares", "opened-starts": "OpenedStarts", "seal-delivery": "SealDelivery"}


def identity_of(member: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(CASES[f"member {member}"]["identity"]))


def federation() -> Federation:
    charter = CASES["charter"]
    roster, settings = bytes.fromhex(charter["roster"]), bytes.fromhex(charter["settings"])
    keys = {member: identity_of(member).public_key().public_bytes_raw() for member in COHORT}
    found = chartered(roster, charter["members"], keys, settings, charter["mode"])
    assert found.digest.hex() == charter["digest"]
    return found


def drawn(member: int) -> Callable[[int], bytes]:
    """The random bytes of a member, by the rule that the file states."""
    count = iter(range(1 << 20))

    def draw(size: int) -> bytes:
        blocks = (hashlib.sha256(f"random {member} {next(count)}".encode()).digest() for _ in range(-(-size // 32)))
        return b"".join(blocks)[:size]

    return draw


def member_of(found: Federation, me: int) -> Member:
    integers = CASES[f"member {me}"]["integers"]
    return Member(found, me, identity_of(me), lambda step: integers[step], drawn(me))


def kind_of(data: bytes) -> str:
    tag: str = msgpack.unpackb(data)[0]
    return KINDS.get(tag, tag.title().replace("-", ""))


class Play:
    """The recorded epoch, played by this implementation alone; what is said is written down as in the file."""

    def __init__(self) -> None:
        found = federation()
        self.members = {me: member_of(found, me) for me in COHORT}
        self.server = Server(found, [5, COHORT, found.first_head])
        self.told: dict[int, list[tuple[bytes, list[bytes]]]] = defaultdict(list)  # each member, in order
        self.record: list[dict[str, Any]] = []
        lost = {(member, kind) for member, kind in CASES["messages"]["lost"]}
        waiting = self.server.open()
        while waiting or self.server.waiting_for:
            waiting = waiting or self.server.expire()
            member, data, frames = waiting.pop(0)
            self.told[member].append((data, frames))
            self.note({"to": [member]}, data, frames)
            for answer, more in self.members[member].receive(data, frames):
                kind = kind_of(answer)
                silent = (member, kind) in lost and (kind == "Advertisement" or msgpack.unpackb(answer)[2] == 1)
                self.note({"from": member, **({"lost": True} if silent else {})}, answer, more)
                waiting += [] if silent else self.server.receive(member, answer, more)

    def note(self, way: dict[str, Any], data: bytes, frames: list[bytes]) -> None:
        digests = [hashlib.sha256(part).hexdigest() for part in (data, *frames)]
        entry = {"kind": kind_of(data), "bytes": len(data), "digests": digests}
        for earlier in self.record:
            if "to" in earlier and "to" in way and {**earlier, "to": 0} == {**entry, "to": 0}:
                earlier["to"] += way["to"]
                return
        self.record.append({**way, **entry})


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    yield Play()


def unsealed(record: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in record if entry["kind"] not in ("Seals", "SealDelivery")]


@pytest.mark.parametrize(("members", "colluders"), [(9, 1), (20, 2), (47, 1), (201, 5), (600, 30)])
def test_as_many_neighbours_as_the_document_says(members: int, colluders: int) -> None:
    assert degree(members, colluders) == least_degree(members, colluders)


def test_the_recorded_epoch_byte_for_byte(play: Play) -> None:
    """Each message of every member and of the server, ring, transcript, chain and sums."""
    assert play.record and unsealed(play.record) == unsealed(CASES["messages"]["record"])
    plan, graph, public = play.server.plan, play.server.graph, play.server.public
    ring = CASES["ring"]
    assert (plan.k, plan.threshold, plan.signers) == (ring["neighbours"], ring["threshold"], ring["signers"])
    assert {str(member): near for member, near in graph.near.items()} == ring["of"]
    digests = CASES["digests"]
    assert (plan.digest.hex(), graph.transcript.hex()) == (digests["plan"], digests["transcript"])
    assert [link.hex() for link in public.links] == digests["links"]
    for step in range(2):
        case = CASES[f"sum of step {step}"]
        vectors = [CASES[f"member {member}"]["integers"][step] for member in case["survivors"]]
        assert play.server.totals[step] == case["total"] == [sum(column) for column in zip(*vectors, strict=True)]
        assert {name: numbers for name, (_, numbers) in public.sums[step].items()} == case["decoded"]


def test_the_recorded_seals_byte_for_byte(play: Play) -> None:
    """One member told what was recorded, seals and all; and it answers for no set that a rule forbids."""
    record = CASES["messages"]["record"]
    sealed = next(entry for entry in record if entry["kind"] == "Seals")
    delivery = next(entry for entry in record if entry["kind"] == "SealDelivery")
    assert [sealed["from"]] == delivery["to"] == [WATCHED]
    member = member_of(federation(), WATCHED)
    secrets = {pair["key"]: pair["secret"] for pair in CASES["encapsulated"]["pairs"] if pair["sender"] == WATCHED}
    ciphertexts = iter(item[1] for item in msgpack.unpackb(bytes.fromhex(sealed["data"]))[2])
    member.encapsulate = lambda key: (bytes.fromhex(secrets[hashlib.sha256(key).hexdigest()]), next(ciphertexts))
    said = []
    for data, frames in play.told[WATCHED]:
        kind = kind_of(data)
        if kind == "Survivors":
            tag, plan, step, survivors = msgpack.unpackb(data)
            gone = {
                one for block in member.federation.charter[4] if {*block} & {*member.graph.near[5]} for one in block
            }
            few = [one for one in survivors if one in (3, 4, 5) or one not in gone]
            with pytest.raises(AssertionError, match="too few neighbours"):
                member.receive(msgpack.packb([tag, plan, step, few]))
        if kind == "SurvivorSignatures":
            tag, plan, step, items = msgpack.unpackb(data)
            assert WATCHED not in {one for one, _ in items} and len(items) == CASES["ring"]["signers"]
            with pytest.raises(AssertionError, match="too few signatures"):
                member.receive(msgpack.packb([tag, plan, step, items[:-2]]))
        told = bytes.fromhex(delivery["data"]) if kind == "SealDelivery" else data
        said += [(kind_of(answer), answer, more) for answer, more in member.receive(told, frames)]
    assert [data.hex() for kind, data, _ in said if kind == "Seals"] == [sealed["data"]]
    digests = [
        [hashlib.sha256(part).hexdigest() for part in (data, *more)] for kind, data, more in said if kind != "Seals"
    ]
    assert digests == [entry["digests"] for entry in unsealed(record) if entry.get("from") == WATCHED]


def test_its_members_take_part_on_a_ring_of_real_machines() -> None:
    """The first member, one whose block drops out, one that votes by the record, and one with a number above 255."""
    run, found = RingEpoch(), federation()
    members = {me: member_of(found, me) for me in (3, 41, 122, WATCHED)}
    both = Together(run, members)
    both.epoch()
    assert [finished.survivors for finished in run.sums] == [
        tuple(CASES[f"sum of step {step}"]["survivors"]) for step in (0, 1)
    ]
    inputs = {(me, step): CASES[f"member {me}"]["integers"][step] for me in (3, 41, WATCHED) for step in (0, 1)}
    for finished in run.sums:
        vectors = [(inputs | run.inputs)[member, finished.step] for member in finished.survivors]
        assert finished.total.tolist() == [sum(column) for column in zip(*vectors, strict=True)]
    public = run.public
    assert {member.public.chain for member in members.values()} == {public.chain}
    epoch = run.server._epoch
    assert epoch is not None and set(epoch.votes) == {*public.members, 122}
