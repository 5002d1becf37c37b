"""One cell's work and its record: a JSON file that holds every row, and the digest of what defined them.

A record is written in one piece when the cell is over; a file that is there is whole. Code, libraries and images must
be those that the comparison was begun with, in whichever process and on whichever machine a cell is run, when it begins
and when it is over: in between code is loaded and images are read. Global random states are set from the cell's seed
before it starts, so that nothing depends on which cell a worker ran before. Only seconds differ between two runs of the
same cell.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np
import torch

from codream_clients.devices import pick_device
from codream_clients.learning.training import convergence_warnings_to
from secure_codream.configuration.images import load_shards
from secure_codream.experiments.grid import SCHEMA, Cell, Measure
from secure_codream.experiments.origins import differences
from secure_codream.experiments.problem import Problem, Row
from secure_codream.reports.files import MalformedRecord, write_whole


class CellRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a cell.

    Attributes:
        digest: of what defined it, see `Cell.digest`.
        algorithm: as in tables.
        partition: as it was written.
        seed: of everything.
        measure: what the cell was for.
        models: each client's.
        parameters: of each client's model.
        rounds: as planned; `rows` has fewer if the cell stopped early.
        rows: after the warm-up, and after each round.
        origins: what the rows follow from beside the settings, see `origins`.
        warnings: what was said of its trainings -> how often.
    """

    digest: str
    algorithm: str
    partition: str
    seed: int
    measure: Measure
    models: tuple[str, ...]
    parameters: tuple[int, ...]
    rounds: int
    rows: tuple[Row, ...]
    origins: dict[str, str]
    warnings: dict[str, int] = {}
    schema: int = SCHEMA

    @property
    def last(self) -> Row:
        """The state at the end."""
        return self.rows[-1]

    @property
    def accuracy(self) -> float:
        """Mean over the clients at the end."""
        return fmean(self.last.accuracies)

    def row(self, number: int) -> Row:
        """The row of a round; after an early stop the last one, since nothing changed any more."""
        return self.rows[min(number, len(self.rows) - 1)]


class EmptyRun(RuntimeError):
    """An algorithm yielded no rows."""


class OtherOrigins(RuntimeError):
    """Code, images or libraries here are not those that the comparison was begun with."""


def problem_of(cell: Cell, releases: Path | None = None) -> Problem:
    """Load the data and settle everything that the algorithm gets; `releases`: see `Problem`.

    Raises:
        ConfigError: data or settings that do not fit.
    """
    shards, test = load_shards(cell.data)
    return Problem(
        shards=shards,
        test=test,
        models=cell.models,
        learning=cell.settings(test.shape, test.classes),
        dreams=cell.dreams,
        aggregation=cell.aggregation,
        rounds=cell.rounds,
        seed=cell.seed,
        device=pick_device(cell.device),
        releases=releases,
    )


def run_cell(cell: Cell, progress: Callable[[Row], None], releases: Path | None = None) -> CellRecord:
    """Run the algorithm; `progress` gets each row as it comes; `releases`: see `Problem`.

    Raises:
        OtherOrigins: code, images or libraries are others than those that the comparison was begun with, before or
            after the run.
        EmptyRun: the algorithm yielded nothing.
        Exception: whatever the algorithm raises.
    """
    cell.entry.make()  # first, so that what it loads is looked at before hours are spent
    _check_origins(cell)
    random.seed(cell.seed)
    np.random.seed(cell.seed % (1 << 32))  # a user's own parts may draw from it
    torch.manual_seed(cell.seed)
    problem = problem_of(cell, releases)
    rows: list[Row] = []
    warnings: list[str] = []
    with convergence_warnings_to(warnings.append):
        for row in until_patience(cell.entry.make().run(problem), cell.patience):
            rows.append(row)
            progress(row)
    if not rows:
        raise EmptyRun(f"{cell.entry.reference} yielded no rows; one after the warm-up and one each round are needed")
    models = [problem.fresh_model(client) for client in range(len(problem.shards))]
    _check_origins(cell)
    return CellRecord(
        digest=cell.digest,
        algorithm=cell.algorithm,
        partition=cell.partition,
        seed=cell.seed,
        measure=cell.measure,
        models=cell.models,
        parameters=tuple(sum(weight.numel() for weight in model.parameters()) for model in models),
        rounds=cell.rounds,
        rows=tuple(rows),
        origins=dict(cell.origins),
        warnings=dict(Counter(warnings)),
    )


def _check_origins(cell: Cell) -> None:
    if found := differences(cell.origins, cell.origins_here()):
        raise OtherOrigins(
            f"not as when the comparison was begun: {', '.join(found)}; a new process that resumes takes what is here"
        )


def until_patience(rows: Iterable[Row], patience: int | None) -> Iterator[Row]:
    """The rows up to the one after which the best mean accuracy is `patience` rounds old; None: all of them."""
    best, age = -1.0, 0
    for row in rows:
        yield row
        accuracy = fmean(row.accuracies)
        best, age = (accuracy, 0) if accuracy > best else (best, age + 1)
        if patience is not None and age >= patience:
            return


def record_path(cells: Path, cell: Cell) -> Path:
    """Where a cell's record lies."""
    return cells / f"{cell.stem}.json"


def write_record(cells: Path, cell: Cell, record: CellRecord) -> None:
    """Write the record in one piece."""
    content = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    write_whole(record_path(cells, cell), content)


def read_record(cells: Path, cell: Cell) -> CellRecord | None:
    """The record of exactly this cell, or None if it is not there.

    Raises:
        MalformedRecord: a file that is no record, or another cell's.
    """
    path = record_path(cells, cell)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=CellRecord)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise MalformedRecord(path, str(error), "a cell's record; delete the file to run the cell again") from error
    if record.digest != cell.digest or not record.rows:
        raise MalformedRecord(path, "another cell's record", "this cell's; delete the file to run the cell again")
    return record


def why_not_kept(cells: Path, cell: Cell) -> str | None:
    """What became of a record of such a cell that is there and does not fit it, in words; None where there is none."""
    path, pattern = record_path(cells, cell), f"{cell.title}_{'[0-9a-f]' * 12}.json"
    others = sorted((other for other in cells.glob(pattern) if other != path), key=lambda other: other.stat().st_mtime)
    if not others:
        return None
    try:
        record = msgspec.json.decode(others[-1].read_bytes(), type=CellRecord)
    except msgspec.MsgspecError:
        return "records of another version of Secure CoDream"
    return ", ".join(differences(record.origins, cell.origins)) or "settings"
