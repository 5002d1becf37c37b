"""Record-level differential privacy in the ring: sums of rounded vectors of records, and noise that all clients share.

A client scales the vector of each of its records to at most `radius` ring units, rounds it at random to integers,
again until its norm is within `largest_square` (conditional rounding: Kairouz, Liu, Steinke, ICML 2021, arXiv
2102.06387), and adds up those records that take part in a step. Here that sum is clamped, coordinate by coordinate,
gets this client's share of exact discrete Gaussian noise, and is reduced modulo 2^m. The secure sum then carries the
noise of all clients, as if all records lay in one place.

What one record moves. Its rounded vector has a norm that is checked in integers. Clamping moves no two numbers apart,
so the clamped sum moves by no more; reducing is processing of what is noised. The sum over all clients moves by the
same, and its noise is that of `honest` shares that nobody else knows, or more: each client sizes its share for the
smallest set that may be summed, less those who may collude (`Charter.least_honest`), and never for the roster.

Clamping is what the ring's bits follow from: a sum that wraps would fail its check, and end the epoch. There is no
rotation: it would have to be done for each record, and a clamp does not need a vector's mass to be spread.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from codream_protocols import zcdp
from codream_protocols.discrete_gaussian import MAX_VARIANCE, Integers, RandomBytes, discrete_gaussian
from codream_protocols.distributed_noise import (
    FINENESS,
    LEAST_DEVIATION,
    MAX_RADIUS,
    Rounding,
    rounded_square,
    tail_of_noise,
)
from codream_protocols.errors import LocalProtocolError
from codream_protocols.masks import word_type
from codream_protocols.ring import Floats, Words

Singles = np.ndarray[Any, np.dtype[np.float32]]

MAX_LARGEST = 1 << 30
_MOST_TRIES = 1000  # each succeeds with probability 1 - beta or more


class RecordNoise(Struct, frozen=True, array_like=True, tag="records", forbid_unknown_fields=True):
    """The noise of a vector that is a sum over records.

    Attributes:
        norm: Euclidean bound of a record's vector.
        radius: the same bound in ring units, before rounding: how fine the grid is.
        largest: bound of one coordinate of a client's sum, in ring units.
        variance: sigma^2 of one client's share, in squared ring units.
        honest: how many shares of it the promise counts on.
    """

    norm: float
    radius: Annotated[int, Meta(ge=1, le=MAX_RADIUS)]
    largest: Annotated[int, Meta(ge=1, le=MAX_LARGEST)]
    variance: Annotated[int, Meta(ge=1, le=MAX_VARIANCE)]
    honest: Annotated[int, Meta(ge=1)]


def largest_square(noise: RecordNoise, length: int) -> int:
    """The largest squared norm of a record's rounded vector of `length` coordinates, in ring units."""
    return rounded_square(noise.radius, length)


def record_rho(noise: RecordNoise, length: int, shares: int | None = None) -> float:
    """ZCDP of one sum in which a record surely takes part, for its presence; `shares` in the place of `honest`."""
    shares = noise.honest if shares is None else shares
    return zcdp.distributed_rho(largest_square(noise, length), noise.variance, shares, length)


def make_record_noise(norm: float, length: int, multiplier: float, honest: int, bound: float) -> RecordNoise:
    """Shares of which `honest` together reach `multiplier` times what a record moves.

    Args:
        norm: of a record's vector.
        length: its coordinates.
        multiplier: deviation of all the noise, over the sensitivity.
        honest: how many shares are surely in a sum, and unknown to the observer.
        bound: of a coordinate of a client's sum, in units of `norm`.

    Raises:
        LocalProtocolError: more noise, or a larger sum, than the sampler and the ring are made for.
    """
    fine = FINENESS * math.sqrt(length)
    radius = math.ceil(max(fine, LEAST_DEVIATION * math.sqrt(honest) / multiplier))
    variance = math.ceil(multiplier**2 * rounded_square(radius, length) / honest)
    largest = math.ceil(bound * radius)
    if radius > MAX_RADIUS or variance > MAX_VARIANCE or largest > MAX_LARGEST:
        raise LocalProtocolError(
            f"noise shares of variance {variance}, and sums up to {largest}, for {length} coordinates",
            f"a variance of at most {MAX_VARIANCE}, and sums up to {MAX_LARGEST}",
            "a larger epsilon, fewer steps, a smaller model, or a smaller bound of a coordinate",
        )
    return RecordNoise(norm, radius, largest, variance, honest)


def summed_modulus_bits(noise: RecordNoise, length: int, clients: int, steps: int) -> int:
    """An m for which `steps` sums over `clients` wrap nowhere but with a negligible probability."""
    largest = clients * noise.largest + tail_of_noise(clients * noise.variance, length * steps)
    return math.ceil(largest).bit_length() + 1


def round_records(scaled: Singles, most: int, rounding: Rounding) -> Integers:
    """Round the vector of each record to neighbouring integers without bias, until its squared norm is at most `most`.

    Args:
        scaled: shape (B, d), float32, each row's norm at most the radius.
        most: `largest_square`.
        rounding: of randomness that nobody else has: which of it goes to which record hangs on who takes part.

    Returns:
        Shape (B, d), int64. A row that cannot be rounded, as one that is longer cannot, is 0.
    """
    rounded = np.zeros(scaled.shape, dtype=np.int64)
    open_rows = np.arange(len(scaled))
    for _ in range(_MOST_TRIES):
        if not len(open_rows):
            break
        tried = rounding.random(len(open_rows) * scaled.shape[1]).astype(np.float32).reshape(-1, scaled.shape[1])
        tried += scaled[open_rows]
        np.floor(tried, out=tried)
        # In double precision sums of squares of integers are exact up to 2^53, which `most` is far below.
        fits = np.einsum("ij,ij->i", tried, tried, dtype=np.float64) <= most
        rounded[open_rows[fits]] = tried[fits]
        open_rows = open_rows[~fits]
    return rounded


def clamped(total: Integers, noise: RecordNoise) -> Integers:
    """A client's sum, each coordinate within the bound; what one record moves it by gets no longer."""
    return np.clip(total, -noise.largest, noise.largest)


def encode(
    total: Integers, noise: RecordNoise, *, modulus_bits: int, random_bytes: RandomBytes = secrets.token_bytes
) -> Words:
    """Clamp and noise a client's sum over its records.

    Args:
        total: shape (N,), integers.
        noise: the plan's.
        modulus_bits: m.
        random_bytes: a cryptographic generator for the noise.

    Returns:
        Shape (N,), words of `word_type(m)`, each below 2^m.
    """
    noised = clamped(total, noise) + discrete_gaussian(noise.variance).sample(len(total), random_bytes)
    return (noised & ((1 << modulus_bits) - 1)).astype(word_type(modulus_bits))


def decode_sum(total: Integers, noise: RecordNoise) -> Floats:
    """Turn a revealed sum, as integers nearest zero, (N,), into the noised sum of the records' vectors, (N,)."""
    return total.astype(np.float64) * (noise.norm / noise.radius)
