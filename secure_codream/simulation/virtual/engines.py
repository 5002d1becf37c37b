"""Engines: where virtual clients live. Each worker plays some of them; a worker that is lost is their dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from codream_protocols.messages import encode_message
from secure_codream.simulation.virtual.host import Answer, Errand, Letter
from secure_codream.simulation.virtual.remembered import Remembered
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

    alike: int = 0
    agreements: int = 0
    seconds: float = 0.0

    @classmethod
    def by(cls, remembered: Remembered) -> Spared:
        """What one worker has."""
        return cls(remembered.alike, remembered.agreements, remembered.seconds)

    def __add__(self, other: Spared) -> Spared:
        return Spared(self.alike + other.alike, self.agreements + other.agreements, self.seconds + other.seconds)


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


def errands(letters: Sequence[Letter], first: int, last: int) -> Iterator[Errand]:
    """What the worker of the members `first` to `last - 1` does of letters, each for at most `CHUNK` of them.

    A letter is encoded when its turn comes, and handed over once.
    """
    for letter in letters:
        mine = tuple(member for member in letter.members if first <= member < last)
        for start in range(0, len(mine), CHUNK):
            if start:
                yield Errand(mine[start : start + CHUNK], None)
            else:
                data = b"" if letter.message is None else encode_message(letter.message)
                yield Errand(mine[:CHUNK], data, letter.frames)
