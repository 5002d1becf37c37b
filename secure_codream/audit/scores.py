"""What an adversary's scores say about who was in: rates, and guesses for a bound on epsilon.

Scores are higher where the adversary believes "in". Ties count one half in the AUC and are never split in rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_codream.audit.bounds import one_run_bound

Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]

GUESS_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
"""Shares of all canaries that are guessed on, settled beforehand; the bound pays for trying each."""


@dataclass(frozen=True)
class Separation:
    """How well scores tell members from others.

    Attributes:
        auc: the probability that a member's score is the higher one; 1/2 is chance.
        advantage: the largest TPR - FPR over all thresholds, 0 to 1.
        tpr_at_1_fpr: the largest TPR with an FPR of at most 1 % (Carlini et al., IEEE S&P 2022).
    """

    auc: float
    advantage: float
    tpr_at_1_fpr: float


@dataclass(frozen=True)
class Guesses:
    """The guesses that gave the largest bound: how many, how many right, and that bound."""

    made: int
    right: int
    epsilon: float


def separation(scores: Scores, included: Coins) -> Separation:
    """Compare the scores (m,) of members and others. Raises `ValueError` without both, or with scores not finite."""
    members, others = np.sort(scores[included]), np.sort(scores[~included])
    if not len(members) or not len(others) or not np.isfinite(scores).all():
        raise ValueError(
            f"{len(members)} members and {len(others)} others; one of each, with finite scores, are needed"
        )
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    thresholds = np.unique(scores)
    hits = 1 - np.searchsorted(members, thresholds, "left") / len(members)
    alarms = 1 - np.searchsorted(others, thresholds, "left") / len(others)
    return Separation(
        auc=float(below.mean() / 2 / len(others)),
        advantage=float(max((hits - alarms).max(), 0.0)),
        tpr_at_1_fpr=float(hits[alarms <= 0.01].max(initial=0.0)),
    )


def best_guesses(scores: Scores, included: Coins, *, delta: float, confidence: float) -> Guesses:
    """Guess "in" for the highest scores (m,) and "out" for the lowest, as many of each, and bound epsilon.

    Each of `GUESS_SHARES` is tried with its part of 1 - confidence, so that the largest bound holds with all of it.
    """
    order = np.argsort(scores, kind="stable")
    each = 1 - (1 - confidence) / len(GUESS_SHARES)
    found = []
    for share in GUESS_SHARES:
        half = max(1, int(share * len(scores) / 2))
        right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        found.append(Guesses(2 * half, right, one_run_bound(len(scores), 2 * half, right, delta, each)))
    return max(found, key=lambda guesses: guesses.epsilon)


def most_that_can_be_shown(canaries: int, *, delta: float, confidence: float) -> float:
    """The bound of an adversary that is always right: no larger claim can be refuted with so many canaries."""
    coins = np.arange(canaries) % 2 == 1
    return best_guesses(coins.astype(np.float64), coins, delta=delta, confidence=confidence).epsilon
