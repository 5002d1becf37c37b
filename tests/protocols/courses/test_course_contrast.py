"""Start images with the brightness and contrast of the clients' images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from codream_protocols.charter import Aggregation, Charter, Offer, derive_plan
from codream_protocols.courses.contrast import (
    LEAST_CONTRAST,
    LEAST_TOLD,
    MOST_GAIN,
    REACH,
    UNITS,
    brightness_and_contrast,
    contrast_spec,
    contrast_values,
    matched,
)
from codream_protocols.encoding import decode, encode
from tests.protocols.courses.walk import MEMBERS, codream

RNG = np.random.default_rng(0)
IMAGES = (RNG.normal(size=(50, 3, 4, 4)) * RNG.uniform(0.5, 2, size=(50, 1, 1, 1)) + 1).astype(np.float32)
DULL = (RNG.normal(size=(80, 3, 4, 4)) * RNG.normal(0.5, 0.08, size=(80, 1, 1, 1))).astype(np.float32)
DULL += RNG.normal(-0.7, 0.1, size=(80, 1, 1, 1)).astype(np.float32)


def added(*clients: dict[str, Any]) -> dict[str, Any]:
    return {block: sum(values[block] for values in clients).astype(np.int64) for block in clients[0]}


def through_the_ring(clients: list[dict[str, Any]], value_bits: int, **dreams: Any) -> dict[str, Any]:
    """The sums as they are decoded, of a course of matched dreams with these settings."""
    everybody = tuple(range(len(clients)))
    aggregation = Aggregation(least_survivors=len(clients), value_bits=value_bits)
    charter = Charter(
        roster=bytes(32), members=len(clients), settings=bytes(32), aggregation=aggregation, blocks=(everybody,)
    )
    plan = derive_plan(charter, codream(matched=True, **dreams), Offer(0, everybody, bytes(32)), 0)
    (step,) = (number for number in range(plan.steps) if plan.spec(number).task == "contrast")
    vectors = np.stack([encode(plan, step, values, RNG.bytes)[0] for values in clients]).astype(np.uint64)
    total = vectors.sum(axis=0) & np.uint64((1 << plan.modulus_bits(step)) - 1)
    return decode(plan, step, total.astype(np.uint32), len(clients))


def test_an_image_has_its_mean_and_its_deviation() -> None:
    found = brightness_and_contrast(IMAGES)
    assert found[:, 0] == pytest.approx(IMAGES.mean(axis=(1, 2, 3)), abs=3e-3)
    assert found[:, 1] == pytest.approx(IMAGES.std(axis=(1, 2, 3)), abs=3e-3)


def test_images_of_any_size_and_range_have_a_deviation() -> None:
    """Squares of such numbers go beyond 64 bits; what is beyond `REACH` counts as that."""
    large = np.full((2, 3, 128, 128), 1e6, dtype=np.float32)
    large[:, :, ::2] = -1e6
    raw = RNG.integers(0, 65536, (2, 3, 224, 224)).astype(np.float32)
    assert brightness_and_contrast(large) == pytest.approx(np.array([[0.0, REACH]] * 2))
    assert brightness_and_contrast(raw)[:, 0] == pytest.approx(REACH, abs=0.01)


def test_images_have_the_same_statistics_however_many_go_at_a_time() -> None:
    many = np.concatenate([RNG.normal(size=(5, 3, 400, 400)).astype(np.float32) for _ in range(2)])
    alone = np.concatenate([brightness_and_contrast(image[None]) for image in many])
    assert np.array_equal(brightness_and_contrast(many), alone)


@pytest.mark.parametrize("weight", [0.05, 0.75, 1.0])
def test_starts_get_the_mean_and_the_spread_of_the_clients_statistics(weight: float) -> None:
    goal = brightness_and_contrast(DULL)
    found = brightness_and_contrast(matched(IMAGES, added(contrast_values(DULL, weight)), 10.0))
    assert found.mean(axis=0) == pytest.approx(goal.mean(axis=0), abs=0.02)
    assert found.std(axis=0) == pytest.approx(goal.std(axis=0), abs=0.02)


@pytest.mark.parametrize("value_bits", [2, 8, 16])
@pytest.mark.parametrize("pixel_bound", [10.0, 30.0, 1000.0, 1e6])
def test_the_spread_is_found_whatever_the_charters_bits_and_bound(pixel_bound: float, value_bits: int) -> None:
    told = [contrast_values(DULL, 1.0)] * MEMBERS
    sums = through_the_ring(told, value_bits, pixel_bound=pixel_bound)
    assert all(np.array_equal(sums[name], value) for name, value in added(*told).items())
    goal = brightness_and_contrast(DULL).std(axis=0)
    found = brightness_and_contrast(matched(IMAGES, sums, pixel_bound)).std(axis=0)
    assert found == pytest.approx(goal, abs=0.02)


@pytest.mark.parametrize("value_bits", [2, 8, 16])
def test_who_tells_nothing_adds_nothing(value_bits: int) -> None:
    silent = [contrast_values(IMAGES, 0.0)] * 5
    sums = through_the_ring(silent, value_bits)
    assert not any(value.any() for value in sums.values())
    assert matched(IMAGES, sums, 10.0) is IMAGES


def test_small_weights_count_too() -> None:
    one, other = contrast_values(DULL, 1.0), contrast_values(DULL, 0.02)
    assert brightness_and_contrast(matched(IMAGES, added(other), 10.0)).mean(axis=0) == pytest.approx(
        brightness_and_contrast(matched(IMAGES, added(one), 10.0)).mean(axis=0), abs=1e-3
    )
    assert matched(IMAGES, added(contrast_values(DULL, LEAST_TOLD / 2)), 10.0) is IMAGES


def test_images_keep_their_order() -> None:
    moved = matched(IMAGES, added(contrast_values(IMAGES[:20] * np.float32(0.3), 1.0)), 10.0)
    before, after = brightness_and_contrast(IMAGES), brightness_and_contrast(moved)
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.99


def test_what_is_flat_is_not_blown_up_to_noise() -> None:
    flat = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
    flat[:, 0, 0, 0] += 0.05
    assert np.ptp(matched(flat, added(contrast_values(IMAGES, 1.0)), 10.0)) <= 0.05 * MOST_GAIN * 1.01


def lie(mean: float, deviation: float, square: float, weight: float) -> dict[str, Any]:
    """A sum, liars' shares and all: its elements may be anything that so many inputs could add up to."""
    firsts = np.array([mean + REACH, deviation]) * weight * UNITS
    squares = np.full(2, square * weight * UNITS)
    return {"firsts": firsts, "squares": squares, "weight": np.array([weight * UNITS])}


@pytest.mark.parametrize("deviation", [0.0, 1e-6, LEAST_CONTRAST * 0.999])
def test_one_liar_makes_no_start_flat(deviation: float) -> None:
    """It takes from the sum what the others told; a negative deviation cannot even be told."""
    flat = added(lie(0.0, deviation, 0.0, 3.0))
    assert matched(IMAGES, flat, 10.0) is IMAGES
    assert min(block.clip for block in contrast_spec().blocks) > 0
    assert all(block.kind == "count" for block in contrast_spec().blocks)


@pytest.mark.parametrize("weight", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("honest", [2, 3, 9])
def test_a_spread_that_one_liar_tells_makes_no_start_flat(honest: int, weight: float) -> None:
    """Squares far above what the means say put brightness beyond the bound."""
    told = [contrast_values(DULL, weight)] * honest
    for bright in (0.0, REACH, 2 * REACH):
        for square in (0.0, 16.0, REACH * REACH):
            for own in (0.0, 1.0):
                lied = {
                    "firsts": np.array([bright, 0.0]) * UNITS,
                    "squares": np.array([square, 0.0]) * UNITS,
                    "weight": np.array([own * UNITS]),
                }
                after = brightness_and_contrast(matched(IMAGES, added(*told, lied), 10.0))[:, 1]
                assert after.min() >= 0.95 * LEAST_CONTRAST


def test_an_image_that_the_bound_cuts_stays_as_it_was() -> None:
    """Control: where all fits, all are moved."""

    def kept(sums: dict[str, Any]) -> int:
        moved = matched(IMAGES, sums, 10.0)
        return sum(np.array_equal(*pair) for pair in zip(moved, IMAGES, strict=True))

    assert 0 < kept(added(lie(0.0, 1.0, 100.0, 3.0))) < len(IMAGES)
    assert not kept(added(contrast_values(DULL, 1.0)))


def test_the_least_contrast_that_can_be_told_is_none_that_says_nothing() -> None:
    found = brightness_and_contrast(matched(IMAGES, added(lie(0.0, LEAST_CONTRAST * 1.001, 0.0, 3.0)), 10.0))
    assert found[:, 1] == pytest.approx(2 * LEAST_CONTRAST, abs=0.01)


@pytest.mark.parametrize("bound", [0.01, 10.0, 1e6])
def test_lies_leave_finite_images_within_the_bound(bound: float) -> None:
    top = 2.0**32 / UNITS
    for mean, deviation, square, weight in ((top, top, top, 0.02), (-REACH, 1.0, top, 3.0), (-REACH, top, 0.0, 3.0)):
        moved = matched(np.clip(IMAGES, -bound, bound), added(lie(mean, deviation, square, weight)), bound)
        assert moved.dtype == np.float32
        assert np.isfinite(moved).all()
        assert np.abs(moved).max() <= np.float32(bound)
        assert np.ptp(moved) > 0


def test_honest_values_fit_the_vector() -> None:
    bounds = {block.name: block.clip for block in contrast_spec().blocks}
    extreme = np.full((3, 1, 2, 2), 1e6, dtype=np.float32)
    extreme[0, :, 0] = -1e6
    extreme[1] = -1e6
    for images in (extreme, extreme[:1], extreme[1:2], extreme[2:]):
        for name, value in contrast_values(images, 1.0).items():
            assert value.min() >= 0 and value.max() <= bounds[name]


def test_it_is_what_the_protocol_says() -> None:
    """Section 7 of docs/protocol.md, reckoned by hand, number by number."""
    weights, bound = (1.0, 0.25), 10.0
    owned = (DULL[:7], IMAGES[:5])
    firsts, squares, weight = [0, 0], [0, 0], 0
    for images, w in zip(owned, weights, strict=True):
        units = round(w * 2**20)
        each = [by_hand(image) for image in images]
        for place, shift in ((0, 16), (1, 0)):
            values = [found[place] for found in each]
            firsts[place] += round(units * (math.fsum(values) / len(values) + shift))
            squares[place] += round(units * math.fsum(value * value for value in values) / len(values))
        weight += units
    sums = added(*(contrast_values(images, w) for images, w in zip(owned, weights, strict=True)))
    assert sums["firsts"].tolist() == pytest.approx(firsts, abs=2)
    assert sums["squares"].tolist() == pytest.approx(squares, abs=2)
    assert sums["weight"].tolist() == [weight]
    starts = IMAGES[10:20]
    goals = [sums["firsts"][0] / weight - 16, sums["firsts"][1] / weight]
    spreads = [math.sqrt(max(sums["squares"][k] / weight - goals[k] ** 2, 0)) for k in (0, 1)]
    found = [by_hand(start) for start in starts]
    moments = []
    for k in (0, 1):
        mean = math.fsum(one[k] for one in found) / len(found)
        square = math.fsum(one[k] * one[k] for one in found) / len(found)
        moments.append((mean, math.sqrt(square - mean * mean)))
    for start, one, moved in zip(starts, found, matched(starts, sums, bound), strict=True):
        mean, deviation = (goals[k] + (one[k] - moments[k][0]) * (spreads[k] / moments[k][1]) for k in (0, 1))
        contrast = min(max(deviation, goals[1] / 4, 1 / 16), bound)
        gain = min(contrast / max(one[1], 1 / 256), 4)
        assert moved == pytest.approx(np.clip((start.astype(float) - one[0]) * gain + mean, -bound, bound), abs=1e-6)


def by_hand(image: Any) -> tuple[float, float]:
    levels = [min(max(round(float(pixel) * 256), -4096), 4096) for pixel in image.reshape(-1)]
    mean = sum(levels) / len(levels)
    square = sum(level * level for level in levels) / len(levels)
    return mean / 256, math.sqrt(square - mean * mean) / 256
