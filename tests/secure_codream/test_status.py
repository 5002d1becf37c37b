"""How a party stands, from the two files that it replaces: read by a command, and by a collector of metrics."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from typer.testing import CliRunner

from codream_clients.awaited import ServersWord
from codream_protocols.messages import Awaited, Waiting
from secure_codream import cli
from secure_codream.configuration.courses import make_course
from secure_codream.deployment.earlier import is_running
from secure_codream.deployment.endings import accuracies, client_ending, server_ending
from secure_codream.deployment.status import ClientPhase, StatusFiles, shown
from secure_codream.reports.files import MissingRecord
from secure_codream.reports.status import (
    METRICS,
    SERVER,
    STATUS,
    Person,
    Status,
    metrics_text,
    read_status,
    replace_status,
)
from tests.secure_codream.small import codream, roster_of

if TYPE_CHECKING:
    from codream_clients.runner import ClientRunner


def status_of(**changes: Any) -> Status:
    usual = {
        "party": "server",
        "federation": "study",
        "charter": "0" * 64,
        "process": 1,
        "began": 1000.0,
        "written": 1100.0,
        "phase": "collecting",
        "certified": 2,
        "epochs": 7,
    }
    return Status(**{**usual, **changes})


WAITING = status_of(
    step=3,
    steps=12,
    waiting=(Person(name="b", present=False, heard=1086.0),),
    since=1089.5,
    members=(Person(name="a", present=True, heard=1099.5), Person(name="b", present=False, heard=1086.0)),
    secure_steps=27,
    bytes_up=1234,
    bytes_down=5678,
    refused=1,
    given_up=0,
)


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def test_both_files_are_replaced_and_read_again(tmp_path: Path) -> None:
    replace_status(tmp_path, status_of())
    replace_status(tmp_path, WAITING)
    assert read_status(tmp_path) == WAITING
    assert (tmp_path / METRICS).read_text() == metrics_text(WAITING)
    assert {path.name for path in tmp_path.iterdir()} == {STATUS, METRICS}


def test_the_page_has_every_field_and_every_phase() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    section = page.partition("## How it stands")[2].partition("\n## ")[0]
    assert {name for name in Status.__struct_fields__ if f"`{name}`" not in section} == set()
    phase = ClientPhase()
    for event in ("none", "warm-up", "resume", "prepared", "finished"):
        phase.saw({"event": event})
        assert all(f"`{phase.name(in_epoch=within)}`" in section for within in (True, False))


def test_a_reader_never_finds_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_status(tmp_path, WAITING)
    before = (tmp_path / STATUS).read_bytes()

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        replace_status(tmp_path, status_of())
    assert (tmp_path / STATUS).read_bytes() == before


def test_a_disk_that_is_full_stops_nobody(tmp_path: Path) -> None:
    config = codream()
    _, roster = roster_of(3)
    files = StatusFiles(tmp_path / "nowhere", "a", "study", config.charter(roster), 3)
    files.write("training alone", 0)
    (tmp_path / "nowhere").mkdir()
    files.write("training alone", 0)
    found = read_status(tmp_path / "nowhere")
    assert (found.party, found.phase, found.process, found.charter) == (
        "a",
        "training alone",
        os.getpid(),
        config.charter(roster).digest.hex(),
    )


def test_the_command_says_for_whom_it_waits_and_since_when(tmp_path: Path) -> None:
    now = time.time()
    member = Person(name="[red]b\x1b[2J", present=False, heard=now - 14)
    replace_status(tmp_path, status_of(written=now, step=3, steps=12, waiting=(member,), since=now - 10.5))
    (tmp_path / "record").mkdir()
    stopped = call("status", tmp_path)
    assert stopped.exit_code == 1 and "not running" in stopped.output
    descriptor = os.open(tmp_path / "record", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert is_running(tmp_path)
        shown_, as_json = call("status", tmp_path), call("status", tmp_path, "--json")
    finally:
        os.close(descriptor)
    assert shown_.exit_code == as_json.exit_code == 0 and not is_running(tmp_path)
    assert shown_.output.splitlines()[:2] == [
        "server of study: running, written 00:00 ago",
        "collecting; 2 of 7 epochs certified; step 4 of 12",
    ]
    assert re.search(r"waiting for \[red\]b.*, last heard 00:1[45] ago", shown_.output)
    assert "\x1b" not in shown_.output
    found = json.loads(as_json.output)
    assert found["running"] and [one["name"] for one in found["waiting"]] == ["[red]b\x1b[2J"]


def test_a_party_that_has_finished_is_well_and_one_that_never_ran_is_said(tmp_path: Path) -> None:
    replace_status(tmp_path, status_of(phase="finished"))
    assert call("status", tmp_path).exit_code == 0
    (tmp_path / STATUS).unlink()
    done = call("status", tmp_path)
    assert done.exit_code != 0 and isinstance(done.exception, MissingRecord)
    (tmp_path / STATUS).write_text('{"party": 3}')
    assert "expected" in str(call("status", tmp_path).exception)


def test_looking_whether_a_party_runs_takes_nothing_from_it(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "lock").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not is_running(tmp_path) and not is_running(tmp_path / "nowhere")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# -- metrics ---------------------------------------------

_SAMPLE = re.compile(r'codream_(\w+)\{(\w+="(?:[^"\\\n]|\\.)*",?)+\} -?\d+(\.\d+)?\Z')


def test_metrics_are_prometheus_text_and_say_of_one_member_no_more_than_its_presence() -> None:
    lines = metrics_text(WAITING).splitlines()
    described: set[str] = set()
    by_member = set()
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("gauge", "counter") and (kind == "counter") == name.endswith("_total")
            assert name not in described
            described.add(name)
        elif not line.startswith("# HELP "):
            found = _SAMPLE.match(line)
            assert found is not None and f"codream_{found[1]}" in described, line
            if "member=" in line:
                by_member.add(found[1])
    assert by_member == {"member_present", "member_heard_time_seconds"}
    assert 'codream_member_present{federation="study",party="server",member="b"} 0.000' in lines
    assert 'codream_waiting_seconds{federation="study",party="server"} 10.500' in lines
    assert 'codream_received_bytes_total{federation="study",party="server"} 1234' in lines


def test_a_name_does_not_end_its_label() -> None:
    evil = 'b"} 1\ncodream_epochs_certified{party="x\\'
    text = metrics_text(status_of(party=evil))
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(_SAMPLE.match(line) for line in samples)
    assert len([line for line in samples if line.startswith("codream_epochs_certified")]) == 1


# -- a client ---------------------------------------------


def test_what_a_client_is_at_is_what_its_log_says() -> None:
    phase = ClientPhase()
    assert phase.name(in_epoch=False) == "starting"
    seen = []
    for event, within in (
        ("warm-up", True),
        ("welcome", True),
        ("prepared", True),
        ("learnt", False),
        ("finished", False),
    ):
        phase.saw({"event": event})
        seen.append(phase.name(in_epoch=within))
    assert seen == ["training alone", "training alone", "in an epoch", "between epochs", "finished"]


def test_it_is_shown_while_there_is_work_and_what_work_raises_stays() -> None:
    calls: list[int] = []

    async def work() -> int:
        await asyncio.sleep(0.05)
        return 7

    async def broken() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("its own")

    assert asyncio.run(shown(work(), lambda: calls.append(1), every=0.01)) == 7
    assert len(calls) > 1
    with pytest.raises(ValueError, match="its own"):
        asyncio.run(shown(broken(), lambda: calls.append(1)))


def line(
    rounds: int, accuracy: float | None, held: float | None, best: float | None, best_round: int
) -> dict[str, Any]:
    return {
        "event": "metrics",
        "rounds": rounds,
        "accuracy": accuracy,
        "held_accuracy": held,
        "best_accuracy": best,
        "best_round": best_round,
        "judged_by": 40,
        "held_back": True,
    }


def test_the_ending_says_alone_now_best_and_where_the_files_are(tmp_path: Path) -> None:
    earlier = line(0, 0.1, 0.1, 0.1, 0)  # of a charter before
    lines = [earlier, line(0, 0.5, 0.45, 0.45, 0), line(1, 0.7, 0.75, 0.75, 1), line(2, 0.6, 0.7, 0.75, 1)]
    assert accuracies(lines) == [
        "accuracy on test images: alone 50.0%, now 60.0%",
        "accuracy on 40 held-back images: alone 45.0%, now 70.0%, best 75.0% (of round 1)",
    ]
    undone = {**line(3, 0.5, 0.2, 0.45, 0), "rolled_back": True}  # both of the weights that there are
    assert accuracies([*lines[:2], undone]) == [
        "accuracy on test images: alone 50.0%, now 50.0%",
        "accuracy on 40 held-back images: alone 45.0%, now 45.0%, best 45.0% (of training alone)",
    ]
    assert accuracies([]) == [] and accuracies([line(1, None, None, None, 0)]) == []
    assert accuracies([line(1, 0.5, None, None, 0)]) == ["accuracy on test images: now 50.0%"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "journal").mkdir()
    ending = client_ending(tmp_path)
    assert ending[0].endswith("now 60.0%") and any("model.safetensors" in one for one in ending)
    assert not any("best.safetensors" in one or "journal" in one for one in ending)


def test_a_server_that_has_not_finished_has_no_ending(tmp_path: Path) -> None:
    with pytest.raises(MissingRecord):
        server_ending(tmp_path)


class Running:
    """What a client's runner says of itself."""

    def __init__(self, word: ServersWord, silence: float | None) -> None:
        self.word, self.standing = word, (True, 2, silence)


def test_for_whom_the_server_waits_stands_in_a_clients_status_as_the_servers_word(tmp_path: Path) -> None:
    config = codream()
    _, roster = roster_of(3)
    files = StatusFiles(tmp_path, "a", "study", config.charter(roster), 3)
    phase, word = ClientPhase(), ServersWord(roster)
    phase.saw({"event": "prepared"})
    word.take(Waiting((Awaited(1, False, 14), Awaited(2, True, -1)), unnamed=False))
    files.of_client(cast("ClientRunner", Running(word, 0.5)), make_course(config), 1, phase)
    found = read_status(tmp_path)
    names = [member.name for member in roster.members]
    assert [(one.name, one.present) for one in found.waiting] == [(names[1], False), (names[2], True)]
    assert found.told and found.since is not None and found.waiting[1].heard is None
    assert found.waiting[0].heard is not None and abs(found.written - found.waiting[0].heard - 14) < 5
    lines = call("status", tmp_path).output.splitlines()
    assert lines[-1] == f"the server says that it waits for {names[2]}, it is there"
    assert re.fullmatch(rf"the server says that it waits for {names[1]}, last heard 00:1\d ago", lines[-2])
    # Some that are there have not answered: that is said without a name.
    word.take(Waiting((), unnamed=True))
    files.of_client(cast("ClientRunner", Running(word, 0.5)), make_course(config), 1, phase)
    found = read_status(tmp_path)
    assert found.waiting == () and found.since is not None and found.told
    lines = call("status", tmp_path).output.splitlines()
    assert lines[-1] == "the server says that it waits for answers of some that are there"
    # Without a word from the server, it is the server that is waited for; after the end, nobody.
    files.of_client(cast("ClientRunner", Running(word, 11.0)), make_course(config), 1, phase)
    found = read_status(tmp_path)
    assert [one.name for one in found.waiting] == [SERVER] and not found.told
    phase.saw({"event": "finished"})
    files.of_client(cast("ClientRunner", Running(word, 0.5)), make_course(config), 3, phase)
    assert read_status(tmp_path).waiting == ()
