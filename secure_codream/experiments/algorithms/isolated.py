"""Every client alone: the floor that any way of learning together must rise above.

Each client trains its own model on its own images, for as many passes as a CoDream client makes in all
(`Learning.epochs_in_all`). Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codream_clients.learning.training import evaluate
from secure_codream.experiments.algorithms.own_images import Stopwatch, train_round, warm_up
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class Isolated:
    """See the module."""

    name: str = "isolated"

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        clients = range(len(problem.shards))
        watch = Stopwatch(len(clients))
        models = [problem.fresh_model(client) for client in clients]
        for round in range(problem.rounds + 1):
            for client, (model, shard) in enumerate(zip(models, problem.shards, strict=True)):
                if round == 0:
                    warm_up(model, shard, problem, client)
                else:
                    train_round(model, shard, problem, client, round)
            yield watch.row(round, [evaluate(model, problem.test, problem.device) for model in models])
