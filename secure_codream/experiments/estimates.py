"""Means with 95 % intervals over seeds, and gap closure.

Few seeds and an unknown deviation: the mean of n values lies within mean +- t s / sqrt(n), where s is the sample's
deviation and t the two-sided quantile of Student's t with n - 1 degrees of freedom ("Student", Biometrika 1908). The
interval takes the seeds' values as independent and roughly normal; two intervals that do not overlap are a stricter
test than a difference by seed.

Gap closure = (accuracy - alone) / (all data in one place - alone), of the same partition and seed, then averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev

import msgspec
from scipy.stats import t as student

CONFIDENCE = 0.95


class Estimate(msgspec.Struct, frozen=True):
    """A mean over `n` values; `half` is half the width of its 95 % interval, None for a single value."""

    mean: float
    half: float | None
    n: int


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """The mean of the values that are there, with its interval; None if there are none."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len(present) == 1:
        return Estimate(present[0], None, 1)
    half = t_quantile(len(present) - 1) * stdev(present) / math.sqrt(len(present))
    return Estimate(fmean(present), half, len(present))


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with `degrees` >= 1 degrees of freedom.

    Raises:
        ValueError: degrees below 1, or a confidence outside (0, 1).
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"found {degrees} degrees and confidence {confidence}; at least 1 and (0, 1) are allowed")
    return float(student.ppf((1 + confidence) / 2, degrees))


def gap_closure(accuracy: float, alone: float, central: float) -> float | None:
    """See the module; None where all data in one place are no better than alone, so that there is no gap."""
    return (accuracy - alone) / (central - alone) if central > alone else None
