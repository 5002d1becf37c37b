"""Sweeps: from budgets to variants, what is refused, and a real one that is interrupted and goes on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

from secure_codream.cli import app
from secure_codream.configuration.federation import FederationConfig, learning_settings
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.experiments import origins
from secure_codream.experiments.algorithms import private
from secure_codream.experiments.grid import CompareConfig, Grid, read_grid
from secure_codream.experiments.sweep import SweepTable, is_reference, reference_of, split_name

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL: dict[str, Any] = {"per_client": 20, "test_limit": 50, "seeds": [0], "rounds": 1, "models": ["mlp_gn"]}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1"}


def grid(**tables: Any) -> Grid:
    compare = {**SMALL, **tables.pop("compare", {})}
    return read_grid(None, {"compare": compare, "sweep": {"epsilons": [2, 8, "none"]}, **tables})


def test_a_sweep_is_every_method_with_every_epsilon() -> None:
    made = grid(privacy={"delta": 1e-3, "lr": 0.5})
    names = [f"{method}{budget}" for method in ("isolated", "centralised", "codream") for budget in ("@2", "@8", "")]
    assert [cell.algorithm for cell in made.cells] == names
    entries = {cell.algorithm: cell.entry for cell in made.cells}
    assert entries["codream@2"].options == {"privacy": {"delta": 1e-3, "lr": 0.5, "epsilon": 2.0}}
    assert entries["codream"].options == {} and entries["codream"].reference.endswith("CoDream")
    assert made.config.order[:4] == ("isolated@2", "codream@2", "centralised@2", "isolated@8")
    assert len({cell.digest for cell in made.cells}) == 9


def test_private_algorithms_distil_as_a_federation_with_privacy_unless_told_otherwise() -> None:
    def rates(**tables: Any) -> dict[str, tuple[float, float]]:
        privacy = {"epsilon": 4.0, "batch_size": 5}
        tables.setdefault("variants", {})["named"] = {
            "algorithm": "codream-dp",
            "options": {"privacy": privacy},
            "learning": {"distil_lr": 0.01},
        }
        algorithms = ["codream", "codream-dp", "dp-sgd", "named"]
        made = read_grid(None, {"compare": {**SMALL, "algorithms": algorithms}, **tables})
        resumed = read_grid(None, tomllib.loads(made.to_toml()))
        assert [cell.digest for cell in resumed.cells] == [cell.digest for cell in made.cells]
        return {cell.algorithm: (cell.learning["distil_lr"], cell.learning["distil_noise"]) for cell in made.cells}

    usual, private = (0.02, 0.3), (0.0025, 0.0)
    config: FederationConfig = check(
        "c", FederationConfig, {"task": {"shape": (1, 8, 8), "classes": 10}, "privacy": {"epsilon": 4.0}}
    )
    deployed = learning_settings(config)
    assert (deployed.distil_lr, deployed.distil_noise) == private
    assert rates() == {"codream": usual, "codream-dp": private, "dp-sgd": usual, "named": (0.01, 0.0)}
    named = rates(learning={"distil_lr": 0.02, "distil_noise": 0.3})
    assert named == {"codream": usual, "codream-dp": usual, "dp-sgd": usual, "named": (0.01, 0.3)}


def test_the_sweep_on_digits_has_the_rates_of_its_table() -> None:
    made = read_grid(EXAMPLES / "sweep-digits.toml", {"compare": {"seeds": [0]}})
    assert {(cell.learning["distil_lr"], cell.learning["distil_noise"]) for cell in made.cells} == {(0.02, 0.3)}


def test_words_of_the_command_line_are_taken() -> None:
    table = SweepTable.model_validate({"epsilons": ["0.5", "none"], "methods": "codream"})
    assert table.names == ("codream@0.5", "codream")


def test_names_say_method_and_budget() -> None:
    assert split_name("codream@0.5") == ("codream", 0.5) and split_name("codream") == ("codream", None)
    assert reference_of("codream@2", "isolated") == "isolated@2" and reference_of("fedavg", "isolated") == "isolated"
    assert is_reference("centralised@2") and is_reference("isolated") and not is_reference("codream@2")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"privacy": {"epsilon": 3}}, r"privacy\.epsilon: found it beside \[sweep\]"),
        ({"privacy": {"epsilom": 3}}, r"epsilom: found 3; there is no such key"),
        ({"privacy": {"lr": -1}}, r"lr: found -1"),
        (
            {"sweep": {"epsilons": [0]}},
            r"^flags: sweep\.epsilons\.0: 0 is no budget; allowed are numbers",
        ),
        ({"sweep": {"epsilons": "x"}}, r"sweep\.epsilons\.0: 'x' is no budget"),
        ({"sweep": {"epsilons": [True]}}, r"sweep\.epsilons\.0: True is no budget"),
        ({"compare": SMALL | {"models": ["cnn2"]}}, r"compare\.models: cnn2: found BatchNorm.* take cnn2_gn"),
        ({"sweep": {"methods": ["fedavg"]}}, r"sweep\.methods"),
        ({"compare": {"algorithms": ["fedavg"]}}, r"compare\.algorithms: found fedavg; a sweep has \[sweep\] methods"),
    ],
)
def test_refusals_name_the_key(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(**tables)


def test_privacy_without_a_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy: found it without \[sweep\]"):
        read_grid(None, {"compare": SMALL, "privacy": {"delta": 1e-3}})


def test_written_configuration_gives_the_same_cells(tmp_path: Path) -> None:
    made, path = grid(privacy={"delta": 1e-3}), tmp_path / "config.toml"
    path.write_text(made.to_toml())
    assert [cell.digest for cell in read_grid(path, {}).cells] == [cell.digest for cell in made.cells]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("sweep-*.toml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    config = CompareConfig.model_validate(tomllib.loads(path.read_text()))
    assert config.sweep is not None
    made = read_grid(
        path, {"compare": {"per_client": 20, "test_limit": 20, "seeds": [0]}, "data": {"source": "digits"}}
    )
    assert {cell.algorithm for cell in made.cells} == set(config.sweep.names)


@pytest.mark.parametrize(
    "flags", [["--epsilons", "2,none"], ["--methods", "codream"], ["--epsilons", "8", "--delta", "1e-3", "--name", "x"]]
)
def test_sweep_is_compare_with_budgets(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Grid] = []

    def prepare(config: Path | None, flags: Any, out: Path, usual: Any, *, elsewhere: None) -> None:
        made.append(read_grid(config, flags, usual))
        raise ConfigError("enough")

    monkeypatch.setattr("secure_codream.experiments.compare.prepare", prepare)
    for command in ("sweep", "compare"):
        assert isinstance(CliRunner().invoke(app, [command, *flags, "--data", "digits"]).exception, ConfigError)
    short, long = made
    assert short.to_toml() == long.to_toml() and short.config.command == "sweep"
    assert [cell.digest for cell in short.cells] == [cell.digest for cell in long.cells]
    assert short.config.compare.models == ("cnn2_gn",)


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secure_codream", "sweep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=ENVIRONMENT, cwd=folder)


def test_what_other_code_released_is_not_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    monkeypatch.setattr(private, "Releases", lambda charge, folder, key: keys.append(key))
    monkeypatch.setattr(private, "PlannedCharges", lambda plan: SimpleNamespace(reserve=None))
    problem: Any = SimpleNamespace(
        models=("cnn2_gn",),
        client_seed=int,
        learning=SimpleNamespace(balanced=True),
        device="cpu",
        releases=None,
    )
    data: Any = SimpleNamespace(images=np.zeros(2), labels=np.zeros(2), augment="none")
    client = private._Client(problem, 0, data, SimpleNamespace(settings=None))
    for code in ("one", "one", "another"):
        monkeypatch.setattr(origins, "_code_digest", lambda code=code: code)
        assert client.releases is None
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.exhaustive
def test_a_real_sweep(tmp_path: Path) -> None:
    content = {
        "compare": {"clients": 3, "partitions": ["dirichlet:0.5"], **SMALL},
        "sweep": {"epsilons": [8, "none"]},
        "privacy": {"batch_size": 10, "warm_up_epochs": 2, "accountant": "rdp"},
        "learning": {"warm_up_epochs": 2, "distil_epochs": 2, "local_epochs": 1, "local_steps": 2},
        "dreams": {"steps": 1, "batch": 10},
    }
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(content))
    done = call(tmp_path, "tiny.toml", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-sweep-sweep")

    def rows() -> list[dict[str, str]]:
        with (run / "rows.csv").open(newline="") as file:
            return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]

    before = rows()
    expected = {(method, epsilon) for method in ("isolated", "codream", "centralised") for epsilon in ("8.0", "")}
    assert {(row["method"], row["epsilon"]) for row in before} == expected
    warm_up = {row["algorithm"]: row["accuracy"] for row in before if row["round"] == "0"}
    # One private model, trained once: a client alone, and the same client in CoDream before the first round.
    assert warm_up["isolated@8"] == warm_up["codream@8"] != warm_up["centralised@8"]
    summary = json.loads((run / "summary.json").read_text())
    names = ["isolated@8", "codream@8", "centralised@8", "isolated", "codream", "centralised"]
    assert [line["algorithm"] for line in summary["lines"]] == names
    by_name = {line["algorithm"]: line for line in summary["lines"]}
    alone, together, pooled = (by_name[name]["accuracy"]["mean"] for name in names[:3])
    closure = by_name["codream@8"]["gap_closure"]
    if closure is not None:
        assert closure["mean"] == pytest.approx((together - alone) / (pooled - alone))
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 1 and "epsilon of each client" in page and "codream@8" in page
    assert [path.name for path in (run / "plots").iterdir()] == ["accuracy-by-epsilon-dirichlet-0.5.svg"]
    assert not (run / "logs" / "worker-1.log").read_text()
    # Lost cells are run again, from what was released before, to the same rows.
    for lost in (run / "cells").glob("codream-8_*.json"):
        lost.unlink()
    released = {path.name: path.stat().st_mtime_ns for path in (run / "releases").iterdir()}
    assert call(tmp_path, "--resume", str(run), "--no-plots").returncode == 0
    assert rows() == before
    assert {path.name: path.stat().st_mtime_ns for path in (run / "releases").iterdir()} == released
    assert fmean(float(row["accuracy"]) for row in before) > 0
