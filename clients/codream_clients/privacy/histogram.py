"""A client's label histogram, once, through a Gaussian mechanism over a grid.

One record adds 1 to one class, so the sensitivity is 1 in L2. The noise is the exact discrete Gaussian (Canonne, Kamath
and Steinke, NeurIPS 2020) on a grid so fine that `GRAINS` of its steps or more make the deviation, and no float of it
tells what it was added to. It is charged as a continuous Gaussian, which it is not: its privacy profile (theorem 7
there) lies above that of a continuous one of the same deviation by up to the mass of one grain. So the deviation is
`MARGIN` larger than what is charged, and its profile then lies below at every epsilon, which bounds compositions too
(dominating pairs: Zhu, Dong and Wang, AISTATS 2022); a test computes both profiles.

All else is post-processing: counts that noise alone could have made become 0, which marks a class as one that the
client has not seen; if that leaves none, nothing is known, and all classes count alike.
"""

import math

import numpy as np
from numpy.typing import NDArray

from codream_clients.privacy.noise import Stream
from codream_protocols.discrete_gaussian import MAX_VARIANCE, DiscreteGaussian

NOISE_ALONE = 2.0
"""Deviations of noise below which a count says nothing: one empty class in 44 passes."""
GRAINS = 1 << 12
MARGIN = 1.002
MOST_NOISE = math.isqrt(MAX_VARIANCE) / 2


def noisy_histogram(counts: NDArray[np.int64], noise_multiplier: float, stream: Stream) -> NDArray[np.float32]:
    """Counts (K,) with noise, at least 0 and at least one above 0; as float32 (K,)."""
    noisy = noised(counts, noise_multiplier, stream)
    noisy[noisy < NOISE_ALONE * noise_multiplier] = 0.0
    return (noisy if noisy.any() else np.ones_like(noisy)).astype(np.float32)


def noised(counts: NDArray[np.int64], noise_multiplier: float, stream: Stream) -> NDArray[np.float64]:
    """Counts (K,), of which one record moves one by 1, with the noise and nothing else done to them."""
    grain, deviation = grid(noise_multiplier)
    found: NDArray[np.float64] = counts + DiscreteGaussian(deviation**2).sample(len(counts), stream.bytes) * grain
    return found


def grid(noise_multiplier: float) -> tuple[float, int]:
    """The grid's step, a power of 1/2, at most 1, and the noise's deviation in steps, `GRAINS` or more."""
    grain = 1.0
    while noise_multiplier / grain < GRAINS:
        grain /= 2
    return grain, math.ceil(noise_multiplier * MARGIN / grain)
