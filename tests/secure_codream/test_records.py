"""The run's folder: what is written is read back, and what does not fit is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from secure_codream.reports.events import (
    EpochGivenUp,
    FederationStarted,
    RoundFinished,
    StepFinished,
    Waiting,
    parse_event,
    read_events,
)
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.run_folder import RunFolder, read_dreams, read_exhibit
from secure_codream.reports.summary import (
    ClientResult,
    Summary,
    read_summary,
    write_client_result,
    write_summary,
)

SUMMARY: dict[str, Any] = {
    "schema": 1,
    "name": "demo",
    "started": "2026-11-23T12:30:05Z",
    "versions": {"secure-codream": "0.1.0"},
    "seed": 0,
    "clients": 2,
    "client_names": ["a", "b"],
    "models": ["cnn", "mlp"],
    "data": "digits",
    "partition": "iid",
    "label_counts": [[1, 2], [3, 0]],
    "rounds": 1,
    "secure_steps": 12,
    "accuracy": {
        "independent": {"mean": 0.5, "clients": [0.4, 0.6]},
        "codream": {"mean": 0.8, "clients": [0.8, None]},
        "centralised": 0.9,
        "student": None,
        "by_round": [[0.8, None]],
    },
    "gap_closure": 0.75,
    "bytes": {
        "up_per_client": 105,
        "down_per_client": 200,
        "setup_per_client": 3,
        "payload_per_client": 100,
        "overhead": 1.05,
    },
    "seconds": {"total": 10, "compute": 8.5, "aggregation": 1},
    "dropped": ["b"],
    "colluders": 1,
    "threshold": 2,
    "min_survivors": 2,
    "mode": "resilient",
    "blocks": [["a", "b"]],
    "head": "ab",
}

STEP: dict[str, Any] = {
    "time": 2.5,
    "event": "step_finished",
    "round": 0,
    "step": 3,
    "task": "update",
    "survivors": ["a"],
    "dropped": ["b"],
    "path": "dropout",
    "seconds": 0.1,
    "entropy": None,
    "clipped": None,
    "bytes_up": 10,
    "bytes_down": 20,
}


def summary_of(fields: dict[str, Any]) -> Summary:
    return msgspec.convert(fields, type=Summary)


# --- names


def test_folder_is_never_taken_twice(tmp_path: Path) -> None:
    when = datetime(2026, 11, 23, 12, 30, 5, tzinfo=UTC)
    first, second = (RunFolder.create(tmp_path / "runs", "demo", when) for _ in range(2))
    assert first.path.name == "20261123-123005-demo"
    assert second.path.name == "20261123-123005-demo-2"


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "a\\b", "a\0b", "a\nb"])
def test_client_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a name that can be a folder's"):
        RunFolder(tmp_path).client(name)


def test_rounds_are_found_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.finished_rounds() == []
    run.rounds.mkdir(parents=True)
    for number in (1000, 2, 0):
        run.round(number).touch()
    (run.rounds / "round-x.npz").touch()
    assert run.finished_rounds() == [0, 2, 1000]


# --- summary.json


def test_summary_survives_the_file(tmp_path: Path) -> None:
    summary = summary_of(SUMMARY)
    path = write_summary(tmp_path, summary)
    assert read_summary(path) == summary
    assert json.loads(path.read_text()) == {**SUMMARY, "rolled_back": {}}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_comparison_is_between_the_same_clients() -> None:
    accuracy = summary_of(SUMMARY).accuracy
    assert accuracy.independent.mean == 0.5
    assert accuracy.finishers_alone == 0.4


def test_summary_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).summary
    path.write_text(json.dumps(SUMMARY | {"epsilon": 2.0}))
    assert read_summary(path) == summary_of(SUMMARY)


def _set(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        target: Any = fields
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("schema", value=2), "schema"),
        (_set("rounds", value="four"), r"\$\.rounds"),
        (_set("started", value="yesterday"), r"\$\.started"),
        (_set("accuracy", "centralised", value=1.2), r"\$\.accuracy\.centralised"),
        (_set("accuracy", "independent", "clients", value=[0.1]), r"accuracy\.independent\.clients has 1"),
        (_set("accuracy", "by_round", value=[[0.5, 0.5], [0.5]]), r"by_round\[1\] has 1"),
        (_set("label_counts", value=[[1], [1, 2]]), "unequal length"),
        (_set("dropped", value=["c"]), r"\['c'\]"),
        (lambda fields: fields.pop("seed"), "seed"),
    ],
)
def test_summary_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    fields = copy.deepcopy(SUMMARY)
    change(fields)
    path = RunFolder(tmp_path).summary
    path.write_text(json.dumps(fields))
    with pytest.raises(MalformedRecord, match=words):
        read_summary(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_summary_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = RunFolder(tmp_path).summary
    path.write_bytes(content)
    with pytest.raises(MalformedRecord, match="expected JSON of Summary"):
        read_summary(path)


def test_missing_summary(tmp_path: Path) -> None:
    with pytest.raises(MissingRecord, match="expected the summary of a finished run"):
        read_summary(tmp_path / "summary.json")


def test_unfit_summary_is_not_written_and_the_earlier_one_stays(tmp_path: Path) -> None:
    path = write_summary(tmp_path, summary_of(SUMMARY))
    before = path.read_bytes()
    broken = msgspec.structs.replace(summary_of(SUMMARY), threshold=-1)
    with pytest.raises(MalformedRecord, match=r"\$\.threshold"):
        write_summary(tmp_path, broken)
    # JSON knows no NaN: it would come back as null.
    accuracy = msgspec.structs.replace(broken.accuracy, centralised=float("nan"))
    with pytest.raises(MalformedRecord, match="centralised"):
        write_summary(tmp_path, msgspec.structs.replace(broken, threshold=2, accuracy=accuracy))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_client_result_survives_the_file(tmp_path: Path) -> None:
    result = ClientResult(
        name="a", model="cnn", independent=0.5, accuracy_by_round=[0.6, 0.7], samples=3, label_counts=[1, 2]
    )
    run = RunFolder(tmp_path)
    assert msgspec.json.decode(write_client_result(run.result("a"), result).read_bytes(), type=ClientResult) == result


# --- server/events.jsonl


def test_events_are_typed_and_unknown_kinds_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    started = {"time": 1, "event": "federation_started", "clients": ["a"], "rounds": 1, "steps_per_round": 2}
    lines = [started, {"time": 2, "event": "weather", "degrees": 3}, STEP | {"later": True}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second = read_events(path)
    assert first == FederationStarted(time=1.0, clients=["a"], rounds=1, steps_per_round=2)
    assert isinstance(second, StepFinished)
    assert second.path == "dropout"


def test_events_of_an_epoch_say_why_it_ended_and_of_which_round_its_figures_are() -> None:
    given_up = parse_event(
        {"time": 1, "event": "epoch_given_up", "round": 0, "epoch": 2, "reason": "lost b", "wrong_sum": True}
    )
    assert isinstance(given_up, EpochGivenUp) and given_up.wrong_sum and given_up.epoch == 2
    waiting = parse_event(
        {"time": 1, "event": "waiting", "clients": ["a", "b"], "lost": ["b"], "phase": "computing", "seconds": 3.5}
    )
    assert isinstance(waiting, Waiting) and waiting.lost == ["b"]
    finished = parse_event(
        {
            "time": 1, "event": "round_finished", "round": 4, "learnt": False, "head": "ab",
            "metrics": {"accuracy": 0.5}, "metrics_round": 4,
        }
    )  # fmt: skip
    assert isinstance(finished, RoundFinished) and (finished.metrics_round, finished.learnt) == (4, False)


def test_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(STEP) + "\n" + json.dumps(STEP)[:40])
    assert len(read_events(path)) == 1


def test_line_that_a_killed_server_left_is_passed_over_and_the_next_ones_are_read(tmp_path: Path) -> None:
    path, line = tmp_path / "events.jsonl", json.dumps(STEP | {"entropy": -1.5e-7})
    for cut in range(1, len(line)):
        path.write_text("\n".join([json.dumps(STEP), line[:cut], line, ""]))
        assert len(read_events(path)) == 2, line[:cut]
    path.write_text(
        "\n".join([json.dumps(STEP), line[:40] + "x" + line[40:60], line, ""])
    )  # the control: spoilt, not cut
    with pytest.raises(MalformedRecord, match="in line 2"):
        read_events(path)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"time": 1}', '{"time": 1, "event": 5}', json.dumps(STEP | {"path": "slow"}), "\xff"]
)
def test_malformed_event_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(json.dumps(STEP).encode() + b"\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(MalformedRecord, match="in line 2"):
        read_events(path)


def test_event_without_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="under `event`"):
        parse_event({"time": 1.0})


# --- arrays


def _exhibit(**changes: Any) -> dict[str, Any]:
    vector = np.arange(5, dtype=np.uint32)
    fields = dict.fromkeys(("plain", "masked", "recovered_sum", "plain_sum"), vector)
    return fields | {"client": "a", "round": 0, "step": 1, "modulus_bits": 23, "top": 2**20 - 1} | changes


def test_exhibit_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exhibit.npz"
    np.savez(path, **_exhibit())
    exhibit = read_exhibit(path)
    assert (exhibit.client, exhibit.round, exhibit.step) == ("a", 0, 1)
    assert exhibit.plain.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masked": np.arange(4, dtype=np.uint32)}, "shapes"),
        ({"masked": np.arange(5)}, "types"),
        ({"masked": np.full(5, 2**23, np.uint32)}, "beyond the modulus"),
        ({"modulus_bits": 19}, "1048575 of 19 bits"),
        ({"round": "first"}, "one whole number"),
        ({"client": np.array(["a", None], dtype=object)}, "pickle"),
    ],
)
def test_exhibit_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "exhibit.npz"
    np.savez(path, **_exhibit(**changes))
    with pytest.raises(MalformedRecord, match=words):
        read_exhibit(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"dreams": np.zeros((2, 1, 8, 8), np.float32)}, "no array"),
        ({"dreams": np.zeros((2, 8, 8), np.float32), "soft_labels": np.zeros((2, 3), np.float32)}, "shapes"),
        ({"dreams": np.zeros((2, 1, 8, 8), np.float32), "soft_labels": np.zeros((3, 3), np.float32)}, "shapes"),
        ({"dreams": np.zeros((2, 1, 8, 8)), "soft_labels": np.zeros((2, 3), np.float32)}, "types"),
        (
            {"dreams": np.full((2, 1, 8, 8), np.nan, np.float32), "soft_labels": np.zeros((2, 3), np.float32)},
            "not finite",
        ),
    ],
)
def test_dreams_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = tmp_path / "round-000.npz"
    np.savez(path, **arrays)
    with pytest.raises(MalformedRecord, match=words):
        read_dreams(path)


def test_truncated_archive_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "round-000.npz"
    np.savez(path, dreams=np.zeros((2, 1, 8, 8), np.float32), soft_labels=np.zeros((2, 3), np.float32))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MalformedRecord):
        read_dreams(path)
    with pytest.raises(MissingRecord):
        read_dreams(tmp_path / "round-001.npz")
