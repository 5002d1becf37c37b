"""The mechanism alone, in two worlds: a step of private training with one record more, and without it, many times.

The model is linear, starts at zero, and the record's gradient is known and as large as clipping lets it be, so this is
the worst case that the accountant assumes: an adversary who sees the weights learns as much as any can. It finds noise
that is missing, or too small, with more certainty than canaries in a real model do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacyPlan, PrivacySettings
from codream_clients.privacy.training import private_sgd
from secure_codream.audit.bounds import Floats, best_threshold, gaussian_bound, gaussian_epsilon
from secure_codream.audit.scores import separation
from secure_codream.reports.audit_results import AuditRow

Train = Callable[[nn.Module, LabelledImages, int], None]
"""(model, records, number of the run): one step of the training under audit, every record taking part, in place."""

Flags = NDArray[np.bool_]

SIDE, CLASSES = 8, 10
OF_THRESHOLD = 0.25
"""Part of the runs that sets the threshold."""
TRIES = 200
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
    """Run `train` `runs` times in each world; some of the runs set the threshold, the others bound epsilon."""
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
    return two_worlds("one step's weights", inside, without, claimed=claimed, delta=delta, confidence=confidence)


def two_worlds(
    adversary: str, inside: Floats, without: Floats, *, claimed: float, delta: float, confidence: float
) -> AuditRow:
    """What an adversary's scores, (runs,) in each world, say of a claim of a Gaussian mechanism."""
    runs = len(inside)
    hits, alarms = _told_apart(inside, without, confidence)
    bound = gaussian_bound(int(hits.sum()), len(hits), int(alarms.sum()), len(alarms), delta, confidence)
    found = separation(np.concatenate([without, inside]), np.arange(2 * runs) >= runs)
    return AuditRow(
        adversary=adversary,
        method="two worlds",
        auc=found.auc,
        advantage=found.advantage,
        tpr_at_1_fpr=found.tpr_at_1_fpr,
        trials=2 * runs,
        right=int(hits.sum() + (~alarms).sum()),
        guesses=2 * len(hits),
        epsilon_lower=bound,
        epsilon_claimed=claimed,
        epsilon_most=gaussian_bound(len(hits), len(hits), 0, len(hits), delta, confidence),
        power=power(runs=runs, claimed=claimed, delta=delta, confidence=confidence),
    )


def power(*, runs: int, claimed: float, delta: float, confidence: float, tries: int = TRIES) -> float:
    """How likely noise of half the size would be refuted: a share of `tries` audits of Gaussians, nothing trained."""
    noise = brentq(lambda size: gaussian_epsilon(1 / size, delta) - claimed, 1e-3, 1e6)
    rng, caught = np.random.default_rng(0), 0
    for _ in range(tries):
        inside, without = 1 + noise / 2 * rng.standard_normal(runs), noise / 2 * rng.standard_normal(runs)
        hits, alarms = _told_apart(inside, without, confidence)
        bound = gaussian_bound(int(hits.sum()), len(hits), int(alarms.sum()), len(alarms), delta, confidence)
        caught += bound > claimed
    return caught / tries


def _told_apart(inside: Floats, without: Floats, confidence: float) -> tuple[Flags, Flags]:
    """Which runs are taken for those with the record, in each world: by a threshold from other runs than are judged."""
    part = max(1, round(len(inside) * OF_THRESHOLD))
    threshold = best_threshold(inside[:part], without[:part], confidence)
    return inside[part:] >= threshold, without[part:] >= threshold
