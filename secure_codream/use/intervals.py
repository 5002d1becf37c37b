"""How sure a figure is: 95 % intervals for what was measured on so many images, or on so many persons.

Exact (Clopper and Pearson, Biometrika 1934): for a share of images that are independent of each other, k of n right. It
covers the truth at least as often as it says, also where n is small or nobody was wrong.

Resampled (Efron, Annals of Statistics 1979): for everything else, the figure is computed again on samples drawn with
replacement, and the interval holds the middle 95 % of them. Images of one person are alike, so that whole persons are
drawn wherever it is known whose each image is (Field and Welsh, JRSS B 2007). A resampled interval knows nothing of
what the sample does not show: where every sample gives the same figure there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

CONFIDENCE = 0.95
RESAMPLES = 1000
AT_ONCE = 4_000_000
"""Numbers of the samples in memory at a time."""

_MOST_UNDEFINED = 0.05  # of the samples; with more, what is left of them says nothing

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights of the images in some samples (R, N) -> figures of each sample (R, F), NaN where they are undefined."""


class Figure(msgspec.Struct, frozen=True):
    """A figure between the ends of its interval; None where it is undefined, or the interval is."""

    value: float | None
    low: float | None = None
    high: float | None = None


def exact(right: int, of: int) -> Figure:
    """The share `right` / `of`, with its exact interval; undefined for 0 of 0."""
    if of == 0:
        return Figure(None)
    found = binomtest(right, of).proportion_ci(CONFIDENCE, method="exact")
    return Figure(right / of, float(found.low), float(found.high))


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with replacement of images, or of whole groups of them.

    Attributes:
        units: which unit each image (N,) is of, numbered from 0; images themselves where nothing else is known.
        resamples: how many samples are drawn.
        seed: of the draws.
    """

    units: NDArray[np.int64]
    resamples: int = RESAMPLES
    seed: int = 0

    def figures(self, statistic: Statistic) -> list[Figure]:
        """Each figure of a statistic, with its resampled interval."""
        values = statistic(np.ones((1, len(self.units))))[0]
        drawn = np.concatenate([statistic(weights) for weights in self._weights()])
        return [_percentiles(value, column) for value, column in zip(values, drawn.T, strict=True)]

    def _weights(self) -> Iterator[Floats]:
        random, units = np.random.default_rng(self.seed), int(self.units.max()) + 1
        rows = max(1, AT_ONCE // len(self.units))
        for first in range(0, self.resamples, rows):
            size = min(rows, self.resamples - first)
            yield random.multinomial(units, np.full(units, 1 / units), size)[:, self.units].astype(np.float64)


def _percentiles(value: float, drawn: Floats) -> Figure:
    if np.isnan(value):
        return Figure(None)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(drawn) or np.ptp(defined) < 1e-12:
        return Figure(float(value))
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(float(value), float(low), float(high))


def shares(counted: NDArray[np.bool_], of: NDArray[np.bool_]) -> Statistic:
    """In each column, the share of images `counted` (N, F) among those `of` (N, F)."""
    above, below = (counted & of).astype(np.float64), of.astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        return _ratio(weights @ above, weights @ below)

    return statistic


def areas(scores: Floats, positive: NDArray[np.bool_]) -> Statistic:
    """Area under the receiver operating curve of each column of `scores` (N, F), with `positive` (N, F).

    It is the chance that an image that is positive has the higher score than one that is not, ties counting half
    (Hanley and McNeil, Radiology 1982).
    """
    ranked = []
    for column, of_class in zip(scores.T, positive.T, strict=True):
        order = np.argsort(column, kind="stable")
        ranks = rankdata(column[order], method="min").astype(np.int64)
        ranked.append((order, np.flatnonzero(np.diff(ranks, prepend=0)), of_class[order]))

    def statistic(weights: Floats) -> Floats:
        found = np.empty((len(weights), len(ranked)))
        for number, (order, starts, of_class) in enumerate(ranked):
            ordered = weights[:, order]
            ups, downs = ordered * of_class, ordered * ~of_class
            if len(starts) < len(order):  # of each score that occurs
                ups, downs = (np.add.reduceat(values, starts, axis=1) for values in (ups, downs))
            below = np.cumsum(downs, axis=1) - downs / 2
            found[:, number] = _ratio((ups * below).sum(axis=1), ups.sum(axis=1) * downs.sum(axis=1))
        return found

    return statistic


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return found
