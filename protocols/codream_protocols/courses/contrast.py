"""Start images with the brightness and contrast of the clients' images, by one secure sum of four numbers.

An image has a mean and a deviation over its values. Clients send the means of both over their images, and of their
squares; the start images' means and deviations are then moved and scaled, in their own order, to that mean and that
spread. What teachers say of images whose statistics they have never seen is worth little, and dreams spend their first
steps on repairing them.

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
MOST_GAIN = 4.0
"""By which an image's contrast is raised at most: what is flat stays so."""
LEAST_TOLD = 0.01
"""The sum of weights below which nobody is taken to have told anything: rounding leaves a little of zeros."""
_LEVELS = 256.0


def contrast_spec(bound: float) -> VectorSpec:
    """Weighted means of images' (mean, deviation), and of their squares; and the weight in [0, 1]."""
    return VectorSpec(
        CONTRAST,
        (Block("firsts", 2, float(bound)), Block("squares", 2, float(bound) * float(bound)), Block("weight", 1, 1.0)),
    )


def brightness_and_contrast(images: Array) -> Doubles:
    """The mean and the deviation of each image (B, C, H, W), to 1/256 of a unit: shape (B, 2), the same everywhere."""
    levels = np.rint(images.astype(np.float64) * _LEVELS).astype(np.int64).reshape(len(images), -1)
    count = float(levels.shape[1])
    mean = levels.sum(axis=1).astype(np.float64) / count
    square = (levels * levels).sum(axis=1).astype(np.float64) / count
    deviation = np.sqrt(np.maximum(square - mean * mean, 0.0))
    return np.stack([mean, deviation], axis=1) / _LEVELS


def matched(images: Array, sums: Sums, bound: float) -> Array:
    """Images (B, C, H, W) with means and deviations spread as the clients' are; as they were if nobody told any."""
    weight = float(sums["weight"][0])
    if weight < LEAST_TOLD:
        return images
    found = brightness_and_contrast(images)
    wanted = np.empty_like(found)
    for column in range(2):
        goal = float(np.clip(sums["firsts"][column] / weight, -bound, bound))
        square = float(np.clip(sums["squares"][column] / weight, 0.0, bound * bound))
        spread = math.sqrt(max(square - goal * goal, 0.0))
        mean, deviation = _moments(found[:, column])
        scale = spread / deviation if deviation > 0 else 0.0
        wanted[:, column] = goal + (found[:, column] - mean) * scale
    least = max(float(sums["firsts"][1]) / weight, 0.0) / 4  # an image with less says nothing
    contrast = np.clip(wanted[:, 1], min(least, bound), bound)
    gain = np.minimum(contrast / np.maximum(found[:, 1], 1 / _LEVELS), MOST_GAIN)
    each = (slice(None), None, None, None)
    moved = (images.astype(np.float64) - found[:, 0][each]) * gain[each] + wanted[:, 0][each]
    return bounded(moved, bound)


def _moments(values: Doubles) -> tuple[float, float]:
    """Mean and deviation over images, from exact sums."""
    mean = math.fsum(values.tolist()) / len(values)
    square = math.fsum((values * values).tolist()) / len(values)
    return mean, math.sqrt(max(square - mean * mean, 0.0))
