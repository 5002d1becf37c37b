"""Engines: where virtual clients live. Each worker plays some of them; a worker that is lost is their dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from secure_codream.simulation.virtual.host import Answer, Letter
from secure_codream.simulation.virtual.scene import Scene

CHUNK = 32
"""Members to whom a worker hands a letter before it gives their answers back: what waits in memory is bounded."""

AHEAD = 2
"""Chunks that a worker has at a time: one that it works on, and the next."""


class Lost(NamedTuple):
    """A worker is gone, and these members with it."""

    members: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Spared:
    """What workers computed once for several virtual clients; see `Remembered`."""

    checks: int = 0
    agreements: int = 0

    def __add__(self, other: Spared) -> Spared:
        return Spared(self.checks + other.checks, self.agreements + other.agreements)


class Engine(AbstractContextManager["Engine"], Protocol):
    """Workers that play a scene's clients; whoever leaves the context leaves none running."""

    def exchange(self, letters: Sequence[Letter]) -> Iterator[Answer | Lost]:
        """Deliver letters, to each member in this order; what comes back comes as soon as it is there.

        Letters to members of lost workers are dropped.

        Raises:
            RuntimeError: a virtual client failed.
        """

    def spared(self) -> Spared:
        """What was computed once for several, by the workers that are left."""


MakeEngine = Callable[[Scene, int], Engine]
"""For a scene and a number of workers."""


def shares(members: int, workers: int) -> list[tuple[int, int]]:
    """Each worker's members, as first and one more than the last; no worker without any."""
    count = max(1, min(workers, members))
    return list(pairwise([members * number // count for number in range(count + 1)]))


def chunks(letters: Sequence[Letter], first: int, last: int) -> list[Letter]:
    """The letters of the members `first` to `last - 1`, each to at most `CHUNK` of them."""
    cut = []
    for letter in letters:
        mine = [member for member in letter.members if first <= member < last]
        for start in range(0, len(mine), CHUNK):
            cut.append(Letter(tuple(mine[start : start + CHUNK]), letter.data, letter.frames))
    return cut
