"""FedProx: FedAvg with a spring between each client's model and the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated optimization in heterogeneous networks", MLSys 2020; see
`codream_clients.parameter_learner`. mu = 0 is FedAvg.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.parameter_learner import ProximalLearner
from codream_protocols.courses.parameters import PROXIMAL
from secure_codream.experiments.algorithms.secure_mean import (
    averaging_course,
    averaging_learners,
    averaging_rows,
    require_one_architecture,
)
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class FedProx:
    """See the module; the authors choose `mu` from 0.001, 0.01, 0.1 and 1. `clip`: as FedAvg's."""

    name: str = "fedprox"
    mu: float = PROXIMAL
    clip: float = 1.0

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        course = averaging_course(problem, "fedprox", clip=self.clip, proximal=self.mu)
        yield from averaging_rows(problem, course, averaging_learners(problem, course, ProximalLearner, mu=self.mu))
