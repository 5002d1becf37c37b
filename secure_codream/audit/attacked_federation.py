"""What three adversaries learn of the canaries that one client trained on, from one run of a federation.

    a client's model       its weights as they are after the last round
    the FedDream dataset   what everybody holds: a student that has seen nothing but the dreams and their soft labels
    the sums               the sum of the soft labels over all clients, had the canaries themselves been the dreams,
                           before the first round and after each; masks protect each client's own labels. Nobody can
                           choose dreams: so this is more than any server sees, and an upper bound on what dreams tell

The audited client is private; the others train without noise on images of their own, which are not audited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.distillation import distil
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.training import predict_logits
from codream_clients.models.zoo import build
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.participant import private_participant
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan
from codream_clients.privacy.releases import Releases
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.starts import start_rule
from secure_codream.audit.canaries import Canaries
from secure_codream.audit.scores import Scores
from secure_codream.simulation.in_process import DreamFederation

MakeClient = Callable[[nn.Module, LabelledImages, int], Participant]
"""(fresh model, its images, seed) -> the client under audit, before its warm-up."""

CPU = torch.device("cpu")
STUDENT_EPOCHS = 60


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The federation around the client under audit.

    Attributes:
        model: every client's, by name; without batch norm.
        genuine: images of the audited client besides its canaries.
        others: images of each other client; two or more.
        learning: every client's hyperparameters.
        rounds: of dreaming.
        steps: secure steps a round.
        batch: dreams a round.
        seed: of models, dreams and training.
    """

    model: str
    genuine: LabelledImages
    others: tuple[LabelledImages, ...]
    learning: LearningSettings
    rounds: int
    steps: int
    batch: int
    seed: int

    def fresh_model(self, seed: int) -> nn.Module:
        """Untrained."""
        channels, height, width = self.genuine.shape
        return build(self.model, channels=channels, size=(height, width), classes=self.genuine.classes, seed=seed)


def under_plan(plan: PrivacyPlan, learning: LearningSettings) -> MakeClient:
    """The client of a deployment: a noisy histogram and DP-SGD, as `plan` says."""

    def make(model: nn.Module, data: LabelledImages, seed: int) -> Participant:
        return private_participant(
            learning,
            plan,
            model,
            data,
            None,
            seed,
            CPU,
            releases=lambda: Releases(PlannedCharges(plan).reserve),
            noise=NoiseSource(seed),
        )

    return make


def attack_federation(scene: Scene, canaries: Canaries, make_client: MakeClient) -> dict[str, Scores]:
    """Run the federation once; each adversary's scores of all canaries, (m,), by its name."""
    audited = make_client(scene.fresh_model(scene.seed), canaries.planted(scene.genuine), scene.seed)
    others = [
        Participant(scene.learning, scene.fresh_model(scene.seed + number), data, None, scene.seed + number, CPU)
        for number, data in enumerate(scene.others, start=1)
    ]
    dreams = DreamSettings(
        rounds=scene.rounds,
        steps=scene.steps,
        batch=scene.batch,
        shape=scene.genuine.shape,
        classes=scene.genuine.classes,
    )
    course = CoDream(dreams, start_rule(dreams.start))
    federation = DreamFederation([audited, *others], course, seed=scene.seed)
    federation.warm_up()
    sums = [_summed_labels(federation.participants, canaries)]
    for _ in range(scene.rounds):
        federation.round()
        sums.append(_summed_labels(federation.participants, canaries))
    student = scene.fresh_model(scene.seed + len(others) + 1)
    distil(
        student,
        federation.batches,
        scene.learning,
        seed=scene.seed,
        device=CPU,
        epochs=STUDENT_EPOCHS,
    )
    images = canaries.images
    return {
        "a client's model": margins(predict_logits(audited.model, images.images, CPU), images.labels),
        "the FedDream dataset": margins(predict_logits(student, images.images, CPU), images.labels),
        "the sums": np.mean([margins(logits, images.labels) for logits in sums], axis=0),
    }


def margins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Scores:
    """log(p / (1 - p)) of each record's own label, (m,), from logits (m, K): the score of Carlini et al., 2022."""
    rows = np.arange(len(labels))
    shifted = logits.astype(np.float64)
    own = shifted[rows, labels]
    shifted[rows, labels] = -np.inf
    top = shifted.max(axis=1)
    odds: Scores = own - top - np.log(np.exp(shifted - top[:, None]).sum(axis=1))
    return odds


def _summed_labels(participants: list[Participant], canaries: Canaries) -> NDArray[np.float32]:
    """What a step of soft labels reveals with the canaries as its dreams, (m, K): sums over clients, and no more."""
    shares = [participant.soft_labels(canaries.images.images) for participant in participants]
    numerators = np.sum([share.numerators for share in shares], axis=0)
    weights: NDArray[np.float32] = numerators / np.sum([share.denominators for share in shares], axis=0)
    return weights
