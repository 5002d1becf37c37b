"""FedAvg: every client trains the global model on its own images, and the mean of the results is the next one.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from decentralized
data", AISTATS 2017: x <- sum_i n_i y_i / sum_i n_i. All clients take part in every round; running statistics of batch
norm are averaged with the parameters. See `parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codream_clients.parameter_learner import AveragingLearner
from secure_codream.experiments.algorithms.secure_mean import Averaging


@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """See the module; `clip` bounds how far a step may move a parameter."""

    name: ClassVar[str] = "fedavg"
    learner: ClassVar[type[AveragingLearner]] = AveragingLearner
