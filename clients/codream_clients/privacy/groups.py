"""What charges cost a person who has several records among them.

All k of a person's records may be there or not. In a step of Poisson sampling J of them take part, J ~ Binomial(k, q),
and the clipped sum moves by up to J, in units of the clipping bound. So a mixture of Gaussians N(J, s^2) beside
N(0, s^2) dominates the step, in both directions, and such pairs compose (Choquette-Choo, Ganesh, Steinke and Thakurta,
ICLR 2024, "Privacy amplification for matrix mechanisms"). Their Renyi divergences are integrals over one axis, computed
here on a grid; what they give together is converted as `accounting`'s second opinion is. Only some orders are taken,
which makes the bound looser, never wrong; `dp-accounting`'s privacy loss distribution of the same pair lies below it in
a test.

Noise of the ring is a sum of discrete Gaussians, each of a deviation of 8 or more in units of its grid. These
divergences are sums over that grid of a function that is analytic far beyond it, so they are the integrals but for a
part below 10^-100 (Poisson's summation formula): for them the continuous law stands in.

A noised sum of clients' vectors (`SampledGaussian.whole`) costs k records what it costs one: its sensitivity is that of
any change of the client's data.

Multiplying epsilon by k instead would be valid at a far larger delta.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from codream_clients.privacy.accounting import SampledGaussian

Floats = NDArray[np.float64]

ORDERS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0)
REACH = 14.0
"""Deviations beyond all peaks at which the grid ends: less than 10^-40 lies there."""
FINENESS = 8
"""Steps of the grid in a deviation; the trapezoidal rule on sums of Gaussians is exact but for 10^-50 of it."""


def group_epsilon(charges: Sequence[SampledGaussian], delta: float, records: int) -> float:
    """An upper bound on epsilon at `delta`, in (0, 1), for all `records` (1 or more) of a person together."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    steps: Counter[tuple[float, float, int]] = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sample_rate, 1 if charge.whole else records] += charge.steps
    if not steps:
        return 0.0
    costs = [count * _divergences(*mechanism) for mechanism, count in steps.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the smallest": the bound holds all the same
        epsilon, _ = get_privacy_spent(orders=list(ORDERS), rdp=list(np.sum(costs, axis=0)), delta=delta)
    return float(max(epsilon, 0.0))


@lru_cache(maxsize=256)
def _divergences(noise: float, rate: float, records: int) -> Floats:
    """Of each order, the larger of both directions' divergence for one step."""
    if rate == 1.0:
        return np.array([order * records**2 / (2 * noise**2) for order in ORDERS])
    count = np.arange(records + 1)
    chances = gammaln(records + 1) - gammaln(count + 1) - gammaln(records - count + 1)
    weights = chances + count * math.log(rate) + (records - count) * math.log1p(-rate)
    found = np.empty(len(ORDERS))
    for place, order in enumerate(ORDERS):
        end = order * records + REACH * noise
        grid = np.linspace(-end, end, 2 * math.ceil(end / noise * FINENESS) + 1)
        density = -0.5 * (grid / noise) ** 2 - math.log(noise * math.sqrt(2 * math.pi)) + math.log(grid[1] - grid[0])
        ratio = np.full_like(grid, -np.inf)
        for shift, weight in zip(count, weights, strict=True):
            ratio = np.logaddexp(ratio, weight + (2 * shift * grid - shift**2) / (2 * noise**2))
        there = logsumexp(density + order * ratio)
        back = logsumexp(density + (1 - order) * ratio)
        found[place] = max(there, back, 0.0) / (order - 1)
    return found
