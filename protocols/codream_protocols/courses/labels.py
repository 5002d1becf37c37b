"""Soft labels by secure sums.

- Logits: weighted logits over the classes' weights, so that no client tells its histogram.
- Votes: each client names one class for each image (PATE, Papernot et al., ICLR 2018, here without anybody who sees
  votes without noise). A client's votes on L images are L ones, of Euclidean norm sqrt(L) whatever its data, so nothing
  is clipped: that is what the presence of a client moves the sum by. Its votes in place of others move it by sqrt(2 L).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from codream_protocols.course import Array, Sums
from codream_protocols.courses.numbers import LEAST_WEIGHT, bounded
from codream_protocols.settings import SettingsError
from codream_protocols.specs import Block, VectorSpec

LOGITS, VOTES = "logits", "votes"
VOTES_APART = math.sqrt(2)
"""The largest distance of two clients' votes, over their norm."""
LabelBy = Literal["logits", "votes"]
MOST_LEARNT_FROM = 1 << 30
"""Numbers of all the images that a client learns from at once: 4 GiB, as much as its own images may take, and for a
moment twice that, while views are joined."""
MOST_SHARE = 16.0
"""Bound of a class's noised share of the votes, which may be below 0 and above 1."""


def check_learnt_from(rounds: int, images: int, shape: tuple[int, int, int]) -> None:
    """Refuse what clients could not hold: the `images` of each of so many rounds, views included, (C, H, W).

    Raises:
        SettingsError: together they have more than `MOST_LEARNT_FROM` numbers.
    """
    if (numbers := rounds * images * math.prod(shape)) > MOST_LEARNT_FROM:
        raise SettingsError(
            f"the {images} images of shape {shape} in each of {rounds} rounds that are learnt from at once have "
            f"{numbers} numbers; {MOST_LEARNT_FROM} are allowed: choose a smaller batch or window, or fewer views"
        )


def logits_spec(labels: int, classes: int, clip: float) -> VectorSpec:
    """Weighted logits (labels x classes) within [-clip, clip], and each class's weight in (0, 1]."""
    return VectorSpec(LOGITS, (Block("numerators", labels * classes, float(clip)), Block("denominators", classes, 1.0)))


def soft_labels(sums: Sums, labels: int, classes: int, clip: float) -> Array:
    """Mean logits (labels, classes), float32, within [-clip, clip], where each client's are."""
    weights = np.maximum(sums["denominators"], LEAST_WEIGHT)
    return bounded(sums["numerators"].reshape(labels, classes) / weights, clip)


def votes_spec(labels: int, classes: int) -> VectorSpec:
    """A one for the class that a client votes for, and zeros: (labels x classes)."""
    return VectorSpec(VOTES, (Block("votes", labels * classes, 1.0),))


def votes_norm(labels: int) -> float:
    """Euclidean norm of one client's votes."""
    return math.sqrt(labels)


def vote_shares(sums: Sums, labels: int, classes: int, count: int) -> Array:
    """Of each class its share of `count` clients' votes, as noised as their sum: (labels, classes), float32."""
    return bounded(sums["votes"].reshape(labels, classes) / float(count), MOST_SHARE)
