"""All data in one place: the ceiling, and what federated learning is there to avoid.

One model of each architecture, with the initial weights of the first client that has it, trains on all shards pooled,
for as many epochs as a CoDream client has in all (`Learning.epochs_in_all`; `problem` says what they count). A client
is given the accuracy of its own architecture. It is no protocol: the bytes of handing over the images are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.data.datasets import pool
from codream_clients.learning.training import evaluate
from secure_codream.experiments.algorithms.own_images import Stopwatch, of_own_images, train_round, warm_up
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class Centralised:
    """See the module."""

    name: str = "centralised"

    goes_by = of_own_images

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`; `server` is the one model's accuracy, or None where architectures are mixed."""
        watch, pooled = Stopwatch(len(problem.shards)), pool(list(problem.shards))
        first = {name: problem.models.index(name) for name in problem.models}
        models = {name: problem.fresh_model(client) for name, client in first.items()}
        for round in range(problem.rounds + 1):
            for name, client in first.items():
                if round == 0:
                    warm_up(models[name], pooled, problem, client)
                else:
                    train_round(models[name], pooled, problem, client, round)
            reached = {name: evaluate(model, problem.test, problem.device) for name, model in models.items()}
            server = reached[problem.models[0]] if problem.homogeneous else None
            yield watch.row(round, [reached[name] for name in problem.models], server=server)
