"""The examples run as they stand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secure_codream.config import ClientConfig, FederationConfig
from secure_codream.party import read_metrics
from secure_codream.provision import provision

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = {
    "federation": {"rounds": 1},
    "task": {"shape": (1, 8, 8), "classes": 10},
    "dreams": {"batch": 16, "steps": 2},
    "learning": {"warm_up_epochs": 5, "distil_epochs": 2, "local_epochs": 1, "local_steps": 2},
}


@pytest.mark.system
def test_local_federation() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "local_federation.py"], capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("round ") == 3 and "kB sent" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize("how", ["script", "configuration"])
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
    command = [sys.executable, "-m", "secure_codream"]
    server = subprocess.Popen([*command, "server", tmp_path / "server", "--listen", "tcp://127.0.0.1:*"])
    running = [server]
    try:
        while not (tmp_path / "server" / "endpoint").exists():
            assert server.poll() is None
            time.sleep(0.05)
        endpoint = (tmp_path / "server" / "endpoint").read_text()
        for client in clients:
            folder = tmp_path / "clients" / client.name
            start = [sys.executable, EXAMPLES / "client_in_a_script.py", folder, endpoint]
            if how == "configuration":
                start = [*command, "client", folder, "--address", endpoint, "--threads", "1"]
            running.append(subprocess.Popen(start, env=ENVIRONMENT, cwd=EXAMPLES))
        assert [process.wait(timeout=300) for process in running] == [0, 0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for client in clients:
        figures = read_metrics(tmp_path / "clients" / client.name / "metrics.jsonl")
        assert len(figures) == 2 and figures[-1]["accuracy"] is not None
