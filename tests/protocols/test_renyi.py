"""The claim of a sampled sum with discrete noise is a bound: held against divergences of the distribution itself."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from codream_protocols import renyi
from codream_protocols.errors import LocalProtocolError
from codream_protocols.zcdp import distributed_rho

Law = np.ndarray[Any, np.dtype[np.float64]]
REACH = 400


def noise(variance: float, shares: int) -> Law:
    """The law of a sum of discrete Gaussians on -REACH .. REACH."""
    place = np.arange(-REACH, REACH + 1)
    one = np.exp(-(place**2) / (2 * variance))
    return reduce(lambda a, b: np.convolve(a, b)[REACH : REACH + len(place)], [one / one.sum()] * shares)


def pair(variance: float, shares: int, sensitivity: int, rate: float) -> tuple[Law, Law]:
    """What a step gives without a record, and with it, where both are far from underflow."""
    without = noise(variance, shares)
    moved = np.roll(without, sensitivity)
    kept = slice(sensitivity, -sensitivity)
    without, moved = np.maximum(without[kept], 1e-300), np.maximum(moved[kept], 1e-300)
    return without, (1 - rate) * without + rate * moved


def divergence(one: Law, other: Law, order: int) -> float:
    return math.log(float((np.exp(order * np.log(one) - (order - 1) * np.log(other))).sum())) / (order - 1)


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0])
@pytest.mark.parametrize(("variance", "shares", "sensitivity"), [(4.0, 1, 2), (4.0, 3, 5), (30.0, 2, 6)])
def test_no_divergence_of_the_distribution_itself_lies_above_the_claim(
    variance: float, shares: int, sensitivity: int, rate: float
) -> None:
    """Either way; and the claim is no more than 2 % above, where sums of discrete Gaussians are near one."""
    without, with_it = pair(variance, shares, sensitivity, rate)
    claims = renyi.divergences(distributed_rho(sensitivity**2, variance, shares, 1), rate)
    for order, claim in zip(renyi.ORDERS[:15], claims, strict=False):
        there, back = divergence(with_it, without, order), divergence(without, with_it, order)
        assert max(there, back) <= claim * (1 + 1e-9) + 1e-12
        assert there >= claim * 0.98


@pytest.mark.parametrize("steps", [1, 2])
def test_no_event_is_likelier_than_epsilon_and_delta_allow(steps: int) -> None:
    """The least epsilon of all, by sums over every outcome of one step, and of two together."""
    without, with_it = pair(4.0, 3, 5, 0.3)
    delta = 1e-4
    claim = renyi.epsilon_of(steps * renyi.divergences(distributed_rho(25, 4.0, 3, 1), 0.3), delta)
    one, other = without, with_it
    if steps == 2:
        one, other = np.outer(one, one).ravel(), np.outer(other, other).ravel()
    for first, second in ((one, other), (other, one)):
        assert np.maximum(first - math.exp(claim) * second, 0).sum() <= delta
    assert np.maximum(other - math.exp(claim / 3) * one, 0).sum() > delta, "the control: a third would be too little"


def test_of_continuous_noise_it_is_opacus_at_the_same_orders() -> None:
    for multiplier, rate in ((0.8, 0.0133), (1.5, 0.2), (4.0, 1.0)):
        ours = renyi.divergences(1 / (2 * multiplier**2), rate)
        theirs = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=list(renyi.ORDERS[:40]))
        assert ours[:40] == pytest.approx(np.array(theirs), rel=1e-6, abs=1e-9)
        converted, _ = get_privacy_spent(orders=list(renyi.ORDERS), rdp=list(50 * ours), delta=1e-5)
        assert renyi.epsilon_of(50 * ours, 1e-5) == pytest.approx(converted)


def test_noise_is_the_least_on_its_grid_that_keeps_the_budget() -> None:
    for epsilon, rate, steps in ((4.0, 0.0133, 500), (0.5, 0.1, 100), (8.0, 1.0, 20)):
        multiplier = renyi.multiplier_for(epsilon, 1e-5, rate, steps)

        def spent(noise: float, rate: float = rate, steps: int = steps) -> float:
            return renyi.epsilon_of(steps * renyi.divergences(1 / (2 * noise**2), rate), 1e-5)

        assert spent(multiplier) <= epsilon < spent(multiplier - 1 / renyi.GRID)
        assert multiplier * renyi.GRID == int(multiplier * renyi.GRID)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="rate"):
        renyi.divergences(1.0, 0.0)
    with pytest.raises(LocalProtocolError, match="delta"):
        renyi.epsilon_of(renyi.divergences(1.0, 0.5), 1.0)
    with pytest.raises(LocalProtocolError, match="epsilon 1e-09 at delta 1e-12"):
        renyi.multiplier_for(1e-9, 1e-12, 1.0, 10**9)
