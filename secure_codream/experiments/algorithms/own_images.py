"""The work that every baseline does on a client's own images, and the rows that it reports.

The loop is that of the deployed learners (`codream_clients.learning.local_work`): what sets an algorithm apart is an
`Objective`, which turns a batch's plain loss into the loss that is minimised. Mini-batches follow from client and round
and nothing else, by the rule of `Participant`.

Passes over own images: `warm_up_epochs` before the first round, and `LearningSettings.epochs_in` in each. A CoDream
client passes over the dreams while its rivals go on with their own images, so all have `epochs_in_all` in the end; what
it sees of its own images beside the dreams comes on top, and `problem` says what else is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.local_work import OWN_DATA as OWN_DATA
from codream_clients.learning.local_work import WARM_UP as WARM_UP
from codream_clients.learning.local_work import Objective, train_epochs
from codream_clients.learning.local_work import stage_seed as seed_of
from codream_clients.learning.training import evaluate
from codream_protocols.courses.codream import Dreams
from secure_codream.experiments.effects import OWN_IMAGES, GoesBy
from secure_codream.experiments.problem import Problem, Row


def of_own_images(algorithm: object, dreams: Dreams, models: Sequence[str]) -> GoesBy:
    """The `goes_by` of who trains on own images alone, see `effects`."""
    return GoesBy(learning=OWN_IMAGES)


def stage_seed(problem: Problem, client: int, round: int, stage: int) -> int:
    """The seed of one stage of a client's round; round 0 is the warm-up."""
    return seed_of(problem.client_seed(client), round, stage)


def warm_up(model: nn.Module, data: LabelledImages, problem: Problem, client: int) -> int:
    """Train in place before the first round; returns the steps taken."""
    seed, epochs = stage_seed(problem, client, 0, WARM_UP), problem.learning.warm_up_epochs
    return train_epochs(model, data, problem.learning, epochs=epochs, seed=seed, device=problem.device)


def warmed_up(problem: Problem) -> list[nn.Module]:
    """Each client's model after its warm-up, as every algorithm begins."""
    models = [problem.fresh_model(client) for client in range(len(problem.shards))]
    for client, (model, shard) in enumerate(zip(models, problem.shards, strict=True)):
        warm_up(model, shard, problem, client)
    return models


def accuracies(models: Sequence[nn.Module], problem: Problem) -> list[float]:
    """Of each model on the test images."""
    return [evaluate(model, problem.test, problem.device) for model in models]


def train_round(
    model: nn.Module,
    data: LabelledImages,
    problem: Problem,
    client: int,
    round: int,
    *,
    objective: Objective | None = None,
) -> int:
    """Train in place for one round, from 1; returns the steps taken.

    Args:
        model: the client's; left in eval mode.
        data: its images.
        problem: the settings.
        client: whose work it is; it fixes the order of the images.
        round: of communication.
        objective: what is minimised; the plain loss unless given.

    Raises:
        TrainingError: fewer than two images, or a loss that is no longer finite.
    """
    return train_epochs(
        model,
        data,
        problem.learning,
        epochs=problem.learning.epochs_in(round),
        seed=stage_seed(problem, client, round, OWN_DATA),
        device=problem.device,
        objective=objective,
    )


class Stopwatch:
    """Makes rows, with the seconds since it was made.

    Args:
        clients: how many share the bytes.
    """

    def __init__(self, clients: int) -> None:
        self._clients, self._started = clients, time.perf_counter()

    def row(
        self,
        round: int,
        accuracies: Sequence[float],
        *,
        server: float | None = None,
        up: int = 0,
        down: int = 0,
        secure_steps: int = 0,
    ) -> Row:
        """A row; `up` and `down` are the bytes of all clients together."""
        return Row(
            round=round,
            accuracies=tuple(accuracies),
            server=server,
            bytes_up=up / self._clients,
            bytes_down=down / self._clients,
            secure_steps=secure_steps,
            seconds=time.perf_counter() - self._started,
        )
