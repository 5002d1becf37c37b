"""What an experiment is: the problem that every algorithm gets alike, and the rows that each gives back.

Fairness is a property of this file: the same shards, test images, initial weights (by client seed), and the same
number of passes over local data, whatever the algorithm. All randomness follows from `Problem.seed` and the round,
never from what ran before, so that an interrupted experiment can go on to the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from codream_clients.datasets import LabelledImages
from codream_clients.models import build
from codream_clients.participant import LearningSettings
from secure_codream.config import AggregationTable, DreamsTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One cell's work, algorithm apart.

    Attributes:
        shards: each client's own images.
        test: images that nobody trains on.
        models: each client's model, by name.
        learning: every client's hyperparameters.
        dreams: the dreams' settings (CoDream's alone).
        aggregation: secure aggregation's settings.
        rounds: rounds of communication.
        seed: seed of everything.
        device: where models are trained.
        releases: a folder for what private mechanisms have released, for cells that share it; None keeps nothing.
    """

    shards: tuple[LabelledImages, ...]
    test: LabelledImages
    models: tuple[str, ...]
    learning: LearningSettings
    dreams: DreamsTable
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
        channels, size, _ = self.test.shape
        model = build(
            name or self.models[client],
            channels=channels,
            size=size,
            classes=self.test.classes,
            seed=self.client_seed(client),
        )
        return model.to(self.device)

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
        secure_steps: secure sums so far.
        seconds: wall-clock seconds so far.
    """

    round: int
    accuracies: tuple[float, ...]
    server: float | None
    bytes_up: float
    bytes_down: float
    secure_steps: int
    seconds: float


class Algorithm(Protocol):
    """A way to learn together (or not)."""

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""

    def run(self, problem: Problem) -> Iterator[Row]:
        """Yield a row after the warm-up and after each round; deterministic from the problem."""
