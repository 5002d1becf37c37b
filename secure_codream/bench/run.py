"""All cases of a bench, in a process of its own whose libraries have one thread: processor time is the whole cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from itertools import product
from multiprocessing import get_context
from typing import Literal

from codream_protocols.specs import MAX_COORDINATES
from secure_codream.bench.limits import Limits, measure_limits, processor_name
from secure_codream.bench.ours import Case, Costs, run_case, run_walls
from secure_codream.bench.results import Bench, Row, Wall, What
from secure_codream.deployment.cores import usable_cores
from secure_codream.reports.versions import versions_of

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LEAST_VALUE_BITS, _MOST_VALUE_BITS, _LEAST_CLIENTS = 2, 24, 3
Rival = Literal["flower"]


def cases_of(
    *,
    modes: Sequence[Literal["lockstep", "resilient"]],
    clients: Sequence[int],
    lengths: Sequence[int],
    bits: Sequence[int],
    drops: Sequence[int],
    losses: Literal["allow", "blocks"],
    steps: int,
) -> list[Case]:
    """Every combination; in lockstep, where all are waited for, those without drops.

    Raises:
        ValueError: one that cannot be run.
    """
    found = [
        Case(mode, n, d, m, dropped, losses, steps)
        for mode, n, d, m, dropped in product(modes, clients, lengths, bits, drops)
        if mode == "resilient" or not dropped
    ]
    for case in found:
        if not _LEAST_VALUE_BITS <= case.value_bits <= _MOST_VALUE_BITS:
            allowed = f"{_LEAST_VALUE_BITS} to {_MOST_VALUE_BITS} bits of a value besides"
            raise ValueError(f"found m = {case.m} with {case.n} clients; {allowed} are allowed")
        if not 1 <= case.d <= MAX_COORDINATES:
            raise ValueError(f"found d = {case.d}; 1 to {MAX_COORDINATES} is allowed")
        if case.n - case.dropped < _LEAST_CLIENTS:
            raise ValueError(
                f"found {case.n} members, of whom {case.dropped} fall silent; {_LEAST_CLIENTS} or more must be left"
            )
    if not found:
        raise ValueError("found lockstep with drops alone, and it waits for all; add 0 to them or resilient to modes")
    return found


def run_bench(cases: Sequence[Case], rival: Rival | None, finished: Callable[[Case], object]) -> Bench:
    """Run the cases one after another.

    Args:
        cases: from `cases_of`.
        rival: what to compare with.
        finished: told each case that is done.
    """
    for name in _THREADS:  # read by the process below, as it loads numpy
        os.environ[name] = "1"
    rows, sending, walls = list[Row](), list[Row](), list[Wall]()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        limits = pool.submit(measure_limits).result()
        for case in cases:
            found, part = pool.submit(_rows, case, rival, limits).result()
            rows += found
            sending.append(part)
            if not case.dropped and usable_cores() > 1:
                walls += pool.submit(_walls, case).result()
            finished(case)
    packages = ("numpy", "cryptography", *(("flwr",) if rival else ()))
    return Bench(
        rows=tuple(rows),
        sending=tuple(sending),
        machine={"processor": processor_name(), "cores": os.cpu_count(), **_gigabytes(limits)},
        versions=versions_of(*packages),
        steps=cases[0].steps,
        made=date.today().isoformat(),
        walls=tuple(walls),
    )


def _gigabytes(limits: Limits) -> dict[str, float | str]:
    return {
        name: round(value / 1e9, 2) if isinstance(value, float) else value for name, value in asdict(limits).items()
    }


def _rows(case: Case, rival: Rival | None, limits: Limits) -> tuple[list[Row], Row]:
    """The case's rows, and its part of sending."""
    return rows_of(case, run_case(case), _flower(case) if rival else {}, limits)


def _walls(case: Case) -> list[Wall]:
    one, two = run_walls(case, 1), run_walls(case, 2)
    shape = case.mode, case.n, case.d, case.m
    return [Wall("sending", *shape, one.sending, two.sending), Wall("server_add", *shape, one.adding, two.adding)]


def _flower(case: Case) -> dict[str, float]:
    from secure_codream.bench.flower import run_flower

    costs = run_flower(case)
    return {
        "client_step": costs.step,
        "server_add": costs.adding,
        "unmask": costs.unmasking,
        "setup": costs.setup,
        "bytes_up": costs.up,
    }


def rows_of(case: Case, costs: Costs, flower: dict[str, float], limits: Limits) -> tuple[list[Row], Row]:
    """The rows of one case, each with its limit; and that of sending alone."""
    word = 2 if case.m <= 16 else 4
    vector, packed = word * case.d, case.m * case.d / 8
    streams = case.n - 1 + (case.mode == "resilient")
    masking = limits.streams(streams, vector)
    dropped = case.n - costs.summed  # with blocks, whose live members drop too
    taken_off = costs.summed + dropped * costs.summed

    def figures() -> Iterator[tuple[What, float, float | None, Literal["ms", "bytes"]]]:
        yield "client_step", costs.sending + costs.checking, masking, "ms"
        yield "server_add", costs.adding, limits.moving(int(packed) + 2 * vector), "ms"
        if costs.unmasking is not None:
            yield "unmask", costs.unmasking, limits.streams(taken_off, vector), "ms"
        yield "setup", costs.setup, None, "ms"
        yield "bytes_up", costs.up, packed, "bytes"
        yield "bytes_down", costs.down, packed, "bytes"

    def row(what: What | Literal["sending"], ours: float, limit: float | None, unit: Literal["ms", "bytes"]) -> Row:
        return Row(what, case.mode, case.n, case.d, case.m, case.dropped, ours, flower.get(what), limit, unit)

    return [row(*figure) for figure in figures()], row("sending", costs.sending, masking, "ms")
