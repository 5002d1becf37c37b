"""The end of processes that this one has started: they are asked, waited for, and killed if that does not help."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

STOP_SECONDS = 5.0
"""For which a process is waited for."""


def end_all(workers: Iterable[tuple[Connection, SpawnProcess]]) -> None:
    """Close the pipes and end the processes behind them; returns once none is left."""
    workers = list(workers)
    for pipe, process in workers:
        pipe.close()
        process.terminate()
    for _, process in workers:
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
