"""Privacy accounting: what a list of Gaussian mechanisms costs together, and how much noise a budget asks for.

Everything private that a client does is a Poisson-sampled Gaussian mechanism: a step of DP-SGD, or, with sample rate 1,
a noisy histogram or sum. Neighbours differ in one record, added or removed. Two accountants of Opacus bound epsilon:

    prv   numerical composition of privacy loss random variables (Gopi, Lee and Wutschitz, NeurIPS 2021): the claim
    rdp   Renyi divergences (Mironov, Talwar and Zhang, arXiv 1908.10530; conversion of Balle et al., AISTATS 2020):
          looser and simpler, the second opinion

Both give upper bounds. Where prv cannot be computed (an epsilon of hundreds overflows; some 10^8 steps do not fit into
memory) rdp takes its place, so that the answer is always a bound, at times a looser one.

In the ring (`codream_protocols.record_noise`) the noise is a sum of discrete Gaussians, of which neither is a bound.
What holds such a charge is counted as a whole by Renyi divergences of integer orders (`codream_protocols.renyi`),
whatever accountant was asked for; of a continuous Gaussian they are as true.

A third, "zcdp", is for client-level noise, which is accounted for in zero-concentrated differential privacy alone
(`codream_protocols.zcdp`): there a charge stands for whatever has the rho of a Gaussian mechanism with that noise.

Opacus and scipy are imported where they compute: that takes longer than torch, and most only read a ledger here.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from codream_clients.privacy.settings import AccountantName as AccountantName
from codream_protocols import renyi, zcdp
from codream_protocols.record_noise import RecordNoise, record_rho

AnyAccountant = Literal["prv", "rdp", "zcdp"]

MAX_STEPS = 10**9
MAX_PURPOSE = 200
ORDERS = (*(tenths / 10 for tenths in range(11, 110)), *range(12, 65), 80, 96, 128, 160, 192, 256, 384, 512, 1024)
"""Renyi orders: up to 63 Opacus's own; those above matter for epsilons below 1."""
RELATIVE_ERROR = 0.003
"""By how much of epsilon the prv bound may lie above the truth, until `LARGEST_ERROR` bounds it."""
LARGEST_ERROR = 0.01
MOST_CELLS = 1 << 22
"""The longest array on which prv may compose; beyond it the grid is coarsened, up to `COARSEST_ERROR`."""
COARSEST_ERROR = 0.5
LARGEST_EPSILON = 300.0
"""Where the privacy loss would overflow in prv's exponentials, beside its margins."""
LEAST_NOISE, MOST_NOISE = 1e-2, 1e6
"""The noise multipliers among which `solve_noise_multiplier` looks."""
PRECISION = 1e-3


class AccountingError(ValueError):
    """A mechanism or a budget that cannot be accounted for; the text says what was found and what is allowed."""


@dataclass(frozen=True)
class SampledGaussian:
    """One Poisson-sampled Gaussian mechanism, run `steps` times. Raises `AccountingError` for values out of range.

    Attributes:
        noise_multiplier: deviation of the noise over the sensitivity, finite and above 0.
        sample_rate: with which probability a record takes part in a step, in (0, 1]; 1 is the plain Gaussian mechanism.
        steps: how often, 1 to 10^9.
        purpose: for a reader: "warm-up", "round 3", "label histogram"; printable, at most 200 characters.
        discrete: whether the noise is of the ring, a sum of discrete Gaussians: then only what zCDP says of it is
            known, and `noise_multiplier` is that of the Gaussian mechanism of the same zCDP.
        whole: whether its sensitivity is that of all of a client's records at once, so that several of a person cost no
            more than one.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    purpose: str
    discrete: bool = field(default=False, repr=False)  # what was released is kept under a charge's representation
    whole: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise AccountingError(f"noise_multiplier is {self.noise_multiplier}; a finite number above 0 is needed")
        if not 0 < self.sample_rate <= 1:
            raise AccountingError(f"sample_rate is {self.sample_rate}; (0, 1] is allowed")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise AccountingError(f"steps is {self.steps!r}; a whole number from 1 to {MAX_STEPS} is needed")
        if not (0 < len(self.purpose) <= MAX_PURPOSE and self.purpose.isprintable()):
            raise AccountingError(
                f"purpose has {len(self.purpose)} characters; 1 to {MAX_PURPOSE} printable are needed"
            )


def epsilon_of(charges: Sequence[SampledGaussian], delta: float, accountant: AnyAccountant = "prv") -> float:
    """An upper bound on epsilon, at `delta` in (0, 1), of all `charges` together; 0 for none, in any order the same.

    Raises `AccountingError` if delta or the accountant is none, or no finite bound can be computed.
    """
    _check_delta(delta)
    if accountant not in get_args(AnyAccountant):
        raise AccountingError(f"accountant is {accountant!r}; {' or '.join(get_args(AnyAccountant))} is allowed")
    if accountant == "zcdp":
        return zcdp.epsilon_of(concentrated_rho(charges), delta)
    if any(charge.discrete for charge in charges):
        return _integer_orders(charges, delta)
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[float(charge.noise_multiplier), float(charge.sample_rate)] += charge.steps
    if not steps:
        return 0.0
    history = tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items()))
    bound = _renyi(history, delta)
    if accountant == "prv":
        bound = min(bound, _numerical(history, delta))
    if not math.isfinite(bound):
        raise AccountingError(
            f"no finite epsilon at delta {delta:g} for (noise multiplier, sample rate, steps) {list(history)}; "
            "more noise is needed"
        )
    return max(bound, 0.0)


def of_records(noise: RecordNoise, length: int, sample_rate: float, purpose: str) -> SampledGaussian:
    """The charge of one step in the ring, for a vector of `length` coordinates."""
    return SampledGaussian(1 / math.sqrt(2 * record_rho(noise, length)), sample_rate, 1, purpose, discrete=True)


def _integer_orders(charges: Sequence[SampledGaussian], delta: float) -> float:
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sample_rate] += charge.steps
    # In one order, whatever the charges' was: sums of doubles hang on it.
    costs = [count * renyi.divergences(1 / (2 * noise**2), rate) for (noise, rate), count in sorted(steps.items())]
    return renyi.epsilon_of(np.sum(costs, axis=0), delta)


def of_sum(rho: float, purpose: str) -> SampledGaussian:
    """The charge of a noised sum of clients' vectors that costs a record `rho` above 0 in zCDP, whatever changes."""
    return SampledGaussian(1 / math.sqrt(2 * rho), 1.0, 1, purpose, discrete=True, whole=True)


def of_rho(rho: float, purpose: str) -> SampledGaussian:
    """The charge of a mechanism that costs `rho` above 0 in zCDP."""
    return SampledGaussian(1 / math.sqrt(2 * rho), 1.0, 1, purpose)


def concentrated_rho(charges: Sequence[SampledGaussian]) -> float:
    """What `charges` cost together in zCDP. Raises `AccountingError` if one is sampled: zCDP gains nothing by it."""
    if any(charge.sample_rate < 1 for charge in charges):
        raise AccountingError("a sampled charge under accountant 'zcdp'; a sample_rate of 1 is allowed")
    return math.fsum(charge.steps / (2 * charge.noise_multiplier**2) for charge in charges)


def solve_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    others: Sequence[SampledGaussian] = (),
    accountant: AccountantName = "prv",
) -> float:
    """The smallest noise multiplier with which `steps` at `sample_rate`, and `others`, stay within `target_epsilon`.

    Within 0.1 % of the smallest, and never below it: the bound at what is returned is at most the target.
    Raises `AccountingError` for values out of range, or if the others alone, or all noise up to 10^6, pass the target.
    """
    from scipy.optimize import brentq

    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise AccountingError(f"target_epsilon is {target_epsilon}; a finite number above 0 is needed")
    already = epsilon_of(others, delta, accountant)
    if already >= target_epsilon:
        raise AccountingError(
            f"the other mechanisms alone spend epsilon {already:.4g} of {target_epsilon:g}; give them more noise"
        )

    def excess(log_noise: float) -> float:
        """log(epsilon / target): nearly a straight line."""
        charge = SampledGaussian(math.exp(log_noise), sample_rate, steps, "solved for")
        return math.log(max(epsilon_of([*others, charge], delta, accountant), 1e-300) / target_epsilon)

    high = 0.0
    while excess(high) > 0:
        high += math.log(2)
        if high > math.log(MOST_NOISE):
            raise AccountingError(f"epsilon {target_epsilon:g} is out of reach with noise up to {MOST_NOISE:g}")
    low = high - math.log(2)
    while excess(low) <= 0:
        high, low = low, low - math.log(2)
        if high < math.log(LEAST_NOISE):
            return math.exp(high)
    solution = float(brentq(excess, low, high, xtol=PRECISION / 4))
    while excess(solution) > 0:
        solution += PRECISION / 4
    return math.exp(solution)


_History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sample rate, steps) of each mechanism, as Opacus writes it; sorted, so that it can be cached."""


@lru_cache(maxsize=1024)
def _renyi(history: _History, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest": the bound holds all the same
        return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


@lru_cache(maxsize=1024)
def _numerical(history: _History, delta: float) -> float:
    """The prv bound, or infinity where it cannot be computed."""
    rough = _renyi(history, delta)
    if not 0 < rough <= LARGEST_EPSILON:
        return math.inf
    error = max(min(RELATIVE_ERROR * rough, LARGEST_ERROR), _finest_error(history, delta))
    if error > COARSEST_ERROR:
        return math.inf
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        # A sample rate of 1 takes log(0) for "no lower end", which numpy warns of.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            bound = float(accountant.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError, ArithmeticError):
        return math.inf
    return math.inf if math.isnan(bound) else bound


def _finest_error(history: _History, delta: float) -> float:
    """The least `eps_error` with which prv's grid has at most `MOST_CELLS` cells.

    Cells are as wide as eps_error / sqrt(steps * log(12 / delta_error) / 2), with delta_error = delta / 1000, and
    reach as far as epsilon at delta_error / 4, either way.
    """
    delta_error = delta / 1000
    reach = _renyi(history, delta_error / 8) + 4
    steps = sum(count for _, _, count in history)
    return 2 * reach * math.sqrt(steps * math.log(12 / delta_error) / 2) / MOST_CELLS


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise AccountingError(
            f"delta is {delta}; (0, 1) is allowed, and wise is less than one over the number of records"
        )
