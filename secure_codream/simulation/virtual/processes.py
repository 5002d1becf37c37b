"""The engine `local`: spawned processes of this machine.

Each worker reads its pipe in a thread of its own, so that neither side waits for the other to take something away.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType

from secure_codream.simulation.child_processes import STOP_SECONDS, end_all
from secure_codream.simulation.virtual.engines import AHEAD, Lost, Spared, errands, shares
from secure_codream.simulation.virtual.host import Answer, Errand, Letter, VirtualHost
from secure_codream.simulation.virtual.scene import Scene


class LocalEngine:
    """`Engine` on this machine.

    Args:
        scene: what is simulated.
        workers: how many processes.
    """

    def __init__(self, scene: Scene, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, tuple[SpawnProcess, tuple[int, int]]] = {}
        for first, last in shares(scene.members, workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, scene, first, last), daemon=True)
            process.start()
            theirs.close()
            self._workers[ours] = process, (first, last)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_all((pipe, process) for pipe, (process, _) in self._workers.items())
        self._workers.clear()

    def exchange(self, letters: Sequence[Letter]) -> Iterator[Answer | Lost]:
        """See `Engine`."""
        waiting = {pipe: errands(letters, *share) for pipe, (_, share) in self._workers.items()}
        given = dict.fromkeys(waiting, 0)
        for pipe in waiting:
            self._give(pipe, waiting, given)
        while any(given.values()):
            for ready in connection.wait([pipe for pipe, count in given.items() if count]):
                assert isinstance(ready, Connection)  # noqa: S101 - nothing else was waited for
                try:
                    answers = ready.recv()
                except (EOFError, OSError):
                    given[ready] = 0
                    yield self._lose(ready)
                    continue
                if isinstance(answers, str):
                    raise RuntimeError(f"a worker failed:\n{answers}")
                given[ready] -= 1
                self._give(ready, waiting, given)
                yield from answers

    def spared(self) -> Spared:
        """See `Engine`."""
        total = Spared()
        for pipe in list(self._workers):
            with suppress(EOFError, OSError):
                pipe.send(None)
                total += pipe.recv()
        return total

    def _give(
        self, pipe: Connection, waiting: dict[Connection, Iterator[Errand]], given: dict[Connection, int]
    ) -> None:
        for errand in islice(waiting[pipe], AHEAD - given[pipe]):
            with suppress(OSError):  # a dead worker's pipe reads as closed, which is seen when it is read
                pipe.send(errand)
            given[pipe] += 1

    def _lose(self, pipe: Connection) -> Lost:
        process, (first, last) = self._workers.pop(pipe)
        pipe.close()
        process.join(STOP_SECONDS)
        return Lost(tuple(range(first, last)), f"a worker ended with exit code {process.exitcode}")


# --- in the worker's process -----------------------------------------------------------------------


def _serve(pipe: Connection, scene: Scene, first: int, last: int) -> None:
    """Run errands until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, given), daemon=True).start()
    try:
        host = VirtualHost(scene, range(first, last))
        while True:
            errand = given.get()
            pipe.send(Spared.by(host.remembered) if errand is None else list(host.answer(errand)))
    except OSError:
        return
    except Exception:
        pipe.send(traceback.format_exc())


def _read(pipe: Connection, given: queue.SimpleQueue[Errand | None]) -> None:
    try:
        while True:
            given.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is done, or dead
