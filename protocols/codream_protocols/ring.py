"""Fixed-point numbers in the ring of integers modulo 2^m.

A value is clipped to [-clip, clip], mapped to 0 .. 2^v - 1 and rounded stochastically (up with the probability of
the remainder), so that the rounding is unbiased. With m >= v + ceil(log2 n) the sum of n encodings cannot wrap: the
decoded sum is exactly the sum of what was encoded. Adding survivors' encodings adds n' offsets of -clip, which
decoding removes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from codream_protocols.errors import LocalProtocolError
from codream_protocols.masks import word_type

Floats = np.ndarray[Any, np.dtype[np.float64]]
Words = np.ndarray[Any, Any]


class Rounding(Protocol):
    """Uniform numbers in [0, 1) for stochastic rounding."""

    def random(self, size: int, /) -> Floats:
        """`size` numbers."""


def modulus_bits_for(value_bits: int, clients: int) -> int:
    """The smallest m for which the sum of `clients` values of `value_bits` bits does not wrap."""
    return value_bits + (clients - 1).bit_length()


def encode(values: Floats, clip: float, *, value_bits: int, modulus_bits: int, rounding: Rounding) -> Words:
    """Clip and round to ring elements.

    Args:
        values: shape (N,), finite.
        clip: positive bound.
        value_bits: v, bits of one value (1 to 31).
        modulus_bits: m, bits of a ring element.
        rounding: generator for the stochastic rounding; it need not be secret.

    Returns:
        Shape (N,), words of `word_type(modulus_bits)`, each below 2^v.

    Raises:
        LocalProtocolError: values are not finite.
    """
    if not np.isfinite(values).all():
        raise LocalProtocolError("values that are not finite", "finite values", "check the model and its learning rate")
    top = (1 << value_bits) - 1
    scaled = (np.clip(values, -clip, clip) + clip) * (top / (2 * clip))
    rounded = np.floor(scaled + rounding.random(len(scaled)))
    return np.minimum(rounded, top).astype(word_type(modulus_bits))


def decode_sum(total: Words, survivors: int, clip: float, *, value_bits: int) -> Floats:
    """Turn the sum of `survivors` encodings back into the sum of their values.

    Args:
        total: shape (N,), ring elements (already reduced modulo 2^m).
        survivors: how many clients' encodings it holds.
        clip: the bound they were encoded with.
        value_bits: v.
    """
    top = (1 << value_bits) - 1
    return total.astype(np.float64) * (2 * clip / top) - survivors * clip


def clipped_fraction(values: np.ndarray[Any, Any], clip: float) -> float:
    """Which part of the values, of any shape, lies outside [-clip, clip]: 0 to 1."""
    return float(np.mean(np.abs(values) > clip)) if values.size else 0.0
