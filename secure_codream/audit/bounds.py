"""From right and wrong guesses to a lower bound on epsilon, with its confidence.

One run (Steinke, Nasr and Jagielski, NeurIPS 2023): each of m canaries was included by its own fair coin. Whoever knows
the output, guesses r of the m coins and is right v times. If the mechanism is (epsilon, 0)-private, v is stochastically
at most Binomial(r, e^epsilon / (1 + e^epsilon)); with delta, the tail grows by 2 m delta alpha (their theorem 5.2).

Two worlds: many runs with and without one record; true and false positives by Clopper and Pearson (Biometrika, 1934).
For every test of an (epsilon, delta)-private mechanism, TPR <= e^epsilon FPR + delta and 1 - FPR <= e^epsilon (1 - TPR)
+ delta (Kairouz, Oh and Viswanath, ICML 2015).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom

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


def two_world_bound(
    true_positives: int, positives: int, false_positives: int, negatives: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that a test's hits in two worlds refute, 0 if none, at `confidence` in (0, 1).

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
    hit_low = lower_rate(true_positives, positives, each)
    alarm_high = 1 - lower_rate(negatives - false_positives, negatives, each)
    ratios = ((hit_low - delta) / alarm_high, (1 - alarm_high - delta) / (1 - hit_low))
    return min(max(0.0, *(math.log(ratio) for ratio in ratios if ratio > 0), 0.0), LARGEST)


def lower_rate(hits: int, trials: int, error: float) -> float:
    """Clopper and Pearson's lower bound on a rate: below it with probability `error` at most."""
    return 0.0 if hits == 0 else float(beta.ppf(error, hits, trials - hits + 1))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; a number in (0, 1) is needed, such as 0.95")
