"""Accounting of Poisson-sampled sums with noise whose Renyi divergences rho bounds: at integer orders alone.

In a step each record takes part with probability q. With it, the sum is drawn from (1 - q) P + q Q, without it from P,
where the divergence of order j between Q and P, either way, is at most rho j: P is the noise, a sum of discrete
Gaussians, and Q the same noise moved by a record's vector (`zcdp.distributed_rho`). Expanding the power of the mixture,

    D_a((1 - q) P + q Q || P) = 1/(a-1) log sum_j C(a, j) (1-q)^(a-j) q^j E_P[(Q/P)^j]
                             <= 1/(a-1) log sum_j C(a, j) (1-q)^(a-j) q^j exp(j (j-1) rho)

for a = 2, 3, ... (Mironov, Talwar and Zhang, arXiv 1908.10530, for the continuous Gaussian, of which this is an
equality). The other direction is smaller, since a reflection swaps P and Q (their theorem 5). A continuous Gaussian's
numerical composition would be no bound here: a discrete one's loss is a step function, which reaches above it.

Divergences add up over steps, also where later ones depend on what earlier ones revealed, and become (epsilon, delta)
by proposition 12 of Canonne, Kamath and Steinke (NeurIPS 2020); all orders are valid, so the least counts.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError

Floats = np.ndarray[Any, np.dtype[np.float64]]

ORDERS = (*range(2, 65), *range(68, 129, 4), *range(136, 257, 8), 320, 384, 512, 768, 1024)
"""Those at which divergences are bounded; the large ones matter for epsilons below 1."""
GRID = 1 << 12
"""Of noise multipliers: all parties derive the same, whatever their libraries' last bits of a logarithm."""
MOST_MULTIPLIER = 1e6
_LOG_FACTORIALS = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(ORDERS) + 1)))])


@lru_cache(maxsize=256)
def divergences(rho: float, rate: float) -> Floats:
    """Of one step, at each of `ORDERS`, read-only.

    Args:
        rho: of the noise beside a record that surely takes part; 0 or more.
        rate: q, in (0, 1].

    Raises:
        LocalProtocolError: values out of range.
    """
    if not (0 <= rho < math.inf and 0 < rate <= 1):
        raise LocalProtocolError(f"rho {rho} and rate {rate}", "a finite rho of at least 0, a rate in (0, 1]")
    found = np.array([order * rho if rate == 1 else _of_order(order, rho, rate) for order in ORDERS])
    found.flags.writeable = False
    return found


def epsilon_of(total: Floats, delta: float) -> float:
    """The epsilon at `delta`, in (0, 1), of divergences at each of `ORDERS`; infinite where none is finite."""
    if not 0 < delta < 1:
        raise LocalProtocolError(f"delta {delta}", "above 0 and below 1")
    orders = np.array(ORDERS, dtype=np.float64)
    found = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(found.min()))


def multiplier_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier with which `steps` sampled sums cost (epsilon, delta) together, or a little less.

    The multiplier is 1 / sqrt(2 rho), a multiple of 1 / `GRID`, so that all parties derive the same.

    Raises:
        LocalProtocolError: values out of range, or an epsilon out of reach.
    """
    if not (0 < epsilon < math.inf and steps >= 1):
        raise LocalProtocolError(f"epsilon {epsilon} and {steps} steps", "a finite epsilon above 0, 1 step or more")

    def fits(multiple: int) -> bool:
        rho = (GRID / multiple) ** 2 / 2
        return epsilon_of(steps * divergences(rho, rate), delta) <= epsilon

    high = 1
    while not fits(high):
        high *= 2
        if high > MOST_MULTIPLIER * GRID:
            raise LocalProtocolError(
                f"epsilon {epsilon:g} at delta {delta:g} for {steps} steps at rate {rate:g}",
                "one that some noise reaches",
                "a larger epsilon or delta",
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / GRID


def _of_order(order: int, rho: float, rate: float) -> float:
    taken = np.arange(order + 1)
    chances = _LOG_FACTORIALS[order] - _LOG_FACTORIALS[taken] - _LOG_FACTORIALS[order - taken]
    terms = chances + taken * math.log(rate) + (order - taken) * math.log1p(-rate) + taken * (taken - 1) * rho
    largest = float(terms.max())
    return max(0.0, (largest + math.log(float(np.exp(terms - largest).sum()))) / (order - 1))
