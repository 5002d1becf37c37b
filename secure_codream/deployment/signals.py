"""How a party's work is run, and how it is stopped: it closes its sockets and erases its secrets.

A process hears signals in its main thread alone. There SIGINT, as by Ctrl-C, interrupts, and SIGTERM stops: nothing is
wrong then, and what was begun can be gone on with. Work in another thread, as a notebook needs it, is asked by `Stop`.
Whatever a script did with these signals before, it does again afterwards.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """Somebody who need not be told that anything is wrong has stopped this; no handler of errors is meant."""

    def __init__(self) -> None:
        super().__init__("stopped; start it again to go on")


class Stop:
    """Asks work in another thread to end; also before it has begun, and when it is over."""

    def __init__(self) -> None:
        self._lock, self._asked = threading.Lock(), False
        self._cancel: Callable[[], object] | None = None

    def ask(self) -> None:
        """End the work, now or as soon as it begins."""
        with self._lock:
            self._asked = True
            if self._cancel is not None:
                self._cancel()

    @property
    def asked(self) -> bool:
        """Whether somebody has."""
        return self._asked

    @contextmanager
    def cancelling(self, loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> Iterator[None]:
        """What `ask` cancels, from whatever thread, until this is left."""
        with self._lock:
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self._asked:
                self._cancel()
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """In the main thread SIGTERM raises `Stopped`, wherever it arrives; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    usual = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def run_until_stopped(work: Coroutine[Any, Any, None], stop: Stop | None = None) -> None:
    """Run in an event loop of its own, in a thread that has none, until it is done or stopped.

    Raises:
        Stopped: by SIGTERM, or by `stop`.
        CancelledError: by SIGINT.
    """
    stop, heard = stop or Stop(), set[int]()
    try:
        asyncio.run(_until_cancelled(work, stop, heard))
    except asyncio.CancelledError:
        if stop.asked or signal.SIGTERM in heard:
            raise Stopped from None
        raise


async def _until_cancelled(work: Coroutine[Any, Any, None], stop: Stop, heard: set[int]) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def cancel(number: int) -> None:
        heard.add(number)
        task.cancel()

    with stop.cancelling(loop, task), _heard_by(loop, cancel):
        await task


@contextmanager
def _heard_by(loop: asyncio.AbstractEventLoop, cancel: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        loop.add_signal_handler(number, cancel, number)
    try:
        yield
    finally:
        for number, handler in usual.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # of a program around Python, which cannot be named
                signal.signal(number, handler)
