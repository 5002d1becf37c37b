"""What the attacks on learning are measured by: likeness of pictures, advantage over guessing, exposure of a secret.

Intervals are two-sided, of 95 % confidence unless another is asked for. A guess is a member's or a stranger's with
equal odds, so that an advantage is 2 * share of right guesses - 1: 0 for a coin, 1 for certainty (Yeom et al.,
"Privacy risk in machine learning", CSF 2018). Exposure: Carlini et al., "The secret sharer", USENIX Security 2019.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

CONFIDENCE = 0.95
_LEAST_ERROR = 1e-10  # mean squared error below which pictures count as the same: 100 dB


def psnr(picture: Floats, truth: Floats) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of pictures (..., N) with values 0 to 1, one for each, at most 100."""
    error = np.mean((np.clip(picture, 0, 1) - truth) ** 2, axis=-1)
    return np.asarray(-10 * np.log10(np.maximum(error, _LEAST_ERROR)))


def correlation(found: Floats, truth: Floats) -> float:
    """Pearson's correlation of two vectors, -1 to 1; 0 where one of them is constant."""
    first, second = (values.reshape(-1) - values.mean() for values in (found, truth))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


def proportion(right: int, tries: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share from `right` of `tries` (Clopper and Pearson, Biometrika 1934)."""
    from scipy.stats import binomtest

    found = binomtest(right, tries).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def advantage(right: int, tries: int, confidence: float = CONFIDENCE) -> tuple[float, tuple[float, float]]:
    """Advantage of guesses of which `right` of `tries` were right, and its interval, from that of their share."""
    low, high = proportion(right, tries, confidence)
    return 2 * right / tries - 1, (2 * low - 1, 2 * high - 1)


def bootstrapped(
    values: Floats, seed: int, *, draws: int = 2000, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The percentile interval of a mean over values (N, ...), drawn again along the first axis (Efron 1979).

    Values of one row (guesses about one model, say) depend on each other, so rows are what is drawn again.
    """
    rows = values.reshape(len(values), -1).mean(axis=1)
    chosen = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(rows[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def exposure(own: float, others: Floats) -> float:
    """log2 of how many candidates there are, minus log2 of the rank of one whose loss is `own` among all, in bits.

    0 where all of `others` (N,) have lower losses; log2(N + 1) where none has. Of a candidate like all others it is
    1 / ln 2 = 1.44 on average, for N large.
    """
    rank = 1 + int((others < own).sum())
    return math.log2((len(others) + 1) / rank)


def log_odds(probabilities: Floats) -> NDArray[np.float64]:
    """log(p / (1 - p)) of probabilities, which brings confidences near a Gaussian (Carlini et al., S&P 2022)."""
    bounded = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(bounded) - np.log1p(-bounded))


def likelihood_ratios(scores: Floats, members: NDArray[np.bool_], model: int) -> NDArray[np.float64]:
    """How much likelier a model's scores are for a member than for a stranger: LiRA, one log ratio for each record.

    Carlini et al., "Membership inference attacks from first principles", S&P 2022, online, with one variance of all
    records for members and one for strangers, as they advise for few models.

    Args:
        scores: log odds of the right label, (models, records).
        members: which records each model was trained on, of the same shape; each record in and out at least once
            among the other models.
        model: the one that is attacked; the others are the adversary's own, and know nothing of it.
    """
    own = scores[model]
    shadows, inside = np.delete(scores, model, axis=0), np.delete(members, model, axis=0)
    ratio = np.zeros(own.shape)
    for weight, chosen in ((1.0, inside), (-1.0, ~inside)):
        mean = (shadows * chosen).sum(axis=0) / chosen.sum(axis=0)
        variance = float(((shadows - mean) ** 2)[chosen].mean()) + 1e-9
        ratio += weight * (-((own - mean) ** 2) / (2 * variance) - 0.5 * math.log(variance))
    return ratio
