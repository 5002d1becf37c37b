"""Bounds on epsilon: against closed forms, the theorem's literal words, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from secure_codream.audit.bounds import (
    LARGEST,
    best_threshold,
    gaussian_bound,
    gaussian_epsilon,
    lower_rate,
    one_run_bound,
    one_run_p_value,
)
from secure_codream.audit.scores import best_guesses, most_that_can_be_shown, separation


def literal_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 of Steinke, Nasr and Jagielski, term by term."""
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    pmf = [binom.pmf(k, guesses, accuracy) for k in range(guesses + 1)]
    tail = sum(pmf[correct:])
    alpha = max((sum(pmf[correct - i : correct]) / i for i in range(1, correct + 1)), default=0.0)
    return min(float(tail + 2 * canaries * delta * alpha), 1.0)


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(50, 50, 40), (100, 20, 20), (100, 30, 1), (10, 10, 0)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1e-3), (2.5, 1e-2)])
def test_p_value_is_the_theorems(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> None:
    found = one_run_p_value(canaries, guesses, correct, epsilon, delta)
    assert found == pytest.approx(literal_p_value(canaries, guesses, correct, epsilon, delta), rel=1e-9, abs=1e-12)


def test_bound_of_faultless_guesses_has_a_closed_form() -> None:
    """r right of r refute every epsilon with (e^epsilon / (1 + e^epsilon))^r below 5 %."""
    for guesses in (10, 100, 1000):
        accuracy = 0.05 ** (1 / guesses)
        exact = math.log(accuracy / (1 - accuracy))
        assert one_run_bound(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(exact, abs=1e-4)
        assert one_run_bound(guesses, guesses, guesses, 1e-4, 0.95) < exact


def test_guesses_by_chance_refute_nothing() -> None:
    assert one_run_bound(400, 400, 200, 1e-5, 0.95) == 0.0
    assert gaussian_bound(50, 100, 50, 100, 1e-5, 0.95) == 0.0


def test_bounds_hold_for_randomised_response_and_are_not_idle() -> None:
    """A mechanism that is exactly (epsilon, 0)-private: too large a bound in 5 % of runs at most, yet a useful one."""
    rng, epsilon, canaries = np.random.default_rng(0), 1.5, 1000
    bounds = []
    for _ in range(400):
        coins = rng.random(canaries) < 0.5
        kept = rng.random(canaries) < 1 / (1 + math.exp(-epsilon))
        answers = np.where(kept, coins, ~coins)
        bounds.append(one_run_bound(canaries, canaries, int((answers == coins).sum()), 0.0, 0.95))
    assert np.mean(np.array(bounds) > epsilon) <= 0.08  # 5 %, and three deviations of 400 runs
    assert np.median(bounds) > 1.2


@pytest.mark.parametrize("distance", [0.2, 0.5, 1.0, 1.7])
def test_a_distance_is_the_epsilon_that_an_accountant_finds(distance: float) -> None:
    for delta in (1e-6, 1e-3):
        counted = epsilon_of([SampledGaussian(1 / distance, 1.0, 1, "one step")], delta)
        assert gaussian_epsilon(distance, delta) <= counted <= 1.01 * gaussian_epsilon(distance, delta) + 0.01
    assert (
        gaussian_epsilon(-1.0, 1e-5) == gaussian_epsilon(1e-9, 1e-5) == 0.0 and gaussian_epsilon(99.0, 1e-5) == LARGEST
    )


@pytest.mark.parametrize(("noise", "claim"), [(2.0, 2.0), (1.08, 4.0), (0.6, 8.0)])
def test_two_worlds_hold_for_the_gaussian_mechanism_and_are_not_idle(noise: float, claim: float) -> None:
    rng, runs = np.random.default_rng(1), 600

    def bounds(size: float) -> list[float]:
        found = []
        for _ in range(200):
            hits = int((1 + size * rng.standard_normal(runs) > 0.5).sum())
            alarms = int((size * rng.standard_normal(runs) > 0.5).sum())
            found.append(gaussian_bound(hits, runs, alarms, runs, 1e-5, 0.95))
        return found

    truth = gaussian_epsilon(1 / noise, 1e-5)
    assert truth == pytest.approx(claim, rel=0.02)
    assert np.mean(np.array(bounds(noise)) > truth) <= 0.05
    assert np.mean(np.array(bounds(noise / 2)) > truth) >= 0.9  # noise of half the size is refuted


def test_a_threshold_comes_from_the_scores_and_tells_them_apart() -> None:
    rng = np.random.default_rng(0)
    assert best_threshold(2 + rng.random(50), rng.random(50), 0.95) >= 2
    assert 0.1 < best_threshold(1 + 0.3 * rng.standard_normal(2000), 0.3 * rng.standard_normal(2000), 0.95) < 0.9


def test_clopper_pearson_has_closed_forms_at_the_ends() -> None:
    assert lower_rate(0, 10, 0.025) == 0.0
    assert lower_rate(10, 10, 0.025) == pytest.approx(0.025 ** (1 / 10))
    low = lower_rate(7, 10, 0.025)
    assert binom.sf(6, 10, low) == pytest.approx(0.025)


def test_more_confidence_and_more_delta_refute_less() -> None:
    assert one_run_bound(400, 200, 180, 1e-5, 0.99) < one_run_bound(400, 200, 180, 1e-5, 0.95)
    assert one_run_bound(400, 200, 180, 1e-3, 0.95) < one_run_bound(400, 200, 180, 1e-5, 0.95)
    assert gaussian_bound(180, 200, 20, 200, 0.1, 0.95) < gaussian_bound(180, 200, 20, 200, 1e-5, 0.95) < LARGEST


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="right"):
        one_run_p_value(*counts, 1.0, 0.0)
    with pytest.raises(ValueError, match="parts of a whole"):
        gaussian_bound(3, 2, 0, 2, 0.0, 0.95)
    with pytest.raises(ValueError, match="confidence"):
        one_run_bound(10, 5, 5, 0.0, 1.0)


def test_separation_of_known_scores() -> None:
    included = np.arange(200) < 100
    perfect = separation(included.astype(float), included)
    assert (perfect.auc, perfect.advantage, perfect.tpr_at_1_fpr) == (1.0, 1.0, 1.0)
    tied = separation(np.zeros(200), included)
    assert (tied.auc, tied.advantage, tied.tpr_at_1_fpr) == (0.5, 0.0, 0.0)
    reverse = separation(-included.astype(float), included)
    assert (reverse.auc, reverse.advantage) == (0.0, 0.0)
    shifted = np.random.default_rng(0).standard_normal(200) + included  # one deviation apart
    assert separation(shifted, included).auc == pytest.approx(float(norm.cdf(1 / math.sqrt(2))), abs=0.08)


def test_scores_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="0 others"):
        separation(np.zeros(3), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        separation(np.array([0.0, math.nan]), np.array([True, False]))


def test_the_most_that_can_be_shown_grows_with_the_canaries() -> None:
    most = [most_that_can_be_shown(count, delta=1e-5, confidence=0.95) for count in (20, 100, 400, 1000)]
    assert most == sorted(most) and most[0] > 0
    coins = np.random.default_rng(0).random(400) < 0.5
    assert best_guesses(np.zeros(400), coins, delta=1e-5, confidence=0.95).epsilon < 0.5
