"""A party's files: events, metrics and what is shown of them, on disks that fail; signals that end a process."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from zmq.utils import z85

torch = pytest.importorskip("torch")

# ruff: noqa: E402
from codream_protocols.errors import AggregationFailed
from codream_server.settings import Timing
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig, TaskTable
from secure_codream.deployment.files import KEPT, Appended, EventLog
from secure_codream.deployment.provision import provision
from secure_codream.deployment.server import run_server
from secure_codream.deployment.signals import Stop, Stopped, run_until_stopped
from secure_codream.deployment.verify import verify_record
from secure_codream.membership.accepted import load_roster, own_keys
from secure_codream.membership.keys import KeyFileError
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.events import parse_event, read_events
from secure_codream.reports.metrics import read_metrics

NAMES = ("alice", "bob", "carol")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = FederationConfig(task=TaskTable(shape=(1, 8, 8), classes=10), timing=Timing(join=0.2))
    clients = [ClientConfig(name=name, model="cnn2") for name in NAMES]
    provision(tmp_path / "out", config=config, clients=clients, address="tcp://127.0.0.1:7447")
    return tmp_path / "out" / "server"


def test_server_that_nobody_joins_says_so_and_leaves_its_events(folder: Path) -> None:
    with pytest.raises(AggregationFailed, match=r"0 of 3 clients after 0\.2 s"):
        run_server(folder, listen="tcp://127.0.0.1:*")
    assert (folder / "endpoint").read_text().startswith("tcp://127.0.0.1:")
    (started,) = [event for event in read_events(folder / "events.jsonl") if hasattr(event, "rounds")]
    assert started.clients == ["alice", "bob", "carol"]
    first = json.loads((folder / "events.jsonl").read_text().splitlines()[0])
    assert first["event"] == "exposure" and first["text"].startswith("Lockstep")
    assert verify_record(folder).epochs == 0


def test_what_was_found_in_a_members_message_is_on_the_operators_screen_and_in_no_file(folder: Path) -> None:
    """Of one member files have its name and codes: nothing of what it sent, as its size."""
    roster, stop = load_roster(folder), Stop()
    config = (folder / "config.toml").read_text().replace("join = 0.2", "join = 600.0")
    (folder / "config.toml").write_text(config)
    secret, _ = own_keys(folder.parent / "clients" / "alice", roster, "alice", Passphrase())
    shown: list[dict[str, Any]] = []
    context = zmq.Context()

    def watch(event: dict[str, Any]) -> None:
        shown.append(event)
        if event["event"] == "federation_started":
            socket = context.socket(zmq.DEALER)
            socket.curve_secretkey, socket.curve_publickey = z85.encode(secret), zmq.curve_public(z85.encode(secret))
            socket.curve_serverkey = z85.encode(roster.server.transport_key)
            socket.connect((folder / "endpoint").read_text())
            socket.send(b"\x93" + b"nonsense" * 1234)
        elif event["event"] == "refused":
            stop.ask()

    with pytest.raises(Stopped):
        run_server(folder, listen="tcp://127.0.0.1:*", watch=watch, stop=stop)
    context.destroy(linger=0)
    (refused,) = [event for event in shown if event["event"] == "refused"]
    assert refused["client"] == "alice" and refused["found"] and refused["allowed"]
    (line,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if "refused" in line]
    assert set(line) == {"time", "event", "client", "code", "by", "count"} and line["code"] == "malformed"
    for file in folder.rglob("*"):
        assert not file.is_file() or refused["found"].encode() not in file.read_bytes()


@pytest.mark.parametrize("place", ["from the start", "at the end"])
def test_events_that_cannot_be_written_go_to_standard_error_and_end_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "from the start":
        (folder / "events.jsonl").mkdir()  # also for who may write everything
    else:
        (folder / "events.jsonl").symlink_to("/dev/full")
    shown: list[dict[str, Any]] = []
    with pytest.raises(AggregationFailed, match=r"0 of 3 clients"):  # as in any other federation that nobody joins
        run_server(folder, listen="tcp://127.0.0.1:*", watch=shown.append)
    assert [event["event"] for event in shown][:2] == ["exposure", "federation_started"]  # the screen goes on, too
    told = capfd.readouterr().err
    assert "the event log cannot be written" in told and "Lockstep" in told and "federation_started" in told


def test_lines_begin_anew_after_one_that_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 1.0, "event": "federation_fin')
    for rounds in (1, 2):
        with Appended(path) as file:
            EventLog(file)({"event": "federation_finished", "rounds": rounds})
    assert [event.rounds for event in read_events(path)] == [1, 2]
    assert path.read_text().count("\n") == 3


def test_line_that_a_full_disk_tore_is_ended_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [20, 0]

    def write(descriptor: int, data: Any) -> int:
        if room and not (left := room.pop(0)):
            raise OSError(28, "No space left on device")
        return real(descriptor, bytes(data)[:left] if room else data)

    with Appended(tmp_path / "events.jsonl") as file:
        log = EventLog(file)
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            log({"event": "federation_finished", "rounds": 1})
        log({"event": "federation_finished", "rounds": 2})
    assert [event.rounds for event in read_events(tmp_path / "events.jsonl")] == [2]


def test_server_writes_at_its_start_what_an_earlier_process_recorded_and_did_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the record and the publication. Dreams that are there are not written again."""
    from secure_codream.deployment.server import _missed
    from tests.secure_codream.small import SUMS, SmallFederation, codream, config_of

    federation = SmallFederation(codream())
    federation.run(2)
    kept = [federation.server._journal.recall(place) for place in range(2)]
    record = SimpleNamespace(epochs=lambda: kept)
    found = dict(_missed(federation.server, federation.roster, record, tmp_path))
    assert sorted(found) == [1, 2]
    assert (found[2]["dreams"] == federation.server.publication["dreams"]).all()  # type: ignore[index]
    (tmp_path / "round-000.npz").touch()
    assert list(dict(_missed(federation.server, federation.roster, record, tmp_path))) == [2]
    (tmp_path / "round-001.npz").touch()
    assert not list(_missed(federation.server, federation.roster, record, tmp_path))
    sums = SmallFederation(config_of(federation={"course": "sums"}, sums=SUMS))
    sums.run(1)
    record = SimpleNamespace(epochs=lambda: [sums.server._journal.recall(0)])
    ((number, publication),) = _missed(sums.server, sums.roster, record, tmp_path)
    assert number == 1 and publication["patients.number"].tolist() == [1 + 2 + 3]


def test_roster_without_the_administrators_key_is_refused(folder: Path) -> None:
    (folder / "administrator.pub").unlink()
    with pytest.raises(KeyFileError, match="the administrator's public key is needed"):
        load_roster(folder)


def test_events_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("a") as file:
        EventLog(file)({"event": "federation_finished", "rounds": 2})
        (event,) = read_events(tmp_path / "events.jsonl")
        assert event.rounds == 2 and event.time > 0


def test_whoever_watches_is_shown_what_is_written() -> None:
    file = io.StringIO()
    shown: list[dict[str, Any]] = []
    EventLog(file, shown.append)({"event": "round_finished", "round": 0, "metrics": {"accuracy": math.nan}})
    assert shown == [json.loads(file.getvalue())] and parse_event(shown[0]) is not None


def test_event_with_unknown_accuracy_can_be_read_again(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("a") as file:
        EventLog(file)({"event": "round_finished", "round": 0, "metrics": {"accuracy": None}})
    assert read_events(tmp_path / "events.jsonl")[0].metrics == {"accuracy": None}


def test_metrics_that_are_no_number_can_be_read_again(tmp_path: Path) -> None:
    file = io.StringIO()
    EventLog(file)({"event": "metrics", "rounds": 0, "accuracy": 0.5, "distil_loss": math.nan})
    (tmp_path / "metrics.jsonl").write_text(file.getvalue())
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["accuracy"] == 0.5 and line["distil_loss"] is None
    json.loads(file.getvalue(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, asyncio.CancelledError), (signal.SIGTERM, Stopped)])
def test_signal_cancels_the_work_so_that_it_can_clean_up(number: int, raised: type[BaseException]) -> None:
    cleaned = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(10)
        finally:
            cleaned.append(True)

    with pytest.raises(raised) as ended:
        run_until_stopped(work())
    assert cleaned == [True] and ended.type is raised


def test_exhibit_is_of_its_epoch_and_step_alone_and_stays_in_the_clients_folder(tmp_path: Path) -> None:
    from secure_codream.deployment.exhibit import ExhibitingClient
    from tests.secure_codream.small import SmallFederation, codream

    federation = SmallFederation(codream())
    client = ExhibitingClient(
        tmp_path / "exhibit.npz",
        (1, 2),
        charter=federation.charter,
        roster=federation.roster,
        course=federation.server.course,
        member=0,
        signer=federation.signers[0],
        policy=federation.clients[0]._policy,
    )
    federation.simulation.clients[0] = client
    federation.run(1)
    assert not list(tmp_path.iterdir())
    federation.run(1)
    with np.load(tmp_path / "exhibit.npz") as kept:
        # Two dreams' soft labels over two classes are 4 numbers, of 0.1 each; the weights of classes come besides.
        assert len(np.unique(kept["plain"])) <= 4 and int(kept["top"]) == 65535


# -- a log that does not grow for ever ---------------------------------------------


def test_a_log_turns_over_at_its_size_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Appended(path, most_bytes=100) as file:
        for number in range(100):
            file.write(f"{number:09}\n")  # ten bytes each
    files = sorted(tmp_path.iterdir())
    assert [one.name for one in files] == ["log.jsonl", *(f"log.jsonl.{number}" for number in range(1, KEPT + 1))]
    kept = [line for one in [*reversed(files[1:]), path] for line in one.read_text().splitlines()]
    assert kept == [f"{number:09}" for number in range(60, 100)]  # whole lines, none missing since the oldest
    with Appended(path, most_bytes=100) as file:  # another process goes on
        file.write("last\n")
    assert path.read_text() == "last\n" and (tmp_path / "log.jsonl.1").read_text().endswith("000000099\n")


def test_a_log_that_cannot_turn_over_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    (tmp_path / f"log.jsonl.{KEPT}").mkdir()
    (tmp_path / f"log.jsonl.{KEPT - 1}").touch()  # a file takes no folder's place
    with Appended(path, most_bytes=10) as file:
        for number in range(4):
            file.write(f"{number:09}\n")
    assert path.read_text().splitlines() == [f"{number:09}" for number in range(4)]


def test_a_file_whose_reader_needs_all_of_it_is_never_turned_over(tmp_path: Path) -> None:
    with Appended(tmp_path / "events.jsonl") as file:
        for _ in range(1000):
            file.write("x" * 99 + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
