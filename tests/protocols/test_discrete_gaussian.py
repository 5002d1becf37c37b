"""The sampler against the exact distribution, with samplers that are a little wrong as controls."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from codream_protocols.discrete_gaussian import MAX_VARIANCE, DiscreteGaussian, _exp_of_minus, _thresholds
from codream_protocols.errors import LocalProtocolError

VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(41, 4), Fraction(400), Fraction(10**6)]


def p_value(samples: np.ndarray, variance: float) -> float:
    """Pearson's chi-square test against the exact probabilities; at most 300 bins, each expecting 20 or more."""
    reach = math.ceil(8 * variance**0.5) + 2
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-(support**2) / (2 * variance))
    expected = len(samples) * weights / weights.sum()
    observed = np.bincount(np.clip(samples, -reach, reach) + reach, minlength=len(support))
    assert observed.sum() == len(samples)
    bins = np.cumsum(expected) // max(20, len(samples) / 300)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    if len(starts) > 1 and expected[starts[-1] :].sum() < 20:
        starts = starts[:-1]
    wanted, found = np.add.reduceat(expected, starts), np.add.reduceat(observed, starts)
    assert len(wanted) >= 3 and wanted.min() >= 20
    return float(chi2.sf(((found - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_samples_fit_the_exact_distribution(variance: Fraction) -> None:
    samples = DiscreteGaussian(variance).sample(1_000_000, seeded(1))
    assert p_value(samples, float(variance)) > 1e-3


@pytest.mark.parametrize(
    "variance",
    [pytest.param(value, marks=pytest.mark.exhaustive, id=str(value)) for value in VARIANCES]
    + [pytest.param(Fraction(224_820_827), id="five clients at epsilon 1")],
)
def test_ten_million_samples_of_the_systems_generator_fit_the_exact_distribution(variance: Fraction) -> None:
    samples = DiscreteGaussian(variance).sample(10_000_000)
    assert p_value(samples, float(variance)) > 1e-6


@pytest.mark.parametrize("variance", VARIANCES[1:], ids=str)
def test_the_fit_control_rejects_a_deviation_that_is_one_percent_off(variance: Fraction) -> None:
    samples = DiscreteGaussian(variance * Fraction(101, 100) ** 2).sample(1_000_000, seeded(1))
    assert p_value(samples, float(variance)) < 1e-6


@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_the_fit_control_rejects_a_rounded_gaussian(variance: float) -> None:
    """What floating point suggests. It is narrower in the middle: rounding adds a variance of its own."""
    rounded = np.rint(np.random.default_rng(0).normal(scale=variance**0.5, size=1_000_000)).astype(np.int64)
    assert p_value(rounded, variance) < 1e-6


# -- exactness ---------------------------------------------


def exact_distribution(variance: Fraction, most: int) -> list[Decimal]:
    """F(0), F(1), ... of |X| to about 75 digits."""
    getcontext().prec = 90
    ratio = -Decimal(variance.denominator) / (2 * Decimal(variance.numerator))
    reach = math.isqrt(math.ceil(400 * variance)) + 20
    weights = [(ratio * (k * k)).exp() * (1 if k == 0 else 2) for k in range(reach)]
    whole, total, found = sum(weights), Decimal(0), []
    for weight in weights[: most + 1]:
        total += weight
        found.append(total / whole)
    return found


@pytest.mark.parametrize("bits", [64, 128])
@pytest.mark.parametrize("variance", [Fraction(1, 50), *VARIANCES[:4], Fraction(12_345, 7)], ids=str)
def test_thresholds_keep_their_proven_bound(variance: Fraction, bits: int) -> None:
    thresholds = _thresholds(variance, bits)
    exact = exact_distribution(variance, len(thresholds) - 1)
    for threshold, value in zip(thresholds, exact, strict=True):
        scaled = value * (1 << bits)
        assert threshold <= scaled < threshold + 2
    assert 1 - exact[-1] < Decimal(2) ** -bits


@pytest.mark.parametrize("exponent", [Fraction(1, 10**9), Fraction(1, 2), Fraction(1), Fraction(19, 3), Fraction(50)])
def test_exponential_is_a_lower_bound_within_two_units(exponent: Fraction) -> None:
    getcontext().prec = 90
    exact = (-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp() * (1 << 200)
    assert _exp_of_minus(exponent, 200) <= exact < _exp_of_minus(exponent, 200) + 2


def scripted(*words: int) -> Callable[[int], bytes]:
    """Gives these words in turn, then zeros (positive signs)."""
    data = bytearray(b"".join(word.to_bytes(8, "little") for word in words))

    def take(count: int) -> bytes:
        taken = bytes(data[:count]).ljust(count, b"\0")
        del data[:count]
        return taken

    return take


@pytest.mark.parametrize("variance", [Fraction(1), Fraction(41, 4)], ids=str)
def test_a_word_that_does_not_decide_is_refined_by_more_bits(variance: Fraction) -> None:
    """U next to F(k): the table says nothing, and the answer is that of exact arithmetic."""
    exact = exact_distribution(variance, 3)
    table = _thresholds(variance, 64)
    sampler = DiscreteGaussian(variance)
    half = 1 << 63
    for place in range(3):
        for first in (table[place] - 1, table[place], table[place] + 1, table[place] + 2):
            for second in (0, 1, half, (1 << 64) - 1):
                uniform = Decimal((first << 64) + second) / (1 << 128)  # later bits do not matter here
                expected = next(k for k, value in enumerate(exact) if uniform < value)
                assert abs(sampler.sample(1, scripted(first, second))) == [expected]  # of a decided one, the sign
    # The very 128 bits of F(1), rounded down: only the third word decides.
    rounded = int(exact[1] * (1 << 128))
    high, low = divmod(rounded, 1 << 64)
    third = int(exact[1] * (1 << 192)) - (rounded << 64)
    assert abs(sampler.sample(1, scripted(high, low, third - 5))) == [1]
    assert abs(sampler.sample(1, scripted(high, low, third + 5))) == [2]


def test_the_tail_behind_the_table_is_reached() -> None:
    sampler = DiscreteGaussian(1)
    last = (1 << 64) - 1
    assert sampler.sample(1, scripted(last, 0))[0] < sampler.sample(1, scripted(last, last, 0))[0]
    assert 9 <= sampler.sample(1, scripted(last, 0))[0] <= len(_thresholds(Fraction(1), 64)) + 1


def test_the_generator_is_the_systems_unless_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = DiscreteGaussian(100)
    assert (sampler.sample(64) != sampler.sample(64)).any()
    assert (sampler.sample(64, seeded(3)) == sampler.sample(64, seeded(3))).all()
    assert DiscreteGaussian.sample.__defaults__ == (secrets.token_bytes,)


@pytest.mark.parametrize("variance", [0, -1, MAX_VARIANCE + 1])
def test_other_variances_are_refused(variance: int) -> None:
    with pytest.raises(LocalProtocolError, match="variance"):
        DiscreteGaussian(variance)
