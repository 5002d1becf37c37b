"""A client's journal: what was acknowledged outlasts every crash, and whatever is not as it was written is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codream_clients import journal as module
from codream_clients.journal import (
    ANCHOR,
    LOG,
    VOTE,
    FileJournal,
    JournalBusy,
    JournalDamaged,
    JournalMismatch,
    JournalVersion,
)
from codream_protocols.client import Begun, ClientProtocol, Memory, State
from codream_protocols.errors import BoundByVote, MalformedMessage, WrongContext
from codream_protocols.messages import Invitation
from codream_protocols.record import Kept, certified_epochs
from codream_protocols.record_file import MAGIC, parse_record, record_bytes, record_name
from secure_codream.simulation.in_process import Simulation
from tests.clients.network import FakeLearner, Federation

CHARTER = bytes(range(32))


def make_epochs() -> tuple[Simulation, list[Kept]]:
    whole = Federation()
    simulation = Simulation(whole.course, [FakeLearner(number) for number in range(3)], seed=5)
    for _ in range(whole.course.epochs):
        simulation.run_epoch()
    return simulation, [simulation.server._journal.recall(place) for place in range(3)]


@pytest.fixture(scope="module")
def epochs() -> tuple[Simulation, list[Kept]]:
    """A federation of three, over, and the records of its epochs."""
    return make_epochs()


def opened(folder: Path, **options: Any) -> FileJournal:
    return FileJournal.open(folder, **{"charter": CHARTER, "member": "client-1", **options})


def begun(step: int = 0) -> Begun:
    return Begun(bytes([7]) * 32, step, bytes([step]) * 32)


def facts(memory: Memory) -> tuple[Any, ...]:
    return (
        memory.next_epoch,
        memory.attempts,
        memory.steps,
        memory.rho,
        memory.wrong_sums,
        memory.begun,
        [record_bytes(kept) for kept in memory.certified],
        memory.vote and record_bytes(memory.vote),
    )


def write_all(journal: FileJournal, kept: list[Kept], done: Any = lambda: None) -> None:
    """Two epochs to their certificates, one that was given up, and a vote; `done` after each fact."""
    epoch = 0
    for number, one in enumerate(kept):
        journal.joined(epoch, bytes([epoch]) * 32)
        done()
        for step in range(2):
            journal.began(begun(step), 0.1)
            done()
        if number == 1:  # given up, and begun anew
            journal.saw_wrong_sum(bytes([epoch]) * 32)
            done()
            epoch += 1
            journal.joined(epoch, bytes([epoch]) * 32)
            done()
        journal.voted(one)
        done()
        if number < 2:
            journal.certified(one)
            done()
        epoch += 1


def test_what_was_written_is_remembered(tmp_path: Path, epochs: tuple[Simulation, list[Kept]]) -> None:
    kept = epochs[1]
    with opened(tmp_path) as journal:
        assert facts(journal.memory) == facts(Memory())
        write_all(journal, kept)
        assert record_bytes(journal.recall(1)) == record_bytes(kept[1])
    with opened(tmp_path) as journal:
        memory = journal.memory
        assert (memory.next_epoch, memory.attempts, memory.steps) == (4, 1, 6)
        assert memory.rho == pytest.approx(0.6)
        assert memory.wrong_sums == (bytes([1]) * 32,) and memory.begun == begun(1)
        assert [record_bytes(one) for one in memory.certified] == [record_bytes(one) for one in kept[:2]]
        assert memory.certified[-1] == memory.certified[1:][0] == kept[1]
        assert memory.vote == kept[2]
        with pytest.raises(IndexError):
            _ = memory.certified[2]


def test_only_its_owner_may_read_it(tmp_path: Path, epochs: tuple[Simulation, list[Kept]]) -> None:
    with opened(tmp_path / "journal") as journal:
        write_all(journal, epochs[1])
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in (tmp_path / "journal").iterdir())


def test_a_client_started_twice_is_refused(tmp_path: Path) -> None:
    """One folder started twice ended two federations of nine."""
    with opened(tmp_path), pytest.raises(JournalBusy, match="in use by another process"):
        opened(tmp_path)
    opened(tmp_path).close()  # control: once it is closed, it can be opened


@pytest.mark.parametrize("options", [{"charter": bytes(32)}, {"member": "client-2"}])
def test_a_journal_of_another_charter_or_member_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with opened(tmp_path) as journal:
        journal.joined(0, bytes(32))
    with pytest.raises(JournalMismatch, match="client-1"):
        opened(tmp_path, **options)


def test_a_journal_that_says_nothing_follows_a_setting_that_was_put_right(tmp_path: Path) -> None:
    opened(tmp_path, charter=bytes(32)).close()  # refused at its first word, say
    with opened(tmp_path) as journal:
        journal.joined(3, bytes(32))
    with opened(tmp_path) as journal:
        assert journal.memory.next_epoch == 4
    with pytest.raises(JournalMismatch):
        opened(tmp_path, charter=bytes(32))


def test_a_journal_that_says_nothing_of_another_member_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(JournalMismatch, match="client-1"):
        opened(tmp_path, member="client-2")


@pytest.mark.parametrize("cut", [0, 1])
def test_a_crash_while_an_empty_journal_is_begun_anew_loses_nothing(tmp_path: Path, cut: int) -> None:
    """The anchor is emptied first: a line that it does not know counts, a line that is gone is damage."""
    opened(tmp_path, charter=bytes(32)).close()
    (tmp_path / ANCHOR).write_bytes(b"")
    if cut:
        (tmp_path / LOG).write_bytes(b"")
    opened(tmp_path).close()


def test_numbers_count_those_of_predecessors(tmp_path: Path, epochs: tuple[Simulation, list[Kept]]) -> None:
    with opened(tmp_path, first=7) as journal:
        journal.certified(epochs[1][0])
    assert (tmp_path / "epoch-00007.record").exists()
    with opened(tmp_path, first=7) as journal:
        assert len(journal.memory.certified) == 1
    with pytest.raises(JournalDamaged):
        opened(tmp_path)


# -- what a restart goes by ---------------------------------------------


def machine(simulation: Simulation, memory: Memory, journal: FileJournal) -> ClientProtocol:
    client = simulation.clients[0]
    return ClientProtocol(
        charter=simulation.charter,
        roster=simulation.roster,
        course=Federation().course,
        member=0,
        signer=client._signer,
        policy=client._policy,
        memory=memory,
        journal=journal,
    )


def test_a_restarted_client_joins_no_epoch_twice_and_stays_bound_by_its_vote(
    tmp_path: Path, epochs: tuple[Simulation, list[Kept]]
) -> None:
    """A client that forgot the plan it had joined gave two sums of one step. Control: without memory."""
    simulation, kept = epochs
    charter = simulation.charter.digest
    offer = kept[0][0].offer

    with opened(tmp_path, charter=charter) as journal:
        first = machine(simulation, journal.memory, journal)
        first.receive(Invitation(offer))
        assert first.state is State.ADVERTISED
    with opened(tmp_path, charter=charter) as journal:
        again = machine(simulation, journal.memory, journal)
        with pytest.raises(WrongContext, match="epoch 0"):
            again.receive(Invitation(offer))
        machine(simulation, Memory(), journal).receive(Invitation(offer))  # control
        journal.voted(kept[0])
    with opened(tmp_path, charter=charter) as journal:
        bound = machine(simulation, journal.memory, journal)
        assert bound.state is State.VOTED
        with pytest.raises(BoundByVote):
            bound.receive(Invitation(type(offer)(9, offer.cohort, offer.head)))
        journal.certified(kept[0])
    with opened(tmp_path, charter=charter) as journal:
        free = machine(simulation, journal.memory, journal)
        assert free.state is State.IDLE and free.certified == 1
        found = [
            (number, epoch.publication())
            for number, _, epoch in certified_epochs(
                simulation.charter, simulation.roster, Federation().course, journal.memory.certified
            )
        ]
        assert [number for number, _ in found] == [1]
        assert free.publication is not None
        assert np.array_equal(found[0][1]["dreams"], free.publication["dreams"])


# -- crashes ---------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from codream_clients import journal as module
from tests.clients.test_journal import make_epochs, opened, write_all, facts

folder, kept = Path(sys.argv[1]), make_epochs()[1]
real_write, real_replace, real_unlink = os.write, Path.replace, Path.unlink

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def child(place, half):
    "Kill this process at its place-th call; of a write, half is done before."
    left = [place]
    def at(call, before=lambda *parts: None):
        def counted(*parts, **named):
            left[0] -= 1
            if left[0] < 0:
                before(*parts)
                die()
            return call(*parts, **named)
        return counted
    os.write = at(real_write, lambda file, data: real_write(file, data[: len(data) // 2]) if half else None)
    os.fsync = at(lambda file: None)  # a process that is killed loses nothing that it has written
    Path.replace = at(real_replace)
    Path.unlink = at(real_unlink)
    done = [0]
    def acknowledge():
        done[0] += 1
        real_write(report, bytes([done[0]]))
    write_all(opened(here), kept, acknowledge)
    os._exit(0)

place = survived = 0
while not survived:
    for half in (False, True):
        here = folder / f"{place}-{half}"
        reading, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(place, half)
        os.close(report)
        acknowledged = len(os.read(reading, 4096))
        while more := os.read(reading, 4096):
            acknowledged += len(more)
        os.close(reading)
        survived = os.waitpid(pid, 0)[1] == 0
        (folder / f"{place}-{half}.count").write_text(str(acknowledged))
    place += 1
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, epochs: tuple[Simulation, list[Kept]]) -> list[tuple[Any, ...]]:
    """What is remembered after each number of facts."""
    folder = tmp_path_factory.mktemp("journal")
    found = [facts(Memory())]

    def look() -> None:
        copy = tmp_path_factory.mktemp("copy")
        for entry in folder.iterdir():
            (copy / entry.name).write_bytes(entry.read_bytes())
        with opened(copy) as journal:
            found.append(facts(journal.memory))

    with opened(folder) as journal:
        write_all(journal, epochs[1], look)
    return found


def test_a_client_killed_at_any_call_forgets_nothing_it_acknowledged(
    tmp_path: Path, expected: list[tuple[Any, ...]]
) -> None:
    """At each write (also half-way through it), each fsync, each rename, each deletion."""
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    counts = sorted(tmp_path.glob("*.count"))
    assert len(counts) > 150
    for path in counts:
        acknowledged = int(path.read_text())
        with opened(path.with_suffix("")) as journal:
            found = facts(journal.memory)
            # The fact at work when it was killed may count or not; nothing else may.
            assert found in expected[acknowledged : acknowledged + 2], path
            joined, vote = found[0], found[-1]
            assert joined >= expected[acknowledged][0]
            assert (
                vote is not None
                or expected[acknowledged][-1] is None
                or len(found[-2]) > len(expected[acknowledged][-2])
            )
            journal.joined(50, bytes(32))  # and it goes on
        with opened(path.with_suffix("")) as journal:
            assert journal.memory.next_epoch == 51


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for entry in source.iterdir():
        (target / entry.name).write_bytes(entry.read_bytes())
    return target


@pytest.fixture
def written(tmp_path: Path, epochs: tuple[Simulation, list[Kept]]) -> Path:
    folder = tmp_path / "written"
    with opened(folder) as journal:
        write_all(journal, epochs[1])
    return folder


@pytest.mark.parametrize("name", [LOG, ANCHOR, VOTE, record_name(0), record_name(1)])
def test_a_file_cut_off_at_any_byte_is_refused_or_forgets_nothing(
    tmp_path: Path, written: Path, name: str, expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    data = (written / name).read_bytes()
    ends = [place for place, byte in enumerate(data) if byte == 10] if name in (LOG, ANCHOR) else []
    near = {end + place for end in ends for place in (-1, 0, 1, 2)}
    places = sorted(near | set(range(0, len(data), 7 if ends else 97)) | set(range(len(data) - 80, len(data))))
    places = [place for place in places if 0 <= place < len(data)]
    folder = copied(written, tmp_path / "cut")
    accepted, changing = 0, {entry: (written / entry).read_bytes() for entry in (LOG, ANCHOR, VOTE, name)}
    for place in places:
        for entry, content in changing.items():
            (folder / entry).write_bytes(content)
        (folder / name).write_bytes(data[:place])
        try:
            with opened(folder) as journal:
                accepted += 1
                assert facts(journal.memory) == expected[-1]
        except JournalDamaged:
            continue
    assert accepted == {LOG: 0, ANCHOR: 65}.get(name, 0)  # of the anchor, the last line's loss is as after a crash


def test_any_other_byte_in_the_journal_is_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in (LOG, ANCHOR):
        data = (written / name).read_bytes()
        folder = copied(written, tmp_path / f"flipped-{name}")
        for place in range(0, len(data), 7):
            flipped = bytearray(data)
            flipped[place] ^= 0x41
            (folder / name).write_bytes(bytes(flipped))
            with pytest.raises((JournalDamaged, JournalMismatch)):
                opened(folder)
            for entry in (LOG, ANCHOR):
                (folder / entry).write_bytes((written / entry).read_bytes())


@pytest.mark.parametrize("name", [LOG, VOTE, record_name(0)])
def test_a_journal_of_an_unknown_version_is_refused_and_nothing_is_written(written: Path, name: str) -> None:
    path = written / name
    beginning, _, rest = path.read_bytes().partition(b" " if name == LOG else b"\n")
    later = b"version 9 " + beginning + b" " if name == LOG else beginning.rpartition(b" ")[0] + b" 9\n"
    path.write_bytes(later + rest + b"cut off")
    before = {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in written.iterdir()}
    with pytest.raises(
        JournalVersion, match=r"of version 9; allowed: version [23]; nothing was changed; start the version"
    ):
        opened(written)
    assert {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in written.iterdir()} == before


@pytest.mark.parametrize("name", [LOG, ANCHOR, VOTE, record_name(0), record_name(1)])
def test_a_file_that_is_gone_is_missed(written: Path, name: str) -> None:
    (written / name).unlink()
    with pytest.raises(JournalDamaged):
        opened(written)


def test_a_record_in_place_of_another_is_refused(written: Path) -> None:
    (written / record_name(1)).write_bytes((written / record_name(0)).read_bytes())
    with pytest.raises(JournalDamaged, match="another record than was written"):
        opened(written)


def test_a_record_that_changes_while_it_is_open_is_refused(written: Path) -> None:
    with opened(written) as journal:
        (written / record_name(1)).write_bytes((written / record_name(0)).read_bytes())
        with pytest.raises(JournalDamaged):
            journal.recall(1)


def test_a_write_that_fails_leaves_a_journal_that_refuses_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as journal:
        journal.joined(0, bytes(32))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                journal.joined(1, bytes(32))
        with pytest.raises(JournalDamaged, match="start the client again"):
            journal.joined(1, bytes(32))
    with opened(tmp_path) as journal:
        assert journal.memory.next_epoch == 1


def test_journals_beyond_their_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as journal:
        journal.joined(0, bytes(32))
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 100)
    with pytest.raises(JournalDamaged, match="at most 100"):
        opened(tmp_path)


# -- records as files ---------------------------------------------


def test_a_record_is_read_back_as_it_was(epochs: tuple[Simulation, list[Kept]]) -> None:
    for kept in epochs[1]:
        assert parse_record(record_bytes(kept)) == kept


def test_a_record_cut_off_or_lengthened_is_refused_at_its_place(epochs: tuple[Simulation, list[Kept]]) -> None:
    data = record_bytes(epochs[1][0])
    for place in [*range(100), *range(100, len(data), 31)]:
        with pytest.raises(MalformedMessage, match=r"byte \d+"):
            parse_record(data[:place])
    with pytest.raises(MalformedMessage, match=f"byte {len(data)}: 1 bytes behind"):
        parse_record(data + b"\0")
    with pytest.raises(MalformedMessage, match="at most 10"):
        parse_record(data, 10)


def test_every_flipped_bit_makes_another_record_or_none(epochs: tuple[Simulation, list[Kept]]) -> None:
    """So no byte of a file is without meaning: what verification does not see is not there."""
    kept = epochs[1][2]
    data = record_bytes(kept)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        try:
            other = parse_record(bytes(flipped))
        except MalformedMessage:
            continue
        assert other != kept and record_bytes(other) == flipped


def test_another_encoding_of_the_same_record_is_refused(epochs: tuple[Simulation, list[Kept]]) -> None:
    """MessagePack has long forms of short numbers."""
    data = record_bytes(epochs[1][0])
    start = len(MAGIC) + 4
    message = data[start : start + int.from_bytes(data[len(MAGIC) : start], "big")]
    assert message[0] >> 4 == 0x9  # a short array
    longer = b"\xdc" + (message[0] & 15).to_bytes(2, "big") + message[1:]
    again = MAGIC + len(longer).to_bytes(4, "big") + longer + data[start + len(message) :]
    with pytest.raises(MalformedMessage, match="another encoding"):
        parse_record(again)
