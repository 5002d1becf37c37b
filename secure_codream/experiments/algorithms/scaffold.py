"""SCAFFOLD: FedAvg whose clients correct the drift towards their own data by control variates.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic controlled averaging for federated learning",
ICML 2020; see `codream_clients.parameter_learner`. The mean control variate is a vector of the same secure sum as the
model: twice FedAvg's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.parameter_learner import ControlledLearner
from secure_codream.experiments.algorithms.secure_mean import (
    averaging_course,
    averaging_learners,
    averaging_rows,
    require_one_architecture,
)
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class Scaffold:
    """See the module; `clip` bounds how far a step may move a parameter."""

    name: str = "scaffold"
    clip: float = 1.0

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        course = averaging_course(problem, "scaffold", clip=self.clip)
        yield from averaging_rows(problem, course, averaging_learners(problem, course, ControlledLearner))
