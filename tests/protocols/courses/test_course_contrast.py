"""Start images with the brightness and contrast of the clients' images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codream_protocols.courses.contrast import LEAST_TOLD, MOST_GAIN, brightness_and_contrast, contrast_spec, matched

RNG = np.random.default_rng(0)
IMAGES = (RNG.normal(size=(50, 3, 4, 4)) * RNG.uniform(0.5, 2, size=(50, 1, 1, 1)) + 1).astype(np.float32)


def told(images: Any, weight: float = 1.0) -> dict[str, Any]:
    found = brightness_and_contrast(images)
    return {
        "firsts": found.mean(axis=0) * weight,
        "squares": (found**2).mean(axis=0) * weight,
        "weight": np.array([weight]),
    }


def test_an_image_has_its_mean_and_its_deviation() -> None:
    found = brightness_and_contrast(IMAGES)
    assert found[:, 0] == pytest.approx(IMAGES.mean(axis=(1, 2, 3)), abs=3e-3)
    assert found[:, 1] == pytest.approx(IMAGES.std(axis=(1, 2, 3)), abs=3e-3)


@pytest.mark.parametrize("weight", [0.05, 1.0, 2.5])
def test_starts_get_the_mean_and_the_spread_of_the_clients_statistics(weight: float) -> None:
    data = (0.4 * RNG.normal(size=(80, 3, 4, 4)) + RNG.normal(-0.5, 0.2, size=(80, 1, 1, 1))).astype(np.float32)
    goal = brightness_and_contrast(data)
    found = brightness_and_contrast(matched(IMAGES, told(data, weight), 10.0))
    assert found.mean(axis=0) == pytest.approx(goal.mean(axis=0), abs=0.02)
    assert found.std(axis=0) == pytest.approx(goal.std(axis=0), abs=0.02)


def test_images_keep_their_order() -> None:
    before, after = (brightness_and_contrast(one) for one in (IMAGES, matched(IMAGES, told(IMAGES[:20] * 0.3), 10.0)))
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.99


def test_what_is_flat_is_not_blown_up_to_noise() -> None:
    flat = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
    flat[:, 0, 0, 0] += 0.05
    assert np.ptp(matched(flat, told(IMAGES), 10.0)) <= 0.05 * MOST_GAIN * 1.01


def test_without_a_word_the_start_stays_as_it_is() -> None:
    silent = {"firsts": np.full(2, 1e-3), "squares": np.full(2, -1e-3), "weight": np.array([LEAST_TOLD / 2])}
    assert matched(IMAGES, silent, 10.0) is IMAGES


def test_lies_leave_finite_images_within_the_bound() -> None:
    for first, square, weight in ((30.0, -300.0, 0.02), (-30.0, 300.0, 3.0), (0.0, 0.0, 3.0)):
        sums = {"firsts": np.full(2, first), "squares": np.full(2, square), "weight": np.array([weight])}
        moved = matched(IMAGES, sums, 10.0)
        assert moved.dtype == np.float32
        assert np.isfinite(moved).all()
        assert np.abs(moved).max() <= 10.0


def test_honest_values_fit_the_vector() -> None:
    bounds = {block.name: block.clip for block in contrast_spec(10.0).blocks}
    extreme = np.full((2, 1, 2, 2), 10.0, dtype=np.float32)
    extreme[0, :, 0] = -10.0
    for name, value in told(extreme).items():
        assert np.abs(value).max() <= bounds[name]
