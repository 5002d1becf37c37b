"""What an experiment is: the problem that every algorithm gets alike, and the rows that each gives back.

Fairness is a property of this file: the same shards, test images, initial weights (by client seed), and the same
number of epochs (`Learning.epochs_in_all`), whatever the algorithm:

- Counted are the warm-up and, of each round, the passes over own images and those over the dreams. Who does not distil
  passes over its own images in the place of the dreams, as often.
- Not counted is how long a pass is: one over the dreams takes in all dreams of the window and their views, however few
  the own images are. Nor are the own images beside the dreams, `batch_size` of them in each step of a distillation
  where `own_weight` is above 0: CoDream sees its own images there on top of the counted epochs. Nor is what makes
  dreams or a generator, a student on dreams alone, or the measuring of batch norm's statistics (`own_statistics`).
- Under a privacy budget its own table counts: `[privacy]` epochs, `[dp_sgd]` steps.

All randomness follows from `Problem.seed` and the round, never from what ran before, so that an interrupted experiment
can go on to the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.participant import Participant
from codream_clients.learning.settings import LearningSettings
from codream_clients.models.zoo import build
from codream_protocols.charter import Aggregation
from codream_protocols.courses.codream import Dreams
from secure_codream.configuration.federation import AggregationTable, FederationConfig, FederationTable, TaskTable
from secure_codream.configuration.own_code import source_digest
from secure_codream.configuration.reading import check
from secure_codream.experiments.known_features import with_known_features

FROM_DREAMS = ("way", "views", "views_by", "logit_clip", "window")
"""Learning settings that `[dreams]` decides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One cell's work, algorithm apart.

    Attributes:
        shards: each client's own images.
        test: images that nobody trains on.
        models: each client's model, by name.
        learning: every client's hyperparameters.
        dreams: the dreams' settings (CoDream's alone).
        aggregation: secure aggregation's settings, as written; `sums` has what is left out resolved.
        rounds: rounds of communication.
        seed: seed of everything.
        device: where models are trained.
        releases: a folder for what private mechanisms have released, for cells that share it; None keeps nothing.
    """

    shards: tuple[LabelledImages, ...]
    test: LabelledImages
    models: tuple[str, ...]
    learning: LearningSettings
    dreams: Dreams
    aggregation: AggregationTable
    rounds: int
    seed: int
    device: torch.device
    releases: Path | None = None

    def client_seed(self, client: int) -> int:
        """The seed of a client's initial weights and mini-batches."""
        return self.seed * 1000 + client

    def fresh_model(self, client: int, name: str | None = None) -> nn.Module:
        """A client's model with its initial weights; `name` replaces the architecture."""
        channels, height, width = self.test.shape
        name = name or self.models[client]
        model = build(
            name,
            channels=channels,
            size=(height, width),
            classes=self.test.classes,
            seed=self.client_seed(client),
            device=self.device,
        )
        return with_known_features(model.to(self.device), name)

    def participants(self, learning: LearningSettings) -> list[Participant]:
        """Every client's learning, with its own data, model and seed."""
        return [
            Participant(learning, self.fresh_model(client), shard, self.test, self.client_seed(client), self.device)
            for client, shard in enumerate(self.shards)
        ]

    @property
    def sums(self) -> Aggregation:
        """How sums are made among these clients."""
        return aggregation_among(len(self.shards), self.aggregation)

    def federation(self, course: str, **tables: Any) -> FederationConfig:
        """The same as a deployment's configuration, so that its course and learners can be made as there.

        Args:
            course: its name, as in `[federation]`.
            tables: the course's own, such as `averaging`; or in place of the problem's.

        Raises:
            ConfigError: values that do not fit each other.
        """
        own = {key: value for key, value in asdict(self.learning).items() if key not in FROM_DREAMS}
        scale = self.test.scale
        own["held_back"] = 0.0  # whoever is compared trains on all that it has
        content: dict[str, Any] = {
            "federation": FederationTable(course=course, rounds=self.rounds, seed=self.seed),
            "task": {
                "shape": self.test.shape,
                "classes": self.test.classes,
                "mean": None if scale is None else scale.mean,
                "std": None if scale is None else scale.std,
                "class_names": self.test.class_names,
            },
            "dreams": self.dreams,
            "learning": own,
            "aggregation": self.aggregation,
            "code": {self.dreams.start: source_digest(self.dreams.start)} if ":" in self.dreams.start else {},
        }
        return check(course, FederationConfig, {**content, **tables})  # type: ignore[no-any-return]

    @property
    def homogeneous(self) -> bool:
        """Whether all clients have one architecture, which averaging of parameters needs."""
        return len(set(self.models)) == 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """The state after one round; round 0 is after the warm-up.

    Attributes:
        round: rounds of communication so far.
        accuracies: each client's test accuracy, 0 to 1.
        server: test accuracy of what the server holds (a global model, or a student of dreams alone); None without one.
        bytes_up: application bytes that one client has sent so far, mean over clients.
        bytes_down: the same, received.
        secure_steps: secure sums so far, metrics among them. A round begins with the metrics of the one before, and the
            last round's row has the closing metrics too.
        seconds: wall-clock seconds so far.
    """

    round: int
    accuracies: tuple[float, ...]
    server: float | None
    bytes_up: float
    bytes_down: float
    secure_steps: int
    seconds: float


def aggregation_among(clients: int, table: AggregationTable) -> Aggregation:
    """How sums are made among so many clients, with what the table leaves out resolved.

    Raises:
        ConfigError: fewer clients than can be summed.
    """
    return FederationConfig(task=TaskTable(shape=(1, 1, 1), classes=2), aggregation=table).aggregation_settings(clients)


class Algorithm(Protocol):
    """A way to learn together (or not)."""

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""

    def run(self, problem: Problem) -> Iterator[Row]:
        """Yield a row after the warm-up and after each round; deterministic from the problem."""
