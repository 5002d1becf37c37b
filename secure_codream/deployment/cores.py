"""A party's threads, which share the work on its vectors; numpy and the ciphers let go of the interpreter meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Condition

from codream_protocols import cores, spans


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Threads:
    """`codream_protocols.cores.Workers`: the thread that asks and others, each taking the next piece that is left."""

    def __init__(self, threads: int, pool: ThreadPoolExecutor) -> None:
        self._threads, self._pool = threads, pool

    def __call__(self, pieces: int, work: cores.Work, least: int) -> None:
        left, turn, raised = iter(range(pieces)), Condition(), list[BaseException]()
        at_work, over = 0, False

        def numbers() -> Iterator[int]:
            while True:
                with turn:
                    piece = next(left, None)
                if piece is None:
                    return
                yield piece

        def help_out() -> None:
            nonlocal at_work
            with turn:
                if over:  # what it works on is somebody else's by now
                    return
                at_work += 1
            try:
                work(numbers())
            except BaseException as error:
                raised.append(error)
            finally:
                with turn:
                    at_work -= 1
                    turn.notify_all()

        helper = spans.carried(help_out)
        with suppress(RuntimeError):  # the party that these are of has ended: the others of its process do without
            for _ in range(min(self._threads, pieces // least) - 1):
                self._pool.submit(helper)
        try:
            work(numbers())
        finally:
            with turn:
                over = True  # who has not begun does not
                for _ in left:  # and who has finds nothing more, also where this thread has failed
                    pass
                turn.wait_for(lambda: at_work == 0)  # counted here, and not by who the pool says was begun
        if raised:
            raise raised[0]


@contextmanager
def shared_by(threads: int | None) -> Iterator[None]:
    """Let so many threads share the work of this process's machines; None: one for each core that it may use."""
    count = usable_cores() if threads is None else threads
    if count == 1:
        yield
        return
    with ThreadPoolExecutor(count - 1, "vectors") as pool:
        cores.share_among(_Threads(count, pool))
        try:
            yield
        finally:
            cores.share_among(None)
