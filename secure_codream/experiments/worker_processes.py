"""Cells in parallel: spawned processes, one torch thread each, that take cells until there are none left.

The parent hands out cells and watches; each worker writes its records itself. What can go wrong, and what follows:

    a cell raises                   its traceback goes to `logs/`, the worker takes the next cell
    a worker dies (killed, crash)   its cell counts as failed, another worker takes its place
    Ctrl-C                          workers do not hear it; the parent stops them all and waits until they are gone
    the parent dies                 each worker sees that at once and ends itself

Workers are spawned, not forked: no lock or thread of the parent's is copied, and a GPU can be used.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType

from secure_codream.experiments.grid import Cell
from secure_codream.experiments.problem import Row
from secure_codream.experiments.workers import Advanced, Failed, Happening, Started, failed, work
from secure_codream.simulation.child_processes import STOP_SECONDS, end_all

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Processes:
    """`Workers` on this machine: up to `jobs` processes, none of which is left behind.

    Args:
        cells: folder of the records.
        logs: folder of tracebacks and of what workers print.
        jobs: how many cells at a time.
    """

    def __init__(self, cells: Path, logs: Path, jobs: int) -> None:
        self._cells, self._logs, self._jobs = cells, logs, jobs
        self._running: dict[Connection, tuple[SpawnProcess, Cell]] = {}
        self._started = 0

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_all((pipe, process) for pipe, (process, _) in self._running.items())
        self._running.clear()

    def run(self, cells: Sequence[Cell]) -> Iterator[Happening]:
        """See `Workers`."""
        waiting = list(reversed(cells))
        while waiting and len(self._running) < self._jobs:
            yield self._hand_out(waiting.pop())
        while self._running:
            for pipe in connection.wait(list(self._running)):
                assert isinstance(pipe, Connection)  # noqa: S101 - nothing else was waited for
                process, cell = self._running[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    yield self._mourn(pipe)
                    if waiting:
                        yield self._hand_out(waiting.pop())
                    continue
                if isinstance(message, Row):
                    yield Advanced(cell, message)
                    continue
                yield replace(message, cell=cell)  # the one that was handed out, not the copy that came back
                if waiting:
                    following = waiting.pop()
                    self._running[pipe] = process, following
                    _give(pipe, following)
                    yield Started(following)
                else:
                    _give(pipe, None)
                    process.join(STOP_SECONDS)
                    if process.is_alive():
                        process.kill()
                        process.join()
                    del self._running[pipe]

    def _hand_out(self, cell: Cell) -> Started:
        """Start a worker with its first cell."""
        self._started += 1
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        output = self._logs / f"worker-{self._started}.log"
        arguments = (theirs, self._cells, self._logs, output)
        process = context.Process(target=_serve, args=arguments, name=output.name, daemon=True)
        with _undisturbed():
            process.start()
        theirs.close()
        self._running[ours] = process, cell
        _give(ours, cell)
        return Started(cell)

    def _mourn(self, pipe: Connection) -> Failed:
        """Take a dead worker off the list."""
        process, cell = self._running.pop(pipe)
        process.join(STOP_SECONDS)
        pipe.close()
        code = process.exitcode
        reason = f"the worker ended with exit code {code}"
        if code is not None and code < 0:
            reason = f"the worker was ended by {signal.Signals(-code).name}"
        why = "it may have been short of memory" if code == -signal.SIGKILL else f"{process.name} has its last words"
        return failed(cell, self._logs, reason, f"{cell}: {reason}; {why}\n")


def _give(pipe: Connection, cell: Cell | None) -> None:
    with suppress(OSError):  # a dead worker's pipe reads as closed, which is seen when it is read
        pipe.send(cell)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A process started within inherits one thread for each library, and a blocked SIGINT, which is the parent's."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    resource_tracker.ensure_running()  # it would unblock the signal
    masks = hasattr(signal, "pthread_sigmask")
    if masks:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the worker's process -----------------------------------------------------------------------


def _serve(pipe: Connection, cells: Path, logs: Path, output: Path) -> None:
    """Run cells until None comes: for each, its rows go back, then how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(output)
    import torch

    torch.set_num_threads(1)
    while (cell := pipe.recv()) is not None:
        pipe.send(work(cell, cells, logs, pipe.send))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _print_to(path: Path) -> None:
    """Warnings of a library must not disturb the parent's terminal."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
