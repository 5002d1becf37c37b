"""MOON: FedAvg whose clients keep their representations near the global model's and away from their own last ones.

Li, He, Song, "Model-contrastive federated learning", CVPR 2021; see `codream_clients.parameter_learner`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.parameter_learner import ContrastiveLearner
from codream_protocols.courses.parameters import CONTRAST, CONTRAST_TEMPERATURE
from secure_codream.experiments.algorithms.secure_mean import (
    averaging_course,
    averaging_learners,
    averaging_rows,
    require_one_architecture,
)
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class Moon:
    """See the module; the authors choose `mu` from 0.1, 1, 5 and 10, and the temperature 0.5. `clip`: as FedAvg's."""

    name: str = "moon"
    mu: float = CONTRAST
    temperature: float = CONTRAST_TEMPERATURE
    clip: float = 1.0

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        options = {"mu": self.mu, "temperature": self.temperature}
        course = averaging_course(problem, "moon", clip=self.clip, contrast=self.mu, temperature=self.temperature)
        yield from averaging_rows(problem, course, averaging_learners(problem, course, ContrastiveLearner, **options))
