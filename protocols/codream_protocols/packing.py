"""Packing: ring elements at m bits each, the least significant bit first, no gaps.

Eight elements fill exactly m bytes, so the work runs over m + 7 shifts of whole columns instead of over bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.masks import word_type


def packed_size(count: int, bits: int) -> int:
    """Bytes for `count` elements of `bits` bits."""
    return (count * bits + 7) // 8


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """(element, byte, shift) for each pair that shares bits; shift is the element's first bit minus the byte's."""
    return [
        (element, byte, element * bits - byte * 8)
        for element in range(8)
        for byte in range(element * bits // 8, ((element + 1) * bits - 1) // 8 + 1)
    ]


def pack(vector: np.ndarray[Any, Any], bits: int) -> bytes:
    """Pack a vector of unsigned words, each below 2^bits.

    Raises:
        LocalProtocolError: an element does not fit.
    """
    if len(vector) and int(vector.max()) >> bits:
        raise LocalProtocolError("an element outside the ring", f"elements below 2^{bits}")
    groups = -(-len(vector) // 8)
    padded = np.zeros(groups * 8, dtype=np.uint64)
    padded[: len(vector)] = vector
    columns = padded.reshape(groups, 8).T
    packed = np.zeros((groups, bits), dtype=np.uint8)
    for element, byte, shift in _overlaps(bits):
        column = columns[element]
        moved = column << np.uint64(shift) if shift >= 0 else column >> np.uint64(-shift)
        packed[:, byte] |= moved.astype(np.uint8)
    return packed.tobytes()[: packed_size(len(vector), bits)]


def unpack(data: bytes | memoryview, count: int, bits: int) -> np.ndarray[Any, Any]:
    """Unpack `count` elements of `bits` bits into words of `word_type(bits)`.

    Raises:
        VectorRefused: the frame has another size, or bits are set behind the last element.
    """
    size = packed_size(count, bits)
    if len(data) != size:
        raise VectorRefused(f"a frame of {len(data)} bytes", f"{size} bytes for {count} elements of {bits} bits")
    spare = size * 8 - count * bits
    if spare and data[-1] >> (8 - spare):
        raise VectorRefused("bits set behind the last element", "zero padding")
    groups = -(-count // 8)
    flat = np.zeros(groups * bits, dtype=np.uint8)
    flat[:size] = np.frombuffer(data, dtype=np.uint8)
    packed = flat.reshape(groups, bits)
    columns = np.zeros((8, groups), dtype=np.uint64)
    for element, byte, shift in _overlaps(bits):
        column = packed[:, byte].astype(np.uint64)
        columns[element] |= column >> np.uint64(shift) if shift >= 0 else column << np.uint64(-shift)
    columns &= np.uint64((1 << bits) - 1)
    return columns.T.reshape(-1)[:count].astype(word_type(bits))
