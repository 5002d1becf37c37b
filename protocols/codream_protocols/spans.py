"""Which part of a sum is being worked on, told to whoever watches; nobody does unless asked to.

The machines know no clock. A watcher gives, for a part's name, a context that is entered as the part begins and left as
it ends, in the thread that works; in several where they share a part. Parts may lie within each other: taking masks off
a sum is unmasking and masking.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

Part = Literal["encoding", "masking", "tags", "packing", "unmasking"]
Watcher = Callable[[Part], AbstractContextManager[object]]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_watchers: list[Watcher] = []
_outermost: ContextVar[Part | None] = ContextVar("outermost", default=None)


def watch(watcher: Watcher | None) -> None:
    """From here on tell `watcher` alone, of all machines in this process; None tells nobody."""
    _watchers[:] = [] if watcher is None else [watcher]


def part_of_sum(name: Part) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Marks a function as a part of a sum."""

    def mark(work: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(work)
        def watched(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            watcher = next(iter(_watchers), None)
            if watcher is None:
                return work(*args, **kwargs)
            before = _outermost.set(_outermost.get() or name)
            try:
                with watcher(name):
                    return work(*args, **kwargs)
            finally:
                _outermost.reset(before)

        return watched

    return mark


def carried(work: Callable[[], None]) -> Callable[[], None]:
    """The work as it is to be called in another thread: there, too, it belongs to the part that it is asked in here."""
    part = _outermost.get()
    return work if part is None else part_of_sum(part)(work)
