"""Accounting in zero-concentrated differential privacy: rho of one noised sum, composition, and (epsilon, delta).

rho-zCDP (Bun and Steinke, TCC 2016) bounds the Renyi divergence of every order alpha > 1 by rho * alpha; over steps,
rho adds up, also where later steps depend on what earlier ones revealed. What the papers call 1/2 e^2-concentrated is
rho = e^2 / 2.
"""

from __future__ import annotations

import math

import numpy as np

from codream_protocols.errors import LocalProtocolError


def sum_inflation(variance: float, shares: int) -> float:
    """tau: how far a sum of discrete Gaussians is from one (Kairouz, Liu, Steinke, ICML 2021, theorem 1).

    Args:
        variance: of each share, in units of the integer grid.
        shares: how many are added.
    """
    orders = np.arange(1, shares)
    return 10 * float(np.exp(-2 * math.pi**2 * variance * orders / (orders + 1)).sum())


def distributed_rho(sensitivity_squared: float, variance: float, shares: int, coordinates: int) -> float:
    """Rho of a sum of integer vectors to which `shares` parties add discrete Gaussian noise each.

    Kairouz, Liu, Steinke (ICML 2021), theorem 1: e^2 / 2 with
    e = min(sqrt(D^2 / (n s^2) + 2 tau d), D / (sqrt(n) s) + tau sqrt(d)).

    Args:
        sensitivity_squared: D^2, the largest squared norm of one party's integer vector.
        variance: s^2 of each share.
        shares: n, how many shares are surely in the sum and unknown to the observer; at least 1.
        coordinates: d.
    """
    tau = sum_inflation(variance, shares)
    scaled = sensitivity_squared / (shares * variance)
    added = scaled + 2 * tau * coordinates
    return min(added, (math.sqrt(scaled) + tau * math.sqrt(coordinates)) ** 2) / 2


def epsilon_of(rho: float, delta: float) -> float:
    """The epsilon that rho-zCDP gives at a delta in (0, 1).

    Canonne, Kamath, Steinke (NeurIPS 2020), proposition 12: for every order alpha > 1,
    epsilon = rho alpha + log(1 - 1/alpha) - log(delta alpha) / (alpha - 1); the least one is taken. Any order gives a
    valid bound, so a search that missed the best one would err on the safe side.

    Raises:
        LocalProtocolError: rho is negative or not finite, or delta is not in (0, 1).
    """
    if not (0 <= rho < math.inf and 0 < delta < 1):
        raise LocalProtocolError(f"rho {rho} and delta {delta}", "a finite rho of at least 0, a delta in (0, 1)")
    if rho == 0:
        return 0.0
    low, high = -20.0, 60.0  # of log(alpha - 1)
    for _ in range(4):
        grid = np.linspace(low, high, 1001)
        excess = np.exp(grid)  # alpha - 1
        epsilons = rho * (1 + excess) + grid - np.log1p(excess) - (math.log(delta) + np.log1p(excess)) / excess
        best = int(np.argmin(epsilons))
        low, high = float(grid[max(0, best - 1)]), float(grid[min(1000, best + 1)])
    return max(0.0, float(epsilons[best]))


def rho_of(epsilon: float, delta: float) -> float:
    """The largest rho whose `epsilon_of` at `delta` is at most `epsilon` (above 0), to 12 digits and never more."""
    if not 0 < epsilon < math.inf:
        raise LocalProtocolError(f"epsilon {epsilon}", "a finite number above 0")
    low, high = 0.0, epsilon  # epsilon-DP is epsilon^2/2-zCDP; and rho alone already costs more than rho
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low
