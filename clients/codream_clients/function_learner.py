"""A learner of plain functions: for the course `sums`, and for courses of one's own that need no model.

    def patients(arrays):
        return {"number": 812, "ages": 41_230.5}

    learner = FunctionLearner({"patients": patients})

A function is given the step's public arrays (none, in `sums`) and returns its vector's blocks by name: numbers or
arrays. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from codream_protocols.course import Array, Arrays, Publication, Task
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import VectorSpec

Function = Callable[[Arrays], Mapping[str, ArrayLike]]


class FunctionLearner:
    """Answers each task with its function.

    Args:
        functions: the task's name -> public arrays -> block name -> numbers.
        learn: called with the epoch's number and what it published, once that is certified.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        learn: Callable[[int, Publication], object] = lambda number, publication: None,
    ) -> None:
        self._functions, self._learn = dict(functions), learn

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`.

        Raises:
            VectorRefused: there is no function for the task.
        """
        if task.name not in self._functions:
            raise VectorRefused(f"task {task.name!r}", ", ".join(self._functions) or "none: there are no functions")
        return {name: np.atleast_1d(values) for name, values in self._functions[task.name](task.arrays).items()}

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self._learn(number, publication)
