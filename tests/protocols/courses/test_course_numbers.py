"""Arithmetic on states: Adam as its paper writes it, bounds that hold after rounding, means that stay within theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from codream_protocols.courses.codream import Dreams
from codream_protocols.courses.numbers import adam, bounded, fresh_moments, weighted_mean
from codream_protocols.courses.optimisers import OPTIMISERS
from codream_protocols.settings import SettingsError, declared
from tests.protocols.courses.walk import codream


def papers_adam(gradients: list[float], rate: float, betas: tuple[float, float]) -> float:
    """Algorithm 1 of Kingma and Ba with its powers, one number, from 0: where it is after all gradients."""
    place = first = second = 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        corrected = second / (1 - betas[1] ** step)
        place -= rate * (first / (1 - betas[0] ** step)) / (math.sqrt(corrected) + 1e-8)
    return place


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.999)])
def test_adam_is_the_papers(betas: tuple[float, float]) -> None:
    means = np.random.default_rng(5).standard_normal((300, 4))
    moments, place = fresh_moments((4,)), np.zeros(4)
    for mean in means:
        move, moments = adam(moments, mean, 0.1, betas)
        place = place - move
    assert place == pytest.approx([papers_adam(list(column), 0.1, betas) for column in means.T], rel=1e-9)


@pytest.mark.parametrize(("way", "optimiser", "sign"), [("update", "fedadam", -1.0), ("gradient", "adam", 1.0)])
def test_dreams_follow_updates_and_descend_gradients(way: str, optimiser: str, sign: float) -> None:
    course = codream(steps=20, way=way, optimiser=optimiser, server_lr=0.05, pixel_bound=100.0)
    source = np.random.default_rng(6)
    state = start = course.start(bytes(32), 0, None)
    means, nothing = source.uniform(-1, 1, (20, 12)), np.zeros(1)
    for step, mean in enumerate(means, start=1):
        sums = {"dreams": mean * 2.5, "weight": np.array([2.5]), "entropy": nothing, "clipped": nothing}
        state = course.absorb(state, step, sums, 4)
    expected = [sign * papers_adam(list(column), 0.05, (0.9, 0.999)) for column in means.T]
    assert (state["dreams"] - start["dreams"]).reshape(-1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_that_is_registered_is_a_setting_that_courses_follow(name: str) -> None:
    optimiser = OPTIMISERS[name]
    (setting,) = (one for one in declared(Dreams) if one.name == "optimiser")
    assert repr(name) in setting.allowed and name in setting.text
    course = codream(way=optimiser.way, optimiser=name, pixel_bound=100.0)
    state = course.start(bytes(32), 0, None)
    assert set(state) == {"dreams", *optimiser.fresh((12,))}
    sums = {"dreams": np.ones(12), "weight": np.ones(1), "entropy": np.zeros(1), "clipped": np.zeros(1)}
    moved = course.absorb(state, 1, sums, 4)["dreams"] - state["dreams"]
    assert (np.sign(moved) == (1 if optimiser.way == "update" else -1)).all()
    (other,) = {"update", "gradient"} - {optimiser.way}
    with pytest.raises(SettingsError, match=f"{optimiser.way} with .*{name}"):
        codream(way=other, optimiser=name)


def test_bounds_hold_after_rounding() -> None:
    """0.1 is no float32: the bound is the nearest one, on both sides."""
    found = bounded(np.array([-1.0, -0.1, 0.05, 1.0]), 0.1)
    assert found.tolist() == [-np.float32(0.1), -np.float32(0.1), np.float32(0.05), np.float32(0.1)]
    found = bounded(np.array([-1.0, -0.0, 1.0]), np.array([0.1, 0.1, 0.1]), np.array([0.0, 0.0, -0.1]))
    assert found.tolist() == [0.0, 0.0, np.float32(0.1)]
    assert not np.signbit(found).any()
    assert not np.signbit(bounded(np.array([-0.0, -1e-60]), 1.0)).any()


@pytest.mark.parametrize("weight", [-3.0, 0.0, 1e-9])
def test_a_weight_that_no_honest_clients_have_gives_a_mean_within_its_bounds(weight: float) -> None:
    mean = weighted_mean(np.array([-4.0, 0.0, 1e-7, 4.0]), np.array([weight]), 1.0)
    assert mean == pytest.approx([-1.0, 0.0, 0.1, 1.0])
