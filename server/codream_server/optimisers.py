"""The server's step on the dreams, from what secure aggregation reveals: the mean over the survivors.

Update way (L local steps): the mean difference is added (`Average`) or taken as a pseudo-gradient by Adam (`FedAdam`;
Reddi et al., ICLR 2021). Gradient way (one local step): Adam on the mean gradient (Kingma and Ba, ICLR 2015), as in
CoDream. Its authors call that DistAdam (in their code, GauriGupta19/codream: clients send dL/dx and take no step, the
server keeps both moments and corrects their bias); `adam` and `distadam` are two names of one optimiser.
State is numpy float32; nothing here needs a tensor library.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from codream_server.settings import DreamSettings

Dreams = np.ndarray[Any, np.dtype[np.float32]]


class DreamOptimiser(Protocol):
    """Steps the dreams of one batch."""

    def step(self, dreams: Dreams, mean: Dreams) -> Dreams:
        """Return the next dreams, same shape, from the clients' mean update or gradient."""


class Average:
    """Add the mean update, times a rate (1: FedAvg on dreams)."""

    def __init__(self, lr: float) -> None:
        self._lr = lr

    def step(self, dreams: Dreams, mean: Dreams) -> Dreams:
        """See `DreamOptimiser`."""
        return dreams + np.float32(self._lr) * mean


class Adam:
    """Adam along `direction` times the mean: -1 descends gradients, +1 follows updates (FedAdam)."""

    def __init__(self, lr: float, *, direction: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self._lr, self._direction, self._betas, self._eps = lr, direction, betas, eps
        self._first = self._second = np.zeros(1, dtype=np.float32)
        self._count = 0

    def step(self, dreams: Dreams, mean: Dreams) -> Dreams:
        """See `DreamOptimiser`."""
        first, second = self._betas
        self._count += 1
        self._first = first * self._first + (1 - first) * mean
        self._second = second * self._second + (1 - second) * mean**2
        corrected = self._first / (1 - first**self._count)
        scale = np.sqrt(self._second / (1 - second**self._count)) + self._eps
        following: Dreams = (dreams + self._direction * self._lr * corrected / scale).astype(np.float32)
        return following


def make_optimiser(settings: DreamSettings) -> DreamOptimiser:
    """A fresh optimiser for one batch of dreams."""
    if settings.optimiser == "average":
        return Average(settings.server_lr)
    return Adam(settings.server_lr, direction=1.0 if settings.optimiser == "fedadam" else -1.0)
