"""Records made to be remembered: images of noise with labels drawn at random, and the coins that include them.

Nothing but the record itself tells of its label, so a model that knows it has seen it. Nearly orthogonal images are
learnt without disturbing each other, which makes them stronger than mislabelled images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from codream_clients.data.datasets import LabelledImages, pool
from secure_codream.audit.scores import Coins

CONTRAST = 1.5
"""Deviation of a canary's pixels, in deviations of the data's, to which images are standardised."""


@dataclass(frozen=True, eq=False)
class Canaries:
    """Canaries (m images) and which of them were `included`, (m,)."""

    images: LabelledImages
    included: Coins

    def planted(self, genuine: LabelledImages) -> LabelledImages:
        """The genuine images, and after them the canaries that were included."""
        included = self.images.subset(np.flatnonzero(self.included))
        return pool([genuine, replace(included, scale=genuine.scale)])  # noise is on every scale


def make_canaries(number: int, shape: tuple[int, int, int], classes: int, rng: np.random.Generator) -> Canaries:
    """`number` canaries of `shape` (C, H, W), each included by a fair coin of its own."""
    images = CONTRAST * rng.standard_normal((number, *shape), dtype=np.float32)
    labels = rng.integers(classes, size=number)
    return Canaries(LabelledImages(images, labels, classes), rng.random(number) < 0.5)
