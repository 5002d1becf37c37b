"""A party's process: what it writes, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from codream_protocols.errors import AggregationFailed
from secure_codream.config import ClientConfig, FederationConfig, TaskTable, TimingTable
from secure_codream.party import (
    EventLog,
    _exhibitor,
    _until_signal,
    load_roster,
    read_metrics,
    run_client,
    run_server,
)
from secure_codream.provision import KeyFileError, provision
from secure_codream.records import read_events


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = FederationConfig(task=TaskTable(shape=(1, 8, 8), classes=10), timing=TimingTable(join=0.2))
    clients = [ClientConfig(name=name, model="cnn2") for name in ("alice", "bob", "carol")]
    provision(tmp_path / "out", config=config, clients=clients, address="tcp://127.0.0.1:7447")
    return tmp_path / "out" / "server"


def test_server_that_nobody_joins_says_so_and_leaves_its_events(folder: Path) -> None:
    with pytest.raises(AggregationFailed, match=r"0 clients after 0\.2 s"):
        run_server(folder, listen="tcp://127.0.0.1:*")
    assert (folder / "endpoint").read_text().startswith("tcp://127.0.0.1:")
    (started,) = read_events(folder / "events.jsonl")
    assert started.clients == ["alice", "bob", "carol"]


def test_roster_without_the_administrators_key_is_refused(folder: Path) -> None:
    (folder / "administrator.pub").unlink()
    with pytest.raises(KeyFileError, match="the administrator's public key is needed"):
        load_roster(folder)


@pytest.mark.parametrize(("lr", "told"), [(30.0, True), (0.02, False)])
def test_clients_log_tells_of_a_training_that_came_to_nothing(tmp_path: Path, lr: float, told: bool) -> None:
    learning = {"lr": lr, "warm_up_epochs": 5}
    config = FederationConfig(task=TaskTable(shape=(1, 8, 8), classes=10), learning=learning)
    clients = [ClientConfig(name=name, model="cnn2", patience=0.1) for name in ("alice", "bob", "carol")]
    provision(tmp_path, config=config, clients=clients, address="tcp://127.0.0.1:7447")
    with pytest.raises(AggregationFailed, match="no word from the server"):
        run_client(tmp_path / "clients" / "alice", address="tcp://127.0.0.1:9")  # where nobody listens
    lines = [json.loads(line) for line in (tmp_path / "clients" / "alice" / "log.jsonl").read_text().splitlines()]
    warned = [line["found"] for line in lines if line["event"] == "training" and line["level"] == "warning"]
    assert warned == (
        ["a training with lr=30.0 ended no better than a guess; a smaller rate or more steps may help"] * told
    )


def test_events_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("a") as file:
        EventLog(file)({"event": "federation_finished", "rounds": 2})
        (event,) = read_events(tmp_path / "events.jsonl")
        assert event.rounds == 2 and event.time > 0


def test_event_with_unknown_accuracy_can_be_read_again(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("a") as file:
        EventLog(file)({"event": "round_finished", "round": 0, "metrics": {"accuracy": None}})
    assert read_events(tmp_path / "events.jsonl")[0].metrics == {"accuracy": None}


def test_metrics_are_read_without_a_last_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"accuracy": 0.5}\n{"accuracy": 0.6}\n{"accur')
    assert [line["accuracy"] for line in read_metrics(path)] == [0.5, 0.6]


def test_metrics_that_are_no_number_can_be_read_again(tmp_path: Path) -> None:
    file = io.StringIO()
    EventLog(file)({"event": "metrics", "accuracy": 0.5, "distil_loss": math.nan})
    (tmp_path / "metrics.jsonl").write_text(file.getvalue())
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["accuracy"] == 0.5 and line["distil_loss"] is None
    json.loads(file.getvalue(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def test_exhibit_is_kept_of_its_epoch_and_step_alone(tmp_path: Path) -> None:
    class PlanLike:
        epoch, modulus_bits, value_bits = 1, 18, 16

    keep = _exhibitor(tmp_path, (1, 2))
    keep(PlanLike, 1, np.ones(3, np.uint32))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    keep(PlanLike, 2, np.ones(3, np.uint32))  # type: ignore[arg-type]
    with np.load(tmp_path / "exhibit.npz") as kept:
        assert kept["plain"].tolist() == [1, 1, 1] and int(kept["modulus_bits"]) == 18


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_the_work_so_that_it_can_clean_up(number: int) -> None:
    cleaned = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(10)
        finally:
            cleaned.append(True)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_until_signal(work()))
    assert cleaned == [True]
