"""SCAFFOLD: FedAvg whose clients correct the drift towards their own data by control variates.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic controlled averaging for federated learning",
ICML 2020; see `codream_clients.parameter_learner`. The mean control variate is a vector of the same secure sum as the
model: twice FedAvg's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codream_clients.parameter_learner import ControlledLearner
from secure_codream.experiments.algorithms.secure_mean import Averaging


@dataclass(frozen=True, kw_only=True)
class Scaffold(Averaging):
    """See the module; `clip` bounds how far a step may move a parameter."""

    name: ClassVar[str] = "scaffold"
    learner: ClassVar[type[ControlledLearner]] = ControlledLearner
