"""What the courses of learning have in common: one round is one epoch, and every epoch begins with the metrics.

What is learnt from an epoch is learnt once it is certified, and only then can a client say how it fares. So metrics are
the first step of the next epoch, and after the last round comes one epoch of metrics alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from codream_protocols.course import Arrays, Publication, State, Sums, Task
from codream_protocols.courses.metrics import METRICS, metrics_figures, metrics_spec
from codream_protocols.specs import VectorSpec

Figures = dict[str, float | int | None]


class Rounds(ABC):
    """A course of `rounds` epochs with the same steps.

    Args:
        rounds: how many.
        steps: the task of each step of a round, metrics apart.
        metrics: whether there are metrics at all; not where everything that is sent must be noised.
        held: whether clients also count images that they hold back.
    """

    def __init__(self, rounds: int, steps: tuple[str, ...], *, metrics: bool = True, held: bool = False) -> None:
        self._rounds, self._metrics, self._held = rounds, metrics, held
        self._steps = (METRICS, *steps) if metrics else steps
        self._kinds = tuple(dict.fromkeys(self._steps))

    @property
    def epochs(self) -> int:
        """One for each round, and one for the last metrics."""
        return self._rounds + 1 if self._metrics else self._rounds

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """See `Course`: the kinds that are asked for, in the order in which they first come."""
        metrics = metrics_spec(held=self._held)
        return tuple(metrics if name == METRICS else self._spec(name, honest) for name in self._kinds)

    def schedule(self, certified: int) -> tuple[int, ...]:
        """See `Course`: metrics and the round's steps; after the last round, metrics alone."""
        steps = self._steps[:1] if self._closes(certified) else self._steps
        return tuple(self._kinds.index(name) for name in steps)

    def task(self, state: State, step: int) -> Task:
        """See `Course`: for metrics no arrays, for all else `_shown`."""
        name = self._steps[step]
        return Task(name, {} if name == METRICS else self._shown(state))

    def absorb(self, state: State, step: int, sums: Sums, count: int) -> State:
        """See `Course`."""
        name = self._steps[step]
        return self._measured(state, sums) if name == METRICS else self._absorbed(name, state, step, sums, count)

    def figures(self, task: str, sums: Sums, count: int) -> Figures:
        """What people may see of a sum: means, for the screen and the log; they decide nothing.

        Args:
            task: the task's name.
            sums: the sum of each block over the survivors.
            count: how many survivors there are.
        """
        return metrics_figures(sums) if task == METRICS else self._figures(task, sums)

    @abstractmethod
    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`."""

    @abstractmethod
    def publication(self, state: State) -> Publication:
        """See `Course`."""

    @abstractmethod
    def _spec(self, name: str, honest: int) -> VectorSpec: ...

    @abstractmethod
    def _shown(self, state: State) -> Arrays: ...

    @abstractmethod
    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State: ...

    def _measured(self, state: State, sums: Sums) -> State:
        """The state after metrics: as it was, unless a course goes by them."""
        return state

    def _figures(self, task: str, sums: Sums) -> Figures:
        return {}

    def _closes(self, certified: int) -> bool:
        return self._metrics and certified >= self._rounds
