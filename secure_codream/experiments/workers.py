"""Who runs the cells of a comparison: what is asked of a back-end, what it says, and what each of its workers does.

`Processes` are this machine's, `RayWorkers` a cluster's. Another one is a class with the methods of `Workers` that
calls `work` wherever its workers are; `run_comparison` takes it. Its workers need the two folders, or what stands for
them there: records are what is kept, and what a comparison resumes from.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from secure_codream.experiments.cell import run_cell, write_record
from secure_codream.experiments.grid import Cell
from secure_codream.experiments.problem import Row


@dataclass(frozen=True)
class Started:
    """A worker has taken a cell."""

    cell: Cell


@dataclass(frozen=True)
class Advanced:
    """A cell has come one row further."""

    cell: Cell
    row: Row


@dataclass(frozen=True)
class Finished:
    """A cell's record is written; `warnings` counts its trainings that came to nothing."""

    cell: Cell
    warnings: int = 0


@dataclass(frozen=True)
class Failed:
    """A cell has no record; `log` says more than `reason`."""

    cell: Cell
    reason: str
    log: Path


Happening = Started | Advanced | Finished | Failed


class Workers(AbstractContextManager["Workers"], Protocol):
    """A back-end; whoever leaves its context, whatever the reason, leaves nothing of it running."""

    def run(self, cells: Sequence[Cell]) -> Iterator[Happening]:
        """Run all cells, and say what happens: each is `Started`, then `Advanced`, and `Finished` or `Failed` once.

        What is said names the very cells that were given, not copies of them: a cell equals itself alone.
        """


MakeWorkers = Callable[[Path, Path, int], Workers]
"""The folder of the records, that of the logs, and how many cells at a time."""


def work(cell: Cell, cells: Path, logs: Path, tell: Callable[[Row], None]) -> Finished | Failed:
    """Run one cell, in whichever process this is called, and keep its record.

    Args:
        cell: what to run.
        cells: folder of the records; what private clients release is kept beside it.
        logs: folder of the tracebacks.
        tell: called with each row as soon as it is there.
    """
    try:
        record = run_cell(cell, tell, cells.parent / "releases")
        write_record(cells, cell, record)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return failed(cell, logs, reason, f"{cell}\n\n{traceback.format_exc()}")
    return Finished(cell, sum(record.warnings.values()))


def failed(cell: Cell, logs: Path, reason: str, text: str) -> Failed:
    """A cell has no record; `text` goes into its log."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{cell.stem}.log"
    log.write_text(text, encoding="utf-8")
    return Failed(cell, reason, log)
