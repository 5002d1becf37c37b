"""The second implementation against the recorded epochs, byte for byte, and among real clients and a real server.

On complete graphs; on rings: `test_second_on_a_ring`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from codream_protocols.record_file import record_bytes
from tests.protocols.recorded_epochs import DIRECTORY, Epoch, Mode, fixed
from tests.protocols.second_implementation import Federation, Member, make_federation, verified
from tests.protocols.second_server import Server
from tests.protocols.second_together import Together

MODES: tuple[Mode, ...] = ("lockstep", "resilient")

# -- against the recorded epochs ---------------------------------------------


def content(mode: str) -> dict[str, Any]:
    return {case["name"]: case for case in json.loads((DIRECTORY / f"epoch_{mode}.json").read_text())["cases"]}


def federation_of(cases: dict[str, Any]) -> Federation:
    roster, charter = cases["roster"], cases["charter"]
    administrator, settings = bytes.fromhex(roster["administrator"]), bytes.fromhex(charter["settings"])
    federation = make_federation(roster["file"], administrator, settings, charter["mode"])
    assert federation.charter[4] == charter["blocks"]
    return federation


def recorded_member(cases: dict[str, Any], me: int) -> Member:
    case = cases[f"member {me}"]
    drawn = iter(bytes.fromhex(text) for text in case["random"])
    pairs = [pair for pair in cases["encapsulated"]["pairs"] if pair["sender"] == me]
    (seals,) = [entry for entry in cases["messages"]["record"] if entry["kind"] == "Seals" and entry["from"] == me]
    known = {
        pair["key"]: (bytes.fromhex(pair["secret"]), item[1])
        for pair, item in zip(pairs, msgpack.unpackb(bytes.fromhex(seals["data"]))[2], strict=True)
    }

    def draw(size: int) -> bytes:
        found = next(drawn)
        assert len(found) == size
        return found

    return Member(
        federation_of(cases),
        me,
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["identity"])),
        lambda step: case["integers"][step],
        draw,
        lambda key: known[hashlib.sha256(key).hexdigest()],
    )


@pytest.mark.parametrize("mode", MODES)
def test_digests(mode: str) -> None:
    cases = content(mode)
    federation, digests = federation_of(cases), cases["digests"]
    assert federation.roster_hash.hex() == digests["roster"]
    assert federation.digest.hex() == digests["charter"]
    assert federation.first_head.hex() == digests["first head"]


@pytest.mark.parametrize(
    ("mode", "me"), [*(("lockstep", me) for me in range(3)), *(("resilient", me) for me in range(6))]
)
def test_a_recorded_epoch_byte_for_byte(mode: str, me: int) -> None:
    """Told what the record says that the server said, it says what the record says that this member said."""
    cases = content(mode)
    member, said = recorded_member(cases, me), list[tuple[str, list[str]]]()
    for entry in cases["messages"]["record"]:
        if me in entry.get("to", ()):
            frames = [bytes.fromhex(frame) for frame in entry.get("frames", [])]
            answers = member.receive(bytes.fromhex(entry["data"]), frames)
            said += [(data.hex(), [frame.hex() for frame in more]) for data, more in answers]
    record = [entry for entry in cases["messages"]["record"] if entry.get("from") == me]
    assert said == [(entry["data"], entry.get("frames", [])) for entry in record]
    assert [link.hex() for link in member.public.links] == cases["digests"]["links"]
    assert member.head.hex() == cases["digests"]["head"] and member.certified == member.public.state


def test_a_recorded_epoch_served_byte_for_byte() -> None:
    """Told what the record says that members said, its server says what the record says that the server said."""
    cases = content("resilient")
    record = cases["messages"]["record"]
    (offer,) = (msgpack.unpackb(bytes.fromhex(entry["data"]))[1] for entry in record if entry["kind"] == "Invitation")
    server = Server(federation_of(cases), offer)
    told = server.open()
    for entry in record:
        if "to" in entry:
            said = [entry["data"], entry.get("frames", [])]
            found = [told.pop(0) for _ in entry["to"]]
            assert [member for member, *_ in found] == entry["to"]
            assert all([data.hex(), [frame.hex() for frame in frames]] == said for _, data, frames in found)
        elif not entry.get("lost"):
            frames = [bytes.fromhex(frame) for frame in entry.get("frames", [])]
            told += server.receive(entry["from"], bytes.fromhex(entry["data"]), frames)
        else:
            told += server.expire()
    assert server.totals == [cases[f"sum of step {step}"]["total"] for step in range(2)]


@pytest.mark.parametrize("mode", MODES)
def test_a_recorded_epochs_sums(mode: str) -> None:
    """What was published is the sum of the survivors' integers, and decodes to what the record says."""
    cases = content(mode)
    _, _, public = verified(federation_of(cases), bytes.fromhex(cases["record"]["file"]))
    for step in range(2):
        case = cases[f"sum of step {step}"]
        vectors = [cases[f"member {survivor}"]["integers"][step] for survivor in case["survivors"]]
        assert case["total"] == [sum(column) for column in zip(*vectors, strict=True)]
        assert {name: numbers for name, (_, numbers) in public.sums[step].items()} == case["decoded"]


@pytest.mark.parametrize("mode", MODES)
def test_a_record_is_verified_and_a_changed_one_is_not(mode: str) -> None:
    cases = content(mode)
    federation, data = federation_of(cases), bytes.fromhex(cases["record"]["file"])
    head, _, public = verified(federation, data)
    assert head.hex() == cases["digests"]["head"]
    assert [link.hex() for link in public.links] == cases["digests"]["links"]
    for place in range(40, len(data), 131):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises((AssertionError, ValueError, KeyError, IndexError, TypeError, struct.error)):
            verified(federation, changed)


# -- with real clients and a real server ---------------------------------------------


INPUTS = [[200, 7, 1, 255, 90, 17, 44, 1, 0], [3, 254, 128]]


def together(mode: Mode, me: int) -> Together:
    """A real server, real clients, and in their midst a `Member`."""
    run = Epoch(mode)
    federation = make_federation(run.roster_file.decode(), run.administrator, fixed("settings")(32), mode)
    identity = Ed25519PrivateKey.from_private_bytes(run.identities[me])
    return Together(run, {me: Member(federation, me, identity, lambda step: INPUTS[step])})


@pytest.mark.parametrize(
    ("mode", "me"), [*(("lockstep", me) for me in range(3)), *(("resilient", me) for me in (0, 1, 3))]
)
def test_it_takes_part_with_real_machines(mode: Mode, me: int) -> None:
    """All sums are those of what went in; all stand at one head; the record verifies on either side."""
    both = together(mode, me)
    both.epoch()
    run, member, (certified,) = both.run, both.members[me], both.run.certified
    survivors = [finished.survivors for finished in run.sums]
    assert survivors == ([(0, 1, 2)] * 2 if mode == "lockstep" else [tuple(range(6)), (0, 1, 2)])
    for finished in run.sums:
        inputs = {**{number: run.inputs.get((number, finished.step)) for number in run.members}}
        inputs[me] = INPUTS[finished.step]
        vectors = [inputs[number] for number in finished.survivors]
        assert finished.total.tolist() == [sum(column) for column in zip(*vectors, strict=True)]
    assert {member.head, *(client.head for number, client in run.clients.items() if number != me)} == {run.server.head}
    head, state, _ = verified(member.federation, record_bytes(certified.kept))
    assert head == run.server.head and state == member.certified
    assert {name: array.tolist() for name, array in certified.publication.items()} == {
        name: numbers for name, (_, numbers) in state.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_it_refuses_a_sum_that_a_server_changed(mode: Mode) -> None:
    """The control of the check above: one element more, and the tag no longer fits."""
    both = together(mode, 0)

    def changed(kind: str, data: bytes, frames: tuple[bytes, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        return (data, (bytes([frames[0][0] ^ 1]) + frames[0][1:],)) if kind == "Published" else (data, frames)

    both.changed = changed
    with pytest.raises(AssertionError, match="a sum that is not true"):
        both.epoch()
