"""The mechanism alone, in two worlds: a step of private training with one record more, and without it, many times.

The model is linear, starts at zero, and the record's gradient is known and as large as clipping lets it be, so this is
the worst case that the accountant assumes: an adversary who sees the weights learns as much as any can. It finds noise
that is missing, or too small, with more certainty than canaries in a real model do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacyPlan, PrivacySettings
from codream_clients.privacy.training import private_sgd
from secure_codream.audit.bounds import two_world_bound
from secure_codream.audit.scores import separation
from secure_codream.reports.audit_results import AuditRow

Train = Callable[[nn.Module, LabelledImages, int], None]
"""(model, records, number of the run): one step of the training under audit, every record taking part, in place."""

SIDE, CLASSES = 8, 10
CPU = torch.device("cpu")


def one_step(noise_multiplier: float, seed: int) -> Train:
    """One step of the project's own private training with this noise, clipped to 1."""
    settings = PrivacySettings(epsilon=1.0, batch_size=1, max_grad_norm=1.0, lr=1.0)
    charge = SampledGaussian(noise_multiplier, 1.0, 1, "audit")
    plan = PrivacyPlan(
        settings=settings,
        epsilon=1.0,
        delta=0.5,
        sample_rate=1.0,
        histogram=charge,
        statistics=None,
        noise_multiplier=noise_multiplier,
        rounds=0,
    )

    def train(model: nn.Module, records: LabelledImages, run: int) -> None:
        private_sgd(
            model,
            records,
            plan=plan,
            steps=1,
            class_counts=None,
            stream=NoiseSource(seed).stream(run),
            device=CPU,
        )

    return train


def audit_two_worlds(train: Train, *, runs: int, claimed: float, delta: float, confidence: float) -> AuditRow:
    """Run `train` `runs` times in each world; half of the runs set the threshold, the other half bound epsilon."""
    image = np.ones((1, 1, SIDE, SIDE), dtype=np.float32)
    # A blank image has no gradient here, so the record is all that the worlds differ in; without it one is still there.
    blank = LabelledImages(np.zeros_like(image), np.zeros(1, dtype=np.int64), CLASSES)
    both = LabelledImages(np.concatenate([np.zeros_like(image), image]), np.zeros(2, dtype=np.int64), CLASSES)
    residual = np.full(CLASSES, 1 / CLASSES)
    residual[0] -= 1
    gradient = torch.from_numpy(np.outer(residual, image.ravel()).astype(np.float32))

    def score(records: LabelledImages, run: int) -> float:
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES, bias=False))
        nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
        train(model, records, run)
        return -float((model[1].weight.detach() * gradient).sum() / gradient.norm())  # type: ignore[operator]

    without = np.array([score(blank, run) for run in range(runs)])
    inside = np.array([score(both, runs + run) for run in range(runs)])
    half = runs // 2
    candidates = np.unique(np.concatenate([without[:half], inside[:half]]))

    def bound(threshold: float, part: slice) -> float:
        hits, alarms = inside[part] >= threshold, without[part] >= threshold
        return two_world_bound(int(hits.sum()), len(hits), int(alarms.sum()), len(alarms), delta, confidence)

    threshold = max(candidates, key=lambda candidate: bound(candidate, slice(half)))
    rest = slice(half, None)
    hits, alarms = inside[rest] >= threshold, without[rest] >= threshold
    found = separation(np.concatenate([without, inside]), np.arange(2 * runs) >= runs)
    return AuditRow(
        adversary="one step's weights",
        method="two worlds",
        auc=found.auc,
        advantage=found.advantage,
        tpr_at_1_fpr=found.tpr_at_1_fpr,
        trials=2 * runs,
        right=int(hits.sum() + (~alarms).sum()),
        guesses=2 * len(hits),
        epsilon_lower=bound(threshold, rest),
        epsilon_claimed=claimed,
        epsilon_most=two_world_bound(len(hits), len(hits), 0, len(hits), delta, confidence),
    )
