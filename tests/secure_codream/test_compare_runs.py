"""Whole comparisons in worker processes: interrupted and resumed, with cells that fail, and a real one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from rich.console import Console

from secure_codream import cli
from secure_codream.experiments import origins
from secure_codream.experiments.cell import OtherOrigins, run_cell
from secure_codream.experiments.compare import Outputs, outdated, prepare, resume, run_comparison
from secure_codream.experiments.grid import Cell, read_grid
from secure_codream.experiments.problem import Row
from secure_codream.experiments.workers import Advanced, Happening, Started, work

FAKE = """
    import os
    import time
    from dataclasses import dataclass
    from pathlib import Path

    import torch

    from secure_codream.experiments.problem import Row

    @dataclass
    class Fake:
        name: str = "fake"
        slow: float = 0.0
        raises: int = -1
        dies: int = -1
        rises: float = 0.1

        def run(self, problem):
            assert torch.get_num_threads() == 1
            mended = Path("mended").exists()
            if problem.seed == self.dies and not mended:
                os._exit(9)
            for number in range(problem.rounds + 1):
                time.sleep(self.slow)
                if problem.seed == self.raises and not mended:
                    raise ValueError("spoilt [on purpose]\\nsecond line")
                accuracy = 0.5 + 0.01 * problem.seed + self.rises * number + 0.01 * float(torch.rand(()))
                yield Row(round=number, accuracies=(accuracy,) * len(problem.shards), server=None,
                          bytes_up=10.0 * number, bytes_down=0.0, secure_steps=number, seconds=time.perf_counter())
"""


def with_fake(folder: Path) -> Path:
    (folder / "fake_algorithm.py").write_text(textwrap.dedent(FAKE))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_fake(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupted."""
    folder = with_fake(tmp_path_factory.mktemp("whole"))
    assert call(folder, str(configure(folder, seeds="0-2", slow=0.1)), "--jobs", "1", "--no-plots").returncode == 0
    return only_run(folder / "runs")


def configure(folder: Path, *, seeds: str, **options: float) -> Path:
    content = {
        "compare": {
            "name": "fakes",
            "algorithms": ["fake", "other"],
            "partitions": ["iid", "dirichlet:0.5"],
            "seeds": seeds,
            "rounds": 2,
            "clients": 3,
            "per_client": 10,
            "test_limit": 20,
        },
        "variants": {
            "fake": {"algorithm": "fake_algorithm:Fake", "options": options},
            "other": {"algorithm": "fake_algorithm:Fake", "options": {"name": "other"}},
        },
    }
    path = folder / "comparison.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "secure_codream", "compare", *arguments]


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600, env=environment, cwd=folder)


def only_run(out: Path) -> Path:
    (run,) = out.iterdir()
    return run


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "rows.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def children(parent: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(status.parent.name))
    return found


def heed_interrupts() -> None:
    """A shell that starts the tests in the background has them ignore SIGINT, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to count processes")
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive)])
def test_interrupted_comparison_goes_on_to_the_same_table(folder: Path, whole: Path, how: signal.Signals) -> None:
    config = str(configure(folder, seeds="0-2", slow=0.1))
    begun = command(config, "--out", "broken", "--jobs", "2", "--no-plots")
    process = subprocess.Popen(
        begun,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("4 of 12"):
            break
    started = children(process.pid)
    process.send_signal(how)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    run = only_run(folder / "broken")
    if how == signal.SIGINT:
        assert f"compare --resume broken/{run.name}" in errors and "Traceback" not in errors
    assert len(started) >= 2
    deadline = 50
    while any(Path(f"/proc/{pid}").exists() for pid in started) and deadline:
        subprocess.run(["sleep", "0.1"], check=True)
        deadline -= 1
    assert deadline, "workers were left behind"
    finished = {path.name: path.stat().st_mtime_ns for path in (run / "cells").glob("*.json")}
    assert 4 <= len(finished) < 12 and not (run / "rows.csv").exists()

    resumed = call(folder, "--resume", str(run), "--jobs", "1", "--no-plots")
    assert resumed.returncode == 0 and f"12 cells, {len(finished)} of them done before" in resumed.stdout
    assert rows(run) == rows(whole) and len(rows(run)) == 12 * 3
    for name, time in finished.items():
        assert (run / "cells" / name).stat().st_mtime_ns == time

    def plain(path: Path) -> list[dict[str, object]]:
        lines = json.loads((path / "summary.json").read_text())["lines"]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    assert plain(run) == plain(whole)


def test_cells_that_fail_are_reported_and_the_others_go_on(folder: Path) -> None:
    config = configure(folder, seeds="0-2", raises=1, dies=2)
    failed = call(folder, str(config), "--partitions", "iid", "--jobs", "2", "--json")
    assert failed.returncode == 1 and "2 of 6 cells failed" in failed.stderr
    summary = json.loads(failed.stdout)
    reasons = {failure["cell"]: failure["reason"] for failure in summary["failures"]}
    assert reasons["fake, iid, seed 1"] == "ValueError: spoilt [on purpose]"
    assert reasons["fake, iid, seed 2"] == "the worker ended with exit code 9"
    lines = {(line["partition"], line["algorithm"]): line["accuracy"]["n"] for line in summary["lines"]}
    assert lines == {("iid", "fake"): 1, ("iid", "other"): 3}
    run = only_run(folder / "runs")
    log = next(failure["log"] for failure in summary["failures"] if failure["cell"] == "fake, iid, seed 1")
    assert 'raise ValueError("spoilt' in (run / log).read_text()
    died = next(failure["log"] for failure in summary["failures"] if failure["cell"] == "fake, iid, seed 2")
    assert ".log has its last words" in (run / died).read_text()
    assert "Cells without a result" in (run / "report.html").read_text()
    # Resuming tries them again; mended meanwhile, they succeed.
    (folder / "mended").touch()
    again = call(folder, "--resume", str(run), "--jobs", "1", "--no-plots")
    assert again.returncode == 0 and "6 cells, 4 of them done before; 1 at a time" in again.stdout


class Here:
    """A back-end in one file: all cells one after the other in this process."""

    def __init__(self, cells: Path, logs: Path, jobs: int) -> None:
        self._folders = cells, logs

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, cells: Sequence[Cell]) -> Iterator[Happening]:
        for cell in cells:
            rows: list[Row] = []
            yield Started(cell)
            end = work(cell, *self._folders, rows.append)
            yield from (Advanced(cell, row) for row in rows)
            yield end


def test_another_back_end_gives_the_same_table(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rests: dict[str, Any] = {"jobs": 1, "console": Console(quiet=True), "outputs": Outputs(plots=False)}
    comparison = prepare(configure(folder, seeds="0-2"), {}, folder / "here")
    results = run_comparison(comparison, **rests, workers=Here)
    assert not results.failures and results.cells == 12
    assert rows(comparison.run.path) == rows(whole)
    spoilt = prepare(configure(folder, seeds="0-1", raises=1), {}, folder / "spoilt")
    failures = run_comparison(spoilt, **rests, workers=Here).failures
    assert {failure.reason for failure in failures} == {"ValueError: spoilt [on purpose]"} and len(failures) == 2
    assert all("second line" in (spoilt.run.path / failure.log).read_text() for failure in failures)


def test_cells_of_other_code_are_run_again_and_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "fake_algorithm", raising=False)
    rests: dict[str, Any] = {"jobs": 1, "console": Console(quiet=True), "outputs": Outputs(plots=False)}
    begun = prepare(configure(folder, seeds="0"), {}, folder / "runs")
    assert outdated(begun) == [] and not run_comparison(begun, **rests, workers=Here).failures
    assert outdated(resume(begun.run.path)) == []
    module = folder / "fake_algorithm.py"
    module.write_text(module.read_text() + "\n# another line\n")
    failures = {failure.reason for failure in run_comparison(begun, **rests, workers=Here).failures}
    assert not failures, "all of it is there"
    for path in begun.cells.glob("fake_iid_*.json"):
        path.unlink()
    (failure,) = run_comparison(begun, **rests, workers=Here).failures
    assert "OtherOrigins: not as when the comparison was begun" in failure.reason
    assert "own code in fake_algorithm" in failure.reason
    resumed = resume(begun.run.path)
    (sentence,) = outdated(resumed)
    assert sentence.startswith("3 cells are run again") and sentence.endswith(": own code in fake_algorithm")
    assert not run_comparison(resumed, **rests, workers=Here).failures and outdated(resumed) == []
    assert len(list(begun.cells.glob("*.json"))) == 3 + 4
    config = begun.run.config
    config.write_text(config.read_text().replace("lr = 0.02", "lr = 0.03"))
    assert [sentence.rpartition(": ")[2] for sentence in outdated(resume(begun.run.path))] == ["settings"]
    for path in begun.cells.glob("*.json"):
        path.write_text("{}")
    assert outdated(resume(begun.run.path))[0].endswith("records of another version of Secure CoDream")


CHANGES = """
    from pathlib import Path

    from secure_codream.experiments.problem import Row

    class Changes:
        name = "changes"

        def __init__(self, file: str) -> None:
            self.file = Path(file)

        def run(self, problem):
            self.file.write_bytes(self.file.read_bytes() + b"\\n")
            yield Row(round=0, accuracies=(0.5,) * len(problem.shards), server=None,
                      bytes_up=0.0, bytes_down=0.0, secure_steps=0, seconds=0.0)
"""


@pytest.mark.parametrize(
    ("file", "said"), [("changes.py", "own code in changes"), ("scans.npz", "the images"), ("part.py", origins.CODE)]
)
def test_a_cell_during_which_code_or_images_change_has_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "changes", raising=False)
    rng = np.random.default_rng(0)
    images = {f"{part}_images": rng.integers(0, 256, (60, 8, 8), np.uint8) for part in ("train", "test")}
    np.savez("scans.npz", **images, train_labels=np.arange(60) % 2, test_labels=np.arange(60) % 2)
    Path("changes.py").write_text(textwrap.dedent(CHANGES))
    # This program's code: one file, and what a cell loads of it for the first time.
    Path("part.py").touch()
    monkeypatch.setattr(origins, "code_files", lambda: [("part", Path("part.py"))])
    monkeypatch.setattr(origins, "_CODE_SEEN", {}, raising=False)
    monkeypatch.setitem(sys.modules, f"{origins.ROOMS[-1]}.anew", ModuleType("anew"))
    options = {"algorithm": "changes:Changes", "options": {"file": file}}
    compare = {"algorithms": ["changes"], "seeds": "3", "per_client": 10, "test_limit": 20}
    tables = {"compare": compare, "variants": {"changes": options}, "data": {"source": "./scans.npz"}}
    (cell,) = read_grid(None, tables).cells

    def then_loads(row: Row) -> None:
        monkeypatch.setitem(sys.modules, f"{origins.ROOMS[-1]}.late", ModuleType("late"))

    with pytest.raises(OtherOrigins, match=f"not as when the comparison was begun: {said};"):
        run_cell(cell, then_loads)


def test_early_stopping_of_a_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = {"algorithm": "fake_algorithm:Fake", "options": {"rises": -0.1}}
    compare = {"algorithms": ["fake"], "seeds": "3", "per_client": 10, "test_limit": 20, "patience": 1}
    (cell,) = read_grid(None, {"compare": compare, "variants": {"fake": options}}).cells
    rows: list[Row] = []
    record = run_cell(cell, rows.append)
    assert record.rounds == 4 and [row.round for row in record.rows] == [0, 1] and tuple(rows) == record.rows
    assert record.parameters == (6138,) * 4 and run_cell(cell, rows.append).accuracy == record.accuracy


@pytest.mark.parametrize("algorithm", ["isolated", "fedavg", "codream"])
def test_a_cell_remembers_trainings_that_came_to_nothing(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    compare = {"algorithms": [algorithm], "seeds": "3", "per_client": 10, "test_limit": 20, "rounds": 1, "clients": 3}
    dreams = {"steps": 1, "batch": 8}
    said = []
    for lr in (0.02, 3.0):
        learning = {"lr": lr, "warm_up_epochs": 20, "distil_epochs": 5}
        (cell,) = read_grid(None, {"compare": compare, "learning": learning, "dreams": dreams}).cells
        said.append(run_cell(cell, lambda row: None).warnings)
    assert said[0] == {}
    found = {text.partition(" ended no better")[0]: count for text, count in said[1].items()}
    assert found["a training with lr=3.0"] >= 3
    # What teachers at chance label teaches nobody: of CoDream the distillations are told of too. Weights that fly apart
    # are clipped where they are averaged. Nothing else is told.
    more = {
        "codream": {"a distillation with lr=0.02"},
        "fedavg": {"changes were clipped in more than 1% of their coordinates; a larger clip may help"},
    }
    assert set(found) == {"a training with lr=3.0"} | more.get(algorithm, set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithms", "codreem"], "allowed are isolated, codream"),
        (["--algorithms", "fedavg", "--models", "cnn2,mlp"], "no algorithm is left to run"),
        (["--resume", ".", "--seeds", "0-4"], "a run goes on with its own config.toml"),
        (["--resume", "."], "the folder of a comparison is needed"),
        (["--algorithms", "nowhere:Nothing"], "no module 'nowhere'"),
    ],
)
def test_wrong_usage_ends_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["secure-codream", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "runs").exists()


def test_a_real_comparison(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    content = {
        "compare": {
            "algorithms": ["isolated", "codream", "fedavg", "centralised"],
            "seeds": [1],
            "rounds": 1,
            "clients": 3,
            "per_client": 20,
            "test_limit": 100,
        },
        "learning": {"warm_up_epochs": 4, "distil_epochs": 4, "local_epochs": 2, "local_steps": 3},
        "dreams": {"steps": 2, "batch": 20},
        "communication": {"models": ["cnn2", "resnet8"]},
    }
    config.write_text(tomli_w.dumps(content))
    done = call(tmp_path, str(config), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs")
    summary = json.loads((run / "summary.json").read_text())
    codream = next(line for line in summary["lines"] if line["algorithm"] == "codream")
    assert codream["secure_steps"]["mean"] == 5 and codream["bytes_up"]["mean"] > 0 and codream["accuracy"]["n"] == 1
    sent = {(point["algorithm"], point["model"]): point["bytes_up"] for point in summary["communication"]}
    assert sent["codream", "cnn2"] == pytest.approx(sent["codream", "resnet8"], rel=0.01)
    assert sent["fedavg", "resnet8"] > 3 * sent["fedavg", "cnn2"]
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 4 and (run / "plots" / "communication.svg").exists()
    assert not (run / "logs" / "worker-1.log").read_text()
    # Cells that are run again, in another process, one at a time and after other cells, give the same rows.
    before = rows(run)
    for algorithm in ("codream", "fedavg"):
        (lost,) = (run / "cells").glob(f"{algorithm}_iid_seed-1_*.json")
        lost.unlink()
    assert call(tmp_path, "--resume", str(run), "--no-plots", "--jobs", "1").returncode == 0
    assert rows(run) == before
