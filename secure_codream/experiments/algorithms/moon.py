"""MOON: FedAvg whose clients keep their representations near the global model's and away from their own last ones.

Li, He, Song, "Model-contrastive federated learning", CVPR 2021; see `codream_clients.parameter_learner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codream_clients.parameter_learner import ContrastiveLearner
from codream_protocols.courses.parameters import CONTRAST, CONTRAST_TEMPERATURE
from secure_codream.experiments.algorithms.secure_mean import Averaging


@dataclass(frozen=True, kw_only=True)
class Moon(Averaging):
    """See the module; the authors choose `mu` from 0.1, 1, 5 and 10, and the temperature 0.5. `clip`: as FedAvg's."""

    name: ClassVar[str] = "moon"
    learner: ClassVar[type[ContrastiveLearner]] = ContrastiveLearner
    mu: float = CONTRAST
    temperature: float = CONTRAST_TEMPERATURE

    def in_course(self) -> dict[str, float]:
        """See `Averaging`."""
        return {"contrast": self.mu, "temperature": self.temperature}

    def of_learner(self) -> dict[str, float]:
        """See `Averaging`."""
        return {"mu": self.mu, "temperature": self.temperature}
