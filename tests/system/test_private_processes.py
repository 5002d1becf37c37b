"""A private federation as real processes: ledgers, statements, weights, and a client that goes on from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment.checkpoint import read_checkpoint
from secure_codream.deployment.files import MODEL
from secure_codream.deployment.provision import provision
from secure_codream.reports.metrics import read_metrics
from secure_codream.reports.statement import read_statement
from tests.system.processes import ENVIRONMENT, client_command, run_federation

NAMES = ("a", "b", "c")


def provisioned(folder: Path, *, own: dict[str, object] | None = None, **tables: object) -> Path:
    """Three clients; the first has a budget of its own if `own` is given."""
    config = FederationConfig.model_validate(
        {
            "federation": {"rounds": 1, "name": "private"},
            "task": {"shape": (1, 8, 8), "classes": 10},
            "dreams": {"batch": 16, "steps": 2},
            "learning": {"distil_epochs": 2, "local_epochs": 0, "local_steps": 2, "own_weight": 0.0},
            "timing": {"join": 300.0},
            **tables,
        }
    )
    clients = [
        ClientConfig.model_validate(
            {
                "name": name,
                "model": "cnn2_gn",
                "device": "cpu",
                "data": {"clients": 3, "part": part, "per_client": 100},
                **({"budget": own} if own is not None and part == 0 else {}),
            }
        )
        for part, name in enumerate(NAMES)
    ]
    provision(folder, config=config, clients=clients, address="tcp://127.0.0.1:1")
    return folder


PRIVACY = {"epsilon": 4.0, "delta": 1e-3, "batch_size": 20, "warm_up_epochs": 2, "accountant": "rdp"}


@pytest.mark.system
def test_every_client_keeps_its_budget_states_it_and_can_go_on(tmp_path: Path) -> None:
    folder = provisioned(tmp_path, privacy=PRIVACY)
    assert run_federation(folder, NAMES) == [0, 0, 0, 0]
    for name in NAMES:
        statement = read_statement(folder / "clients" / name)
        assert statement.record is not None
        (member,) = statement.record.members
        assert member.name == name and 3.5 < member.spent <= 4.0
        assert {"label histogram", "warm-up"} <= {mechanism.purpose for mechanism in member.mechanisms}
        assert "epsilon" in (folder / "clients" / name / "privacy.html").read_text()
        assert read_metrics(folder / "clients" / name / "metrics.jsonl")[-1]["train_accuracy"] is None
    for name in NAMES:  # beside the noised weights nothing that was measured
        kept = read_checkpoint(folder / "clients" / name / MODEL)
        assert kept.description.private and kept.description.figures is None

    # Started again, when all is over: nothing is trained, overwritten or paid for a second time.
    before = {name: (folder / "clients" / "a" / name).read_bytes() for name in ("privacy.jsonl", MODEL)}
    command = client_command(folder / "clients" / "a", "tcp://127.0.0.1:1")
    assert subprocess.run(command, timeout=900, env=ENVIRONMENT).returncode == 0
    assert all((folder / "clients" / "a" / name).read_bytes() == content for name, content in before.items())


@pytest.mark.system
def test_client_whose_own_budget_is_smaller_does_not_even_begin(tmp_path: Path) -> None:
    folder = (
        provisioned(tmp_path, privacy=PRIVACY, own={"epsilon": 1.0, "delta": 1e-3, "accountant": "rdp"})
        / "clients"
        / "a"
    )
    command = client_command(folder, "tcp://127.0.0.1:1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "this client's own budget is 1" in " ".join(done.stderr.split())
    assert not (folder / MODEL).exists() and not (folder / "releases").exists()


@pytest.mark.system
def test_client_level_noise_is_stated_by_the_server_and_by_each_client(tmp_path: Path) -> None:
    folder = provisioned(
        tmp_path,
        client_privacy={"epsilon": 8.0, "delta": 1e-5, "update_norm": 4.0, "logit_norm": 4.0},
        learning={"warm_up_epochs": 1, "distil_epochs": 2, "local_epochs": 0, "local_steps": 2},
    )
    assert run_federation(folder, NAMES) == [0, 0, 0, 0]
    for place in ("server", *(f"clients/{name}" for name in NAMES)):
        statement = read_statement(folder / place)
        assert statement.record is None and statement.client is not None
        assert 0 < statement.client.spent <= statement.client.epsilon == 8.0
    # Each client keeps what its three noised sums have cost, for its next process.
    kept = [(folder / "clients" / name / "client_privacy.jsonl").read_text() for name in NAMES]
    assert [text.count("noised sum") for text in kept] == [3, 3, 3]
