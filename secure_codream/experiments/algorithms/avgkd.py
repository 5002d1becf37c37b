"""AvgKD: every client learns on its own images from the mean of all clients' opinions on them.

Afonin, Karimireddy, "Towards model agnostic federated learning using knowledge distillation", ICLR 2022 (averaged
knowledge distillation, M agents). In each round client i trains on its images X_i with the targets

    (1 / M) * (one-hot labels + sum over j != i of softmax(f_j(X_i))),

where f_j is client j's model after the last round, asked about the images as they are, not augmented. Cross-entropy is
linear in its targets, so this is the plain loss and the others' share of it, weighted 1 : M - 1; with the balanced
softmax the own labels take it and the others' opinions, which are about all classes, take plain logits. Architectures
may differ.

THIS IS NOT UNDER SECURE AGGREGATION, and it cannot be: client i needs opinions on images that only it has, so either
the others' models come to its images, or its images go to the others. Here models travel, as in the paper. Each client
hands its whole model, in the clear, to all others (and to the server that relays it): whoever holds it can invert it,
test membership, and read off which classes the client lacks. The bytes are those of the models: one up, M - 1 down,
each round.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from codream_clients.learning.local_work import Batch, Objective
from codream_clients.learning.training import predict_logits
from secure_codream.experiments.algorithms.own_images import (
    Stopwatch,
    accuracies,
    of_own_images,
    train_round,
    warmed_up,
)
from secure_codream.experiments.problem import Problem, Row


def averaged_targets(opinions: torch.Tensor) -> Objective:
    """The objective of a client of M, given the others' probabilities on its images, (M - 1, N, K)."""
    others, mean = len(opinions), opinions.mean(dim=0)

    def objective(batch: Batch) -> torch.Tensor:
        distilled = functional.cross_entropy(batch.logits, mean[batch.indices])
        return (batch.loss + others * distilled) / (others + 1)

    return objective


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's state."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@dataclass(frozen=True)
class AvgKD:
    """See the module."""

    name: str = "avgkd"

    goes_by = of_own_images

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        watch = Stopwatch(len(problem.shards))
        models = warmed_up(problem)
        yield watch.row(0, accuracies(models, problem))
        up = down = 0
        for round in range(1, problem.rounds + 1):
            sent = deepcopy(models)
            up += sum(model_bytes(model) for model in sent)
            down += (len(sent) - 1) * sum(model_bytes(model) for model in sent)
            for client, shard in enumerate(problem.shards):
                opinions = [
                    torch.from_numpy(predict_logits(model, shard.images, problem.device)).softmax(dim=1)
                    for other, model in enumerate(sent)
                    if other != client
                ]
                objective = averaged_targets(torch.stack(opinions).to(problem.device))
                train_round(models[client], shard, problem, client, round, objective=objective)
            yield watch.row(round, accuracies(models, problem), up=up, down=down)
