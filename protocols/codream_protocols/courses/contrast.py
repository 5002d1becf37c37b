"""Start images with the brightness and contrast of the clients' images, by one secure sum of five numbers.

An image has a mean and a deviation over its values. Clients tell the means of both over their images and of their
squares, times their weight, and that weight; the start images' means and deviations are then moved and scaled, in their
own order, to that mean and that spread. What teachers say of images whose statistics they have never seen is worth
little, and dreams spend their first steps on repairing them.

They are told as counts, whose sums are exact whatever the charter's bits: a spread is a small difference of squares,
and zeros, from who tells nothing, must add up to zero.

All parties must make the same bytes: sums over pixels are sums of integers, sums over images are exact (`math.fsum`),
and all else is one correctly rounded operation after the other.
"""

from __future__ import annotations

import math

import numpy as np

from codream_protocols.course import Array, Sums
from codream_protocols.courses.numbers import Doubles, bounded
from codream_protocols.specs import Block, VectorSpec

CONTRAST = "contrast"
REACH = 16.0
"""Pixels count as within plus or minus this, in units of the standardised data: what is beyond is no brightness. The
squares of an image's, 16 x 1024 x 1024 of them at most, then add up within 64 bits."""
UNITS = float(1 << 20)
"""Of a count, for 1: a spread is found to a thousandth of the data's unit."""
MOST_GAIN = 4.0
"""By which an image's contrast is raised at most: what is flat stays so."""
LEAST_CONTRAST = 1 / 16
"""Deviation of a start image, at least, unless its gain is used up. Standardised images have about 1; a goal below is a
lie, which one member can tell, and starts that are flat would be everybody's. Goals are twice this: the bound may cut
half of them."""
LEAST_TOLD = 0.01
"""The sum of weights below which counts are too coarse to go by; of clients that tell nothing it is 0."""
_LEVELS = 256.0
_PIECE = 1 << 20  # pixels at a time, which bounds the memory


def contrast_spec() -> VectorSpec:
    """Counts, in `UNITS`: weighted means of images' (mean + `REACH`, deviation), of their squares, and the weight."""
    bounds = {"firsts": (2, 2 * REACH), "squares": (2, REACH * REACH), "weight": (1, 1.0)}
    return VectorSpec(CONTRAST, tuple(Block(name, size, top * UNITS, "count") for name, (size, top) in bounds.items()))


def contrast_values(images: Array, weight: float) -> dict[str, Doubles]:
    """What a client of that weight, in [0, 1], tells of its images (N, C, H, W): the vector's blocks, whole numbers."""
    units = np.rint(weight * UNITS)  # first, so that all are of one weight, however small
    found = brightness_and_contrast(images)
    firsts = found.mean(axis=0) + np.array([REACH, 0.0])
    squares = (found * found).mean(axis=0)
    return {"firsts": np.rint(units * firsts), "squares": np.rint(units * squares), "weight": np.array([units])}


def brightness_and_contrast(images: Array) -> Doubles:
    """The mean and the deviation of each image (B, C, H, W), to 1/256 of a unit: shape (B, 2), the same everywhere."""
    count = math.prod(images.shape[1:])
    found, run = np.empty((len(images), 2)), max(1, _PIECE // count)
    for first in range(0, len(images), run):
        part = np.rint(images[first : first + run].astype(np.float64) * _LEVELS)
        levels = np.clip(part, -REACH * _LEVELS, REACH * _LEVELS).astype(np.int64).reshape(-1, count)
        mean = levels.sum(axis=1).astype(np.float64) / count
        square = (levels * levels).sum(axis=1).astype(np.float64) / count
        found[first : first + run, 0] = mean
        found[first : first + run, 1] = np.sqrt(np.maximum(square - mean * mean, 0.0))
    return found / _LEVELS


def matched(images: Array, sums: Sums, bound: float) -> Array:
    """Images (B, C, H, W) with means and deviations spread as the clients' are, within [-bound, bound].

    As they were if nobody told any, or if what was told is no contrast; and an image that the bound would cut half of
    its contrast from stays as it was.
    """
    weight, reach = float(sums["weight"][0]), min(bound, REACH)
    if weight < LEAST_TOLD * UNITS:
        return images
    goals = [float(sums["firsts"][0]) / weight - REACH, float(sums["firsts"][1]) / weight]
    if goals[1] < LEAST_CONTRAST:
        return images
    found = brightness_and_contrast(images)
    wanted = np.empty_like(found)
    for column, told in enumerate(goals):
        goal = min(max(told, -reach), reach)
        square = min(float(sums["squares"][column]) / weight, reach * reach)
        spread = math.sqrt(max(square - goal * goal, 0.0))
        mean, deviation = _moments(found[:, column])
        scale = spread / deviation if deviation > 0 else 0.0
        wanted[:, column] = goal + (found[:, column] - mean) * scale
    least = max(min(goals[1], reach) / 4, 2 * LEAST_CONTRAST)  # an image with less says nothing
    contrast = np.clip(wanted[:, 1], min(least, reach), reach)
    gain = np.minimum(contrast / np.maximum(found[:, 1], 1 / _LEVELS), MOST_GAIN)
    each = (slice(None), None, None, None)
    moved = bounded((images.astype(np.float64) - found[:, 0][each]) * gain[each] + wanted[:, 0][each], bound)
    # one member can tell squares that spread the images' brightness beyond the bound, where all pixels are alike
    cut = brightness_and_contrast(moved)[:, 1] < gain * found[:, 1] / 2
    return np.where(cut[each], images, moved)


def _moments(values: Doubles) -> tuple[float, float]:
    """Mean and deviation over images, from exact sums."""
    mean = math.fsum(values.tolist()) / len(values)
    square = math.fsum((values * values).tolist()) / len(values)
    return mean, math.sqrt(max(square - mean * mean, 0.0))
