"""Fixed-point numbers in the ring of integers modulo 2^m.

A value is clipped to [-clip, clip], mapped to 0 .. `top` and rounded stochastically (up with the probability of the
remainder), so that the rounding is unbiased: to the nearest of 2^k parts of a step first, k = min(16, 31 - v) where v
are the bits of `top`, then up or down by k random bits, which are integers already. Single precision is scaled in
single precision where v is 16 or less: a factor alone, so that a value is off by 2^-23 of itself, as its own last bit
is; an offset is added to integers only. Where n times `top` is below 2^m, the sum of n encodings cannot wrap: the
decoded sum is exactly the sum of what was encoded. Adding survivors' encodings adds n' offsets of -clip, which decoding
removes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from codream_protocols.cores import PIECE, each_slice

Floats = np.ndarray[Any, np.dtype[np.float64]]
Words = np.ndarray[Any, Any]
Dither = Callable[[int, int], Words]
"""A piece's number, N -> N uniform numbers of 16 bits, uint16, which may be overwritten; they need not be secret."""

_PIECE = PIECE
_DITHER_BITS = 16
_SIGNED_BITS = 31
_SINGLE_BITS = 16  # v up to which, and
_SINGLE_CLIP = 2.0**60  # a clip up to which single precision is enough


def modulus_bits_for(value_bits: int, clients: int) -> int:
    """The smallest m for which the sum of `clients` values of `value_bits` bits does not wrap."""
    return value_bits + (clients - 1).bit_length()


class Steps(NamedTuple):
    """How values become words: scaled in a type of floats by a factor, bounded, rounded; `middle` is added.

    Of 2^fine such parts of a step a word is made.
    """

    real: type[np.float32] | type[np.float64]
    factor: Any
    bound: Any
    middle: int
    fine: int

    @classmethod
    def of(cls, dtype: np.dtype[Any], clip: float, top: int) -> Steps:
        """For values of a dtype; see `encode`."""
        bits = top.bit_length()
        fine = min(_DITHER_BITS, _SIGNED_BITS - bits)
        middle = top << fine - 1
        single = dtype == np.float32 and bits <= _SINGLE_BITS and clip <= _SINGLE_CLIP
        real = np.float32 if single else np.float64
        return cls(real, real(middle / clip), real(middle), middle, fine)


def encode(values: np.ndarray[Any, Any], clip: float, words: Words, *, top: int, dither: Dither) -> int:
    """Clip and round to ring elements.

    Args:
        values: shape (N,), real; what is not finite, or would not be over `clip`, counts 0.
        clip: positive bound.
        words: shape (N,), of any unsigned type of 16 bits or more that holds `top`: filled with numbers up to it.
        top: what `clip` becomes, 1 to 2^24 - 1.
        dither: for the stochastic rounding, asked once for each piece of 2^16 values.

    Returns:
        How many values were not finite.
    """
    real, factor, bound, middle, fine = Steps.of(values.dtype, clip, top)
    replaced = list[int]()

    def encode_piece(piece: slice) -> None:
        part = values[piece]
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.multiply(part, factor, dtype=real)
            if not math.isfinite(np.dot(scaled, scaled)):  # one pass over all; some of it may be large only
                finite = np.isfinite(np.divide(part, clip, dtype=np.float64))
                replaced.append(len(part) - int(np.count_nonzero(finite)))
                scaled[~finite] = 0.0
        scaled.clip(-bound, bound, out=scaled)
        np.rint(scaled, out=scaled)
        steps, parts = _as_integers(scaled), dither(piece.start // _PIECE, len(part))
        if fine < _DITHER_BITS:
            parts >>= _DITHER_BITS - fine
        steps += parts.astype(np.int32)  # faster than adding words of two widths
        steps += middle
        steps >>= fine
        words[piece] = steps

    each_slice(len(values), encode_piece, _PIECE)
    return sum(replaced)


def _as_integers(whole: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Whole floats as integers; those of 4 bytes in their own place, so that a piece's arrays stay in the cache."""
    if whole.itemsize != np.dtype(np.int32).itemsize:
        return whole.astype(np.int32)
    integers = whole.view(np.int32)
    np.copyto(integers, whole, casting="unsafe")
    return integers


def decode_sum(total: Words, survivors: int, clip: float, *, top: int, out: Floats | None = None) -> Floats:
    """Turn the sum of `survivors` encodings back into the sum of their values.

    Args:
        total: shape (N,), ring elements (already reduced modulo 2^m).
        survivors: how many clients' encodings it holds.
        clip: the bound they were encoded with.
        top: what they were encoded up to.
        out: shape (N,), filled from the beginning, where the ring elements may lie in its end; made unless given.
    """
    factor, offset = 2 * clip / top, survivors * clip
    values = np.empty(len(total), dtype=np.float64) if out is None else out
    for start in range(0, len(total), _PIECE):  # in order: where they share memory, one piece takes another's place
        part = values[start : start + _PIECE]
        part[:] = total[start : start + _PIECE]
        part *= factor
        part -= offset
    return values
