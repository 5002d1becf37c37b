"""CoDream as a course: schedule, vectors, arithmetic, what is published, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from codream_protocols.courses.codream import ClientPrivacy
from codream_protocols.courses.labels import MOST_LEARNT_FROM
from codream_protocols.errors import LocalProtocolError
from codream_protocols.settings import SettingsError
from tests.protocols.courses.walk import HONEST, PRIVACY, codream, dream_settings, fake_start, legal_sums, uniform

SEED = bytes(range(32))


def tasks(course: Any, certified: int) -> list[str]:
    return [course.specs(HONEST)[kind].task for kind in course.schedule(certified)]


def finished(course: Any) -> Any:
    state = course.start(SEED, 0, None)
    for step, kind in enumerate(course.schedule(0)):
        state = course.absorb(state, step, legal_sums(course.specs(HONEST)[kind], uniform(step)), 4)
    return state


def test_an_epoch_is_metrics_updates_and_labels_and_metrics_close() -> None:
    course = codream(rounds=2, steps=2)
    assert course.epochs == 3
    assert tasks(course, 0) == tasks(course, 1) == ["metrics", "update", "update", "logits"]
    assert tasks(course, 2) == ["metrics"]
    assert course.start(SEED, 2, {}) == course.publication({}) == {}


def test_half_way_labels_come_in_the_middle() -> None:
    course = codream(steps=3, half_way=True)
    assert tasks(course, 0) == ["metrics", "update", "logits", "update", "update", "logits"]
    published = course.publication(finished(course))
    assert published["dreams"].shape == (4, 1, 3, 2)
    assert published["soft_labels"].shape == (4, 3)
    assert not np.array_equal(published["dreams"][:2], published["dreams"][2:])


def test_noise_leaves_no_metrics_and_no_figures() -> None:
    course = codream(PRIVACY, rounds=2, steps=2)
    assert course.epochs == 2
    assert tasks(course, 0) == tasks(course, 1) == ["update", "update", "logits"]
    update, logits = course.specs(HONEST)
    assert [block.name for block in update.blocks] == ["dreams"]
    assert update.noise is not None
    assert logits.noise is not None
    assert course.noise_multiplier > 0
    assert course.figures("update", {"dreams": np.ones(12)}, 4) == {}


def test_steps_of_zero_label_the_start_as_it_is() -> None:
    course = codream(steps=0)
    assert tasks(course, 0) == ["metrics", "logits"]
    images = course.publication(finished(course))["dreams"]
    assert np.array_equal(images, np.clip(fake_start(SEED, 2, (1, 3, 2)), -10, 10))


@pytest.mark.parametrize(("views", "labels"), [(0, 2), (2, 6)])
def test_views_have_labels_of_their_own(views: int, labels: int) -> None:
    course = codream(views=views)
    assert course.publication(finished(course))["soft_labels"].shape == (labels, 3)


def test_matched_starts_cost_one_step_before_the_updates_and_none_under_noise() -> None:
    assert tasks(codream(matched=True, steps=1), 0) == ["metrics", "contrast", "update", "logits"]
    with pytest.raises(SettingsError, match="matched with client-level privacy"):
        codream(PRIVACY, matched=True)


def test_the_mean_update_is_added_and_labels_are_sum_over_sum() -> None:
    course = codream(steps=1, server_lr=0.5)
    state = course.start(SEED, 0, None)
    update = {"dreams": np.full(12, 0.6), "weight": np.array([1.5]), "entropy": np.zeros(1), "clipped": np.zeros(1)}
    moved = course.absorb(state, 1, update, 4)
    expected = np.clip(state["dreams"].astype(np.float64) + 0.5 * 0.4, -10, 10)
    assert moved["dreams"] == pytest.approx(expected, abs=1e-6)
    labels = {"numerators": np.array([1.0, -2.0, 3.0, 100.0, 0.0, 0.0]), "denominators": np.array([2.0, 1.0, 0.0])}
    published = course.publication(course.absorb(moved, 2, labels, 4))
    assert published["soft_labels"] == pytest.approx(np.array([[0.5, -2.0, 30.0], [30.0, 0.0, 0.0]]))


def test_gradients_are_descended() -> None:
    course = codream(way="gradient", optimiser="adam", server_lr=0.1, pixel_bound=100.0)
    state = course.start(SEED, 0, None)
    update = {"dreams": np.full(12, 0.6), "weight": np.array([1.5]), "entropy": np.zeros(1), "clipped": np.zeros(1)}
    moved = course.absorb(state, 1, update, 4)
    assert moved["dreams"] == pytest.approx(state["dreams"] - 0.1, abs=1e-5)
    assert moved["decays"] == pytest.approx([0.9, 0.999])


def test_figures_are_means_within_their_range() -> None:
    course = codream()
    sums = {"dreams": np.ones(12), "weight": np.array([2.0]), "entropy": np.array([1.0]), "clipped": np.array([5.0])}
    assert course.figures("update", sums, 4) == {"entropy": 0.5, "clipped": 1.0}
    assert course.figures("logits", {}, 4) == {}


def test_a_start_rule_is_checked() -> None:
    course = codream()
    course._start_rule = lambda seed, count, shape: np.full((count, *shape), np.nan, dtype=np.float32)
    with pytest.raises(LocalProtocolError, match="not finite"):
        course.start(SEED, 0, None)


def test_the_bound_of_an_entropy_is_one() -> None:
    for classes in range(2, 300):
        assert dream_settings(classes=classes).entropy_bound >= math.log(classes) * (1 - 1e-15)


@pytest.mark.parametrize(
    "changed",
    [
        {"rounds": 0},
        {"steps": -1},
        {"batch": 0},
        {"classes": 1},
        {"shape": (1, 0, 2)},
        {"views": -1},
        {"window": 0},
        {"adaptive_weight": -0.1},
        {"adaptive_from": -1},
        {"update_clip": 0.0},
        {"update_clip": math.inf},
        {"logit_clip": math.nan},
        {"pixel_bound": 1e7},
        {"server_lr": -1.0},
        {"steps": 0, "adaptive_weight": 1.0},
        {"half_way": True, "steps": 1},
        {"half_way": True, "views": 1},
        {"optimiser": "adam"},
        {"way": "gradient"},
        {"way": "neither"},
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"allowed|choose"):
        dream_settings(**changed)


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        ({}, 1),
        ({"views": 3}, 4),
        ({"half_way": True}, 2),
        ({"views": 3, "window": 2}, 8),
        ({"window": 1000}, 2),  # of two rounds
    ],
)
def test_images_that_are_learnt_from_at_once_are_bounded(changed: dict[str, Any], factor: int) -> None:
    """No vector bounds them where there are no updates: views, half-way dreams and a window count like dreams."""
    form = {"steps": 2, "shape": (1, 1024, 1024), "window": 1, **changed}
    most = MOST_LEARNT_FROM // (1024 * 1024 * factor)
    assert dream_settings(batch=most, **form).batch == most
    with pytest.raises(SettingsError, match="numbers; 1073741824 are allowed: choose a smaller batch or window, or"):
        dream_settings(batch=most + 1, **form)


@pytest.mark.parametrize("changed", [{"epsilon": 0}, {"delta": 1.0}, {"update_norm": -1}, {"spare_rounds": -1}])
def test_a_privacy_out_of_range_is_refused(changed: dict[str, Any]) -> None:
    known = {"epsilon": 8.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0}
    with pytest.raises(SettingsError, match="allowed"):
        ClientPrivacy(**{**known, **changed})
