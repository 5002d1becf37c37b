"""A client whose own function fails, or answers beyond its bounds, is told so, and does not end as if all was well."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.system.processes import SECURE_CODREAM, client_command, run_federation

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


def in_its_folder(folder: Path, endpoint: str) -> list[str | Path]:
    """A client whose answer is its own: `hospital.py`."""
    return ["env", "-C", folder, *client_command(folder, endpoint)]


def events(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_failing_answers_are_told_and_end_with_an_error(tmp_path: Path) -> None:
    out = tmp_path / "federation"
    (tmp_path / "config.toml").write_text(CONFIG)
    clients = [f"--client={name}=cnn2" for name in NAMES]
    address: list[str | Path] = ["--address", "tcp://127.0.0.1:1", "--out", out]
    subprocess.run([*SECURE_CODREAM, "provision", tmp_path / "config.toml", *clients, *address], check=True)
    for name, answer in ANSWERS.items():
        folder = out / "clients" / name
        (folder / "hospital.py").write_text(answer)
        text = (folder / "client.toml").read_text()
        (folder / "client.toml").write_text(text.replace("\n[data]", '\nanswers = "hospital:answer"\n[data]'))
    assert run_federation(out, NAMES, in_its_folder) == [0, 0, 0, 1]
    sums = json.loads((out / "server" / "sums.json").read_text())["visits"]
    assert sums["patients"] == [1007]
    beyond = [line["found"] for line in events(out / "clients" / "b") if line["event"] == "answer"]
    assert beyond and "beyond 0 to 1000" in beyond[0]
    failed = [line["found"] for line in events(out / "clients" / "c") if line["event"] == "computation-failed"]
    assert failed and "no such table" in failed[0]
    assert not [line for line in events(out / "clients" / "a") if line["event"] in ("answer", "computation-failed")]
