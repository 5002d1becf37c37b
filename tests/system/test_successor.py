"""A charter that follows another and cuts its blocks: refused, then taken knowingly, and run to its end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.system.processes import SECURE_CODREAM, in_its_folder, run_federation

NAMES = tuple("abcdef")
CONFIG = """
[federation]
course = "sums"
[aggregation]
mode = "resilient"
[sums.vectors.visits]
patients = { bound = 1000, count = true }
[timing]
lost_after = 5.0
"""
ANSWERS = "from pathlib import Path\n\n\ndef answer(task):\n    return {'patients': [ord(Path.cwd().name) - 96]}\n"


@pytest.mark.exhaustive
def test_permitted_cut_is_refused_first_then_said_and_runs_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "federation"
    (tmp_path / "config.toml").write_text(CONFIG)
    clients = [f"--client={name}=cnn2" for name in NAMES]
    address: list[str | Path] = ["--address", "tcp://127.0.0.1:1", "--out", out]
    subprocess.run([*SECURE_CODREAM, "provision", tmp_path / "config.toml", *clients, *address], check=True)
    for name in NAMES:
        folder = out / "clients" / name
        (folder / "hospital.py").write_text(ANSWERS)
        text = (folder / "client.toml").read_text()
        (folder / "client.toml").write_text(text.replace("\n[data]", '\nanswers = "hospital:answer"\n[data]'))
    assert run_federation(out, NAMES, in_its_folder) == 7 * [0]
    first = json.loads((out / "server" / "sums.json").read_text())["visits"]
    assert first["patients"] == [21] and first["members"] == [6]

    verify: list[str | Path] = [*SECURE_CODREAM, "verify", out]
    blocks = 'blocks = [["a", "d", "e"], ["b", "c", "f"]]'  # for a, b, c; d, e, f: a and f stand alone
    config = CONFIG.replace("[aggregation]\n", f"[aggregation]\n{blocks}\n")
    written = subprocess.run([*verify, "--successor"], capture_output=True, text=True, check=True)
    (tmp_path / "config.toml").write_text(f"{config}\n{written.stdout}")
    sign: list[str | Path] = [*SECURE_CODREAM, "charter", out / "administrator", tmp_path / "config.toml"]
    subprocess.run(sign, check=True)
    accept: list[str | Path] = [*SECURE_CODREAM, "roster", "verify"]
    offered: list[str | Path] = [out / "administrator" / "charter-2", "--accept"]
    refused = subprocess.run([*accept, out / "clients" / "a", *offered], capture_output=True, text=True)
    assert refused.returncode == 3 and "tell apart a; b, c; d, e; f" in " ".join(refused.stderr.split())
    subprocess.run([*accept, out / "server", *offered], check=True)
    for name in NAMES:
        toml = out / "clients" / name / "client.toml"
        toml.write_text(toml.read_text().replace("[policy.code]", "[policy]\ncuts = true\n\n[policy.code]"))
        subprocess.run([*accept, out / "clients" / name, *offered], check=True)
    begun: list[str | Path] = [*SECURE_CODREAM, "verify", out / "clients" / "a", "--json"]
    found = json.loads(subprocess.run(begun, capture_output=True, text=True, check=True).stdout)
    assert (found["epochs"], [one["epochs"] for one in found["before"]]) == (0, [1]), "accepted, and not begun with yet"
    assert run_federation(out, NAMES, in_its_folder) == 7 * [0]
    found = json.loads(subprocess.run([*verify, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["epochs"] == 1 and found["successor"]["certified"] == 2 and len(found["successor"]["blocks"]) == 4
    for name in NAMES:
        lines = [json.loads(line) for line in (out / "clients" / name / "log.jsonl").read_text().splitlines()]
        assert any("cuts a block" in line.get("text", "") for line in lines), name
