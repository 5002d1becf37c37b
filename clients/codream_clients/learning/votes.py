"""Learning from votes: of each image, which share of the clients took it for each class, as noised as it came.

The loss is the squared distance of the model's probabilities to the shares (Brier, 1950). Noise with mean 0 on a share
adds to it what no model can change, and its gradient is on average what it is without: noise that averages out over
images needs no taking away, and a share below 0 or above 1 is left as it is. Bounded below, too, where the
cross-entropy with such shares is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.augmentation import with_views
from codream_clients.learning.distillation import AcquisitionError, OwnImages
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import (
    TrainingError,
    batches_in_pass,
    descend,
    scheduled,
    sgd,
    shuffled_batches,
)

FloatArray = NDArray[np.float32]


def votes_of(logits: FloatArray, seen: NDArray[np.bool_] | None) -> FloatArray:
    """A one for each row's highest logit and zeros, (N, K); of the classes `seen` (K,) alone, if there are any."""
    if seen is not None and seen.any():
        logits = np.where(seen, logits, -np.inf)
    votes = np.zeros_like(logits, dtype=np.float32)
    votes[np.arange(len(logits)), logits.argmax(axis=1)] = 1.0
    return votes


def learn_votes(
    model: nn.Module,
    batches: Sequence[tuple[FloatArray, FloatArray]],
    settings: LearningSettings,
    *,
    seed: int,
    device: torch.device,
    noise: float = 0.0,
    own: OwnImages | None = None,
) -> float:
    """Train `model` in place, as `distil_by_settings` does, on images (B, C, H, W) and their shares ((1 + V) * B, K).

    Returns the mean loss of the last epoch, 0 without one. The settings' temperature and moves are of no effect.
    Raises `AcquisitionError` for no batch, and `TrainingError` if the loss is no longer finite.
    """
    if not batches:
        raise AcquisitionError("found no batch of votes; one round at least is needed before learning from them")
    images = torch.cat(
        [
            with_views(torch.from_numpy(seen).to(device), len(shares) // len(seen) - 1, settings.views_by)
            for seen, shares in batches
        ]
    )
    targets = torch.from_numpy(np.concatenate([shares for _, shares in batches])).to(device)
    model.to(device).train()
    optimiser = sgd(model, lr=settings.distil_lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    draws = torch.Generator().manual_seed(seed)
    per_pass = batches_in_pass(len(images), settings.distil_batch_size)
    rates = scheduled(optimiser, settings.distil_schedule, settings.distil_epochs * per_pass)
    losses: list[torch.Tensor] = []
    for batch in shuffled_batches(len(images), settings.distil_epochs, settings.distil_batch_size, seed):
        chosen = batch.to(device)
        seen = images[chosen]
        if noise > 0:
            seen = seen + noise * torch.randn(seen.shape, generator=draws).to(device)
        loss = (torch.softmax(model(seen), dim=1) - targets[chosen]).square().sum(dim=1).mean()
        if own is not None:
            loss = loss + own.loss(model, draws, device)
        losses.append(descend(loss, optimiser, rates, longest=settings.distil_clip or math.inf))
    model.eval()
    if not losses:
        return 0.0
    last = float(torch.stack(losses[-per_pass:]).mean())
    if not math.isfinite(last):
        raise TrainingError(
            f"the loss on votes became {last} with distil_lr={settings.distil_lr}; choose a smaller rate"
        )
    return last
