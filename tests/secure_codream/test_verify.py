"""What anybody can verify: a whole record is accepted, and one changed byte anywhere is found, in the file it is in."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from codream_protocols.identity import SignedRoster, Signer, sign_roster
from codream_protocols.membership import fingerprint
from secure_codream import cli
from secure_codream.deployment.verify import RecordRefused, Verified, find_record, verify_record
from tests.secure_codream.small import ADMINISTRATOR, SUMS, SmallFederation, codream, config_of, record_of

ENDS = 20  # bytes at either end of a file, where lengths and votes stand
EPOCHS = ["epoch-00000.record", "epoch-00001.record", "epoch-00002.record"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallFederation, Path]:
    """CoDream with three clients, two rounds and the last metrics; and where its record lies."""
    folder = tmp_path_factory.mktemp("run") / "server" / "record"
    return record_of(folder, codream(), epochs=3), folder


@pytest.fixture
def record(finished: tuple[SmallFederation, Path], tmp_path: Path) -> Path:
    """A copy of the record, to be spoilt."""
    return Path(shutil.copytree(finished[1], tmp_path / "record"))


def test_whole_record_verifies(finished: tuple[SmallFederation, Path]) -> None:
    federation, folder = finished
    verified = verify_record(folder)
    assert verified == Verified(
        federation="federation",
        administrator=ADMINISTRATOR.public.hex(),
        members=("client-0", "client-1", "client-2"),
        charter=federation.charter.digest.hex(),
        epochs=3,
        votes=(3, 3, 3),
        head=federation.server.head.hex(),
        planned=3,
        earlier=0,
        follows="",
        followed_head="",
        signed=False,
        accepted=(),
        serial=1,
        successor={
            "charter": federation.charter.digest.hex(),
            "head": federation.server.head.hex(),
            "certified": 3,
            "colluders": 1,
            "blocks": [sorted(member.identity_key.hex() for member in federation.roster.members)],
        },
    )
    assert {client.head.hex() for client in federation.clients} == {verified.head}


def test_record_is_found_in_a_runs_and_in_a_partys_folder(
    finished: tuple[SmallFederation, Path], tmp_path: Path
) -> None:
    _, folder = finished
    for place in (folder, folder.parent, folder.parent.parent):
        assert find_record(place) == folder
    with pytest.raises(RecordRefused, match="found no record"):
        find_record(tmp_path)


def test_beginning_of_a_record_verifies_with_another_head(finished: tuple[SmallFederation, Path], record: Path) -> None:
    """What is cut off at the end, only the head tells."""
    whole = verify_record(record)
    (record / EPOCHS[2]).unlink()
    part = verify_record(record)
    assert part.epochs == 2 and part.head != whole.head


@pytest.mark.parametrize("within", [10, pytest.param(220, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["roster.json", "charter.json", *EPOCHS])
def test_one_flipped_byte_is_found_wherever_it_is(record: Path, name: str, within: int) -> None:
    """Of a large file at its ends, and at so many places within."""
    path = record / name
    whole = path.read_bytes()
    positions = list(range(len(whole)))
    generator = random.Random(name)
    if len(positions) > 2 * ENDS + within:
        positions = [*positions[:ENDS], *generator.sample(positions[ENDS:-ENDS], within), *positions[-ENDS:]]
    for position in positions:
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << generator.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(RecordRefused) as caught:
            verify_record(record)
        assert name in str(caught.value), (position, str(caught.value))
    path.write_bytes(whole)
    assert verify_record(record).epochs == 3  # control


def _swapped(record: Path) -> None:
    first, second = ((record / name).read_bytes() for name in EPOCHS[:2])
    (record / EPOCHS[0]).write_bytes(second)
    (record / EPOCHS[1]).write_bytes(first)


def _repeated(record: Path) -> None:
    (record / "epoch-00003.record").write_bytes((record / EPOCHS[2]).read_bytes())


def _truncated(name: str, left: int) -> Callable[[Path], None]:
    return lambda record: (record / name).write_bytes((record / name).read_bytes()[:left])  # type: ignore[return-value]


def _extended(name: str) -> Callable[[Path], None]:
    return lambda record: (record / name).write_bytes((record / name).read_bytes() + b"\0")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_swapped, EPOCHS[0]),
        (_repeated, "epoch-00003.record"),
        (lambda record: (record / EPOCHS[1]).unlink(), EPOCHS[1]),
        (lambda record: (record / EPOCHS[0]).unlink(), EPOCHS[0]),
        (lambda record: (record / "roster.json").unlink(), "roster.json"),
        (_truncated(EPOCHS[1], 0), EPOCHS[1]),
        (_truncated(EPOCHS[1], 100), EPOCHS[1]),
        (_truncated(EPOCHS[2], -1), EPOCHS[2]),
        (_truncated("charter.json", -1), "charter.json"),
        (_truncated("roster.json", -1), "roster.json"),
        *((_extended(name), name) for name in ("roster.json", "charter.json", EPOCHS[1])),
        (lambda record: (record / EPOCHS[1]).write_bytes(b"[" * 100_000), EPOCHS[1]),
        (lambda record: (record / "charter.json").write_bytes(b"[" * 100_000), "charter.json"),
        (lambda record: (record / "charter.json").write_bytes(b"\xff\xfe"), "charter.json"),
    ],
)
def test_what_is_missing_swapped_or_cut_is_named(record: Path, spoil: Callable[[Path], None], named: str) -> None:
    spoil(record)
    with pytest.raises(RecordRefused, match=named):
        verify_record(record)


def test_epoch_of_another_federation_with_the_same_settings_is_refused(record: Path, tmp_path: Path) -> None:
    """Keys are the same each time in these tests, starts are not: an epoch fits its own history alone."""
    record_of(tmp_path / "other", codream(), epochs=3)
    shutil.copy(tmp_path / "other" / EPOCHS[1], record / EPOCHS[1])
    with pytest.raises(RecordRefused, match=EPOCHS[1]):
        verify_record(record)


def test_charter_with_other_settings_is_refused(record: Path) -> None:
    content = json.loads((record / "charter.json").read_bytes())
    content["settings"]["dreams"]["server_lr"] = 0.5
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (record / "charter.json").write_text(text)
    with pytest.raises(RecordRefused, match=r"charter\.json was changed"):
        verify_record(record)


def test_administrator_is_the_one_that_was_asked_for(finished: tuple[SmallFederation, Path], record: Path) -> None:
    assert verify_record(record, administrator=ADMINISTRATOR.public).epochs == 3
    stranger = Signer(b"s" * 32)
    with pytest.raises(RecordRefused, match=r"roster\.json"):
        verify_record(record, administrator=stranger.public)
    # Somebody else's signature under the same roster: the roster names who may sign it.
    signature = stranger.sign("roster signature", finished[0].roster.hash)
    signed = SignedRoster(finished[0].roster, stranger.public, signature)
    (record / "roster.json").write_bytes(msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n")
    with pytest.raises(RecordRefused, match="does not name who signed it"):
        verify_record(record)
    # A roster that names the stranger is another roster: nobody has voted under it.
    other = msgspec.structs.replace(finished[0].roster, administrators=(stranger.public,))
    (record / "roster.json").write_bytes(sign_roster(other, stranger))
    with pytest.raises(RecordRefused, match=EPOCHS[0]):
        verify_record(record)


def test_sums_and_successors_have_records_too(tmp_path: Path) -> None:
    first = record_of(tmp_path / "first", config_of(federation={"course": "sums"}, sums=SUMS), epochs=1)
    assert verify_record(tmp_path / "first").epochs == 1
    previous = {"charter": first.charter.digest.hex(), "head": first.server.head.hex(), "certified": 1}
    later = record_of(tmp_path / "later", codream(predecessor=previous, federation={"rounds": 3}), epochs=1, members=6)
    assert [path.name for path in sorted((tmp_path / "later").glob("*.record"))] == ["epoch-00001.record"]
    verified = verify_record(tmp_path / "later")
    assert (verified.epochs, verified.head) == (1, later.server.head.hex())


def test_resilient_record_says_how_many_voted(tmp_path: Path) -> None:
    config = codream(aggregation={"mode": "resilient"})
    record_of(tmp_path / "record", config, epochs=2, members=6)
    verified = verify_record(tmp_path / "record")
    assert verified.epochs == 2 and all(4 <= votes <= 6 for votes in verified.votes)


# -- the command ---------------------------------------------


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of `secure-codream verify`."""
    result = CliRunner().invoke(cli.app, ["verify", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_command_ends_with_0_and_shows_what_to_compare(finished: tuple[SmallFederation, Path]) -> None:
    federation, folder = finished
    code, out, _ = command(folder.parent.parent)
    assert code == 0
    for found in (
        federation.server.head.hex(),
        fingerprint(ADMINISTRATOR.public),
        "client-2",
        "3 of 3 epochs verified",
    ):
        assert found in " ".join(out.split())


def test_command_ends_with_1_and_names_the_file(record: Path) -> None:
    data = bytearray((record / EPOCHS[1]).read_bytes())
    data[len(data) // 2] ^= 1
    (record / EPOCHS[1]).write_bytes(data)
    code, out, err = command(record)
    assert (code, out) == (1, "") and EPOCHS[1] in "".join(err.split())
    assert command(record, "--json")[:2] == (1, "")


def test_command_as_json(finished: tuple[SmallFederation, Path]) -> None:
    federation, folder = finished
    code, out, _ = command(folder, "--json")
    found = json.loads(out)
    assert code == 0 and found["head"] == federation.server.head.hex() and found["votes"] == [3, 3, 3]


def test_command_takes_the_administrators_key(finished: tuple[SmallFederation, Path], tmp_path: Path) -> None:
    _, folder = finished
    assert command(folder, "--administrator", ADMINISTRATOR.public.hex())[0] == 0
    code, _, err = command(folder, "--administrator", "ab" * 32)
    assert code == 1 and "roster.json" in "".join(err.split())
    read_out = fingerprint(ADMINISTRATOR.public)
    code, out, _ = command(folder, "--administrator", read_out)
    assert code == 0 and read_out in " ".join(out.split())
    code, _, err = command(folder, "--administrator", fingerprint(b"k" * 32))
    assert code == 1 and read_out in " ".join(err.split())
    assert command(folder, "--administrator", "ab")[0] == 2
    assert command(tmp_path / "nowhere")[0] == 2
    assert command(tmp_path)[0] == 1
