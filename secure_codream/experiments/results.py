"""From the cells' records to results: lines of a table, curves, raw rows.

Everything here is a function of the records alone, so a comparison that was interrupted and resumed gives the same
results as one that was not, seconds apart. A mean is over seeds; a seed whose cell failed is missing in it, and `n`
says how many there are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from secure_codream.experiments.cell import CellRecord
from secure_codream.experiments.estimates import Estimate, estimate, gap_closure
from secure_codream.experiments.registry import ALONE, CENTRAL
from secure_codream.experiments.sweep import is_reference, reference_of, split_name
from secure_codream.reports.words import format_bytes

CSV_COLUMNS = (
    *("algorithm", "method", "epsilon", "partition", "seed", "measure", "round", "accuracy", "server"),
    *("bytes_up", "bytes_down", "secure_steps", "seconds"),
)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One algorithm on one partition, over its seeds, at the end.

    Attributes:
        algorithm: its name.
        partition: as it was written.
        accuracy: mean over the clients.
        worst_client: the lowest accuracy of a client.
        server: accuracy of what the server holds: a global model, or a student of dreams alone; None without one.
        gap_closure: None without both references of the same models, or without a gap.
        ahead: accuracy minus that of `[compare] against`, seed by seed; None without one, and of that one.
        bytes_up: application bytes that a client sent in all.
        bytes_down: the same, received.
        secure_steps: secure sums in all, metrics among them; see `Row`.
        seconds: of one cell, with one thread.
        stopped_early: cells that ran out of patience.
    """

    algorithm: str
    partition: str
    accuracy: Estimate
    worst_client: Estimate
    server: Estimate | None
    gap_closure: Estimate | None
    ahead: Estimate | None = None
    bytes_up: Estimate
    bytes_down: Estimate
    secure_steps: Estimate
    seconds: Estimate
    stopped_early: int


class Communication(msgspec.Struct, frozen=True, kw_only=True):
    """What one client sends in one round, by the size of its model."""

    algorithm: str
    model: str
    parameters: float
    bytes_up: float
    bytes_down: float


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A cell without a result."""

    cell: str
    reason: str
    log: str


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of an algorithm's trainings on one partition.

    Attributes:
        algorithm: its name.
        partition: as it was written.
        warning: the words.
        seeds: of the cells in which they were said.
        times: how often, in all.
    """

    algorithm: str
    partition: str
    warning: str
    seeds: tuple[int, ...]
    times: int

    def __str__(self) -> str:
        seeds = ("seed " if len(self.seeds) == 1 else "seeds ") + ", ".join(map(str, self.seeds))
        times = "" if self.times == 1 else f" ({self.times} times)"
        return f"{self.algorithm}, {self.partition}, {seeds}: {self.warning}{times}"


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """`summary.json` of a comparison.

    Attributes:
        name: the comparison's.
        written: when, ISO 8601.
        versions: of what made the results.
        data: the source.
        seeds: as configured.
        lines: by partition, then algorithm, in the configuration's order.
        communication: bytes of a round by model.
        failures: cells without a result.
        warnings: of trainings that came to nothing.
        not_applicable: algorithm -> why it has no cells.
        against: what lines are `ahead` of.
        cells: how many there are; with the failures and no others missing, the comparison is complete.
    """

    name: str
    written: str
    versions: dict[str, str]
    data: str
    seeds: tuple[int, ...]
    lines: list[Line]
    communication: list[Communication]
    failures: list[Failure]
    warnings: list[Warned]
    not_applicable: dict[str, str]
    cells: int
    against: str | None = None
    kind: str = "comparison"
    schema: int = 1


@dataclass(frozen=True)
class CurvePoint:
    """Means over seeds after one round."""

    round: int
    accuracy: Estimate
    bytes_up: float
    secure_steps: float


def lines_of(records: Sequence[CellRecord], against: str | None = None) -> list[Line]:
    """One line for each partition and algorithm that has records, in the order of the records."""
    learning = [record for record in records if record.measure == "learning"]
    found = {(record.partition, record.seed, record.algorithm): record for record in learning}

    def beside(record: CellRecord, algorithm: str) -> CellRecord | None:
        return found.get((record.partition, record.seed, algorithm))

    def closure(record: CellRecord) -> float | None:
        alone, central = (beside(record, reference_of(record.algorithm, name)) for name in (ALONE, CENTRAL))
        if alone is None or central is None or is_reference(record.algorithm) or alone.models != record.models:
            return None
        return gap_closure(record.accuracy, alone.accuracy, central.accuracy)

    def ahead(record: CellRecord) -> float | None:
        other = None if against in (None, record.algorithm) else beside(record, str(against))
        return None if other is None else record.accuracy - other.accuracy

    lines = []
    for (partition, algorithm), group in grouped(learning).items():
        lines.append(
            Line(
                algorithm=algorithm,
                partition=partition,
                accuracy=_sure(record.accuracy for record in group),
                worst_client=_sure(min(record.last.accuracies) for record in group),
                server=estimate(record.last.server for record in group),
                gap_closure=estimate(closure(record) for record in group),
                ahead=estimate(ahead(record) for record in group),
                bytes_up=_sure(record.last.bytes_up for record in group),
                bytes_down=_sure(record.last.bytes_down for record in group),
                secure_steps=_sure(float(record.last.secure_steps) for record in group),
                seconds=_sure(record.last.seconds for record in group),
                stopped_early=sum(record.last.round < record.rounds for record in group),
            )
        )
    return lines


def warnings_of(records: Sequence[CellRecord]) -> list[Warned]:
    """What was said of trainings, by algorithm and partition, in the order of the records."""
    found = []
    for (partition, algorithm), group in grouped(records).items():
        for warning in dict.fromkeys(text for record in group for text in record.warnings):
            said = [record for record in group if warning in record.warnings]
            found.append(
                Warned(
                    algorithm=algorithm,
                    partition=partition,
                    warning=warning,
                    seeds=tuple(record.seed for record in said),
                    times=sum(record.warnings[warning] for record in said),
                )
            )
    return found


def grouped(records: Sequence[CellRecord]) -> dict[tuple[str, str], list[CellRecord]]:
    """(partition, algorithm) -> the records of its seeds, partition by partition, each in order of appearance."""
    partitions = list(dict.fromkeys(record.partition for record in records))
    algorithms = list(dict.fromkeys(record.algorithm for record in records))
    groups: dict[tuple[str, str], list[CellRecord]] = {
        (partition, algorithm): [] for partition in partitions for algorithm in algorithms
    }
    for record in records:
        groups[record.partition, record.algorithm].append(record)
    return {key: group for key, group in groups.items() if group}


def curve_of(group: Sequence[CellRecord]) -> list[CurvePoint]:
    """The course of one algorithm on one partition: a point after the warm-up and after each round."""
    longest = max(len(record.rows) for record in group)
    points = []
    for number in range(longest):
        rows = [record.row(number) for record in group]
        points.append(
            CurvePoint(
                round=number,
                accuracy=_sure(fmean(row.accuracies) for row in rows),
                bytes_up=fmean(row.bytes_up for row in rows),
                secure_steps=fmean(row.secure_steps for row in rows),
            )
        )
    return points


def communication_of(records: Sequence[CellRecord]) -> list[Communication]:
    """Bytes of one client in one round, by algorithm and model; of what was measured for it, and of all else."""
    found: dict[tuple[str, tuple[str, ...]], list[CellRecord]] = {}
    for record in records:
        if record.last.round > 0 and record.last.bytes_up > 0:
            found.setdefault((record.algorithm, tuple(dict.fromkeys(record.models))), []).append(record)
    return sorted(
        (
            Communication(
                algorithm=algorithm,
                model=", ".join(models),
                parameters=fmean(fmean(record.parameters) for record in group),
                bytes_up=fmean(record.last.bytes_up / record.last.round for record in group),
                bytes_down=fmean(record.last.bytes_down / record.last.round for record in group),
            )
            for (algorithm, models), group in found.items()
        ),
        key=lambda point: (point.algorithm, point.parameters),
    )


def rows_csv(records: Sequence[CellRecord]) -> str:
    """Every row of every cell. Accuracies are 0 to 1; bytes are one client's, so far, mean over the clients.

    An algorithm under a budget (see `sweep`) is told apart into method and epsilon, which is empty without privacy.
    """
    clients = max((len(record.models) for record in records), default=0)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *(f"accuracy_client_{number + 1}" for number in range(clients))])
    for record in records:
        cell = (record.algorithm, *split_name(record.algorithm), record.partition, record.seed, record.measure)
        for row in record.rows:
            server = "" if row.server is None else row.server
            costs = (row.bytes_up, row.bytes_down, row.secure_steps, f"{row.seconds:.3f}")
            writer.writerow([*cell, row.round, fmean(row.accuracies), server, *costs, *row.accuracies])
    return out.getvalue()


def result_tables(results: Results) -> list[Table]:
    """A table for each partition, for a terminal."""
    tables = []
    ahead = f"; points ahead of {results.against}" if results.against else ""
    for partition in dict.fromkeys(line.partition for line in results.lines):
        lines = [line for line in results.lines if line.partition == partition]
        table = Table(
            title=f"{results.data}, {partition}: {_over(len(results.seeds))}{ahead}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("algorithm", no_wrap=True)
        for heading in ("clients, %", "server, %", "gap closure", "ahead", "sent", "steps", "s"):
            if heading != "ahead" or ahead:
                table.add_column(heading, justify="right", no_wrap=True)
        best = clearly_best(lines)
        for line in lines:
            short = line.accuracy.n < len(results.seeds)
            table.add_row(
                Text(line.algorithm + (f" ({line.accuracy.n} of {len(results.seeds)})" if short else "")),
                Text(share_in_words(line.accuracy), "bold" if line is best else ""),
                share_in_words(line.server),
                in_words(line.gap_closure, 2),
                *((in_words(line.ahead, 1, 100),) if ahead else ()),
                format_bytes(line.bytes_up.mean) if line.bytes_up.mean else "-",
                f"{line.secure_steps.mean:,.0f}" if line.secure_steps.mean else "-",
                f"{line.seconds.mean:.1f}",
            )
        tables.append(table)
    return tables


def in_words(value: Estimate | None, digits: int, factor: float = 1.0) -> str:
    """`90.5 ± 1.2`, or `-`."""
    if value is None:
        return "-"
    mean = f"{factor * value.mean:.{digits}f}"
    return mean if value.half is None else f"{mean} ± {factor * value.half:.{digits}f}"


def share_in_words(value: Estimate | None) -> str:
    """A share in per cent: `90.5 ± 1.2`, or `90.5 (62.0 to 100.0)` where the interval would pass 0 or 100 %."""
    if value is None or value.half is None or value.half <= min(value.mean, 1 - value.mean):
        return in_words(value, 1, 100)
    least, most = max(0.0, value.mean - value.half), min(1.0, value.mean + value.half)
    return f"{100 * value.mean:.1f} ({100 * least:.1f} to {100 * most:.1f})"


def clearly_best(lines: Sequence[Line]) -> Line | None:
    """Whose interval of accuracy lies above those of all others, references aside; None where they overlap."""
    ranked = sorted((line for line in lines if not is_reference(line.algorithm)), key=lambda line: -line.accuracy.mean)
    if not ranked or ranked[0].accuracy.half is None:
        return None
    least = ranked[0].accuracy.mean - ranked[0].accuracy.half
    return ranked[0] if all(line.accuracy.mean + (line.accuracy.half or 0.0) < least for line in ranked[1:]) else None


def _over(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"mean and 95 % interval over {seeds} seeds"


def _sure(values: Iterable[float]) -> Estimate:
    found = estimate(values)
    assert found is not None  # noqa: S101 - a group has at least one record
    return found
