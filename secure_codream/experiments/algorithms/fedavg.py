"""FedAvg: every client trains the global model on its own images, and the mean of the results is the next one.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from decentralized
data", AISTATS 2017: x <- sum_i n_i y_i / sum_i n_i. All clients take part in every round; running statistics of batch
norm are averaged with the parameters. See `parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.parameter_learner import AveragingLearner
from secure_codream.experiments.algorithms.secure_mean import (
    averaging_course,
    averaging_learners,
    averaging_rows,
    require_one_architecture,
)
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class FedAvg:
    """See the module; `clip` bounds how far a step may move a parameter."""

    name: str = "fedavg"
    clip: float = 1.0

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        course = averaging_course(problem, "fedavg", clip=self.clip)
        yield from averaging_rows(problem, course, averaging_learners(problem, course, AveragingLearner))
