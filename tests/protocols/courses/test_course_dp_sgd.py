"""DP-SGD through the ring as a course: steps of SGD on noised sums, from where the last epoch ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codream_protocols.course import fingerprint
from codream_protocols.courses.dp_sgd import DPSGD, GRADIENT, DPSGDSettings
from codream_protocols.renyi import divergences, epsilon_of
from codream_protocols.settings import SettingsError

LAYOUT = (("conv.weight", (2, 3)), ("conv.bias", (2,)))
SEED = bytes(range(32))


def settings(**changed: Any) -> DPSGDSettings:
    usual = {"epsilon": 4.0, "delta": 1e-5, "sample_rate": 0.1, "batch_size": 20.0, "steps": 2, "lr": 0.5}
    return DPSGDSettings(**{"layout": LAYOUT, "rounds": 3, **usual, **changed})


def test_a_step_is_sgd_with_momentum_on_the_sum_over_the_expected_batch() -> None:
    course = DPSGD(settings(momentum=0.5))
    state = start = course.start(SEED, 0, None)
    total = np.arange(8.0)
    for step in range(2):
        state = course.absorb(state, step, {GRADIENT: total}, 4)  # how many took part is of no effect
    moved = start["weights"] - 0.5 * (total / 20 + (total / 20 + 0.5 * total / 20))
    assert state["weights"] == pytest.approx(moved, abs=1e-6) and state["taken"].tolist() == [2]
    assert course.task(state, 1).arrays["weights"] is state["weights"]


def test_an_epoch_goes_on_from_what_the_last_one_published() -> None:
    course = DPSGD(settings(averaging=0.9))
    state = course.start(SEED, 0, None)
    for step in range(2):
        state = course.absorb(state, step, {GRADIENT: np.ones(8)}, 4)
    following = course.start(bytes(32), 1, course.publication(state))
    assert fingerprint(following) == fingerprint(state)
    assert fingerprint(course.start(bytes(32), 0, None)) != fingerprint(course.start(SEED, 0, None))


def test_the_mean_of_weights_is_the_model_where_it_is_asked_for() -> None:
    course = DPSGD(settings(averaging=0.9))
    state = course.start(SEED, 0, None)
    seen = []
    for step in range(40):
        state = course.absorb(state, step % 2, {GRADIENT: np.full(8, 2.0 * (-1) ** step)}, 4)
        seen.append(state["weights"])
    mean = course.model(state)["weights"]
    assert np.abs(mean - np.mean(seen[-10:], axis=0)).max() < 0.3 * np.abs(seen[-1] - seen[-2]).max()
    plain = DPSGD(settings())
    assert plain.model(plain.start(SEED, 0, None))["weights"] is not None and "average" not in plain.start(
        SEED, 0, None
    )


def test_noise_is_solved_for_all_rounds_and_the_spare_ones() -> None:
    lean, spare = DPSGD(settings(spare_rounds=0)), DPSGD(settings(spare_rounds=2))
    assert (lean.planned_steps, spare.planned_steps) == (6, 10)
    assert spare.noise_multiplier > lean.noise_multiplier
    cost = divergences(1 / (2 * spare.noise_multiplier**2), 0.1)
    assert epsilon_of(10 * cost, 1e-5) <= 4.0 < epsilon_of(11 * cost, 1e-5)


def test_settings_that_would_lose_or_leak_too_much_are_refused() -> None:
    with pytest.raises(SettingsError, match="steps is 101; at least 1, at most 100"):
        settings(steps=101)
    with pytest.raises(SettingsError, match="running statistics, which mix records"):
        settings(layout=(("norm.running_mean", (3,)),))
