"""The second implementation against the recorded epochs, byte for byte, and among real clients and a real server.

The real machines are all that is imported of this project, so that `second_implementation` owes it nothing.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.protocols.second_implementation import Federation, Member, make_federation, verified

VECTORS = Path(__file__).parent / "vectors"
MODES = ("lockstep", "resilient")

# -- against the recorded epochs ---------------------------------------------


def content(mode: str) -> dict[str, Any]:
    return {case["name"]: case for case in json.loads((VECTORS / f"epoch_{mode}.json").read_text())["cases"]}


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


class Together:
    """A real server, real clients, and in their midst a `Member`; the last one's vector of step 1 may be lost."""

    def __init__(self, mode: str, me: int) -> None:
        from tests.protocols.pin_vectors import Epoch, fixed

        self.run = Epoch(mode)  # roster, charter, course, and real machines
        self.run.clients = [self.run.client(number, secrets.token_bytes) for number in self.run.members]
        administrator, file = self.run.administrator, self.run.roster_file.decode()
        federation = make_federation(file, administrator, fixed("settings")(32), mode)
        identity = Ed25519PrivateKey.from_private_bytes(self.run.identities[me])
        self.me, self.inputs = me, [[200, 7, 1, 255, 90, 17, 44, 1, 0], [3, 254, 128]]
        self.member = Member(federation, me, identity, lambda step: self.inputs[step])
        self.changed = lambda kind, data, frames: (data, frames)

    def epoch(self) -> None:
        from codream_protocols.messages import decode_to_client, decode_to_server, encode_message
        from codream_protocols.server import EpochCertified, Phase, SendTo, StepFinished

        server, run = self.run.server, self.run
        for number, client in enumerate(run.clients):
            server.hello(number, client.hello())
        waiting = list(server.open_epoch(run.charter.everybody))
        while server.phase is not Phase.IDLE or waiting:
            waiting = waiting or server.expire()
            effect = waiting.pop(0)
            if isinstance(effect, StepFinished):
                run.sums.append(effect)
            elif isinstance(effect, EpochCertified):
                run.certified.append(effect)
            elif isinstance(effect, SendTo) and effect.member == self.me:
                data, frames = self.changed(
                    type(effect.message).__name__, encode_message(effect.message), effect.frames
                )
                for answer, more in self.member.receive(data, frames):
                    waiting += server.receive(self.me, decode_to_server(answer), tuple(more))
            elif isinstance(effect, SendTo):
                effects = run.clients[effect.member].receive(
                    decode_to_client(encode_message(effect.message)), effect.frames
                )
                while effects:
                    done = effects.pop(0)
                    if hasattr(done, "task"):
                        effects += run.provide(effect.member, done)
                    elif hasattr(done, "frames"):
                        lost = (effect.member, getattr(done.message, "step", None)) == run.lost and done.frames
                        waiting += [] if lost else server.receive(effect.member, done.message, done.frames)


@pytest.mark.parametrize(
    ("mode", "me"), [*(("lockstep", me) for me in range(3)), *(("resilient", me) for me in (0, 1, 3))]
)
def test_it_takes_part_with_real_machines(mode: str, me: int) -> None:
    """All sums are those of what went in; all stand at one head; the record verifies on either side."""
    from codream_protocols.record_file import record_bytes

    together = Together(mode, me)
    together.epoch()
    run, (certified,) = together.run, together.run.certified
    survivors = [finished.survivors for finished in run.sums]
    assert survivors == ([(0, 1, 2)] * 2 if mode == "lockstep" else [tuple(range(6)), (0, 1, 2)])
    for finished in run.sums:
        inputs = {**{number: run.inputs.get((number, finished.step)) for number in run.members}}
        inputs[me] = together.inputs[finished.step]
        vectors = [inputs[number] for number in finished.survivors]
        assert finished.total.tolist() == [sum(column) for column in zip(*vectors, strict=True)]
    assert {together.member.head, *(client.head for number, client in enumerate(run.clients) if number != me)} == {
        run.server.head
    }
    head, state, _ = verified(together.member.federation, record_bytes(certified.kept))
    assert head == run.server.head and state == together.member.certified
    assert {name: array.tolist() for name, array in certified.publication.items()} == {
        name: numbers for name, (_, numbers) in state.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_it_refuses_a_sum_that_a_server_changed(mode: str) -> None:
    """The control of the check above: one element more, and the tag no longer fits."""
    together = Together(mode, 0)

    def changed(kind: str, data: bytes, frames: tuple[bytes, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        return (data, (bytes([frames[0][0] ^ 1]) + frames[0][1:],)) if kind == "Published" else (data, frames)

    together.changed = changed
    with pytest.raises(AssertionError, match="a sum that is not true"):
        together.epoch()
