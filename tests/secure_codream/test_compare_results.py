"""From records to results: table, curves, rows, plots, report, event files."""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments import event_files
from secure_codream.experiments.cell import CellRecord, read_record, until_patience, write_record
from secure_codream.experiments.compare import Outputs, results_of
from secure_codream.experiments.comparison_report import draw, headline, write_comparison_report
from secure_codream.experiments.estimates import Estimate
from secure_codream.experiments.grid import Cell, CompareTable, Grid, read_grid
from secure_codream.experiments.problem import Row
from secure_codream.experiments.progress import ComparisonView, clock_face
from secure_codream.experiments.results import (
    Failure,
    clearly_best,
    communication_of,
    curve_of,
    grouped,
    lines_of,
    result_tables,
    rows_csv,
    share_in_words,
)
from secure_codream.experiments.workers import Advanced, Failed, Finished, Started
from secure_codream.reports.files import MalformedRecord

FINAL = {"isolated": (0.5, 0.6), "codream": (0.7, 0.9), "centralised": (0.9, 1.0)}
"""Accuracy by algorithm and seed: gap closures 0.5 and 0.75."""


def row(number: int, accuracy: float, *, sends: bool, seconds: float = 1.0) -> Row:
    return Row(
        round=number,
        accuracies=(accuracy - 0.05, accuracy + 0.05),
        server=accuracy if sends and number else None,
        bytes_up=1000.0 * number if sends else 0.0,
        bytes_down=2000.0 * number if sends else 0.0,
        secure_steps=12 * number if sends else 0,
        seconds=seconds * (number + 1),
    )


def record_of(cell: Cell) -> CellRecord:
    accuracy = FINAL[cell.algorithm][cell.seed] - (0.1 if cell.partition != "iid" else 0.0)
    rows = tuple(row(number, accuracy * (number + 2) / 4, sends=cell.algorithm == "codream") for number in range(3))
    return CellRecord(
        digest=cell.digest,
        algorithm=cell.algorithm,
        partition=cell.partition,
        seed=cell.seed,
        measure=cell.measure,
        models=("cnn2", "cnn2"),
        parameters=(6138, 6138),
        rounds=2,
        rows=rows,
        origins={},
    )


@pytest.fixture(scope="module")
def grid() -> Grid:
    compare = {
        "name": "<sketch>".strip("<>"),
        "algorithms": list(FINAL),
        "partitions": ["iid", "dirichlet:0.5"],
        "seeds": [0, 1],
        "rounds": 2,
        "per_client": 10,
        "clients": 3,
        "test_limit": 20,
    }
    return read_grid(None, {"compare": compare})


@pytest.fixture(scope="module")
def records(grid: Grid) -> list[CellRecord]:
    return [record_of(cell) for cell in grid.cells]


def test_lines(records: list[CellRecord]) -> None:
    lines = {(line.partition, line.algorithm): line for line in lines_of(records)}
    assert list(lines)[:3] == [("iid", name) for name in FINAL]
    codream = lines["iid", "codream"]
    assert codream.accuracy.mean == pytest.approx(0.8) and codream.accuracy.half == pytest.approx(
        12.7062 * 0.1, rel=1e-4
    )
    assert codream.worst_client.mean == pytest.approx(0.75)
    assert codream.server is not None and codream.server.mean == pytest.approx(0.8)
    assert codream.gap_closure is not None and codream.gap_closure.mean == pytest.approx(0.625)
    assert codream.bytes_up.mean == 2000 and codream.secure_steps.mean == 24
    alone = lines["iid", "isolated"]
    assert alone.server is None and alone.gap_closure is None and alone.bytes_up.mean == 0


def test_gap_closure_needs_both_references_of_the_same_seed(records: list[CellRecord]) -> None:
    without = [record for record in records if (record.algorithm, record.seed) != ("centralised", 1)]
    line = next(line for line in lines_of(without) if line.algorithm == "codream")
    assert line.accuracy.n == 2 and line.gap_closure is not None
    assert line.gap_closure.n == 1 and line.gap_closure.mean == pytest.approx(0.5)


def test_gap_closure_needs_references_of_the_same_models(records: list[CellRecord]) -> None:
    mixed = [
        structs.replace(record, models=("cnn2", "mlp")) if record.algorithm == "codream" else record
        for record in records
    ]
    line = next(line for line in lines_of(mixed) if line.algorithm == "codream")
    assert line.gap_closure is None and line.accuracy.n == 2


def test_who_is_ahead_of_whom_is_told_seed_by_seed(grid: Grid, records: list[CellRecord], tmp_path: Path) -> None:
    against = replace(grid, config=grid.config.model_copy(update={"compare": ahead_of(grid, "codream")}))
    results = results_of(against, records, [])
    lines = {line.algorithm: line for line in results.lines if line.partition == "iid"}
    assert lines["codream"].ahead is None
    found = lines["isolated"].ahead  # 0.5 and 0.6 beside 0.7 and 0.9
    assert found is not None and found.mean == pytest.approx(-0.25)
    assert found.half == pytest.approx(12.7062 * 0.05, rel=1e-4), "of the differences, not of the means"
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(result_tables(results)[0])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "points ahead of codream" in text and re.search(r"isolated .* -25\.0 ± 63\.5", text)
    page = write_comparison_report(tmp_path / "report.html", against, results, None).read_text()
    assert "-25.0 ± 63.5" in page and "stands above that of codream" in page
    lone = lines_of([record for record in records if record.seed or record.algorithm != "codream"], "codream")
    assert lone[0].ahead is not None and lone[0].ahead.n == 1, "a seed that one of them lacks is left out"


def ahead_of(grid: Grid, name: str) -> CompareTable:
    return grid.config.compare.model_copy(update={"against": name})


def test_curves_go_on_at_the_last_row_of_a_cell_that_stopped(records: list[CellRecord]) -> None:
    group = grouped(records)["iid", "codream"]
    stopped = CellRecord(
        **{name: getattr(group[0], name) for name in group[0].__struct_fields__} | {"rows": group[0].rows[:2]}
    )
    points = curve_of([stopped, group[1]])
    assert [point.round for point in points] == [0, 1, 2]
    assert points[2].bytes_up == (1000 + 2000) / 2
    assert lines_of([stopped])[0].stopped_early == 1


def test_communication(records: list[CellRecord]) -> None:
    (point,) = communication_of(records)
    assert (point.algorithm, point.model, point.parameters) == ("codream", "cnn2", 6138)
    assert point.bytes_up == 1000 and point.bytes_down == 2000


def test_rows_csv(records: list[CellRecord]) -> None:
    rows = list(csv.DictReader(io.StringIO(rows_csv(records))))
    assert len(rows) == 12 * 3
    first = next(row for row in rows if row["algorithm"] == "codream" and row["round"] == "2")
    assert float(first["accuracy"]) == pytest.approx(0.7) and float(first["accuracy_client_2"]) == pytest.approx(0.75)
    assert first["secure_steps"] == "24" and first["server"] == "0.7"
    assert (first["method"], first["epsilon"]) == ("codream", "")
    assert next(row for row in rows if row["algorithm"] == "isolated")["server"] == ""


def test_tables(grid: Grid, records: list[CellRecord]) -> None:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    for table in result_tables(results_of(grid, records[1:], [])):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "digits, dirichlet:0.5: mean and 95 % interval over 2 seeds" in text
    assert re.search(r"codream +80\.0 \(0\.0 to 100\.0\) +80\.0 \(0\.0 to 100\.0\) +0\.75 +2\.0 kB +24 +3\.0", text)
    assert "isolated (1 of 2)" in text


def test_no_share_lies_beyond_what_shares_can_be() -> None:
    assert share_in_words(Estimate(0.8, 0.1, 5)) == "80.0 ± 10.0"
    assert share_in_words(Estimate(0.8, 0.3, 5)) == "80.0 (50.0 to 100.0)"
    assert share_in_words(Estimate(0.1, 0.3, 5)) == "10.0 (0.0 to 40.0)"
    assert (share_in_words(Estimate(0.8, None, 1)), share_in_words(None)) == ("80.0", "-")


@pytest.mark.parametrize(
    ("codream", "fedavg", "marked"),
    [
        (Estimate(0.8, 0.05, 5), Estimate(0.6, 0.05, 5), "codream"),
        (Estimate(0.8, 0.15, 5), Estimate(0.6, 0.06, 5), None),  # their intervals overlap
        (Estimate(0.8, None, 1), Estimate(0.6, None, 1), None),  # one seed has none
    ],
)
def test_only_who_stands_clear_of_all_others_is_marked(
    records: list[CellRecord], codream: Estimate, fedavg: Estimate, marked: str | None
) -> None:
    lines = {line.algorithm: line for line in lines_of(records) if line.partition == "iid"}
    of_these = [
        structs.replace(lines["codream"], accuracy=codream),
        structs.replace(lines["codream"], algorithm="fedavg", accuracy=fedavg),
        structs.replace(lines["centralised"], accuracy=Estimate(0.9, 0.01, 5)),  # a reference wins nothing
    ]
    best = clearly_best(of_these)
    assert (None if best is None else best.algorithm) == marked


def test_trainings_that_came_to_nothing_are_told(grid: Grid, records: list[CellRecord], tmp_path: Path) -> None:
    dead = [
        structs.replace(record, warnings={"<dead>": 1 + record.seed})
        if (record.algorithm, record.partition) == ("codream", "iid")
        else record
        for record in records
    ]
    results = results_of(grid, dead, [])
    assert [str(warned) for warned in results.warnings] == ["codream, iid, seeds 0, 1: <dead> (3 times)"]
    page = write_comparison_report(tmp_path / "report.html", grid, results, None).read_text()
    assert "Trainings that came to nothing" in page and "<td>&lt;dead&gt;</td>" in page
    quiet = write_comparison_report(tmp_path / "report.html", grid, results_of(grid, records, []), None).read_text()
    assert "Trainings that came to nothing" not in quiet


def test_the_report_of_one_seed_tells_no_interval(grid: Grid, records: list[CellRecord], tmp_path: Path) -> None:
    table = grid.config.compare.model_copy(update={"seeds": (0,)})
    one = replace(grid, config=grid.config.model_copy(update={"compare": table}))
    results = results_of(one, [record for record in records if record.seed == 0], [])
    page = write_comparison_report(tmp_path / "report.html", one, results, None).read_text()
    assert "Every figure is of one seed" in page and "Student" not in page


@pytest.mark.parametrize("with_plots", [True, False])
def test_report(grid: Grid, records: list[CellRecord], tmp_path: Path, with_plots: bool) -> None:
    failure = Failure(cell="codream, iid, seed 7", reason="ValueError: <b>no</b>", log="logs/x.log")
    results = results_of(grid, records, [failure])
    plots = draw(grid, records, results) if with_plots else None
    page = write_comparison_report(tmp_path / "report.html", grid, results, plots).read_text()
    assert page.count("<svg") == (6 if with_plots else 0)  # none of bytes: one size of model
    assert "made without plots" in page or with_plots
    assert "&lt;b&gt;no&lt;/b&gt;" in page and "<b>no</b>" not in page
    assert not re.search(r"(src|href)=\"?(https?:)?//", page) and "<script" not in page
    assert "80.0 (0.0 to 100.0)" in page and "Fewer than five seeds" in page
    if with_plots:
        drawn = page[page.index("<svg") :]
        assert "var(--c0)" in drawn and "#2f6fc4" not in drawn and "{stroke-linejoin" not in drawn
        assert "accuracy-by-bytes-dirichlet-0.5" in {plot.name for group in (plots or {}).values() for plot in group}
        clips = re.findall(r'<clipPath id="([^"]+)"', drawn)
        assert len(clips) == len(set(clips))


def test_plots_are_the_same_each_time(grid: Grid, records: list[CellRecord]) -> None:
    results = results_of(grid, records, [])
    assert draw(grid, records, results) == draw(grid, records, results)


def test_headline(grid: Grid, records: list[CellRecord]) -> None:
    words = headline(results_of(grid, records, [])).replace("\N{NO-BREAK SPACE}", " ")
    assert words.startswith("iid: codream reaches 80.0 % of unseen examples, between 55.0 % alone and 95.0 % with all")


def test_record_comes_back_and_a_strange_one_is_refused(grid: Grid, tmp_path: Path) -> None:
    first, second = grid.cells[:2]
    assert read_record(tmp_path, first) is None
    write_record(tmp_path, first, record_of(first))
    assert read_record(tmp_path, first) == record_of(first)
    write_record(tmp_path, first, record_of(second))
    with pytest.raises(MalformedRecord, match="another cell's record"):
        read_record(tmp_path, first)
    (tmp_path / f"{first.stem}.json").write_text("{}")
    with pytest.raises(MalformedRecord, match="delete the file"):
        read_record(tmp_path, first)


def test_patience() -> None:
    accuracies = [0.5, 0.6, 0.6, 0.55, 0.7]
    rows = [row(number, accuracy, sends=False) for number, accuracy in enumerate(accuracies)]
    assert len(list(until_patience(rows, None))) == 5
    assert len(list(until_patience(rows, 1))) == 3
    assert len(list(until_patience(rows, 2))) == 4
    assert len(list(until_patience(rows, 3))) == 5


def test_missing_packages_are_named_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"found no matplotlib; install it .*or give --no-plots"):
        Outputs()
    with pytest.raises(ConfigError, match=r"found no tensorboard; install it with `pip install tensorboard`"):
        Outputs(plots=False, tensorboard=True)
    Outputs(plots=False)


def test_event_files(grid: Grid, records: list[CellRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            Path(log_dir).mkdir(parents=True)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            pass

    monkeypatch.setattr(event_files, "require_tensorboard", lambda: Writer)
    record = next(record for record in records if record.algorithm == "codream" and record.partition != "iid")
    for _ in range(2):  # again replaces
        own = event_files.write_events(tmp_path, record)
    assert own == tmp_path / "dirichlet-0.5" / "codream" / "seed-0" and own.is_dir()
    assert ("secure_steps", 24, 2) in written and ("bytes/up", 1000.0, 1) in written
    assert not any(name == "accuracy/server" and step == 0 for name, _, step in written)


def fed(view: ComparisonView, grid: Grid, log: Path) -> None:
    first, second = grid.cells[:2]
    view.feed(Started(first))
    for number in range(3):
        view.feed(Advanced(first, row(number, 0.5, sends=False, seconds=2.0)))
    view.feed(Finished(first))
    view.feed(Started(second))
    view.feed(Failed(second, "ValueError: [no]", log))
    third = grid.cells[2]
    view.feed(Started(third))
    for number in range(3):
        view.feed(Advanced(third, row(number, 0.1, sends=False, seconds=2.0)))
    view.feed(Finished(third, warnings=2))


def test_progress_in_plain_lines_and_time_left(grid: Grid, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60)
    with ComparisonView(console, grid.cells, [], 2, clock=lambda: 0.0) as view:
        assert view.seconds_left() is None
        fed(view, grid, tmp_path / "x.log")
        # Nine cells of three rows, two seconds each, on two workers.
        assert view.seconds_left() == pytest.approx(27.0)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "12 cells; 2 at a time"
    assert lines[1] == "1 of 12: isolated, iid, seed 0: 50.0%, 6.0 s; 00:33 left"
    assert lines[2].startswith("failed: codream, iid, seed 0: ValueError: [no]; see ")
    assert lines[3].endswith("seed 0: 10.0%, 6.0 s, 2 x training at chance; 00:27 left")


def test_progress_on_a_terminal(grid: Grid, tmp_path: Path) -> None:
    options: dict[str, Any] = {"force_terminal": True, "width": 80, "color_system": None}
    console = Console(file=io.StringIO(), **options)
    with ComparisonView(console, grid.cells, [], 2) as view:
        fed(view, grid, tmp_path / "x.log")
        fourth = grid.cells[3]
        view.feed(Started(fourth))
        view.feed(Advanced(fourth, row(1, 0.5, sends=True)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Comparison" in text and "3 of 12" in text and "1 failed" in text
    assert "2 at chance" in text
    assert f"{fourth}   round 1 of 2, 50.0%" in text and "failed: codream, iid, seed 0" in text


def test_clock_face() -> None:
    assert [clock_face(seconds) for seconds in (0, 59.6, 3725)] == ["00:00", "01:00", "1:02:05"]
