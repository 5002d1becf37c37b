"""Means, intervals and gap closure, against closed forms."""

from __future__ import annotations

import math

import pytest

from secure_codream.experiments.estimates import Estimate, estimate, gap_closure, t_quantile


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_t_quantile_of_one_degree_is_cauchys(confidence: float) -> None:
    assert t_quantile(1, confidence) == pytest.approx(math.tan(math.pi * confidence / 2), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_t_quantile_of_two_degrees(confidence: float) -> None:
    assert t_quantile(2, confidence) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_t_quantile_of_four_degrees(confidence: float) -> None:
    alpha = 1 - confidence**2
    q = math.cos(math.acos(math.sqrt(alpha)) / 3) / math.sqrt(alpha)  # Shaw, J. Comp. Fin. 2006
    assert t_quantile(4, confidence) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-10)


def test_t_quantile_matches_the_table_and_tends_to_the_normal() -> None:
    for degrees, expected in {3: 3.182446, 5: 2.570582, 9: 2.262157, 30: 2.042272}.items():
        assert t_quantile(degrees) == pytest.approx(expected, abs=1e-6)
    assert t_quantile(100_001) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_t_quantile_refuses(degrees: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="are allowed"):
        t_quantile(degrees, confidence)


def test_interval_of_three_values() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None and found.mean == 2.0 and found.n == 3
    assert found.half == pytest.approx(t_quantile(2) * 1.0 / math.sqrt(3))


def test_missing_values_and_single_ones() -> None:
    assert estimate([]) is None and estimate([None, None]) is None
    assert estimate([None, 0.5]) == Estimate(0.5, None, 1)
    assert estimate([0.5, 0.5, None]) == Estimate(0.5, 0.0, 2)


def test_gap_closure() -> None:
    assert gap_closure(0.8, 0.6, 0.9) == pytest.approx(2 / 3)
    assert gap_closure(0.5, 0.6, 0.9) == pytest.approx(-1 / 3)
    assert gap_closure(0.8, 0.9, 0.9) is None and gap_closure(0.8, 0.9, 0.8) is None
