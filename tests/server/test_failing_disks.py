"""Disks that fail: nothing is said before it is written, and whatever can go on goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from codream_protocols.client import ClientProtocol, Send
from codream_protocols.messages import Seal, Vote
from codream_server.record_folder import RecordFolder
from codream_server.seal_file import SealFile
from codream_server.unwritten import ResultsUnwritten
from tests.server.toy import Federation, ToyCourse, computing, go_on, run


def test_event_log_that_fails_ends_nothing_and_is_not_silent(capsys: pytest.CaptureFixture[str]) -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    def full(event: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with federation.serving(emit=full) as server:
            federation.start_all()
            await server

    run(scenario)
    assert len(federation.published) == 1
    told = capsys.readouterr().err
    assert "No space left" in told and "round_finished" in told


def test_standard_error_that_is_closed_too_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    def full(event: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with federation.serving(emit=full) as server:
            federation.start_all()
            await server

    monkeypatch.setattr(sys, "stderr", Closed())
    run(scenario)
    assert len(federation.published) == 1


def test_nothing_is_certified_to_anybody_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(3, course=ToyCourse(2, 2))
    import os

    full = [True]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if full[0] and federation.events and federation.events[-1]["event"] != "federation_started":
            raise OSError(28, "No space left on device")
        real(descriptor)

    async def scenario() -> None:
        async with federation.serving(tmp_path) as server:
            monkeypatch.setattr("codream_server.record_folder.os.fsync", fsync)
            federation.start_all()
            failed = await federation.until_event("storage_failed", what="record")
            assert "No space left" in failed["reason"]
            await asyncio.sleep(0.5)
            assert all(learner.learnt == [] for learner in federation.learners)
            assert federation.published == [] and not server.done()
            full[0] = False
            await server

    run(scenario)
    assert [number for number, _ in federation.learners[0].learnt] == [1, 2]
    assert len(list(tmp_path.glob("epoch-*.record"))) == 2


def test_seals_that_cannot_be_read_are_told_once_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who should be told them waits: it is asked for its Hello, and the epoch goes on."""
    federation = Federation(3, course=ToyCourse(1, 2))
    real, failed = SealFile.of, list[int]()

    def of(self: SealFile, receiver: int) -> tuple[Seal, ...]:
        if receiver == 1 and not failed:
            failed.append(receiver)
            raise OSError(5, "Input/output error")
        return real(self, receiver)

    async def scenario() -> None:
        monkeypatch.setattr(SealFile, "of", of)
        async with federation.serving(tmp_path) as server:
            federation.start_all()
            await server

    run(scenario)
    assert [event["reason"] for event in federation.events if event["event"] == "storage_failed"] == [
        "[Errno 5] Input/output error"
    ]
    assert failed == [1] and not [event for event in federation.events if event["event"] == "epoch_given_up"]
    assert len(federation.published) == 1


def test_server_that_has_run_out_of_descriptors_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    """Silent connections took them all (F8): the epoch is still written down, all else as soon as that is possible."""
    federation = Federation(3, course=ToyCourse(2, 2))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    silent: list[socket.socket] = []

    def keep(number: int, publication: Any) -> None:
        (tmp_path / f"round-{number}").write_text("kept")

    async def scenario() -> None:
        async with federation.serving(tmp_path / "record", certified=keep) as server:
            client = await computing(federation)
            in_use = len(list(Path("/proc/self/fd").iterdir()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, before[1]))
            host, port = federation.address.removeprefix("tcp://").split(":")
            with pytest.raises(OSError, match="Too many open files"):  # each that is accepted takes one of the server's
                while True:
                    silent.append(socket.socket())
                    silent[-1].setblocking(False)  # a full backlog would hold up everybody here, who is then lost
                    silent[-1].connect_ex((host, int(port)))
            await asyncio.sleep(0.1)
            with contextlib.suppress(OSError):
                while True:
                    silent.append(socket.socket())
            go_on(client)
            await federation.until_event("storage_failed")
            await asyncio.sleep(0.3)
            assert not server.done()
            for one in silent:
                one.close()
            await server

    try:
        run(scenario)
    finally:
        for one in silent:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(list((tmp_path / "record").glob("epoch-*.record"))) == 2
    assert {path.name for path in tmp_path.glob("round-*")} == {"round-1", "round-2"}
    assert [number for number, _ in federation.learners[0].learnt] == [1, 2]


def test_publication_that_cannot_be_kept_is_tried_again() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))
    tries: list[int] = []

    def keep(number: int, publication: Any) -> None:
        tries.append(number)
        if len(tries) == 1:
            raise OSError(24, "Too many open files")

    async def scenario() -> None:
        async with federation.serving(certified=keep) as server:
            federation.start_all()
            await server

    run(scenario)
    assert tries == [1, 1]
    (failed,) = federation.of("storage_failed")
    assert failed["what"] == "publication" and "Too many open files" in failed["reason"]


def test_publication_that_the_disk_never_takes_ends_the_server_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is certified, and whoever looks at the exit code alone must not believe that all is written."""
    monkeypatch.setattr("codream_server.runner.LAST_WRITE_SECONDS", 0.5)
    federation = Federation(3, course=ToyCourse(2, 1))

    def keep(number: int, publication: Any) -> None:
        if number == 2:
            raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with federation.serving(certified=keep) as server:
            clients = federation.start_all()
            with pytest.raises(ResultsUnwritten, match=r"published of epoch 2;.*start the server again"):
                await server
            assert all(client.farewell and client.farewell.completed for client in clients)

    run(scenario)
    assert federation.of("federation_finished")


def test_what_earlier_processes_missed_is_handed_on_first_and_tried_again() -> None:
    federation = Federation(3, course=ToyCourse(1, 1))
    handed: list[int] = []

    def keep(number: int, publication: Any) -> None:
        handed.append(number)
        if len(handed) == 1:
            raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with federation.serving(certified=keep, missed=[(7, {}), (8, {})]) as server:
            await federation.until_event("storage_failed", what="publication")
            federation.start_all()
            await server

    run(scenario)
    assert handed[:2] == [7, 8] and sorted(handed) == [1, 7, 7, 8]


def test_flood_of_votes_while_the_disk_fails_leaves_one_retry_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(3, course=ToyCourse(1, 1))
    votes: list[Vote] = []

    class Repeats(ClientProtocol):
        def _cast_vote(self, public: Any, others: Any = None) -> Any:
            effects = super()._cast_vote(public, others)
            votes.extend(one.message for one in effects if isinstance(one, Send) and isinstance(one.message, Vote))
            return effects

    async def scenario() -> None:
        async with federation.serving(tmp_path) as server:
            real, full = RecordFolder.certified, [True]

            def certified(self: RecordFolder, kept: Any) -> None:
                if full[0]:
                    raise OSError(28, "No space left on device")
                real(self, kept)

            monkeypatch.setattr(RecordFolder, "certified", certified)
            federation.start(0)
            federation.start(1)
            client = federation.start(2, machine=Repeats)
            await federation.until(lambda: votes)
            for _ in range(300):
                client.send(votes[0])
            await federation.until(lambda: federation.server._unwritten.failures > 100)
            assert 1 <= len(federation.server._unwritten) <= 3
            full[0] = False
            await server

    run(scenario)
    assert len(federation.published) == 1


def test_member_at_an_old_head_whose_record_is_damaged_ends_nothing(tmp_path: Path) -> None:
    """It is told what it lacks as soon as somebody has put the file back."""
    federation = Federation(3, course=ToyCourse(3, 1))
    path = tmp_path / "epoch-00000.record"

    async def scenario() -> None:
        async with federation.serving(tmp_path) as server:
            federation.start_all()
            for client in federation.clients.values():
                client.hold = lambda compute: len(federation.published) == 2 and not path.exists()
            await federation.until(lambda: len(federation.published) == 2)
            await federation.clients[2].kill()
            federation.diaries[2].kept.clear()  # it knows nothing any more
            whole = path.read_bytes()
            path.write_bytes(b"half")
            federation.start(2)
            failed = await federation.until_event("storage_failed", what="record")
            assert "put back the whole file" in failed["reason"] and not server.done()
            path.write_bytes(whole)
            await server

    run(scenario)
    assert {number for number, _ in federation.learners[2].learnt} == {1, 2, 3}
