"""The adaptive student: a model that sees certified dreams only, so it costs no privacy and every client has its own.

CoDream's adaptive term raises the student's entropy on the dreams, so that they go where it does not yet know. Each
client trains its own copy, from weights that follow from the federation's seed, on batches that all have alike, and
has the term in its own dream loss. Copies may differ in the last bit, and between versions of PyTorch, which draws the
first weights, altogether: so may models.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.learning.distillation import distil
from codream_clients.learning.dreaming import ExtraTerm, entropy
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.undoing import undone_if_it_fails
from codream_clients.models.zoo import build
from codream_protocols.courses.codream import ViewsBy

FloatArray = NDArray[np.float32]

ADAPTIVE = LearningSettings(distil_epochs=20, distil_lr=0.05, temperature=4.0)
"""How an adaptive student learns."""


class Student:
    """Distils from a window of certified batches, and from nothing else.

    Args:
        model: (B, C, H, W) float32 images to K logits; trained in place.
        settings: of its distillation, the length of the window among them.
        seed: of the order of its mini-batches.
        device: where it is trained and asked.
    """

    def __init__(self, model: nn.Module, settings: LearningSettings, seed: int, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self._settings, self._seed, self._device, self._newest = settings, seed, device, 0
        self._window: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=settings.window)

    @property
    def learnt(self) -> bool:
        """Whether it has learnt anything."""
        return bool(self._window)

    def learn(self, number: int, images: FloatArray, labels: FloatArray) -> None:
        """Learn from an epoch, the `number`-th; a second time, of several clients that share a student, does nothing.

        One that fails leaves the model as it was, as it does every client's copy, and stays in the window.

        Args:
            number: of the epoch; each is higher than the one before.
            images: (B, C, H, W).
            labels: (B, K) logits, or with V views ((1 + V) x B, K).

        Raises:
            AcquisitionError: labels that do not fit their images.
            TrainingError: a loss that is no longer finite.
        """
        if number <= self._newest:
            return
        self._newest = number
        self._window.append((images, labels))
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        with undone_if_it_fails(self.model):
            distil(self.model, list(self._window), self._settings, seed=seed, device=self._device)


@dataclass(frozen=True, eq=False)
class AdaptiveTerm:
    """The term in a client's dream loss: minus `weight` times the student's mean entropy, in nats.

    Attributes:
        student: this client's copy.
        weight: lambda, above 0.
        first_round: the round, from 0, from which on it counts; never before the student has learnt something.
    """

    student: Student
    weight: float
    first_round: int = 0

    def term(self, round: int) -> ExtraTerm | None:
        """The term in a round, from 0; None while it does not count."""
        if round < self.first_round or not self.student.learnt:
            return None

        def added(dreams: torch.Tensor) -> torch.Tensor:
            return -self.weight * entropy(self.student.model(dreams))

        return added


def adaptive_student(
    shape: tuple[int, int, int], classes: int, *, seed: int, window: int, views_by: ViewsBy, device: torch.device
) -> Student:
    """The student that every client of a federation begins with: a cnn2 whose weights follow from `seed`.

    Args:
        shape: (C, H, W) of a dream.
        classes: K.
        seed: the federation's.
        window: batches it learns from, as clients do.
        views_by: how the views vary that are labelled beside dreams: it makes them again, as clients do.
        device: where dreams are made.
    """
    channels, height, width = shape
    model = build("cnn2", channels=channels, size=(height, width), classes=classes, seed=seed)
    settings = LearningSettings(
        distil_epochs=ADAPTIVE.distil_epochs,
        distil_lr=ADAPTIVE.distil_lr,
        temperature=ADAPTIVE.temperature,
        window=window,
        views_by=views_by,
    )
    return Student(model, settings, seed, device)
