"""The demonstration as a person runs it: real processes, from the first key to the report.

What every run of it must show is shown by a small one, with a client that is killed, too.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from secure_codream.demonstration import DemoOptions, run_demo
from secure_codream.reports.events import ClientLost, EpochGivenUp, EpochStarted, StepFinished, read_events
from secure_codream.reports.panel import LivePanel
from secure_codream.reports.run_folder import RunFolder, read_dreams, read_exhibit
from secure_codream.reports.statement import read_statement
from secure_codream.reports.summary import Summary, read_summary

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

NAMES = [f"client-{number}" for number in range(1, 6)]
COMMAND = [sys.executable, "-m", "secure_codream", "demo", "--rounds", "2"]


@dataclass(frozen=True)
class Done:
    """A demonstration that has run: its folder, its summary, and what it printed."""

    run: RunFolder
    summary: Summary
    printed: str


def demonstrate(out: Path, *options: str) -> Done:
    command = [*COMMAND, "--json", "--out", str(out), *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert process.returncode == 0, process.stderr
    (folder,) = out.iterdir()
    run = RunFolder(folder)
    return Done(run, read_summary(run.summary), process.stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("small") / "runs"
    options = DemoOptions(clients=3, rounds=2, steps=2, batch=16, drop=1, out=out)
    summary, run = run_demo(options, LivePanel(Console(quiet=True)))
    return Done(run, summary, "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return demonstrate(tmp_path_factory.mktemp("whole") / "runs")


@pytest.fixture(scope="module")
def with_a_drop(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return demonstrate(tmp_path_factory.mktemp("drop") / "runs", "--drop", "1")


@pytest.fixture(scope="module")
def resilient(tmp_path_factory: pytest.TempPathFactory) -> Done:
    options = ("--clients", "6", "--mode", "resilient", "--drop", "1")
    return demonstrate(tmp_path_factory.mktemp("resilient") / "runs", *options)


LARGE = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("whole", "with_a_drop")]


@pytest.fixture(params=["small", *LARGE])
def done(request: pytest.FixtureRequest) -> Done:
    found: Done = request.getfixturevalue(request.param)
    return found


def processes_that_name(path: Path) -> list[str]:
    """Command lines of living processes with this path in them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(path).encode() in line:
                found.append(line.replace(b"\0", b" ").decode())
    return found


def test_run_says_plainly_that_it_has_no_differential_privacy(done: Done) -> None:
    assert "no differential privacy" in read_statement(done.run.path).headline
    assert "no differential privacy" in (done.run.path / "privacy.html").read_text()


@pytest.mark.exhaustive
def test_a_private_demonstration_keeps_and_states_the_budget_of_every_client(tmp_path: Path) -> None:
    """Also of one that was killed: its ledger is on the disk. Alone and pooled, the same budget holds."""
    done = demonstrate(tmp_path / "runs", "--epsilon", "8", "--drop", "1")
    statement, accuracy = read_statement(done.run.path), done.summary.accuracy
    assert statement.record is not None
    assert [member.name for member in statement.record.members] == NAMES
    assert all(7.9 < member.spent <= 8 for member in statement.record.members)
    assert all(model.endswith("_gn") for model in done.summary.models) and done.summary.dropped == ["client-5"]
    assert "epsilon 8 at delta 0.0001" in done.run.report.read_text(encoding="utf-8")
    assert accuracy.finishers_alone < accuracy.codream.mean < 1  # 0.43 and 0.80 were seen


@pytest.mark.exhaustive
def test_summary_says_what_was_run(whole: Done) -> None:
    summary = whole.summary
    assert json.loads(whole.printed) == json.loads(whole.run.summary.read_text())
    assert (summary.clients, summary.client_names, summary.rounds) == (5, NAMES, 2)
    assert (summary.data, summary.partition, summary.seed) == ("digits", "dirichlet 0.5", 0)
    assert len(set(summary.models)) == 5
    assert summary.secure_steps == 2 * (1 + 5 + 1) + 1  # metrics, updates, labels; and the last metrics
    assert (summary.mode, summary.colluders, summary.threshold, summary.min_survivors) == ("lockstep", 1, 5, 3)
    assert summary.blocks == [NAMES]  # five with one colluder are one block
    assert summary.dropped == []
    assert [sum(counts) for counts in summary.label_counts] == [30] * 5
    assert len(summary.accuracy.by_round) == 2
    assert summary.accuracy.by_round[-1] == summary.accuracy.codream.clients
    assert summary.accuracy.student is not None and summary.gap_closure is not None
    assert {"python", "secure-codream", "torch", "pyzmq"} <= set(summary.versions)
    traffic, seconds = summary.bytes, summary.seconds
    assert traffic.overhead == pytest.approx(traffic.up_per_client / traffic.payload_per_client)
    assert 1 < traffic.overhead <= 1.10
    assert 0 < traffic.setup_per_client < traffic.up_per_client and traffic.down_per_client > 0
    assert 0 < seconds.compute + seconds.aggregation < seconds.total


def test_folder_holds_what_its_description_says(done: Done) -> None:
    run = done.run
    assert run.config.exists() and run.report.stat().st_size > 10_000
    assert "<html" in run.report.read_text(encoding="utf-8")[:1000].lower()
    assert run.finished_rounds() == [0, 1]
    for number in (0, 1):
        dreams = read_dreams(run.round(number))
        assert dreams.images.shape[1:] == (1, 8, 8) and dreams.logits.shape == (len(dreams.images), 10)
    for name in done.summary.client_names:
        assert json.loads(run.result(name).read_bytes())["name"] == name


def test_recovered_sum_is_the_plain_sum_bit_for_bit(done: Done) -> None:
    seen = read_exhibit(done.run.exhibit)
    steps = 2 if len(done.summary.client_names) == 3 else 5
    assert (seen.round, seen.step) == (0, 1 + steps // 2) and seen.client in done.summary.client_names
    assert np.array_equal(seen.recovered_sum, seen.plain_sum) and seen.plain_sum.any()
    # What the server saw of one client looks like uniform noise, whatever the client had: bits of it are even.
    assert (seen.masked != seen.plain).mean() > 0.99
    assert abs(np.unpackbits(seen.masked[:, None].view(np.uint8)).mean() * 32 / seen.modulus_bits - 0.5) < 0.02


@pytest.mark.exhaustive
def test_nobody_is_dropped_without_being_asked(whole: Done) -> None:
    steps = [event for event in read_events(whole.run.events) if isinstance(event, StepFinished)]
    assert len(steps) == 15
    assert {event.path for event in steps} == {"fast"} and all(event.survivors == NAMES for event in steps)


@pytest.mark.parametrize("run", ["small", LARGE[1]])
def test_in_lockstep_the_others_wait_for_a_killed_client_and_begin_anew_with_it(
    run: str, request: pytest.FixtureRequest
) -> None:
    done: Done = request.getfixturevalue(run)
    summary, events = done.summary, read_events(done.run.events)
    names = summary.client_names
    assert summary.dropped == names[-1:] and None not in summary.accuracy.codream.clients
    lost = [event for event in events if isinstance(event, ClientLost) and event.client == names[-1]]
    assert lost
    (given_up,) = [event for event in events if isinstance(event, EpochGivenUp)]
    assert (given_up.round, given_up.wrong_sum) == (1, False) and names[-1] in given_up.reason
    began = [event for event in events if isinstance(event, EpochStarted)]
    assert [event.round for event in began] == [0, 1, 1, 2] and all(event.cohort == names for event in began)
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert all(event.survivors == names and event.path == "fast" for event in steps)
    assert names[-1] in done.run.report.read_text(encoding="utf-8")


@pytest.mark.exhaustive
def test_in_resilient_mode_the_block_of_a_killed_client_leaves_and_the_other_goes_on(resilient: Done) -> None:
    names = [*NAMES, "client-6"]
    summary, events = resilient.summary, read_events(resilient.run.events)
    assert (summary.mode, summary.blocks) == ("resilient", [names[:3], names[3:]])
    assert summary.dropped == ["client-6"] and None not in summary.accuracy.codream.clients
    assert not [event for event in events if isinstance(event, EpochGivenUp)]
    steps = [event for event in events if isinstance(event, StepFinished) and event.round == 1]
    assert {tuple(event.survivors) for event in steps} == {tuple(names), tuple(names[:3])}
    left = [event for event in steps if event.path == "dropout"]
    assert left and all(event.dropped == names[3:] for event in left)
    # Who was killed has learnt what was certified without it, as all others have: one head for everybody.
    heads = {
        json.loads((resilient.run.client(name) / "log.jsonl").read_text().splitlines()[-1])["head"] for name in names
    }
    assert heads == {summary.head}


@pytest.mark.parametrize("where", ["", "server/record", "clients/client-1/journal"])
def test_anybody_can_verify_the_record(done: Done, where: str) -> None:
    process = verify(done.run.path / where, "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert (found["head"], found["epochs"], found["votes"]) == (
        done.summary.head,
        3,
        3 * [len(done.summary.client_names)],
    )


@pytest.mark.exhaustive
def test_one_flipped_byte_anywhere_in_the_record_is_found_and_named(whole: Done, tmp_path: Path) -> None:
    source, flips = whole.run.server / "record", random.Random(0)
    for path in sorted(source.glob("*.json")) + sorted(source.glob("*.record")):
        folder = tmp_path / path.name
        shutil.copytree(source, folder)
        content = bytearray(path.read_bytes())
        content[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        (folder / path.name).write_bytes(content)
        process = verify(folder)
        assert process.returncode == 1 and path.name in process.stderr.replace("\n", ""), process.stderr


def verify(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secure_codream", "verify", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "COLUMNS": "400"})


def test_keys_are_for_their_owner_alone(done: Done) -> None:
    keys = list(done.run.path.rglob("*.key"))
    assert len(keys) == 1 + 1 + 2 * len(done.summary.client_names)
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_no_process_is_left_behind(done: Done) -> None:
    assert processes_that_name(done.run.path) == []


def test_no_secret_key_is_in_anything_that_is_written(done: Done) -> None:
    keys = [bytes.fromhex(path.read_text()) for path in done.run.path.rglob("*.key")]
    files = [path for path in done.run.path.rglob("*") if path.is_file() and path.suffix != ".key"]
    names = {path.name for path in files}
    assert {"summary.json", "report.html", "events.jsonl", "log.jsonl", "process.log", "server.json"} <= names
    content = {path: path.read_bytes() for path in files}
    content[Path("printed")] = done.printed.encode()
    for path, data in content.items():
        for key in keys:
            for form in (key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:42]):
                assert form not in data, path
    # The search can find: the first 16 digits of a public key stand in the roster's owner's file.
    public = (done.run.server / "administrator.pub").read_bytes().strip()
    assert public in (done.run.path / "administrator" / "administrator.pub").read_bytes()


def test_interruption_ends_with_130_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--clients", "3", "--json", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 900
        while not any("epoch_started" in path.read_text() for path in tmp_path.glob("*/server/events.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert len(processes_that_name(tmp_path)) >= 1 + 1 + 3 + 1  # itself, server, clients, references
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "secure-codream: interrupted" in errors and "Traceback" not in errors
    assert processes_that_name(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients", "2"], "--clients': found 2; at least 3 is allowed"),
        (["--alpha", "soft"], "found 'soft'; a number above 0, or 'iid', is allowed"),
        (
            ["--clients", "5", "--mode", "resilient", "--drop", "1"],
            "found 5; with --drop in resilient mode 6 are needed",
        ),
        (["--rouns", "3"], "No such option"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "secure_codream", "demo", "--out", str(tmp_path / "runs"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
