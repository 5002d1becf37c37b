"""A model of a client's own architecture that learns from a common one: by its logits on public images, and no others.

No record is looked at, so what the common model may be published for, this one may be, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.learning.distillation import distil
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import predict_logits
from codream_clients.learning.undoing import undone_if_it_fails


@dataclass(frozen=True, eq=False)
class HandedDown:
    """The client's own model, and what it learns from.

    Attributes:
        model: trained in place.
        images: public, (B, C, H, W): whoever has the settings can draw the same.
        settings: of distillation.
        seed: of its order.
    """

    model: nn.Module
    images: NDArray[np.float32]
    settings: LearningSettings
    seed: int

    def learn_from(self, teacher: nn.Module, device: torch.device) -> float:
        """Distil; returns the last epoch's mean loss, and raises as `distil` does: then the model is as it was."""
        labels = predict_logits(teacher, self.images, device)
        with undone_if_it_fails(self.model):
            return distil(self.model, [(self.images, labels)], self.settings, seed=self.seed, device=device)
