"""Soft labels by secure sums: weighted logits over the classes' weights, so that no client tells its histogram."""

from __future__ import annotations

import numpy as np

from codream_protocols.course import Array, Sums
from codream_protocols.courses.numbers import LEAST_WEIGHT, bounded
from codream_protocols.specs import Block, VectorSpec

LOGITS = "logits"


def logits_spec(labels: int, classes: int, clip: float) -> VectorSpec:
    """Weighted logits (labels x classes) within [-clip, clip], and each class's weight in (0, 1]."""
    return VectorSpec(LOGITS, (Block("numerators", labels * classes, float(clip)), Block("denominators", classes, 1.0)))


def soft_labels(sums: Sums, labels: int, classes: int, clip: float) -> Array:
    """Mean logits (labels, classes), float32, within [-clip, clip], where each client's are."""
    weights = np.maximum(sums["denominators"], LEAST_WEIGHT)
    return bounded(sums["numerators"].reshape(labels, classes) / weights, clip)
