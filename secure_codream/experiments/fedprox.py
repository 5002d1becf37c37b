"""FedProx: FedAvg with a spring between each client's model and the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated optimization in heterogeneous networks", MLSys 2020: a client
minimises F_i(w) + (mu / 2) ||w - x||^2, where x is the global model it has received. The norm is over the parameters;
statistics of batch norm are not trained and feel no spring. mu = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secure_codream.experiments.fedavg import AveragingClient, FedAvg
from secure_codream.experiments.local_work import Batch, train_round
from secure_codream.experiments.parameters import FloatArray
from secure_codream.experiments.problem import Problem


class ProximalClient(AveragingClient):
    """A client with a spring of strength `mu`."""

    def __init__(self, problem: Problem, client: int, mu: float) -> None:
        super().__init__(problem, client)
        self._mu = mu

    def train(self, received: FloatArray) -> None:
        """See `AveragingClient`."""
        anchors = dict(zip(self.layout.names, self.layout.split(received, self.problem.device), strict=True))
        pairs = [(parameter, anchors[name]) for name, parameter in self.model.named_parameters()]

        def objective(batch: Batch) -> torch.Tensor:
            squared = torch.stack([(parameter - anchor).square().sum() for parameter, anchor in pairs]).sum()
            return batch.loss + self._mu / 2 * squared

        train_round(self.model, self.shard, self.problem, self.client, self.round, objective=objective)


@dataclass(frozen=True)
class FedProx(FedAvg):
    """See the module; the authors choose `mu` from 0.001, 0.01, 0.1 and 1."""

    name: str = "fedprox"
    mu: float = 0.1

    def client(self, problem: Problem, client: int) -> AveragingClient:
        """A client of this algorithm."""
        return ProximalClient(problem, client, self.mu)
