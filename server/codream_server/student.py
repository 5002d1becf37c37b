"""The adaptive student: a model on the server that sees aggregated dreams only (so it costs no privacy).

CoDream's adaptive term raises the student's entropy on the dreams, so that they go where it does not yet know. Here the
server takes that step itself, after the clients' aggregated update, and no student is sent to anybody. The only module
of this room that needs torch, and it is loaded only when the adaptive term is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from codream_server.feddream import FedDreamDataset

Dreams = np.ndarray[Any, np.dtype[np.float32]]


class Student:
    """Distils from the FedDream dataset, and pushes dreams towards what it does not know.

    Args:
        model: a classifier of (B, C, H, W) float32 images into K logits; trained in place.
        epochs: passes over the window each time a batch joins it.
        lr: SGD's rate, momentum 0.9.
        temperature: T of the distillation.
        push_lr: how far one push may move a coordinate (a normalised gradient step).
        seed: order of the mini-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        epochs: int = 20,
        lr: float = 0.05,
        temperature: float = 4.0,
        push_lr: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.model = model
        self._epochs, self._temperature, self._push_lr = epochs, temperature, push_lr
        self._order = torch.Generator().manual_seed(seed)
        self._optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)

    def learn(self, dataset: FedDreamDataset) -> None:
        """Distil from the window (KL divergence at temperature T), views apart."""
        images = torch.from_numpy(np.concatenate([dreams for dreams, _ in dataset.batches]))
        logits = torch.from_numpy(np.concatenate([labels[: len(dreams)] for dreams, labels in dataset.batches]))
        target = functional.log_softmax(logits / self._temperature, dim=1)
        self.model.train()
        for _ in range(self._epochs):
            order = torch.randperm(len(images), generator=self._order)
            # As even as they can be: batch norm must not follow the statistics of a rest of a few dreams.
            for chosen in torch.tensor_split(order, -(-len(order) // 64)):
                if len(chosen) < 2:
                    continue  # it needs two
                predicted = functional.log_softmax(self.model(images[chosen]) / self._temperature, dim=1)
                loss = functional.kl_div(predicted, target[chosen], reduction="batchmean", log_target=True)
                self._optimiser.zero_grad()
                torch.autograd.backward(loss * self._temperature**2)
                self._optimiser.step()
        self.model.eval()

    def push(self, dreams: Dreams, weight: float) -> Dreams:
        """Raise the student's entropy on the dreams (B, C, H, W): a step of at most `push_lr` x weight a coordinate."""
        images = torch.from_numpy(dreams.copy()).requires_grad_(True)
        self.model.eval()
        log_probabilities = functional.log_softmax(self.model(images), dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum()
        (gradient,) = torch.autograd.grad(entropy, images)
        peak = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        moved = images.detach() + weight * self._push_lr * gradient / peak
        return np.asarray(moved.numpy(), dtype=np.float32)
