"""FedProx: FedAvg with a spring between each client's model and the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated optimization in heterogeneous networks", MLSys 2020; see
`codream_clients.parameter_learner`. mu = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codream_clients.parameter_learner import ProximalLearner
from codream_protocols.courses.parameters import PROXIMAL
from secure_codream.experiments.algorithms.secure_mean import Averaging


@dataclass(frozen=True, kw_only=True)
class FedProx(Averaging):
    """See the module; the authors choose `mu` from 0.001, 0.01, 0.1 and 1. `clip`: as FedAvg's."""

    name: ClassVar[str] = "fedprox"
    learner: ClassVar[type[ProximalLearner]] = ProximalLearner
    mu: float = PROXIMAL

    def in_course(self) -> dict[str, float]:
        """See `Averaging`."""
        return {"proximal": self.mu}

    def of_learner(self) -> dict[str, float]:
        """See `Averaging`."""
        return {"mu": self.mu}
