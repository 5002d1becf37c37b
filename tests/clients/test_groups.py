"""What several records of one person cost, against an independent accountant and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from scipy.stats import binom

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.groups import ORDERS, _divergences, group_epsilon

DELTA = 1e-5


def tight(noise: float, rate: float, steps: int, records: int) -> float:
    """dp-accounting's, of the same mixture."""
    chances = binom.pmf(np.arange(records + 1), records, rate)
    loss = from_mixture_gaussian_mechanism(
        noise, list(range(records + 1)), list(chances / chances.sum()), value_discretization_interval=2e-3
    )
    return float(loss.self_compose(steps).get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize("records", [1, 5, *(pytest.param(more, marks=pytest.mark.exhaustive) for more in (2, 20))])
@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.4, 0.034, 360), (3.0, 0.2, 50)])
def test_the_bound_lies_above_an_independent_accountants_and_not_far(
    noise: float, rate: float, steps: int, records: int
) -> None:
    found = group_epsilon([SampledGaussian(noise, rate, steps, "training")], DELTA, records)
    least = tight(noise, rate, steps, records)
    assert least <= found <= 1.25 * least + 0.1


def test_one_record_is_what_the_second_opinion_says() -> None:
    charges = [SampledGaussian(8.0, 1.0, 1, "histogram"), SampledGaussian(1.4, 0.034, 360, "training")]
    assert (
        epsilon_of(charges, DELTA, "rdp") <= group_epsilon(charges, DELTA, 1) <= 1.1 * epsilon_of(charges, DELTA, "rdp")
    )
    assert group_epsilon([], DELTA, 5) == 0.0


def test_more_records_cost_more_and_more_than_in_proportion() -> None:
    charges = [SampledGaussian(1.4, 0.034, 360, "training")]
    costs = [group_epsilon(charges, DELTA, records) for records in (1, 2, 5, 20)]
    assert costs == sorted(costs) and costs[1] > 2 * costs[0] and costs[2] > 5 * costs[0]


@pytest.mark.parametrize("records", [1, 3])
def test_without_sampling_it_is_a_gaussian_of_so_many_records(records: int) -> None:
    nearly = _divergences(2.0, 1 - 1e-12, records)
    exact = _divergences(2.0, 1.0, records)
    assert exact == pytest.approx([order * records**2 / 8 for order in ORDERS])
    assert nearly == pytest.approx(exact, rel=1e-6)


def test_small_orders_follow_the_closed_form_of_one_record() -> None:
    """Of order 2 there is one: log(1 + q^2 (e^(1/s^2) - 1)) (Mironov, Talwar and Zhang, section 3.3)."""
    noise, rate = 1.3, 0.1
    expected = math.log(1 + rate**2 * (math.exp(1 / noise**2) - 1))
    assert _divergences(noise, rate, 1)[ORDERS.index(2.0)] == pytest.approx(expected, rel=1e-9)
