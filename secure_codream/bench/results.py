"""Figures of a bench, as JSON, as a table, and as a page of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from secure_codream.reports.spans import PARTS, Shares

What = Literal["client_step", "server_add", "unmask", "setup", "bytes_up", "bytes_down"]
WORDS: dict[str, str] = {
    "client_step": "a client's step",
    "server_add": "server: adding one vector",
    "unmask": "server: taking masks off a sum",
    "setup": "a client's set-up of an epoch",
    "bytes_up": "bytes up, a client and step",
    "bytes_down": "bytes down, a client and step",
    "sending": "of a client's step: sending",
}
COLUMNS = ("what", "mode", "n", "d", "m", "dropped", "ours", "Flower", "times less", "limit", "limit / ours")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured; of a client's step, `sending` is the part without the published sum.
        mode: how sums are made.
        n: clients.
        d: coordinates of a vector.
        m: bits of a ring element.
        dropped: clients that fell silent in every step.
        ours: the median, in `unit`.
        flower: Flower's secagg+ for the same; None where it was not asked, or has no such thing.
        limit: what this machine needs at least; None where there is no such figure.
        unit: "ms" of processor time, or "bytes".
    """

    what: What | Literal["sending"]
    mode: Literal["lockstep", "resilient"]
    n: int
    d: int
    m: int
    dropped: int
    ours: float
    flower: float | None
    limit: float | None
    unit: Literal["ms", "bytes"]


@dataclass(frozen=True)
class Wall:
    """One figure by the clock on the wall, in milliseconds: the least of an epoch, on one thread and on two."""

    what: Literal["sending", "server_add"]
    mode: Literal["lockstep", "resilient"]
    n: int
    d: int
    m: int
    one: float
    two: float


@dataclass(frozen=True)
class Bench:
    """All figures of one run.

    Attributes:
        rows: the figures.
        sending: of each client's step, the part without the published sum.
        machine: its processor, generator (GB/s) and memory (GB/s).
        versions: of the packages that matter.
        steps: of the epochs that were run.
        made: the day, YYYY-MM-DD.
        shares: of runs that were asked for, what the sum took of all processor time.
        walls: of cases in which nobody drops; empty where this process may use one core only.
    """

    rows: tuple[Row, ...]
    sending: tuple[Row, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    steps: int
    made: str
    shares: tuple[Shares, ...] = ()
    walls: tuple[Wall, ...] = ()


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row, under `COLUMNS`."""
    ratio = "" if row.flower is None else f"{row.flower / row.ours:,.3g}"
    share = "" if row.limit is None else f"{row.limit / row.ours:.2f}"
    figures = (_amount(figure, row.unit) for figure in (row.ours, row.flower, row.limit))
    ours, flower, limit = figures
    counts = (f"{row.n:,}", f"{row.d:,}", str(row.m), str(row.dropped))
    return (WORDS[row.what], row.mode, *counts, ours, flower, ratio, limit, share)


def _amount(figure: float | None, unit: str) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if unit == "bytes" else f"{figure:,.3g} ms" if figure < 1000 else f"{figure:,.0f} ms"


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table(*COLUMNS)
    for row in rows:
        made.add_row(*cells(row))
    return made


PAGE = """# What the sum costs

Written by `secure-codream bench {flags}--write-document docs/performance.md` on {made}.
Processor: {processor}; {packages}.

Times are milliseconds of processor time on one thread, medians over the clients and steps of one epoch of {steps}
steps, run by the machines that run in deployment; the course that asks for the vectors costs nothing. **A client's
step** is encoding, masking, its own tag, packing, and checking and digesting the published sum. **The set-up** is a
client's keys, signatures and seals of one epoch, all steps' keys included. Bytes are those of messages and frames,
the set-up's share included, without ZeroMQ's and CURVE's own.

**Limit** is what this machine needs at least: for a client's step and for unmasking, all mask streams by the fastest
implementation of the very same bits ({generator} at {generator_speed:.1f} GB/s), without adding them; for adding, to
read the packed vector and to read and write the sum, at the speed of its memory ({memory_speed:.1f} GB/s); for bytes,
m bits a coordinate.

**Flower** is its secagg+, with its own functions as shipped, on vectors of the same length, range and ring, all
clients being neighbours: quantising, masking and serialising for a client's step, without key agreement, which is
counted to its set-up; the bare addition of two vectors; secrets, masks and reduction for unmasking. It makes one sum a
set-up, we {steps}, so its bytes hold a whole set-up. Of what it repeats for each client or pair, some were timed
and counted as many times. It checks no sum.

{table}
{walls}{shares}"""

WALLS = """
## On two cores

Milliseconds by the clock on the wall, the least of an epoch each: pieces of a vector are shared by the threads of its
party (`--threads`), with the same bits. What else runs on the machine makes two threads look slower.

{table}
"""

SHARES = """
## Beside the learning

Of all processor time of real processes, the server's and all clients', once their libraries were loaded: what encoding,
masking, tags, packing and unmasking took, by the spans that each process kept (`--spans`; each run's report draws a
round of them).

{table}
"""


def page(bench: Bench, flags: str) -> str:
    """The page of the documents.

    Args:
        bench: the figures.
        flags: of the command, as given.
    """
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells, _in_order(bench))]
    machine = bench.machine
    return PAGE.format(
        flags=f"{flags} " if flags else "",
        made=bench.made,
        steps=bench.steps,
        processor=machine["processor"],
        packages=", ".join(f"{name} {version}" for name, version in bench.versions.items()),
        generator=machine["generator"],
        generator_speed=machine["generator_speed"],
        memory_speed=machine["memory_speed"],
        table=_lines(rows),
        walls=WALLS.format(table=_lines(_of_walls(bench.walls))) if bench.walls else "",
        shares=SHARES.format(table=_lines(_of_shares(bench.shares))) if bench.shares else "",
    )


def _lines(rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _of_walls(walls: Sequence[Wall]) -> list[tuple[str, ...]]:
    columns = ("what", "mode", "n", "d", "m", "one thread", "two threads", "times less")
    rows = [
        (
            WORDS[one.what],
            one.mode,
            f"{one.n:,}",
            f"{one.d:,}",
            str(one.m),
            _amount(one.one, "ms"),
            _amount(one.two, "ms"),
            f"{one.one / one.two:.2f}",
        )
        for one in walls
    ]
    return [columns, tuple("---" for _ in columns), *rows]


def _of_shares(shares: Sequence[Shares]) -> list[tuple[str, ...]]:
    columns = ("run", "processes", "processor time", *(f"{part} (ms)" for part in PARTS), "share of all")
    rows = [
        (
            one.name,
            str(one.parties),
            f"{one.processor:.1f} s",
            *(f"{1e3 * one.parts[part]:.0f}" for part in PARTS),
            f"{one.share:.4f}",
        )
        for one in shares
    ]
    return [columns, tuple("---" for _ in columns), *rows]


def _in_order(bench: Bench) -> list[Row]:
    parts = {(row.mode, row.n, row.d, row.m, row.dropped): row for row in bench.sending}
    ordered: list[Row] = []
    for row in bench.rows:
        ordered.append(row)
        if row.what == "client_step":
            ordered.append(parts[row.mode, row.n, row.d, row.m, row.dropped])
    return ordered
