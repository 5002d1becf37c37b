"""The record on disk: whole files or none, read again as written, and a server that goes on from it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tracemalloc
from pathlib import Path

import pytest

from codream_protocols.charter import Offer
from codream_protocols.errors import HelloNeeded, MalformedMessage, WrongContext
from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Hello, Refusal, Seal
from codream_protocols.record import Kept
from codream_protocols.record_file import record_bytes
from codream_protocols.running import (
    MAGIC,
    Closed,
    Delivered,
    Entry,
    Opened,
    Shown,
    Summed,
    Writer,
    parse_running,
)
from codream_protocols.server import EpochCertified, Phase, SendTo, ServerProtocol
from codream_server.record_folder import RecordFolder, RecordFolderBusy, RecordFolderRefused
from tests.server.toy import Federation, ToyCourse, run


@pytest.fixture(scope="module")
def federation() -> Federation:
    """A federation of three rounds that came to its end."""
    federation = Federation(3, course=ToyCourse(3, 2))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            await server
            await federation.until(lambda: len(federation.diaries[0].kept) == 3)

    run(scenario)
    return federation


@pytest.fixture
def epochs(federation: Federation) -> list[Kept]:
    return federation.diaries[0].kept


def make(folder: Path, **options: object) -> RecordFolder:
    return RecordFolder(folder, **{"roster": b"signed roster", "charter": b"settings", **options})


def test_epochs_are_read_again_as_they_were_written(tmp_path: Path, epochs: list[Kept], federation: Federation) -> None:
    folder = make(tmp_path / "new" / "record")
    assert folder.epochs() == []
    for kept in epochs:
        folder.certified(kept)
    assert [folder.recall(place) for place in range(3)] == epochs
    folder.close()
    again = make(tmp_path / "new" / "record")
    assert again.epochs() == epochs and again.recall(1) == epochs[1]
    names = {path.name for path in again.folder.iterdir()}
    assert names == {
        "roster.json",
        "charter.json",
        "next.partial",
        "running",
        "seals",
        *(f"epoch-0000{number}.record" for number in range(3)),
    }
    assert (again.folder / "roster.json").read_bytes() == b"signed roster"
    assert (again.folder / "epoch-00001.record").read_bytes() == record_bytes(epochs[1])
    server = ServerProtocol(
        federation.charter, federation.roster, federation.course, certified=again.epochs(), journal=again
    )
    assert server.certified == 3 and server.done and server.head == federation.server.protocol.head


def test_numbers_count_the_epochs_of_predecessors(tmp_path: Path, epochs: list[Kept]) -> None:
    folder = make(tmp_path, first=40)
    folder.certified(epochs[0])
    assert (tmp_path / "epoch-00040.record").exists() and folder.recall(0) == epochs[0]
    folder.close()
    again = make(tmp_path, first=40)
    assert again.epochs() == epochs[:1]
    again.close()
    with pytest.raises(RecordFolderRefused, match="all from 0 on"):
        make(tmp_path)


@pytest.mark.parametrize("other", [{"roster": b"another roster"}, {"charter": b"other settings"}])
def test_folder_of_another_federation_is_refused(tmp_path: Path, other: dict[str, bytes]) -> None:
    make(tmp_path).close()
    with pytest.raises(RecordFolderRefused, match="needs a record folder of its own"):
        make(tmp_path, **other)
    make(tmp_path).close()


def test_missing_or_damaged_file_is_named(tmp_path: Path, epochs: list[Kept]) -> None:
    folder = make(tmp_path)
    for kept in epochs:
        folder.certified(kept)
    folder.close()
    path = tmp_path / "epoch-00001.record"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"", b"x" + whole[1:]):
        path.write_bytes(damaged)
        again = make(tmp_path)
        with pytest.raises(RecordFolderRefused, match=r"epoch-00001\.record"):
            again.epochs()
        again.close()
    path.unlink()
    with pytest.raises(RecordFolderRefused, match=r"epochs \[0, 2\]"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("name", "at"), [("ftruncate", 1), ("write", 1), ("fsync", 1), ("rename", 1), ("fsync", 2)], ids=str
)
def test_epoch_whose_writing_fails_is_whole_or_not_there_and_is_written_again(
    tmp_path: Path, epochs: list[Kept], monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    folder = make(tmp_path / "record")
    folder.certified(epochs[0])
    real, calls = getattr(os, name), []

    def fail(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(OSError, match="No space"):
            folder.certified(epochs[1])
    renamed = (name, at) == ("fsync", 2)  # whole, though perhaps not for good: the folder is not synced
    shutil.copytree(tmp_path / "record", tmp_path / "killed")
    assert make(tmp_path / "killed").epochs() == epochs[: 2 if renamed else 1]  # what the next process finds
    folder.certified(epochs[1])
    folder.certified(epochs[2])
    assert folder.epochs() == epochs
    folder.close()
    assert make(tmp_path / "record").epochs() == epochs


def test_file_for_the_next_epoch_that_somebody_removed_is_made_again(tmp_path: Path, epochs: list[Kept]) -> None:
    folder = make(tmp_path)
    (tmp_path / "next.partial").unlink()
    with pytest.raises(FileNotFoundError):
        folder.certified(epochs[0])
    folder.certified(epochs[0])  # as its caller does
    folder.close()
    assert make(tmp_path).epochs() == epochs[:1]


def test_record_that_is_damaged_while_the_server_runs_is_a_failure_of_the_disk(
    tmp_path: Path, epochs: list[Kept]
) -> None:
    folder = make(tmp_path)
    for kept in epochs:
        folder.certified(kept)
    (tmp_path / "epoch-00000.record").write_bytes(b"half")
    with pytest.raises(OSError, match=r"epoch-00000\.record.*put back the whole file"):
        folder.recall(0)
    assert folder.recall(1) == epochs[1]


def test_epoch_is_certified_although_an_earlier_one_cannot_be_read_for_a_member_that_lacks_it(
    tmp_path: Path, epochs: list[Kept], federation: Federation
) -> None:
    folder = make(tmp_path)
    folder.certified(epochs[0])
    folder.certified(epochs[1])
    server = ServerProtocol(
        federation.charter, federation.roster, federation.course, certified=epochs[:2], journal=folder
    )
    (tmp_path / "epoch-00000.record").write_bytes(b"half")
    charter = federation.charter
    with pytest.raises(OSError, match="put back"):
        server.hello(0, Hello((PROTOCOL,), charter.digest, charter.first_head, 0, b"", 0))
    effects = server.receive(1, *epochs[2])
    assert [effect.number for effect in effects if isinstance(effect, EpochCertified)] == [3]
    asked = [effect.message for effect in effects if isinstance(effect, SendTo) and effect.member == 0]
    assert isinstance(asked[0], Refusal) and asked[0].code == HelloNeeded.code


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with pytest.raises(RecordFolderBusy, match="running already"):
        make(tmp_path)
    folder.close()
    make(tmp_path).close()


def test_short_writes_are_continued(tmp_path: Path, epochs: list[Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    folder = make(tmp_path)
    folder.certified(epochs[0])
    assert folder.epochs() == epochs[:1]


def test_next_epoch_is_kept_although_no_descriptor_is_left(
    tmp_path: Path, epochs: list[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path)
    real = os.open

    def none_left(*args: object, **options: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    folder.certified(epochs[0])
    assert folder.recall(0) == epochs[0]
    with pytest.raises(OSError, match="Too many"):
        folder.certified(epochs[1])
    monkeypatch.setattr(os, "open", real)
    folder.certified(epochs[1])
    assert folder.epochs() == epochs[:2]


def entries_of(kept: Kept) -> list[Entry]:
    """What is written of a lockstep epoch of three until its votes."""
    record, frames = kept
    sums = (
        Summed(step, one.members, one.tag, frame, b"" if step else record.start)
        for step, (one, frame) in enumerate(zip(record.steps, frames, strict=True))
    )
    return [Opened(record.offer), Shown(record.advertisements), Delivered(6), *sums]


def seal(folder: RecordFolder, members: tuple[int, ...] = (0, 1, 2), mark: int = 0) -> None:
    """What three members seal for each other; its content is of no matter here."""
    for one in members:
        others = (other for other in (0, 1, 2) if other != one)
        folder.sealed(
            one, tuple(Seal(other, bytes(KEM_CIPHERTEXT_BYTES), bytes([mark]) * 48, bytes(64)) for other in others)
        )


def write(folder: RecordFolder, entries: list[Entry]) -> None:
    """All of them, and seals when it is their time."""
    for entry in entries:
        if isinstance(entry, Delivered):
            seal(folder)
        folder.running(entry)


def test_a_running_epoch_is_gone_on_with_from_any_entry_until_it_is_certified(
    tmp_path: Path, epochs: list[Kept], federation: Federation
) -> None:
    arguments = federation.charter, federation.roster, federation.course
    folder = make(tmp_path)
    assert folder.unfinished() == []
    folder.certified(epochs[0])
    entries = entries_of(epochs[1])
    phases = [Phase.ADVERTISING, Phase.SEALING, Phase.COLLECTING, Phase.COLLECTING, Phase.VOTING]
    for count, (entry, phase) in enumerate(zip(entries, phases, strict=True), start=1):
        write(folder, [entry])
        folder.close()
        folder = make(tmp_path)  # each entry is written behind what an earlier process wrote
        found = folder.unfinished()
        assert found == entries[:count]
        server = ServerProtocol(*arguments, certified=folder.epochs(), running=found, journal=folder)
        assert server.phase is phase and server.certified == 1
        assert server.steps_begun == [0, 0, 1, 2, 2][count - 1]
    later = ServerProtocol(*arguments, certified=epochs[:2], running=entries)
    assert later.phase is Phase.IDLE  # it was certified meanwhile
    folder.given_up()
    assert folder.unfinished() == []
    folder.close()


def test_names_of_what_is_written_later_are_on_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose content alone is synced may have no name after a power cut."""
    synced, real = set[str](), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.update(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", fsync)
    make(tmp_path).close()
    assert synced >= {"running", "seals"}


def test_a_running_epoch_cut_off_at_any_byte_has_its_whole_entries(
    tmp_path: Path, epochs: list[Kept], federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder, entries = make(tmp_path), entries_of(epochs[0])
    ends, path = [], tmp_path / "running"
    for entry in entries:
        folder.running(entry)
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    for place in sorted(
        {*range(0, len(data), 211), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    ):
        path.write_bytes(data[:place])
        whole = sum(end <= place for end in ends)
        assert folder.unfinished() == entries[:whole]
        write(folder, [entries[whole] if whole < len(entries) else entries[-1]])
        if 0 < whole < len(entries):
            assert folder.unfinished() == entries[: whole + 1]  # what was cut off is not in the way
    flipped = bytearray(data)
    flipped[ends[1] + 45] ^= 1
    path.write_bytes(flipped)
    assert folder.unfinished() == entries[:2]
    folder.close()


def test_of_a_running_epoch_no_more_is_held_than_its_sums_whatever_the_file_has(tmp_path: Path) -> None:
    """What a step's sum was made of is dropped with it, and one entry is read after the other."""
    folder, frame = make(tmp_path), bytes(1 << 20)
    offer = Offer(0, (0, 1, 2), bytes(32))
    folder.running(Opened(offer))
    for step in range(12):
        folder.running(Closed(step, (0, 1, 2), bytes(16), frame, b""))
        folder.running(Summed(step, (0, 1, 2), bytes(16), frame, b""))
    folder.running(Closed(12, (0, 1, 2), bytes(16), frame, b""))
    folder.close()
    path = tmp_path / "running"
    with path.open("ab") as file:  # an entry that claims more than there can be was never acted upon
        file.write(struct.pack(">Q", 1 << 62) + bytes(32))
    folder = make(tmp_path)
    tracemalloc.start()
    found = folder.unfinished()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kinds = [type(entry) for entry in found]
    assert kinds == [Opened, *[Summed] * 12, Closed] and path.stat().st_size > 25 << 20
    assert most < 16 << 20  # 13 sums, and the entry that is read
    folder.running(Summed(12, (0, 1, 2), bytes(16), frame, b""))
    assert path.stat().st_size < 15 << 20
    folder.close()


def test_a_running_epoch_larger_than_any_can_be_is_refused() -> None:
    writer = Writer()
    data = MAGIC + b"".join(
        b"".join(writer.entry_parts(entry))
        for entry in (
            Opened(Offer(0, (0, 1, 2), bytes(32))),
            *(Summed(n, (0,), bytes(16), bytes(99), b"") for n in (0, 1)),
        )
    )
    most = len(data) - len(MAGIC) - 3 * 40  # of three entries' headers
    assert len(parse_running(io.BytesIO(data).read, len(data), most)) == 3
    with pytest.raises(MalformedMessage, match=f"{most} bytes of a running epoch; allowed: at most {most - 1}"):
        parse_running(io.BytesIO(data).read, len(data), most - 1)


def test_entries_out_of_order_are_refused(epochs: list[Kept], federation: Federation) -> None:
    arguments, entries = (federation.charter, federation.roster, federation.course), entries_of(epochs[0])
    for wrong in ([entries[0], entries[2]], [*entries[:3], entries[4]], [*entries[:3], *entries[2:]]):
        with pytest.raises(WrongContext, match="written down"):
            ServerProtocol(*arguments, running=wrong)


def test_a_disk_that_does_not_take_it_holds_nothing_up(
    tmp_path: Path, epochs: list[Kept], federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, entries = make(tmp_path), entries_of(epochs[0])
    folder.running(entries[0])
    (tmp_path / "running").unlink()
    folder.unfinished()
    folder.running(entries[1])
    assert folder.unfinished() == entries[:2]  # never a part of it, with others behind
    folder.running(entries[0])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        folder.running(entries[1])
        assert folder.unfinished() == []
    folder.running(entries[0])
    folder.running(entries[1])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        seal(folder)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                folder.running(entries[2], must=True)
        assert folder.unfinished() == []
    write(folder, entries[:2])
    seal(folder)
    folder.running(entries[2], must=True)
    assert folder.unfinished() == entries[:3]
    folder.certified(epochs[0])
    assert folder.unfinished() == []
    folder.close()
    assert not (tmp_path / "running").exists()  # nothing of it is part of the record


def test_seals_that_are_not_those_of_the_epoch_are_as_if_none_had_been_delivered(
    tmp_path: Path, epochs: list[Kept]
) -> None:
    """Its members refuse what such a server says: that costs the epoch, and nothing else."""
    folder, entries = make(tmp_path), entries_of(epochs[0])
    write(folder, entries)
    given = [folder.seals_for(member) for member in range(3)]
    assert [one.member for one in given[1]] == [0, 2]
    folder.close()
    data = (tmp_path / "seals").read_bytes()
    folder = make(tmp_path)
    assert folder.unfinished() == entries
    assert [folder.seals_for(member) for member in range(3)] == given
    for wrong in (data[:-1], b"", data.replace(b"\0\0\0\3", b"\0\0\0\0", 1)):
        folder.close()
        (tmp_path / "seals").write_bytes(wrong)
        folder = make(tmp_path)
        assert folder.unfinished() == entries[:2]
        assert folder.seals_for(0) == ()
        write(folder, entries[2:])
    seal(folder, mark=1)
    folder.running(entries[0])
    assert folder.seals_for(0) == ()  # of an epoch that is over
    seal(folder)
    folder.given_up()
    folder.close()
    assert not (tmp_path / "seals").exists()


def test_that_all_have_sealed_is_not_written_down_while_seals_are_in_memory_alone(
    tmp_path: Path, epochs: list[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, entries = make(tmp_path), entries_of(epochs[0])
    write(folder, entries[:2])
    seal(folder, (0, 1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda descriptor, data, place: 0)
        seal(folder, (2,))
        folder.running(entries[2])
        assert [one.member for one in folder.seals_for(0)] == [1, 2]  # the epoch goes on
        assert (tmp_path / "running").stat().st_size == 0
    folder.running(entries[3])
    assert folder.unfinished() == entries[:4]
    folder.close()


@pytest.mark.parametrize("name", ["epoch-00000.record", "running", "seals"])
def test_a_file_of_an_unknown_version_is_refused_and_nothing_is_written(
    tmp_path: Path, epochs: list[Kept], federation: Federation, name: str
) -> None:
    folder = make(tmp_path)
    folder.certified(epochs[0])
    folder.running(entries_of(epochs[0])[0])
    seal(folder)
    folder.close()
    (tmp_path / "charter.json").unlink()  # it would be written
    path = tmp_path / name
    beginning, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(beginning.rpartition(b" ")[0] + b" 9\n" + rest)
    before = contents(tmp_path)
    with pytest.raises(
        RecordFolderRefused, match=rf"{name}: found|{name}.* of version 9; allowed: version \d; nothing"
    ):
        make(tmp_path)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
