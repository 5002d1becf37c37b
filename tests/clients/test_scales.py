"""One scale for images that come on several: what changes, and what ledgers know them by, which does not."""

from __future__ import annotations

import numpy as np
import pytest

from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data
from codream_clients.data.given import given_images
from codream_clients.data.pixels import HALF, RawImages, Scale, on_scale
from codream_clients.data.understanding import Notes
from codream_clients.privacy.records import stored_digests

SCALES = [HALF, Scale((0.1307,), (0.3081,)), Scale((10.0,), (1 / 255,)), Scale((-10.0,), (10.0,))]
LABELS = np.arange(40) % 2


def of_bytes(scale: Scale, channels: int = 1) -> LabelledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, channels), np.uint8)
    return RawImages(pixels, LABELS, 2).standardised(scale)


def of_floats(scale: Scale) -> LabelledImages:
    """Of no whole bytes, every second half-way between two, as resampling gives them."""
    levels = np.random.default_rng(0).uniform(0, 255, (40, 1, 8, 8))
    levels[:, :, ::2] = np.floor(levels[:, :, ::2]) + 0.5
    images = (levels / 255 - scale.mean[0]) / scale.std[0]
    return LabelledImages(images.astype(np.float32), LABELS, 2, scale=scale)


@pytest.mark.parametrize("there", SCALES, ids=str)
@pytest.mark.parametrize("here", SCALES, ids=str)
def test_images_on_another_scale_are_the_same_to_models_and_to_ledgers(here: Scale, there: Scale) -> None:
    for images in (of_bytes(here), of_floats(here)):
        moved = on_scale(images, there)
        assert moved.images.dtype == np.float32 and moved.scale == there
        fractions = images.images.astype(np.float64) * here.std[0] + here.mean[0]
        found = moved.images.astype(np.float64) * there.std[0] + there.mean[0]
        assert np.abs(found - fractions).max() < 0.6 / 255
        assert np.abs(found - fractions).mean() < 0.2 / 255
        assert stored_digests(moved) == stored_digests(images)
    np.testing.assert_allclose(on_scale(of_bytes(here), there).images, of_bytes(there).images, rtol=1e-4, atol=1e-3)


def test_every_channel_has_its_own() -> None:
    three = Scale((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    np.testing.assert_allclose(on_scale(of_bytes(HALF, 3), three).images, of_bytes(three, 3).images, atol=1e-5)
    np.testing.assert_allclose(on_scale(of_bytes(three, 3), HALF).images, of_bytes(HALF, 3).images, atol=1e-5)
    spelt_out = Scale((0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(on_scale(of_bytes(HALF, 3), spelt_out).images, of_bytes(HALF, 3).images)
    with pytest.raises(DatasetError, match="a scale of 3 channels; 1 or 1 are needed"):
        on_scale(of_bytes(HALF), three)
    with pytest.raises(DatasetError, match="a scale of 3 channels"):
        LabelledImages(np.zeros((2, 1, 4, 4), np.float32), np.arange(2), 2, scale=three)


def test_a_scale_that_nobody_said_is_not_guessed() -> None:
    with pytest.raises(DatasetError, match="a scale that nobody said"):
        on_scale(LabelledImages(np.zeros((2, 1, 4, 4), np.float32), np.arange(2), 2), HALF)


def test_values_that_no_pixel_has_are_found_and_rounding_is_not() -> None:
    images = np.zeros((2, 3, 4, 4), np.float32)
    assert HALF.beyond(images) is None
    for value in (-1.0039, 1.0039):  # half a grey level is 0.0039 there
        images[1, 2, 0, 0] = value
        assert HALF.beyond(images) is None
    for value, found in ((-1.005, "-1.005 to 0"), (1.005, "0 to 1.005"), (7.0, "0 to 7")):
        images[1, 2, 0, 0] = value
        assert HALF.beyond(images) == (found, "-1 to 1")
    one_of_three = Scale((0.5, 0.5, 0.1), (0.5, 0.5, 0.1))
    assert one_of_three.beyond(images) is None, "up to 9 in that channel"


def test_parts_on_two_scales_are_no_one_set() -> None:
    digits, test = load_digits_data(0)
    other = on_scale(test, HALF)
    for part in (other, LabelledImages(test.images, test.labels, 10)):
        with pytest.raises(DatasetError, match=r"training images are standardised by mean \(0.3053,\).*; one scale is"):
            given_images({"training": digits, "test": part}, notes=Notes())
    given_images({"training": on_scale(digits, HALF), "test": other}, notes=Notes())  # control
