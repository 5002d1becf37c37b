"""Cells on a Ray cluster: each is a task that sends its rows as they come, and its files at its end.

Nothing is shared between the machines: a task writes its record into a folder of its own and sends it, and the records
are written here. A task whose machine is lost is a cell that failed; it is not begun again by itself.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from secure_codream.cluster import Cluster
from secure_codream.experiments.grid import Cell
from secure_codream.experiments.problem import Row
from secure_codream.experiments.workers import Advanced, Failed, Finished, Happening, Started, failed, work
from secure_codream.reports.files import write_whole


class Written(NamedTuple):
    """A file that a cell left, by its path in the comparison's folder."""

    path: str
    content: bytes


class Ended(NamedTuple):
    """How a cell ended: without a reason, well."""

    warnings: int
    reason: str


class RayWorkers:
    """`Workers` on a Ray cluster.

    Args:
        cells: folder of the records.
        logs: folder of tracebacks.
        jobs: how many cells at a time.
        address: of the cluster; None makes one of this machine.
        gpus: of each cell, fractions too; Ray places cells where so much is free.

    Raises:
        ExtraMissing: Ray is not installed.
    """

    def __init__(self, cells: Path, logs: Path, jobs: int, *, address: str | None = None, gpus: float = 0.0) -> None:
        self._cells, self._logs, self._jobs = cells, logs, jobs
        self._cluster = Cluster(jobs, address)
        self._task = self._cluster.ray.remote(_run).options(
            num_cpus=1, num_gpus=gpus, max_retries=0, num_returns="streaming"
        )
        self._running: dict[Any, Cell] = {}

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for told in self._running:
            self._cluster.ray.cancel(told, force=True)
        self._running.clear()
        self._cluster.close()

    def run(self, cells: Sequence[Cell]) -> Iterator[Happening]:
        """See `Workers`."""
        ray, waiting = self._cluster.ray, deque(cells)
        while waiting or self._running:
            while waiting and len(self._running) < self._jobs:
                cell = waiting.popleft()
                self._running[self._task.remote(cell)] = cell
                yield Started(cell)
            (told, *_), _ = ray.wait(list(self._running), num_returns=1, fetch_local=False)
            cell = self._running[told]
            try:
                news = ray.get(next(told))
            except (StopIteration, ray.exceptions.RayError) as error:
                del self._running[told]
                reason = f"its worker was lost ({type(error).__name__})"
                yield failed(cell, self._logs, reason, f"{cell}: {reason}\n{error}\n")
                continue
            if isinstance(news, Row):
                yield Advanced(cell, news)
            elif isinstance(news, Written):
                write_whole(self._cells.parent / news.path, news.content)
            else:
                del self._running[told]
                if news.reason:
                    yield Failed(cell, news.reason, self._logs / f"{cell.stem}.log")
                else:
                    yield Finished(cell, news.warnings)


# --- in the worker's process -----------------------------------------------------------------------


def _run(cell: Cell) -> Iterator[Row | Written | Ended]:
    import torch

    torch.set_num_threads(1)
    news: queue.SimpleQueue[Row | Finished | Failed] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def compute() -> None:
            news.put(work(cell, folder / "cells", folder / "logs", news.put))

        thread = threading.Thread(target=compute, daemon=True)
        thread.start()
        while isinstance(one := news.get(), Row):
            yield one
        thread.join()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield Written(str(path.relative_to(folder)), path.read_bytes())
    yield Ended(one.warnings, "") if isinstance(one, Finished) else Ended(0, one.reason)
