"""Client-level differential privacy: each client adds a share of integer noise before it masks its vector.

The distributed discrete Gaussian mechanism (Kairouz, Liu, Steinke, ICML 2021, arXiv 2102.06387). A client clips its
vector in Euclidean norm, scales it to `radius` ring units, rotates it (`rotation`), rounds it at random to integers,
again until the norm is within `largest_square`, adds discrete Gaussian noise and reduces modulo 2^m. Nobody, the server
included, ever sees a sum with less noise than the least number of honest survivors adds.

What is promised rests on integers alone: the rounded vector's norm is checked exactly, the noise is sampled exactly.
Rotation, scaling and the rounding's randomness are floating point and may be known to everybody; they decide how useful
a sum is. Reducing modulo 2^m only processes what is noised already: a wrap-around spoils a sum, never the promise.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Protocol

import numpy as np
from msgspec import Meta, Struct

from codream_protocols import zcdp
from codream_protocols.discrete_gaussian import MAX_VARIANCE, Integers, RandomBytes, discrete_gaussian
from codream_protocols.errors import LocalProtocolError
from codream_protocols.masks import word_type
from codream_protocols.ring import Floats, Words
from codream_protocols.rotation import block_size, padded_length, rotate, unrotate

MAX_RADIUS = 1 << 20
WRAP_AROUND = 1 << 40  # one over the most that the probability of a wrap-around anywhere in an epoch may be
_LN_2 = 0.6931471805599453
FINENESS = 8  # radius over sqrt(coordinates): rounding then adds 0.4 % to the squared sensitivity
LEAST_DEVIATION = 8  # of a share, in ring units: tau is then below 10^-270
_GRID = 1 << 20  # of noise multipliers
_MOST_TRIES = 1000  # each succeeds with probability 1 - beta or more


class Rounding(Protocol):
    """Uniform numbers in [0, 1) for stochastic rounding."""

    def random(self, size: int, /) -> Floats:
        """`size` numbers."""


class Noise(Struct, frozen=True, array_like=True, tag="vector", forbid_unknown_fields=True):
    """The noise of one kind of vector.

    Attributes:
        norm: Euclidean bound of a client's vector, whose blocks are divided by their clips before.
        radius: the same bound in ring units, before rounding: how fine the grid is.
        variance: sigma^2 of one client's share, in squared ring units.
    """

    norm: float
    radius: Annotated[int, Meta(ge=1, le=MAX_RADIUS)]
    variance: Annotated[int, Meta(ge=1, le=MAX_VARIANCE)]


def largest_square(noise: Noise, length: int) -> int:
    """The largest squared norm of a rounded vector of `length` coordinates: the squared sensitivity, in ring units.

    Theorem 1 of the paper with its granularity as the unit: the conditional bound, or the one that always holds.
    """
    return rounded_square(noise.radius, padded_length(length))


def rounded_square(radius: int, coordinates: int) -> int:
    """The same of a vector whose norm is at most `radius` before it is rounded."""
    root = math.sqrt(coordinates)
    conditional = radius**2 + coordinates / 4 + (radius + root / 2)  # beta = exp(-1/2): sqrt(2 ln(1 / beta)) = 1
    return math.floor(min(conditional, (radius + root) ** 2))


def noise_rho(noise: Noise, length: int, honest: int) -> float:
    """ZCDP of one sum that `honest` unknown shares protect, for the presence of one client's vector."""
    return zcdp.distributed_rho(largest_square(noise, length), noise.variance, honest, padded_length(length))


def replaced_rho(noise: Noise, length: int, honest: int, *, apart: float = 2.0) -> float:
    """The same for one client's vector in place of another of its own, as one record more or less would have it.

    Both are within `norm`, so that they are at most twice as far apart, which costs four times as much. Of votes,
    `apart` is sqrt(2); but rounding moves each coordinate of either by less than 1, which adds to their distance.

    Args:
        noise: of a share.
        length: of the vector.
        honest: how many shares are in the sum and unknown.
        apart: the largest distance of two such vectors before they are rounded, over `norm`.
    """
    coordinates = padded_length(length)
    rounded = (apart * noise.radius + 2 * math.sqrt(coordinates)) ** 2
    return zcdp.distributed_rho(min(4 * largest_square(noise, length), rounded), noise.variance, honest, coordinates)


def noise_multiplier(noise: Noise, length: int, honest: int) -> float:
    """Deviation of the noise of `honest` shares together, over the sensitivity.

    Exactly: that of the Gaussian mechanism of the same zCDP; shares too narrow to add up to a Gaussian count for less.
    """
    return 1 / math.sqrt(2 * noise_rho(noise, length, honest))


def multiplier_for(epsilon: float, delta: float, steps: int) -> float:
    """The noise multiplier with which `steps` noised sums together cost (epsilon, delta), or a little more.

    Rounded up to a grid: the last bits of logarithms are the business of a machine's library, and all parties must
    derive the same noise.
    """
    return math.ceil(math.sqrt(steps / (2 * zcdp.rho_of(epsilon, delta))) * _GRID) / _GRID


def make_noise(norm: float, length: int, multiplier: float, honest: int) -> Noise:
    """Shares of which `honest` together reach `multiplier` for vectors of `length` coordinates.

    Raises:
        LocalProtocolError: more noise, or a longer vector, than the sampler and the ring are made for.
    """
    fine = FINENESS * math.sqrt(padded_length(length))
    radius = math.ceil(max(fine, LEAST_DEVIATION * math.sqrt(honest) / multiplier))
    sensitivity = largest_square(Noise(norm, radius, 1), length)
    variance = math.ceil(multiplier**2 * sensitivity / honest)
    if radius > MAX_RADIUS or variance > MAX_VARIANCE:
        raise LocalProtocolError(
            f"noise shares of variance {variance} for {length} coordinates",
            f"a variance of at most {MAX_VARIANCE}",
            "a larger epsilon, fewer steps, smaller vectors, or more least survivors",
        )
    return Noise(norm, radius, variance)


def noised_modulus_bits(noise: Noise, length: int, clients: int, steps: int) -> int:
    """An m for which `steps` sums over `clients` wrap nowhere but with probability 1 / `WRAP_AROUND`.

    Over the signs, a rotated coordinate of the sum is subgaussian with proxy (clients * radius)^2 / block; the noise
    with clients * sigma^2 (Canonne, Kamath, Steinke 2020, corollary 17); rounding moves it by less than one a client.
    A union bound covers both tails of all coordinates of all steps. All parties must derive the same m, so a logarithm,
    whose last bits are the business of a machine's library, is taken of the next power of two.
    """
    proxy = (clients * noise.radius) ** 2 / block_size(length) + clients * noise.variance
    largest = tail_of_noise(proxy, padded_length(length) * steps) + clients
    return math.ceil(largest).bit_length() + 1


def tail_of_noise(proxy: float, numbers: int) -> float:
    """What none of so many subgaussian numbers of this proxy exceeds, but with probability 1 / `WRAP_AROUND`."""
    chances = 2 * numbers * WRAP_AROUND
    return math.sqrt(2 * proxy * (chances.bit_length() * _LN_2))


def encode(
    values: Floats,
    noise: Noise,
    signs: Floats,
    *,
    modulus_bits: int,
    rounding: Rounding,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> Words:
    """Clip, rotate, round and noise a vector.

    Args:
        values: shape (N,), finite, each block divided by its clip.
        noise: the plan's.
        signs: of the rotation, shape (padded_length(N),).
        modulus_bits: m.
        rounding: generator of the stochastic rounding; it need not be secret.
        random_bytes: a cryptographic generator for the noise.

    Returns:
        Shape (padded_length(N),), words of `word_type(m)`, each below 2^m.

    Raises:
        LocalProtocolError: values are not finite.
    """
    if not np.isfinite(values).all():
        raise LocalProtocolError("values that are not finite", "finite values", "check the model and its learning rate")
    length = float(np.linalg.norm(values))
    scaled = rotate(values * (noise.radius / max(length, noise.norm)), signs)
    noised = _round(scaled, largest_square(noise, len(values)), rounding)
    noised += discrete_gaussian(noise.variance).sample(len(noised), random_bytes)
    return (noised & ((1 << modulus_bits) - 1)).astype(word_type(modulus_bits))


def decode_sum(total: Words, noise: Noise, signs: Floats, length: int, *, modulus_bits: int) -> Floats:
    """Turn a revealed sum, shape (padded_length(length),), into the noised sum of the clients' values, (length,)."""
    half = 1 << (modulus_bits - 1)
    signed = (total.astype(np.int64) + half) % (2 * half) - half
    return unrotate(signed.astype(np.float64), signs, length) * (noise.norm / noise.radius)


def _round(scaled: Floats, most: int, rounding: Rounding) -> Integers:
    """Round each coordinate to a neighbouring integer without bias, until the squared norm is at most `most`."""
    for _ in range(_MOST_TRIES):
        rounded = np.floor(scaled + rounding.random(len(scaled))).astype(np.int64)
        if int(rounded @ rounded) <= most:
            return rounded
    raise LocalProtocolError("a vector that cannot be rounded within its norm", "one within its clip")
