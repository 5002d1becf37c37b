"""MOON: FedAvg whose clients keep their representations near the global model's and away from their own last ones.

Li, He, Song, "Model-contrastive federated learning", CVPR 2021. With z the representation of an image under the model
in training, z_glob under the global model received, z_prev under the client's own model at the end of its last round:

    loss = plain + mu * -log( e^{cos(z, z_glob) / tau} / (e^{cos(z, z_glob) / tau} + e^{cos(z, z_prev) / tau}) )

In the first round z_prev comes from the initial weights, as z_glob does, and the term has no gradient. The paper adds
a projection head to the model; here the model stays as it is, and z is the input of its last linear layer. Both
reference models are frozen, in eval mode.
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.nn import functional

from secure_codream.experiments.fedavg import AveragingClient, FedAvg
from secure_codream.experiments.local_work import Batch, train_round
from secure_codream.experiments.parameters import FloatArray
from secure_codream.experiments.problem import Problem
from secure_codream.experiments.representations import watched


def contrastive_loss(
    representation: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean model-contrastive loss of representations (B, D), a scalar in nats; log 2 where both are equally near."""
    towards = functional.cosine_similarity(representation, positive, dim=1) / temperature
    away = functional.cosine_similarity(representation, negative, dim=1) / temperature
    return functional.softplus(away - towards).mean()


class ContrastiveClient(AveragingClient):
    """A client that remembers its last local model."""

    def __init__(self, problem: Problem, client: int, mu: float, temperature: float) -> None:
        super().__init__(problem, client)
        self._mu, self._temperature = mu, temperature
        self._previous = problem.fresh_model(0).requires_grad_(False).eval()

    def train(self, received: FloatArray) -> None:
        """See `AveragingClient`."""
        classes, current = self.shard.classes, deepcopy(self.model).requires_grad_(False).eval()
        self.layout.write(current, received)
        with ExitStack() as stack:
            mine, globally, before = (
                stack.enter_context(watched(model, classes)) for model in (self.model, current, self._previous)
            )

            def objective(batch: Batch) -> torch.Tensor:
                with torch.no_grad():
                    current(batch.images)
                    self._previous(batch.images)
                contrast = contrastive_loss(mine(), globally(), before(), self._temperature)
                return batch.loss + self._mu * contrast

            train_round(self.model, self.shard, self.problem, self.client, self.round, objective=objective)
        self._previous = deepcopy(self.model).requires_grad_(False).eval()


@dataclass(frozen=True)
class Moon(FedAvg):
    """See the module; the authors choose `mu` from 0.1, 1, 5 and 10, and the temperature 0.5."""

    name: str = "moon"
    mu: float = 0.1
    temperature: float = 0.5

    def client(self, problem: Problem, client: int) -> AveragingClient:
        """A client of this algorithm."""
        return ContrastiveClient(problem, client, self.mu, self.temperature)
