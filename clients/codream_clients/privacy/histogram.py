"""A client's label histogram, once, through the Gaussian mechanism.

One record adds 1 to one class, so the sensitivity is 1 in L2, and noise of deviation `noise_multiplier` makes it
private. All else is post-processing: counts that noise alone could have made become 0, which marks a class as one that
the client has not seen; if that leaves none, nothing is known, and all classes count alike.
"""

import numpy as np
from numpy.typing import NDArray

NOISE_ALONE = 2.0
"""Deviations of noise below which a count says nothing: one empty class in 44 passes."""


def noisy_histogram(
    counts: NDArray[np.int64], noise_multiplier: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Counts (K,) with noise, at least 0 and at least one above 0; as float32 (K,)."""
    noisy = counts + generator.normal(0.0, noise_multiplier, size=counts.shape)
    noisy[noisy < NOISE_ALONE * noise_multiplier] = 0.0
    return (noisy if noisy.any() else np.ones_like(noisy)).astype(np.float32)
