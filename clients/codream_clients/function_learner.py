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
        tell: called with what is wrong with an answer that is sent all the same, cut to its bounds.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        learn: Callable[[int, Publication], object] = lambda number, publication: None,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._functions, self._learn, self._tell = dict(functions), learn, tell

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`.

        Raises:
            VectorRefused: there is no function for the task, or it gave other blocks than are asked for.
        """
        if task.name not in self._functions:
            raise VectorRefused(f"task {task.name!r}", ", ".join(self._functions) or "none: there are no functions")
        given = self._functions[task.name](task.arrays)
        answer = {name: np.atleast_1d(np.asarray(values)) for name, values in given.items()}
        found = {name: values.size for name, values in answer.items()}
        asked = {block.name: block.length for block in spec.blocks}
        if found != asked:
            raise VectorRefused(f"numbers {found} for {task.name!r}", f"{asked}")
        for block in spec.blocks:
            values = answer[block.name].astype(np.float64)
            least = 0.0 if block.kind == "count" else -block.clip
            beyond = int(np.count_nonzero((values < least) | (values > block.clip)))
            if block.kind == "count" and (values != np.rint(values)).any():
                self._tell(f"{task.name}.{block.name}: a count that is no whole number; it is rounded")
            if beyond:
                bounds = f"{least:g} to {block.clip:g}"
                self._tell(
                    f"{task.name}.{block.name}: {beyond} of {values.size} numbers are beyond {bounds}; the bound is "
                    "sent in their place, and the sum is not the true one"
                )
        return answer

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self._learn(number, publication)
