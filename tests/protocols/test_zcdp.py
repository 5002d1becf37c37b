"""Accounting against closed forms, an independent computation and the dp-accounting package."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

from codream_protocols.errors import LocalProtocolError
from codream_protocols.zcdp import distributed_rho, epsilon_of, rho_of, sum_inflation

GRID = [
    (multiplier, steps, delta) for multiplier in (0.7, 2.0, 10.0, 60.0) for steps in (1, 44) for delta in (1e-5, 1e-8)
]


def gaussian_rho(sensitivity_squared: float, variance: float) -> float:
    """rho of the Gaussian mechanism, continuous or discrete."""
    return sensitivity_squared / (2 * variance)


def test_wide_shares_cost_what_one_gaussian_of_their_total_variance_costs() -> None:
    for shares in (1, 2, 150):
        assert distributed_rho(9.0, 400.0, shares, 10_000) == pytest.approx(
            gaussian_rho(9.0, shares * 400.0), rel=1e-12
        )


def test_one_share_is_a_discrete_gaussian_itself() -> None:
    assert sum_inflation(0.01, 1) == 0
    assert distributed_rho(1.0, 0.5, 1, 10**6) == pytest.approx(1.0)


@pytest.mark.parametrize("variance", [0.3, 0.6, 1.0])
def test_narrow_shares_pay_for_not_being_one_discrete_gaussian(variance: float) -> None:
    """Theorem 1 written out for three shares."""
    tau = 10 * (math.exp(-(math.pi**2) * variance) + math.exp(-4 / 3 * math.pi**2 * variance))
    assert sum_inflation(variance, 3) == pytest.approx(tau)
    first = math.sqrt(4 / (3 * variance) + 2 * tau * 50)
    second = 2 / math.sqrt(3 * variance) + tau * math.sqrt(50)
    assert distributed_rho(4.0, variance, 3, 50) == pytest.approx(min(first, second) ** 2 / 2)
    assert distributed_rho(4.0, variance, 3, 50) > gaussian_rho(4.0, 3 * variance)


def divergence(order: float, variance: float, shares: int, shift: int) -> float:
    """Renyi divergence between the sum of shares and the same moved by `shift`, by convolution."""
    reach = 40
    support = np.arange(-reach, reach + 1)
    share = np.exp(-(support**2) / (2 * variance))
    total = share / share.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, share / share.sum())
    middle = len(total) // 2
    wide = total[middle - 20 : middle + 21]
    moved = total[middle - 20 - shift : middle + 21 - shift]
    return float(np.log((moved**order * wide ** (1 - order)).sum()) / (order - 1))


@pytest.mark.parametrize("variance", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("shift", [1, 2])
def test_the_theorem_bounds_the_divergence_of_real_sums(variance: float, shift: int) -> None:
    """For 3 shares the divergence is computed from the distribution itself, with no theorem."""
    rho = distributed_rho(shift**2, variance, 3, 1)
    for order in (1.5, 2.0, 4.0):
        assert divergence(order, variance, 3, shift) <= rho * order


def test_conversion_agrees_with_the_definition() -> None:
    """delta(epsilon) of the same proposition, at the order that minimises it, gives the delta back."""
    for rho in (1e-4, 0.03, 0.5, 8.0):
        epsilon = epsilon_of(rho, 1e-6)
        alpha = 1 + np.exp(np.linspace(-10, 25, 2_000_001))
        log_delta = (alpha - 1) * (alpha * rho - epsilon) - np.log(alpha - 1) + alpha * np.log1p(-1 / alpha)
        assert math.exp(log_delta.min()) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(("multiplier", "steps", "delta"), GRID)
def test_epsilon_agrees_with_dp_accounting(multiplier: float, steps: int, delta: float) -> None:
    """Within 1 % of its RDP on fine orders, and never below the tight value of its privacy-loss distributions."""
    rho = steps * gaussian_rho(1.0, multiplier**2)
    ours = epsilon_of(rho, delta)
    orders = 1 + np.exp(np.linspace(-4, 12, 3000))
    accountant = RdpAccountant(orders=list(orders)).compose(dp_event.GaussianDpEvent(multiplier), steps)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=0.01)
    tight = privacy_loss_distribution.from_gaussian_mechanism(multiplier / steps**0.5, sensitivity=1.0)
    assert tight.get_epsilon_for_delta(delta) <= ours * (1 + 1e-3)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_rho_of_is_the_inverse_and_never_spends_more(epsilon: float, delta: float) -> None:
    rho = rho_of(epsilon, delta)
    assert epsilon_of(rho, delta) <= epsilon
    assert epsilon_of(rho * (1 + 1e-6), delta) > epsilon


def test_nothing_spent_is_nothing() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0


@pytest.mark.parametrize(("rho", "delta"), [(-1.0, 1e-5), (math.nan, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_impossible_budgets_are_refused(rho: float, delta: float) -> None:
    with pytest.raises(LocalProtocolError):
        epsilon_of(rho, delta)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_impossible_epsilons_are_refused(epsilon: float) -> None:
    with pytest.raises(LocalProtocolError):
        rho_of(epsilon, 1e-5)
