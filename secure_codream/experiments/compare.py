"""A comparison from beginning to end: its folder, its cells, its results.

    runs/<time>-compare-<name>/
        config.toml      the whole configuration; with it alone the comparison can be repeated or resumed
        cells/*.json     a record of each finished cell
        logs/            tracebacks of cells that failed, and what workers printed
        rows.csv         every row of every cell
        summary.json     `Results`
        report.html      for a person
        plots/*.svg      the report's plots, one by one
        tensorboard/     event files, if asked for
        releases/        what private clients have released, for cells that share it; not needed once all are done

Resuming reads `config.toml`, keeps the records whose digests fit, and runs the rest; `outdated` says why others that
are there do not fit. Results are made from all records that fit, in the grid's order, so it does not matter when each
was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.cell import CellRecord, read_record, why_not_kept
from secure_codream.experiments.comparison_report import draw, write_comparison_report
from secure_codream.experiments.event_files import require_tensorboard, write_events
from secure_codream.experiments.grid import Elsewhere, Grid, read_grid
from secure_codream.experiments.plots import require_matplotlib
from secure_codream.experiments.progress import ComparisonView
from secure_codream.experiments.results import Failure, Results, communication_of, lines_of, rows_csv, warnings_of
from secure_codream.experiments.worker_processes import Processes
from secure_codream.experiments.workers import Failed, Finished, MakeWorkers
from secure_codream.reports.files import write_whole
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.versions import versions_of


@dataclass(frozen=True)
class Comparison:
    """A comparison in its folder, ready to run or to go on."""

    grid: Grid
    run: RunFolder

    @property
    def cells(self) -> Path:
        """The folder of the records."""
        return self.run.path / "cells"

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.run.path / "logs"

    @property
    def rows(self) -> Path:
        """The raw rows, CSV."""
        return self.run.path / "rows.csv"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is wanted beside the table; checked before anything is computed.

    Attributes:
        plots: draw them, which needs matplotlib.
        tensorboard: write event files, which needs tensorboard.

    Raises:
        ConfigError: a package is missing.
    """

    plots: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.plots:
            require_matplotlib()
        if self.tensorboard:
            require_tensorboard()


def prepare(
    config: Path | None,
    flags: Mapping[str, Mapping[str, Any]],
    out: Path,
    usual: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    elsewhere: Elsewhere | None = None,
) -> Comparison:
    """Check everything, then make the folder; what is given as `read_grid` takes it.

    Raises:
        ConfigError: with the key, what was found and what is allowed.
    """
    grid = read_grid(config, flags, usual, elsewhere=elsewhere)
    run = RunFolder.create(out, f"{grid.config.command}-{grid.config.compare.name}", datetime.now(UTC))
    write_whole(run.config, grid.to_toml().encode())
    return Comparison(grid, run)


def resume(folder: Path, *, elsewhere: Elsewhere | None = None) -> Comparison:
    """A comparison that was begun before; `elsewhere` as `read_grid` takes it.

    Raises:
        ConfigError: the folder holds none.
    """
    run = RunFolder(folder)
    if not run.config.exists():
        raise ConfigError(f"--resume: found no {run.config}; the folder of a comparison is needed")
    comparison = Comparison(read_grid(run.config, {}, elsewhere=elsewhere), run)
    for partial in comparison.cells.glob(".*.partial"):  # of a worker that was stopped while it wrote
        partial.unlink(missing_ok=True)
    return comparison


def outdated(comparison: Comparison) -> list[str]:
    """Which cells are run again although they have records, and what differs now, in sentences."""
    waiting = [cell for cell in comparison.grid.cells if read_record(comparison.cells, cell) is None]
    why = Counter(reason for cell in waiting if (reason := why_not_kept(comparison.cells, cell)) is not None)
    return [
        f"{'a cell is' if count == 1 else f'{count} cells are'} run again, since what made the records that are there "
        f"was different: {reason}"
        for reason, count in why.items()
    ]


def run_comparison(
    comparison: Comparison,
    *,
    jobs: int,
    console: Console,
    outputs: Outputs,
    workers: MakeWorkers = Processes,
) -> Results:
    """Run the cells that have no record yet, and write the results.

    A cell that fails is among the results' failures; the others go on. KeyboardInterrupt passes through, with all
    workers gone and all finished cells kept.

    Args:
        comparison: what to run.
        jobs: how many cells at a time.
        console: shows how it goes.
        outputs: what is wanted beside the table.
        workers: the back-end that runs the cells.
    """
    grid = comparison.grid
    kept = [record for cell in grid.cells if (record := read_record(comparison.cells, cell)) is not None]
    done = {record.digest for record in kept}
    waiting = [cell for cell in grid.cells if cell.digest not in done]
    events = comparison.run.path / "tensorboard"
    if outputs.tensorboard:
        for record in kept:
            write_events(events, record)
    failures: dict[str, Failure] = {}
    jobs = max(1, min(jobs, len(waiting)))
    if waiting:
        with (
            workers(comparison.cells, comparison.logs, jobs) as running,
            ComparisonView(console, waiting, kept, jobs) as view,
        ):
            for happening in running.run(waiting):
                view.feed(happening)
                if isinstance(happening, Failed):
                    failures[happening.cell.digest] = _failure(comparison, happening)
                elif isinstance(happening, Finished) and outputs.tensorboard:
                    record = read_record(comparison.cells, happening.cell)
                    if record is not None:
                        write_events(events, record)
    return _write_results(comparison, list(failures.values()), outputs)


def _failure(comparison: Comparison, happening: Failed) -> Failure:
    log = happening.log.relative_to(comparison.run.path)
    return Failure(cell=str(happening.cell), reason=happening.reason, log=str(log))


def _write_results(comparison: Comparison, failures: Sequence[Failure], outputs: Outputs) -> Results:
    grid, run = comparison.grid, comparison.run
    records = [record for cell in grid.cells if (record := read_record(comparison.cells, cell)) is not None]
    results = results_of(grid, records, failures)
    write_whole(comparison.rows, rows_csv(records).encode())
    write_whole(run.summary, msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    plots = draw(grid, records, results) if outputs.plots else None
    for plot in (plot for group in (plots or {}).values() for plot in group):
        write_whole(run.path / "plots" / f"{plot.name}.svg", plot.svg.encode())
    write_comparison_report(run.report, grid, results, plots)
    return results


def results_of(grid: Grid, records: Sequence[CellRecord], failures: Sequence[Failure]) -> Results:
    """The results that these records give."""
    table, order = grid.config.compare, grid.config.order
    lines = sorted(  # a failed first cell must not change the order
        lines_of(records, table.against),
        key=lambda line: (table.partitions.index(line.partition), order.index(line.algorithm)),
    )
    return Results(
        name=table.name,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        data=grid.config.data.source,
        seeds=table.seeds,
        lines=lines,
        communication=communication_of(records),
        failures=list(failures),
        warnings=warnings_of([record for record in records if record.measure == "learning"]),
        not_applicable=dict(grid.not_applicable),
        cells=len(grid.cells),
        against=table.against,
    )


def _versions() -> dict[str, str]:
    names = ("secure-codream", "torch", "numpy", "cryptography")
    return versions_of(*names)
