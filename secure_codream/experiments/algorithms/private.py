"""CoDream, every client alone, and all data in one place, under record-level differential privacy.

All three take the same `[privacy]` settings, with the same budget for each. A client's releases (its histogram, its
model after the warm-up) follow from its images, its seed and the settings alone, so they are kept in the run's folder:
where the whole budget is in the warm-up, a client alone and the same client in CoDream before the first round are one
and the same model, which is trained once. All data in one place come in an order of their own, so that they are the
same, and trained once, however they were dealt out.

Noise repeats from the cell's seed, as everything in an experiment does. That is right for measuring accuracy; a
deployed client takes its noise from its operating system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.training import evaluate
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.participant import private_participant, private_training, require_private_model
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan, PrivacySettings, plan_privacy
from codream_clients.privacy.releases import Releases
from codream_protocols.courses.codream import Dreams
from secure_codream.configuration.federation import privacy_settings
from secure_codream.experiments.algorithms.codream import CoDream
from secure_codream.experiments.algorithms.own_images import OWN_DATA, WARM_UP, Stopwatch, stage_seed
from secure_codream.experiments.effects import GoesBy
from secure_codream.experiments.origins import own_code, program
from secure_codream.experiments.problem import Problem, Row

NOISE = 3  # a stage that no training has: what noise is drawn from
PAST_THE_BUDGET = frozenset({"own_weight", "own_statistics"})
IN_PRIVACY = frozenset({"warm_up_epochs", "local_epochs", "training_rounds", "batch_size", "lr", "schedule"})
"""What of `[learning]` `[privacy]` says in its place."""
HISTOGRAM = frozenset({"balanced"})
"""What of it is left to who learns from no dreams."""


@dataclass(frozen=True)
class _Client:
    """One client's data and what it may do with them; `Problem` gives the rest."""

    problem: Problem
    client: int
    data: LabelledImages
    plan: PrivacyPlan

    @classmethod
    def of(cls, problem: Problem, client: int, data: LabelledImages, privacy: PrivacySettings) -> _Client:
        return cls(problem, client, data, plan_privacy(privacy, records=len(data), rounds=problem.rounds))

    @property
    def noise(self) -> NoiseSource:
        return NoiseSource(stage_seed(self.problem, self.client, 0, NOISE))

    @property
    def releases(self) -> Releases:
        """Kept under a digest of everything that defines them."""
        problem, content = self.problem, hashlib.sha256()
        content.update(self.data.images.tobytes())
        content.update(self.data.labels.tobytes())
        model, seed = problem.models[self.client], problem.client_seed(self.client)
        origins = {**program(), **own_code([model])}
        definition = (self.plan.settings, problem.learning.balanced, model, seed, self.data.augment, origins)
        key = f"{content.hexdigest()}|{definition!r}|{problem.device}"
        return Releases(PlannedCharges(self.plan).reserve, problem.releases, key)

    def participant(self, learning: LearningSettings) -> Participant:
        problem, model = self.problem, self.problem.fresh_model(self.client)
        return private_participant(
            learning,
            self.plan,
            model,
            self.data,
            problem.test,
            problem.client_seed(self.client),
            problem.device,
            releases=lambda: self.releases,
            noise=self.noise,
            name=problem.models[self.client],
        )

    def alone(self) -> Iterator[float]:
        """Accuracy after the warm-up and after each round of training on the own data alone."""
        problem, model = self.problem, self.problem.fresh_model(self.client)
        require_private_model(model, self.data, self.plan, problem.device, problem.models[self.client])
        training, _ = private_training(
            problem.learning, self.plan, self.data, self.releases, self.noise, problem.device
        )
        settings = self.plan.settings
        training(model, self.data, settings.warm_up_epochs, stage_seed(problem, self.client, 0, WARM_UP))
        accuracy = evaluate(model, problem.test, problem.device)
        yield accuracy
        for round in range(1, problem.rounds + 1):
            if round <= self.plan.rounds:
                training(model, self.data, settings.round_epochs, stage_seed(problem, self.client, round, OWN_DATA))
                accuracy = evaluate(model, problem.test, problem.device)
            yield accuracy


@dataclass(frozen=True, kw_only=True)
class PrivateCoDream(CoDream):
    """CoDream between private clients; `privacy` is a `[privacy]` table.

    Own images stay out of distillation and of batch norm's statistics, and starts are not matched to their brightness
    and contrast.
    """

    name: str = "codream-dp"
    privacy: Mapping[str, Any]

    def __post_init__(self) -> None:
        privacy_settings(self.privacy)

    def goes_by(self, dreams: Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`."""
        without_budget = super().goes_by(dreams, models)
        return GoesBy(without_budget.dreams - {"matched"}, without_budget.learning - PAST_THE_BUDGET - IN_PRIVACY)

    def _ablated(self, problem: Problem) -> Problem:
        found = super()._ablated(problem)
        return replace(found, dreams=replace(found.dreams, matched=False))

    def _participants(self, problem: Problem) -> list[Participant]:
        privacy = privacy_settings(self.privacy)
        clients = [_Client.of(problem, client, shard, privacy) for client, shard in enumerate(problem.shards)]
        learning = replace(problem.learning, own_weight=0.0, own_statistics=False)
        return [client.participant(learning) for client in clients]


@dataclass(frozen=True, kw_only=True)
class PrivateIsolated:
    """Every client alone, with DP-SGD and the budget that it has in CoDream."""

    name: str = "isolated-dp"
    privacy: Mapping[str, Any]

    def __post_init__(self) -> None:
        privacy_settings(self.privacy)

    def goes_by(self, dreams: Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`."""
        return GoesBy(learning=HISTOGRAM)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        watch, privacy = Stopwatch(len(problem.shards)), privacy_settings(self.privacy)
        clients = [_Client.of(problem, client, shard, privacy) for client, shard in enumerate(problem.shards)]
        for round, accuracies in enumerate(zip(*(client.alone() for client in clients), strict=True)):
            yield watch.row(round, accuracies)


@dataclass(frozen=True, kw_only=True)
class PrivateCentralised:
    """All data in one place, with DP-SGD and the budget that each client has in CoDream."""

    name: str = "centralised-dp"
    privacy: Mapping[str, Any]

    def __post_init__(self) -> None:
        privacy_settings(self.privacy)

    def goes_by(self, dreams: Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`."""
        return GoesBy(learning=HISTOGRAM)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`; `server` is the one model's accuracy, or None where architectures are mixed."""
        watch, pooled = Stopwatch(len(problem.shards)), _in_own_order(pool(list(problem.shards)))
        privacy = replace(privacy_settings(self.privacy), records=None)
        first = {name: problem.models.index(name) for name in problem.models}
        courses = {name: _Client.of(problem, client, pooled, privacy).alone() for name, client in first.items()}
        for round, reached in enumerate(zip(*courses.values(), strict=True)):
            by_name = dict(zip(courses, reached, strict=True))
            server = reached[0] if problem.homogeneous else None
            yield watch.row(round, [by_name[name] for name in problem.models], server=server)


def _in_own_order(data: LabelledImages) -> LabelledImages:
    """The same images in an order that follows from themselves."""
    pairs = zip(data.images, data.labels, strict=True)
    digests = [hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs]
    return data.subset(np.array(sorted(range(len(data)), key=digests.__getitem__)))
