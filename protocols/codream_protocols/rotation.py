"""Flattening: a randomised Hadamard rotation with public signs, in blocks of up to 256 coordinates.

Multiplied by random signs and a Hadamard matrix, a vector's mass is spread evenly over its coordinates (Ailon and
Chazelle, STOC 2006), so that the ring need not be wide enough for one coordinate that carries all of it. In blocks,
because one rotation of the whole vector pads it to a power of two, up to twice the bytes; blocks of 256 pad at most 255
coordinates. The price is in the wrap-around bound: a vector whose mass lies in one block is spread over 256 coordinates
only. Privacy does not rest on the signs: whatever they are, the rotation keeps the Euclidean norm.
"""

from __future__ import annotations

import math

import numpy as np

from codream_protocols.keyschedule import digest, number
from codream_protocols.masks import add_mask
from codream_protocols.ring import Floats

MAX_BLOCK = 256


def block_size(length: int) -> int:
    """Coordinates that are rotated together: a power of two, at most `MAX_BLOCK`."""
    return min(MAX_BLOCK, 1 << (length - 1).bit_length())


def padded_length(length: int) -> int:
    """`length` (at least 1) rounded up to whole blocks."""
    block = block_size(length)
    return -(-length // block) * block


def step_signs(plan: bytes, step: int, length: int) -> Floats:
    """The signs of a step, +1.0 or -1.0, shape (padded_length(length),): everybody derives them from the plan."""
    size = padded_length(length)
    stream = np.zeros(-(-size // 16), dtype="<u2")
    add_mask(stream, digest("rotation", plan, number(step)), suite="aes-256-ctr")
    return 1.0 - 2.0 * np.unpackbits(stream.view(np.uint8), count=size).astype(np.float64)


def rotate(values: Floats, signs: Floats) -> Floats:
    """Rotate `values`, shape (length,), into shape (len(signs),); zeros are appended first."""
    padded = np.zeros(len(signs))
    padded[: len(values)] = values
    return _hadamard(padded * signs, block_size(len(values)))


def unrotate(rotated: Floats, signs: Floats, length: int) -> Floats:
    """The inverse of `rotate`: shape (length,)."""
    return (_hadamard(rotated, block_size(length)) * signs)[:length]


def _hadamard(values: Floats, block: int) -> Floats:
    """The orthonormal Walsh-Hadamard transform of each block; it is its own inverse."""
    rows: Floats = values.reshape(-1, block)
    width = 1
    while width < block:
        pairs = rows.reshape(len(rows), -1, 2, width)
        rows = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
        width *= 2
    return rows.reshape(-1) * np.float64(1 / math.sqrt(block))  # a power need not be rounded alike everywhere
