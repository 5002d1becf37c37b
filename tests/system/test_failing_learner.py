"""A client whose own function fails, or answers beyond its bounds, is told so, and does not end as if all was well."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.system.processes import SECURE_CODREAM, in_its_folder, run_federation

NAMES = ("a", "b", "c")
CONFIG = """
[federation]
course = "sums"
[sums.vectors.visits]
patients = { bound = 1000, count = true }
[timing]
lost_after = 5.0
"""
ANSWERS = {
    "a": "def answer(task):\n    return {'patients': [7]}\n",
    "b": "def answer(task):\n    return {'patients': [1001]}\n",
    "c": "def answer(task):\n    raise KeyError('no such table')\n",
}


def events(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def provisioned(folder: Path, config: str, answers: dict[str, str]) -> Path:
    (folder / "config.toml").write_text(config)
    clients = [f"--client={name}=cnn2" for name in NAMES]
    out = folder / "federation"
    address: list[str | Path] = ["--address", "tcp://127.0.0.1:1", "--out", out]
    subprocess.run([*SECURE_CODREAM, "provision", folder / "config.toml", *clients, *address], check=True)
    for name, answer in answers.items():
        (out / "clients" / name / "hospital.py").write_text(answer)
        text = (out / "clients" / name / "client.toml").read_text()
        text = text.replace("\n[data]", '\nanswers = "hospital:answer"\n[data]')
        (out / "clients" / name / "client.toml").write_text(text)
    return out


def test_failing_answers_are_told_and_end_with_an_error_as_often_as_the_client_is_started(tmp_path: Path) -> None:
    """It was forgotten with the process: started again, by a service for example, the client ended as if well."""
    out = provisioned(tmp_path, CONFIG, ANSWERS)
    assert run_federation(out, NAMES, in_its_folder) == [0, 0, 0, 1]
    sums = json.loads((out / "server" / "sums.json").read_text())["visits"]
    assert sums["patients"] == [1007]
    beyond = [line["found"] for line in events(out / "clients" / "b") if line["event"] == "answer"]
    assert beyond and "beyond 0 to 1000" in beyond[0]
    failed = [line["found"] for line in events(out / "clients" / "c") if line["event"] == "computation-failed"]
    assert failed and "no such table" in failed[0]
    assert not [line for line in events(out / "clients" / "a") if line["event"] in ("answer", "computation-failed")]
    again = subprocess.run(
        in_its_folder(out / "clients" / "c", "tcp://127.0.0.1:1"), capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 1
    assert "zeros were summed for 'visits' in 1 step" in again.stderr and "failures.json" in again.stderr


def test_a_function_that_never_returns_does_not_keep_the_exit_code_back(tmp_path: Path) -> None:
    """The server gives up before all is computed; the thread that computes cannot be stopped."""
    sleeps = "import time\n\n\ndef answer(task):\n    time.sleep(3600)\n"
    out = provisioned(tmp_path, CONFIG, {**dict.fromkeys("ab", ANSWERS["a"]), "c": sleeps})
    client = out / "clients" / "c" / "client.toml"
    client.write_text("patience = 3.0\n" + client.read_text())
    server: subprocess.Popen[Any] = subprocess.Popen(
        [*SECURE_CODREAM, "server", out / "server", "--listen", "tcp://127.0.0.1:*"]
    )
    started: list[subprocess.Popen[Any]] = []
    try:
        while not (out / "server" / "endpoint").exists():
            assert server.poll() is None
            time.sleep(0.05)
        endpoint = (out / "server" / "endpoint").read_text()
        for name in NAMES:
            command = in_its_folder(out / "clients" / name, endpoint)
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        log = out / "server" / "events.jsonl"
        while '"step_started"' not in log.read_text():
            assert server.poll() is None
            time.sleep(0.05)
        while '"event": "waiting"' not in log.read_text():  # a and b have answered
            time.sleep(0.05)
        server.kill()
        _, told = started[-1].communicate(timeout=600)
        assert started[-1].returncode == 1 and "no word from the server for 3 s" in told
    finally:
        for process in [server, *started]:
            process.kill()
            process.wait()
