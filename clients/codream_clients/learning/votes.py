"""Learning from votes: of each image, which share of the clients took it for each class, as noised as it came.

The loss is the squared distance of the model's probabilities to the shares (Brier, 1950). Noise with mean 0 on a share
adds to it what no model can change, and its gradient is on average what it is without: noise that averages out over
images needs no taking away, and a share below 0 or above 1 is left as it is. Bounded below, too, where the
cross-entropy with such shares is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.learning.distillation import OwnImages, learn_from_dreams
from codream_clients.learning.settings import LearningSettings

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
    epochs: int | None = None,
    noise: float = 0.0,
    own: OwnImages | None = None,
) -> float:
    """Train `model` in place, as `distil` does, on images (B, C, H, W) and their shares ((1 + V) * B, K).

    Returns the mean loss of the last epoch, 0 without one. The settings' temperature is of no effect.
    """

    def loss_of(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(logits, dim=1) - shares).square().sum(dim=1).mean()

    return learn_from_dreams(
        model, batches, loss_of, settings, seed=seed, device=device, epochs=epochs, noise=noise, own=own
    ).loss
