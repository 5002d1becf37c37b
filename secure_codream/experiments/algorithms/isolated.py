"""Every client alone: the floor that any way of learning together must rise above.

Each client trains its own model on its own images, for as many epochs as a CoDream client has in all
(`Learning.epochs_in_all`; `problem` says what they count). Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secure_codream.experiments.algorithms.own_images import (
    Stopwatch,
    accuracies,
    of_own_images,
    train_round,
    warmed_up,
)
from secure_codream.experiments.problem import Problem, Row


@dataclass(frozen=True)
class Isolated:
    """See the module."""

    name: str = "isolated"

    goes_by = of_own_images

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        watch = Stopwatch(len(problem.shards))
        models = warmed_up(problem)
        yield watch.row(0, accuracies(models, problem))
        for round in range(1, problem.rounds + 1):
            for client, (model, shard) in enumerate(zip(models, problem.shards, strict=True)):
                train_round(model, shard, problem, client, round)
            yield watch.row(round, accuracies(models, problem))
