"""A toy course, which tests and attacks run where CoDream's own would only take time.

Its state is a few numbers that every sum moves, so that parties at different states differ at once.
"""

from __future__ import annotations

import numpy as np

from codream_protocols.course import Publication, Sums, Task
from codream_protocols.course import State as CourseState
from codream_protocols.specs import Block, VectorSpec

STATE_NUMBERS = 4
STATE_BOUND = 8.0
UPDATE_SPEC = VectorSpec("update", (Block("dream", 20, 1.0),))


class LaboratoryCourse:
    """A toy: the state is a few float32 numbers, moved in each step by the mean of what the clients sent.

    Args:
        specs: the kinds of vector; steps take them in turn.
        steps: T.
        epochs: how many epochs there are.
        gain: how far a mean moves the state; with 0 the state stays what it was, whatever is sent.
        bias: what each step adds besides; a party with another bias stands at another state.
    """

    def __init__(
        self,
        specs: tuple[VectorSpec, ...] = (UPDATE_SPEC,),
        steps: int = 3,
        epochs: int = 1000,
        *,
        gain: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        self.vectors, self.steps, self.epochs, self.gain, self.bias = specs, steps, epochs, gain, bias

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """See `Course`."""
        return self.vectors

    def schedule(self, certified: int) -> tuple[int, ...]:
        """See `Course`."""
        return tuple(step % len(self.vectors) for step in range(self.steps))

    def start(self, seed: bytes, certified: int, last: Publication | None) -> CourseState:
        """Numbers in [-1, 1) from the seed; half-way to what was published last."""
        numbers = np.frombuffer(seed[: 4 * STATE_NUMBERS], dtype="<u4") / np.float64(1 << 31) - 1.0
        if last is not None:
            numbers = 0.5 * (numbers + last["result"].astype(np.float64))
        return {"state": numbers.astype(np.float32)}

    def task(self, state: CourseState, step: int) -> Task:
        """See `Course`."""
        return Task(self.vectors[step % len(self.vectors)].task, {"state": state["state"]})

    def absorb(self, state: CourseState, step: int, sums: Sums, count: int) -> CourseState:
        """The state, moved by the mean of the first block's first numbers, within bounds."""
        name = self.vectors[step % len(self.vectors)].blocks[0].name
        mean = sums[name][:STATE_NUMBERS].astype(np.float64) / np.float64(count)
        moved = state["state"].astype(np.float64)
        moved[: len(mean)] += self.gain * mean
        return {"state": np.clip(moved + self.bias, -STATE_BOUND, STATE_BOUND).astype(np.float32)}

    def publication(self, state: CourseState) -> Publication:
        """See `Course`."""
        return {"result": state["state"]}
