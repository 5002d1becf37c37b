"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment.provision import provision
from secure_codream.reports.metrics import read_metrics
from tests.system.processes import ENVIRONMENT, client_command, run_federation

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "federation": {"rounds": 1},
    "task": {"shape": (1, 8, 8), "classes": 10},
    "dreams": {"batch": 16, "steps": 2},
    "learning": {"warm_up_epochs": 5, "distil_epochs": 2, "local_epochs": 1, "local_steps": 2},
}


@pytest.mark.system
def test_local_federation() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "local_federation.py"], capture_output=True, text=True, timeout=900, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("round ") == 3 and "kB sent" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize("how", ["script", pytest.param("configuration", marks=pytest.mark.exhaustive)])
def test_own_parts_over_the_network(tmp_path: Path, how: str) -> None:
    """Three clients with their own model and data: inside a script, and named in client.toml."""
    parts = {} if how == "script" else {"data": {"source": "own_parts:load"}}
    model = "cnn2" if how == "script" else "own_parts:build"
    clients = [
        ClientConfig.model_validate({"name": name, "model": model, "device": "cpu", **parts})
        for name in ("a", "b", "c")
    ]
    config = FederationConfig.model_validate(SMALL)
    provision(tmp_path, config=config, clients=clients, address="tcp://127.0.0.1:1")

    def in_a_script(folder: Path, endpoint: str) -> list[str | Path]:
        return [sys.executable, EXAMPLES / "client_in_a_script.py", folder, endpoint]

    start = in_a_script if how == "script" else client_command
    assert run_federation(tmp_path, [client.name for client in clients], start, cwd=EXAMPLES) == [0, 0, 0, 0]
    for client in clients:
        figures = read_metrics(tmp_path / "clients" / client.name / "metrics.jsonl")
        assert len(figures) == 2 and figures[-1]["accuracy"] is not None
