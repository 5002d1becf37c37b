"""Batch norm's running statistics, measured anew on a client's own images."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn

from codream_clients.learning.training import shuffled_batches

BATCH = 256
"""Images in a batch at most."""


def measure_statistics(model: nn.Module, images: NDArray[np.float32], seed: int, device: torch.device) -> None:
    """Replace the statistics of a model's batch norms by those of `images` (N, C, H, W); without any, do nothing.

    A statistic is the mean over batches, each of which counts alike and has its own mean taken out of its variance. So
    batches are of even size, in an order drawn from `seed`: a small rest would count as much as all others, and images
    that come class by class would make of what differs between classes no variance at all. Norms that no batch passes
    in training mode, as of a fixed front, keep theirs. Whatever the model raises leaves momenta as they were, and
    statistics that are no longer whole. It is left in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    before = [deepcopy(norm.state_dict()) for norm in norms]
    batches = (torch.from_numpy(images[batch.numpy()]) for batch in shuffled_batches(len(images), 1, BATCH, seed))
    try:
        update_bn(batches, model, device)  # which empties all of them first
        for norm, kept in zip(norms, before, strict=True):
            if norm.track_running_stats and not norm.num_batches_tracked:
                norm.load_state_dict(kept)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
