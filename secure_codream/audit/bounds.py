"""From right and wrong guesses to a lower bound on epsilon, with its confidence.

One run (Steinke, Nasr and Jagielski, NeurIPS 2023): each of m canaries was included by its own fair coin. Whoever knows
the output, guesses r of the m coins and is right v times. If the mechanism is (epsilon, 0)-private, v is stochastically
at most Binomial(r, e^epsilon / (1 + e^epsilon)); with delta, the tail grows by 2 m delta alpha (their theorem 5.2).

Two worlds: many runs with and without one record; true and false positives by Clopper and Pearson (Biometrika, 1934).
The mechanism under audit is a Gaussian one by claim, so it is held against the trade-off of Gaussians, and not against
that of any mechanism with this epsilon and delta, which at an epsilon of 4 no feasible number of runs refutes (Nasr et
al., USENIX Security 2023). A test between N(0, 1) and N(mu, 1) has TPR <= Phi(mu + Phi^-1(FPR)) (Dong, Roth and Su,
JRSS B 2022), and at a delta mu is an epsilon (Balle and Wang, ICML 2018).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

Floats = NDArray[np.float64]

LARGEST = 50.0
"""No audit of a feasible size shows more; bounds end here."""


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely at least `correct` of `guesses` right ones are, at most, under (epsilon, delta)-privacy.

    Raises `ValueError` unless 0 <= correct <= guesses <= canaries, epsilon >= 0 and 0 <= delta <= 1.
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(
            f"{correct} right of {guesses} guesses on {canaries} canaries at epsilon {epsilon}, delta {delta}; "
            "right <= guesses <= canaries, epsilon >= 0 and delta in [0, 1] are needed"
        )
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    if delta == 0 or correct == 0:
        return min(tail, 1.0)
    # alpha is the largest mean, over i, of the probabilities of i outcomes just below `correct`.
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
    alpha = float((below / np.arange(1, correct + 1)).max())
    return min(tail + 2 * canaries * delta * alpha, 1.0)


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that so many right guesses refute, 0 if none, at `confidence` in (0, 1)."""
    _check_confidence(confidence)

    def excess(epsilon: float) -> float:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    return LARGEST if excess(LARGEST) <= 0 else float(brentq(excess, 0.0, LARGEST, xtol=1e-6))


def gaussian_bound(
    true_positives: int, positives: int, false_positives: int, negatives: int, delta: float, confidence: float
) -> float:
    """The largest epsilon of a Gaussian mechanism that a test's hits in two worlds refute, 0 if none.

    Of `positives` runs with the record the test said "with" `true_positives` times, of `negatives` without it
    `false_positives` times. Both rates are bounded at half of 1 - confidence, so that both bounds hold together.
    Raises `ValueError` for counts that do not fit.
    """
    _check_confidence(confidence)
    if not (0 <= true_positives <= positives and 0 <= false_positives <= negatives and positives and negatives):
        raise ValueError(
            f"{true_positives} of {positives} and {false_positives} of {negatives}; parts of a whole are needed"
        )
    each = (1 - confidence) / 2
    right = lower_rate(true_positives, positives, each), lower_rate(negatives - false_positives, negatives, each)
    return gaussian_epsilon(float(norm.ppf(right).sum()), delta)


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Epsilon at `delta` of telling N(0, 1) from N(distance, 1), at most `LARGEST`; 0 unless that is above 0."""

    def excess(epsilon: float) -> float:
        half, far = distance / 2, epsilon / distance
        return float(norm.cdf(half - far) - math.exp(epsilon) * norm.cdf(-half - far)) - delta

    if not distance > 0 or excess(0.0) <= 0:
        return 0.0
    return LARGEST if excess(LARGEST) >= 0 else float(brentq(excess, 0.0, LARGEST, xtol=1e-9))


def best_threshold(inside: Floats, without: Floats, confidence: float) -> float:
    """Of all that occurs in these scores of both worlds, the threshold with which they are told apart best."""
    candidates = np.concatenate([inside, without])
    hits = len(inside) - np.searchsorted(np.sort(inside), candidates, "left")
    passed = np.searchsorted(np.sort(without), candidates, "left")
    each = (1 - confidence) / 2
    apart = norm.ppf(lower_rates(hits, len(inside), each)) + norm.ppf(lower_rates(passed, len(without), each))
    return float(candidates[np.argmax(apart)])


def lower_rate(hits: int, trials: int, error: float) -> float:
    """Clopper and Pearson's lower bound on a rate: below it with probability `error` at most."""
    return float(lower_rates(np.array(hits), trials, error))


def lower_rates(hits: NDArray[np.int64], trials: int, error: float) -> Floats:
    """The same for many counts of hits."""
    bounds: Floats = np.where(hits == 0, 0.0, beta.ppf(error, np.maximum(hits, 1), trials - hits + 1))
    return bounds


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; a number in (0, 1) is needed, such as 0.95")
