"""Exact sampling of the discrete Gaussian over the integers, P(X = k) proportional to exp(-k^2 / (2 sigma^2)).

The distribution is that of Canonne, Kamath and Steinke (NeurIPS 2020, arXiv 2004.00010). Their own sampler rejects,
sample by sample, on Bernoulli(exp(-p/q)) with fractions that outgrow machine words; a step of dreams needs 10^5 samples
of one and the same variance. So the distribution function is inverted here, with integers only:

1. |X| = min{k : U < F(k)} for U uniform in [0, 1), where F is the distribution function of |X|; the sign is a fair bit
   (0 has one preimage with either sign, and F counts it once).
2. U is never rounded. Its first 64 bits u say that U lies in [u, u + 1) / 2^64. A table holds t(k), an integer with
   t(k) <= 2^64 F(k) < t(k) + 2. If t(k - 1) + 2 <= u < t(k), then F(k - 1) <= U < F(k) whatever the later bits of U
   are, so |X| = k is certain.
3. In the few other cases (a part of about 2 * table / 2^64 of the draws; the tail behind the table is one of them) 64
   more bits of U are drawn and F is computed to 64 more bits, until the case is decided. That ends with probability 1.

So the sample is a function of U, and follows the distribution exactly if the bits are fair. The bound of step 2 is
proven with integers, at a number of binary places that makes it hold. With w(k) = exp(-k^2 / (2 sigma^2)) and
r(k) = exp(-(2k + 1) / (2 sigma^2)), w(k + 1) = w(k) r(k) and r(k + 1) = r(k) exp(-1 / sigma^2). Rounding each product
down keeps lower bounds; since all factors are at most 1, errors, in units of the last place, only add: at most
3 (k + 1) for r(k), 2 (k + 1)^2 for w(k), and 4 (k + 1)^3 for w(0) + 2 w(1) + ... + 2 w(k). What lies behind the table
is less than a geometric series.

Look-ups depend on the samples, so this is not constant-time with respect to caches.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError

RandomBytes = Callable[[int], bytes]
Integers = np.ndarray[Any, np.dtype[np.int64]]

MAX_VARIANCE = 1 << 36  # a table of about 3 million entries: 26 MB and a second or two, once
_WORD_BITS = 64
_PIECE = 1 << 18


class DiscreteGaussian:
    """A sampler for one variance.

    Args:
        variance: sigma^2, the parameter of the distribution: positive, at most `MAX_VARIANCE`. (The variance proper is
            a little smaller; for sigma >= 1 by less than 10^-6 of it.)

    Raises:
        LocalProtocolError: another variance.
    """

    def __init__(self, variance: Fraction | int) -> None:
        if not 0 < variance <= MAX_VARIANCE:
            raise LocalProtocolError(f"a noise variance of {variance}", f"above 0, at most {MAX_VARIANCE}")
        self._variance = Fraction(variance)
        self._table = np.array(_thresholds(self._variance, _WORD_BITS), dtype=np.uint64)

    def sample(self, count: int, random_bytes: RandomBytes = secrets.token_bytes) -> Integers:
        """Draw independent samples, shape (count,).

        Args:
            count: how many.
            random_bytes: a cryptographic generator, n -> n bytes; the operating system's unless a test replaces it.
        """
        samples = np.empty(count, dtype=np.int64)
        for start in range(0, count, _PIECE):
            part = samples[start : start + _PIECE]
            part[:] = self._magnitudes(len(part), random_bytes)
            signs = np.frombuffer(random_bytes(-(-len(part) // 8)), dtype=np.uint8)
            np.negative(part, out=part, where=np.unpackbits(signs, count=len(part)).astype(bool))
        return samples

    def _magnitudes(self, count: int, random_bytes: RandomBytes) -> Integers:
        words = np.frombuffer(random_bytes(8 * count), dtype="<u8").astype(np.uint64)
        found = np.searchsorted(self._table, words, side="right")
        before = self._table[np.maximum(found, 1) - 1]
        undecided = (found == len(self._table)) | ((found > 0) & (words - before < 2))
        for place in np.flatnonzero(undecided):
            found[place] = _settle(self._variance, int(words[place]), random_bytes)
        return found


@lru_cache(maxsize=8)
def discrete_gaussian(variance: int) -> DiscreteGaussian:
    """The sampler of a variance; its table is made once."""
    return DiscreteGaussian(variance)


def _settle(variance: Fraction, word: int, random_bytes: RandomBytes) -> int:
    """|X| for a U that starts with these 64 bits: more bits of U and of F until it is certain."""
    bits = _WORD_BITS
    while True:
        word = word << _WORD_BITS | int.from_bytes(random_bytes(_WORD_BITS // 8), "little")
        bits += _WORD_BITS
        previous = -2
        for magnitude, threshold in enumerate(_thresholds(variance, bits)):
            if word < threshold:
                if word >= previous + 2:
                    return magnitude
                break
            previous = threshold


def _thresholds(variance: Fraction, bits: int) -> list[int]:
    """t(0), t(1), ... with t(k) <= 2^bits F(k) < t(k) + 2, until less than 2^-bits of the probability is left."""
    weight = bits + 8 + math.ceil(variance).bit_length()
    last = math.isqrt(math.ceil(Fraction(7, 5) * weight * variance)) + 2  # w(last) < 2^-weight, as 2 log 2 < 7/5
    places = bits + 8 + 3 * (last + 2).bit_length()
    error = 4 * (last + 2) ** 3
    ratio, step = (_exp_of_minus(Fraction(part) / variance, places) for part in (Fraction(1, 2), 1))
    one = 1 << places
    term, total = one, one
    totals = [total]
    for _ in range(last):
        term = term * ratio >> places
        ratio = ratio * step >> places
        total += 2 * term
        totals.append(total)
    following = (term * ratio >> places) + error
    tail = 2 * (following * one // (one - ratio - error) + 1)
    if (2 * error + tail) << bits > total:
        raise AssertionError("the table's error bound does not hold")
    whole = total + error + tail
    return [(partial << bits) // whole for partial in totals]


def _exp_of_minus(exponent: Fraction, places: int) -> int:
    """An integer e with e <= 2^places exp(-exponent) < e + 2, from the alternating series."""
    parts = max(1, math.ceil(exponent))
    small = exponent / parts
    tolerance = Fraction(1, 1 << (places + 2 + parts.bit_length()))
    term, total, order = Fraction(1), Fraction(0), 0
    while order % 2 == 1 or term > tolerance:  # ends after a negative term: a lower bound
        total += term if order % 2 == 0 else -term
        order += 1
        term *= small / order
    return math.floor(total**parts * (1 << places))
