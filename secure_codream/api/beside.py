"""A party that runs while its caller has an event loop: in a thread of its own, which ends when the caller gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from secure_codream.deployment.rounds import on_round_of
from secure_codream.deployment.signals import Stop, Stopped

T = TypeVar("T")


def run(call: Callable[[Stop | None], None]) -> None:
    """Call in this thread; where it has a running event loop, as in a notebook, in another one, and wait for it.

    Raises:
        KeyboardInterrupt: the call has been stopped, and has let go of its sockets and files.
        Exception: the call's.
    """
    if not _has_a_loop():
        try:
            call(None)
        except (asyncio.CancelledError, Stopped) as error:  # by SIGINT, by SIGTERM
            raise KeyboardInterrupt(*error.args) from None
        return
    stop = Stop()
    with ThreadPoolExecutor(1, "party") as thread:
        done = thread.submit(call, stop)
        try:
            while not done.done():
                wait([done], timeout=0.5)  # a signal that another thread was woken by is heard of then
            done.result()
        except BaseException:
            stop.ask()  # of no effect where the call itself has ended
            raise


async def arun(call: Callable[[Stop | None], None]) -> None:
    """Call in a thread while this loop goes on; whoever cancels it waits until the call has let go of everything."""
    stop, thread = Stop(), ThreadPoolExecutor(1, "party")
    done = asyncio.get_running_loop().run_in_executor(thread, call, stop)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.ask()
        await asyncio.gather(done, return_exceptions=True)
        raise
    finally:
        thread.shutdown(wait=done.done())  # who is cancelled twice does not wait


def in_this_loop(on_round: Callable[[T], object] | None) -> Callable[[T], object] | None:
    """The same as `on_round_of`, called in the running loop's thread; all of it before what `arun` awaits is over."""
    if on_round is None:
        return None
    loop, told = asyncio.get_running_loop(), on_round_of(on_round)
    return lambda found: loop.call_soon_threadsafe(told, found)


def _has_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
