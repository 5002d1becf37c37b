"""The accountants against Opacus's own calls, Google's dp-accounting, and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from codream_clients.privacy.accounting import (
    ORDERS,
    AccountingError,
    SampledGaussian,
    epsilon_of,
    solve_noise_multiplier,
)

GRID = [  # (noise multiplier, sample rate, steps, delta): epsilons from 0.3 to 10
    (0.8, 0.001, 5000, 1e-5),
    (0.6, 0.001, 5000, 1e-6),
    (1.0, 0.001, 5000, 1e-6),
    (0.6, 0.001, 100, 1e-5),
    (0.5, 0.001, 1, 1e-6),
    (0.5, 0.001, 500, 1e-5),
    (0.7, 0.004, 1000, 1e-6),
    (1.0, 0.004, 2000, 1e-5),
    (1.0, 0.01, 5000, 1e-5),
    (1.0, 0.01, 1000, 1e-5),
    (0.5, 0.01, 100, 1e-5),
    (0.7, 0.01, 300, 1e-6),
    (2.0, 0.01, 5000, 1e-6),
    (1.0, 0.034, 360, 1e-5),
    (2.5, 0.034, 360, 1e-5),
    (1.5, 0.034, 1000, 1e-6),
    (0.8, 0.05, 20, 1e-5),
    (0.6, 0.05, 1, 1e-6),
    (4.0, 0.1, 500, 1e-5),
    (2.0, 0.1, 200, 1e-6),
    (10.0, 0.1, 1000, 1e-6),
    (1.2, 0.1, 10, 1e-5),
    (8.0, 0.3, 100, 1e-5),
    (3.0, 0.3, 10, 1e-6),
    (20.0, 0.5, 500, 1e-5),
    (5.0, 0.5, 20, 1e-6),
    (4.0, 1.0, 1, 1e-5),
    (12.0, 1.0, 1, 1e-6),
    (2.2, 1.0, 20, 1e-5),
    (40.0, 1.0, 2000, 1e-6),
]
MIXED = [  # a federation: histogram, feature statistics, warm-up and rounds
    SampledGaussian(10.0, 1.0, 1, "label histogram"),
    SampledGaussian(20.0, 1.0, 1, "feature statistics"),
    SampledGaussian(1.2, 0.034, 360, "warm-up"),
    SampledGaussian(1.5, 0.034, 60, "round 1"),
    SampledGaussian(1.5, 0.034, 60, "round 2"),
]


def charge(noise: float, rate: float = 1.0, steps: int = 1) -> SampledGaussian:
    return SampledGaussian(noise, rate, steps, "a test")


def event(charges: list[SampledGaussian]) -> dp_event.DpEvent:
    return dp_event.ComposedDpEvent(
        [
            SelfComposedDpEvent(PoissonSampledDpEvent(c.sample_rate, GaussianDpEvent(c.noise_multiplier)), c.steps)
            for c in charges
        ]
    )


def by_google(charges: list[SampledGaussian], delta: float, accountant: str) -> float:
    if accountant == "prv":
        return float(PLDAccountant().compose(event(charges)).get_epsilon(delta))
    return float(RdpAccountant(orders=list(ORDERS)).compose(event(charges)).get_epsilon(delta))


def by_opacus(charges: list[SampledGaussian], delta: float, accountant: str) -> float:
    """Opacus's own; its default grid error of 0.01 would be 3 % of an epsilon of 0.3, so it is finer below 1.5."""
    own = PRVAccountant() if accountant == "prv" else RDPAccountant()
    own.history = [(c.noise_multiplier, c.sample_rate, c.steps) for c in charges]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if accountant == "prv":
            return float(own.get_epsilon(delta, eps_error=0.01 if own.get_epsilon(delta) > 1.5 else 0.002))
        return float(own.get_epsilon(delta, alphas=list(ORDERS)))


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Balle and Wang, ICML 2018, theorem 8: the delta of one Gaussian mechanism of sensitivity 1, exactly."""
    return float(norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise))


def gaussian_epsilon(noise: float, delta: float) -> float:
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, noise) - delta, 0, 100, xtol=1e-10))


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [*GRID[::5], *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in GRID if row not in GRID[::5])],
)
def test_agrees_with_two_libraries(noise: float, rate: float, steps: int, delta: float, accountant: str) -> None:
    charges = [charge(noise, rate, steps)]
    ours = epsilon_of(charges, delta, accountant)
    assert 0.25 < ours < 15
    assert ours == pytest.approx(by_google(charges, delta, accountant), rel=0.01)
    assert ours == pytest.approx(by_opacus(charges, delta, accountant), rel=0.01)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_different_mechanisms_agree_with_two_libraries(accountant: str) -> None:
    ours = epsilon_of(MIXED, 1e-5, accountant)
    assert ours == pytest.approx(by_google(MIXED, 1e-5, accountant), rel=0.01)
    assert ours == pytest.approx(by_opacus(MIXED, 1e-5, accountant), rel=0.01)


@pytest.mark.parametrize("delta", [1e-5, 1e-6])
@pytest.mark.parametrize(("noise", "steps"), [(4.0, 1), (1.0, 1), (10.0, 1), (8.0, 16), (30.0, 100), (50.0, 5000)])
def test_plain_gaussians_have_a_closed_form(noise: float, steps: int, delta: float) -> None:
    """T of them are one with noise / sqrt(T); the bound is never below it, and 1 % above it at most."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    ours = epsilon_of([charge(noise, 1.0, steps)], delta)
    assert exact <= ours <= exact * 1.01
    # What gaussian_epsilon inverts is right, too: an epsilon that is 2 % smaller does not hold at this delta.
    assert gaussian_delta(0.98 * exact, noise / math.sqrt(steps)) > delta


def test_different_plain_gaussians_have_a_closed_form() -> None:
    together = 1 / math.sqrt(1 / 3.0**2 + 4 / 10.0**2 + 1 / 7.0**2)
    ours = epsilon_of([charge(3.0), charge(10.0, 1.0, 4), charge(7.0)], 1e-5)
    exact = gaussian_epsilon(together, 1e-5)
    assert exact <= ours <= exact * 1.01


def test_the_claim_is_never_above_its_second_opinion() -> None:
    for noise, rate, steps, delta in GRID:
        charges = [charge(noise, rate, steps)]
        assert epsilon_of(charges, delta, "prv") <= epsilon_of(charges, delta, "rdp")


def test_order_and_division_do_not_matter() -> None:
    whole = [charge(1.0, 0.01, 300), charge(10.0)]
    parts = [charge(1.0, 0.01, 100), charge(10.0), charge(1.0, 0.01, 200)]
    assert epsilon_of(whole, 1e-5) == epsilon_of(parts, 1e-5) == epsilon_of(parts[::-1], 1e-5)
    assert epsilon_of(whole[:1], 1e-5) < epsilon_of(whole, 1e-5)


def test_the_second_opinion_looks_at_all_orders_that_opacus_does() -> None:
    """They are written down anew, so that a ledger is read without Opacus."""
    assert set(RDPAccountant.DEFAULT_ALPHAS) < set(ORDERS)


def test_nothing_costs_nothing() -> None:
    assert epsilon_of([], 1e-5) == 0.0 == epsilon_of([], 1e-5, "rdp")


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0.02, 0.01, 10), (0.05, 1.0, 1), (1e5, 0.01, 10), (1e5, 1.0, 1), (1.0, 0.01, 10**6)],
)
def test_extremes_get_a_bound(noise: float, rate: float, steps: int) -> None:
    """Where prv overflows or needs too much memory, the answer is still a bound, and at most rdp's."""
    charges = [charge(noise, rate, steps)]
    assert 0 <= epsilon_of(charges, 1e-5) <= epsilon_of(charges, 1e-5, "rdp") < math.inf


def test_a_failure_of_prv_falls_back_on_rdp(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> float:
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    charges = [charge(1.234, 0.0123, 77)]
    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    assert epsilon_of(charges, 1e-5, "prv") == epsilon_of(charges, 1e-5, "rdp")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(
    ("target", "rate", "steps", "others"),
    [
        (4.0, 0.034, 360, (charge(10.0),)),
        (0.3, 1.0, 1, ()),
        (10.0, 1.0, 10, (charge(1.0, 0.01, 100),)),
    ],
)
def test_solved_noise_is_the_least_that_fits(
    target: float, rate: float, steps: int, others: tuple[SampledGaussian, ...], accountant: str
) -> None:
    noise = solve_noise_multiplier(
        target_epsilon=target, delta=1e-5, sample_rate=rate, steps=steps, others=others, accountant=accountant
    )
    assert epsilon_of([*others, charge(noise, rate, steps)], 1e-5, accountant) <= target
    assert epsilon_of([*others, charge(noise * 0.999, rate, steps)], 1e-5, accountant) > target


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(AccountingError, match="other mechanisms alone spend"):
        solve_noise_multiplier(target_epsilon=1, delta=1e-5, sample_rate=1, steps=1, others=[charge(1.0)])
    with pytest.raises(AccountingError, match="out of reach"):
        solve_noise_multiplier(target_epsilon=1e-9, delta=1e-12, sample_rate=1, steps=1000, accountant="rdp")
    with pytest.raises(AccountingError, match="target_epsilon is nan"):
        solve_noise_multiplier(target_epsilon=math.nan, delta=1e-5, sample_rate=1, steps=1)


@pytest.mark.parametrize(
    "values",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"sample_rate": math.nan},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"steps": 10**10},
        {"purpose": ""},
        {"purpose": "line\nbreak"},
        {"purpose": "x" * 201},
    ],
)
def test_mechanisms_out_of_range_are_refused(values: dict[str, object]) -> None:
    fitting = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1, "purpose": "a test"}
    SampledGaussian(**fitting)
    with pytest.raises(AccountingError):
        SampledGaussian(**{**fitting, **values})


def test_delta_and_accountant_are_checked() -> None:
    for delta in (0.0, 1.0, -1e-5, math.nan):
        with pytest.raises(AccountingError, match="delta"):
            epsilon_of([charge(1.0)], delta)
    with pytest.raises(AccountingError, match="accountant"):
        epsilon_of([charge(1.0)], 1e-5, "gdp")
