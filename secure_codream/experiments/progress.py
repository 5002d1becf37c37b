"""What a person sees while a comparison runs: how far it is, how long it will take, what is being computed.

Time left: for each algorithm the mean seconds of a row so far, times its rows that are still to come, over the number
of workers. An algorithm of which nothing is known yet counts as the mean of the others. On a terminal the view is
redrawn in place; elsewhere there is one plain line for each cell.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secure_codream.experiments.cell import CellRecord
from secure_codream.experiments.grid import Cell
from secure_codream.experiments.problem import Row
from secure_codream.experiments.workers import Advanced, Failed, Finished, Happening, Started

WIDEST = 96
Kind = tuple[str, str]
"""Algorithm and what the cell is for: cells of one kind take about the same time."""


class ComparisonView:
    """Shows a comparison; use it as a context manager, and `feed` it what the workers say.

    Args:
        console: where.
        cells: those to run.
        kept: records of an earlier run, which are not run again.
        jobs: how many cells at a time.
        clock: gives seconds.
    """

    def __init__(
        self,
        console: Console,
        cells: Sequence[Cell],
        kept: Sequence[CellRecord],
        jobs: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock, self._jobs = console, clock, jobs
        self._began = clock()
        self._all, self._kept = len(cells) + len(kept), len(kept)
        self._todo: Counter[Kind] = Counter()
        for cell in cells:
            self._todo[_kind(cell)] += cell.rounds + 1
        self._rows = sum(self._todo.values())
        self._pace: dict[Kind, list[float]] = {}
        for record in kept:
            kind = (record.algorithm, record.measure)
            self._pace.setdefault(kind, []).append(record.last.seconds / len(record.rows))
        self._running: dict[Cell, Row | None] = {}
        self._done = self._failed = self._warned = 0
        self._live: Live | None = None

    def __enter__(self) -> ComparisonView:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4)
            self._live.__enter__()
        else:
            kept = f", {self._kept} of them done before" if self._kept else ""
            self._say(f"{self._all} cells{kept}; {self._jobs} at a time")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def feed(self, happening: Happening) -> None:
        """Take notice."""
        cell = happening.cell
        match happening:
            case Started():
                self._running[cell] = None
            case Advanced():
                self._running[cell] = happening.row
                self._todo[_kind(cell)] -= 1
            case Finished():
                self._done += 1
                self._warned += happening.warnings
                row = self._end(cell)
                if row is not None:
                    self._pace.setdefault(_kind(cell), []).append(row.seconds / (row.round + 1))
                    result = "" if cell.measure == "communication" else f": {fmean(row.accuracies):.1%}"
                    vain = f", {happening.warnings} x training at chance" if happening.warnings else ""
                    self._say(f"{self._count()}: {cell}{result}, {row.seconds:.1f} s{vain}; {self._left()}")
            case Failed():
                self._failed += 1
                self._end(cell)
                line = f"failed: {cell}: {happening.reason}; see {happening.log}"
                if self._live is not None:
                    self._live.console.print(Text(line, "red"), soft_wrap=True)
                self._say(line)

    def seconds_left(self) -> float | None:
        """An estimate, or None before anything is known."""
        known = {kind: fmean(paces) for kind, paces in self._pace.items()}
        for cell, row in self._running.items():
            if row is not None:
                known.setdefault(_kind(cell), row.seconds / (row.round + 1))
        if not known:
            return None
        usual = fmean(known.values())
        return sum(rows * known.get(kind, usual) for kind, rows in self._todo.items()) / self._jobs

    def _end(self, cell: Cell) -> Row | None:
        """Rows that will not come (an early stop, a failure) are no longer waited for."""
        row = self._running.pop(cell, None)
        self._todo[_kind(cell)] -= cell.rounds - (row.round if row is not None else -1)
        return row

    def _count(self) -> str:
        return f"{self._kept + self._done + self._failed} of {self._all}"

    def _left(self) -> str:
        left = self.seconds_left()
        return "time left unknown" if left is None else f"{clock_face(left)} left"

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as it stands."""
        width = min(options.max_width, WIDEST)
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(style="dim", no_wrap=True, width=8)
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        count = Text.assemble((self._count(), "bold"), f"   {self._left()}")
        if self._failed:
            count.append(f"   {self._failed} failed", "red")
        if self._warned:
            count.append(f"   {self._warned} at chance", "yellow")
        rows.add_row("cells", count)
        left = sum(self._todo.values())
        rows.add_row("", ProgressBar(total=max(1, self._rows), completed=self._rows - left, width=width - 16))
        for cell, row in list(self._running.items()):
            state = "starting" if row is None else f"round {row.round} of {cell.rounds}, {fmean(row.accuracies):.1%}"
            rows.add_row("now", Text.assemble(str(cell), (f"   {state}", "cyan")))
        for _ in range(self._jobs - len(self._running)):
            rows.add_row("", "")
        yield Panel(
            rows,
            title="[bold]Comparison[/]",
            title_align="left",
            subtitle=clock_face(self._clock() - self._began),
            subtitle_align="right",
            border_style="blue" if left else "green",
            padding=(0, 1),
            width=width,
        )


def clock_face(seconds: float) -> str:
    """`04:05`, or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _kind(cell: Cell) -> Kind:
    return cell.algorithm, cell.measure
