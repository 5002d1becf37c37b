"""Comparisons and the threat suite on a Ray cluster of this machine give what they give here."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner

from secure_codream.cli import app
from secure_codream.experiments.cell import read_record
from secure_codream.experiments.compare import Comparison, Outputs, prepare, run_comparison
from secure_codream.experiments.worker_processes import Processes
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.suite import all_attacks, chosen, run_suite

FAKE = """
    import os

    import torch

    from secure_codream.experiments.problem import Row

    class Fake:
        name = "fake"

        def run(self, problem):
            if problem.seed == 7:
                raise ValueError("spoilt on purpose")
            if problem.seed == 8:
                os._exit(9)
            for number in range(problem.rounds + 1):
                accuracy = 0.5 + 0.01 * problem.seed + 0.01 * float(torch.rand(()))
                yield Row(round=number, accuracies=(accuracy,) * len(problem.shards), server=None,
                          bytes_up=1.0, bytes_down=0.0, secure_steps=number, seconds=1.0)
"""


def prepared(folder: Path, out: str, seeds: str) -> Comparison:
    table = {"name": "fakes", "algorithms": ["fake"], "partitions": ["iid"], "seeds": seeds, "rounds": 1, "clients": 3}
    small = {"per_client": 10, "test_limit": 20}
    content: dict[str, Any] = {"compare": table | small, "variants": {"fake": {"algorithm": "fake_on_ray:Fake"}}}
    path = folder / "comparison.toml"
    path.write_text(tomli_w.dumps(content))
    return prepare(path, {}, folder / out)


def accuracies(comparison: Comparison) -> list[Any]:
    records = [read_record(comparison.cells, cell) for cell in comparison.grid.cells]
    return [[row.accuracies for row in record.rows] if record is not None else None for record in records]


def test_cells_on_ray_are_those_of_this_machine_and_lost_ones_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from secure_codream.experiments.ray_workers import RayWorkers

    (tmp_path / "fake_on_ray.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    console, found = Console(quiet=True), {}
    for name, workers in {"here": Processes, "ray": RayWorkers}.items():
        comparison = prepared(tmp_path, name, "0,1,7,8")
        results = run_comparison(comparison, jobs=2, console=console, outputs=Outputs(plots=False), workers=workers)
        reasons = sorted(failure.reason for failure in results.failures)
        assert len(reasons) == 2 and any("spoilt on purpose" in reason for reason in reasons)
        assert all((comparison.run.path / failure.log).exists() for failure in results.failures)
        found[name] = accuracies(comparison)
    assert found["ray"] == found["here"] and found["here"][0] is not None


def test_the_suite_on_ray_finds_what_it_finds_here() -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from secure_codream.threats.on_ray import run_on_ray

    entries = chosen(all_attacks(), quick=True)[:2]
    here = run_suite(entries, Laboratory)
    told = []
    afar = run_on_ray(entries, Laboratory, lambda entry, finding: told.append(finding), own=(), jobs=2)
    assert [(one.entry, one.verdict) for one in afar] == [(one.entry, one.verdict) for one in here]
    assert len(told) == 4


def test_what_only_a_cluster_has_is_refused_without_one() -> None:
    for command in (["compare", "--gpus", "0.5"], ["compare", "--cluster", "auto"], ["threats", "--cluster", "auto"]):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2 and "another engine than ray" in " ".join(refused.output.split())
