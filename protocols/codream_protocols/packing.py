"""Packing: ring elements at little more than m bits each, in planes that are packed and added up as whole columns.

The m bits of an element are cut, from the lowest on, into planes of 16 bits, then of 8 while more than 8 are left, then
of what is left. A plane of w bits lies in 16-bit words, k = floor(16 / w) elements a word: with W = ceil(N / k) words,
element j W + i has the bits j w to j w + w - 1 of word i. Planes follow one another, words are little-endian, all other
bits are zero. So m = 16 takes 2 bytes an element, m = 21 takes 2.67, m = 24 takes 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.masks import word_type

_WORD = np.dtype("<u2")
_WORD_BITS = 16
_HALF_BITS = 8
_PIECE = 1 << 16  # elements or words


class _Plane(NamedTuple):
    """Bits `shift` to `shift + width - 1` of each element; `words` 16-bit words, `parts` elements a word."""

    shift: int
    width: int
    parts: int
    words: int


def _planes(count: int, bits: int) -> list[_Plane]:
    planes, shift = [], 0
    while shift < bits:
        left = bits - shift
        width = _WORD_BITS if left >= _WORD_BITS else min(left, _HALF_BITS)
        parts = _WORD_BITS // width
        planes.append(_Plane(shift, width, parts, -(-count // parts)))
        shift += width
    return planes


def packed_size(count: int, bits: int) -> int:
    """Bytes for `count` elements of `bits` bits."""
    return _WORD.itemsize * sum(plane.words for plane in _planes(count, bits))


def pack(vector: np.ndarray[Any, Any], bits: int) -> bytes:
    """Pack a vector of unsigned words, each below 2^bits.

    Raises:
        LocalProtocolError: an element does not fit.
    """
    if len(vector) and int(vector.max()) >> bits:
        raise LocalProtocolError("an element outside the ring", f"elements below 2^{bits}")
    planes = _planes(len(vector), bits)
    words, start = np.empty(sum(plane.words for plane in planes), dtype=_WORD), 0
    for plane in planes:
        column, mask = words[start : start + plane.words], _WORD.type((1 << plane.width) - 1)
        for part in range(plane.parts):
            elements = vector[part * plane.words : (part + 1) * plane.words]
            for piece in _pieces(len(elements)):
                lowered = (elements[piece] >> plane.shift).astype(_WORD)
                lowered &= mask
                if part:
                    column[piece] |= lowered << part * plane.width
                else:
                    column[piece] = lowered
        start += plane.words
    return words.tobytes()


def _pieces(length: int) -> Iterator[slice]:
    """Pieces that stay in the processor's cache, so that nothing of the vector's size is made on the way."""
    return (slice(start, min(start + _PIECE, length)) for start in range(0, length, _PIECE))


class Packed:
    """One packed vector, read and checked, on the bytes that came.

    Args:
        data: the frame.
        count: elements of the vector, 1 or more.
        bits: m, 1 to 32.

    Raises:
        VectorRefused: the frame has another size, or bits are set where no element has any.
    """

    __slots__ = ("columns",)

    def __init__(self, data: bytes | memoryview, count: int, bits: int) -> None:
        size = packed_size(count, bits)
        if len(data) != size:
            raise VectorRefused(f"a frame of {len(data)} bytes", f"{size} bytes for {count} elements of {bits} bits")
        words, self.columns, start = np.frombuffer(data, dtype=_WORD), list[np.ndarray[Any, Any]](), 0
        for plane in _planes(count, bits):
            column = words[start : start + plane.words]
            if _has_spare_bits(plane, column, count):
                raise VectorRefused("bits set where no element has any", "zero padding")
            self.columns.append(column)
            start += plane.words


def _has_spare_bits(plane: _Plane, column: np.ndarray[Any, Any], count: int) -> bool:
    used = plane.parts * plane.width
    if used < _WORD_BITS and int(column.max()) >> used:
        return True
    mask = (1 << plane.width) - 1
    beyond = (divmod(element, plane.words) for element in range(count, plane.parts * plane.words))
    return any(int(column[place]) >> part * plane.width & mask for part, place in beyond)


class PackedSum:
    """Packed vectors added up as they are, each element modulo 2^bits; sums of parts merge.

    Args:
        count: elements of a vector, 1 or more.
        bits: m, 1 to 32.
    """

    def __init__(self, count: int, bits: int) -> None:
        self._count, self._bits, self._planes = count, bits, _planes(count, bits)
        # What of a plane's sum is carried beyond 2^bits does not count, so its words may wrap there.
        self._sums = [
            [np.zeros(plane.words, dtype=word_type(bits - plane.shift)) for _ in range(plane.parts)]
            for plane in self._planes
        ]

    def add(self, packed: Packed) -> None:
        """Add a vector of as many elements and bits."""
        for plane, column, sums in zip(self._planes, packed.columns, self._sums, strict=True):
            highest = plane.shift + plane.width == self._bits  # what stands above a part wraps away there
            for part, total in enumerate(sums):
                for piece in _pieces(plane.words):
                    total[piece] += _lowered(column[piece], plane, part, exact=not highest)

    def merge(self, other: PackedSum) -> None:
        """Add what another one, of as many elements and bits, has added up."""
        for own, theirs in zip(self._sums, other._sums, strict=True):
            for total, part in zip(own, theirs, strict=True):
                total += part

    def total(self) -> np.ndarray[Any, Any]:
        """The sum: words of `word_type(bits)`, shape (count,), each below 2^bits."""
        result = np.zeros(self._count, dtype=word_type(self._bits))
        for plane, sums in zip(self._planes, self._sums, strict=True):
            for part, total in enumerate(sums):
                elements = result[part * plane.words : (part + 1) * plane.words]
                for piece in _pieces(len(elements)):
                    elements[piece] += total[piece].astype(result.dtype) << plane.shift
        result &= result.dtype.type((1 << self._bits) - 1)
        return result


def unpack(
    data: bytes | memoryview, count: int, bits: int, out: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Unpack `count` elements of `bits` bits into words of `word_type(bits)`, `out` if given; errors as `Packed`'s."""
    result = np.empty(count, dtype=word_type(bits)) if out is None else out
    for plane, column in zip(_planes(count, bits), Packed(data, count, bits).columns, strict=True):
        for part in range(plane.parts):
            elements = result[part * plane.words : (part + 1) * plane.words]
            for piece in _pieces(len(elements)):
                lowered = _lowered(column[piece], plane, part, exact=True)
                if plane.shift:
                    elements[piece] |= lowered.astype(result.dtype) << plane.shift
                else:
                    elements[piece] = lowered
    return result


def _lowered(column: np.ndarray[Any, Any], plane: _Plane, part: int, *, exact: bool) -> np.ndarray[Any, Any]:
    """The elements of one part of a plane's words, `exact` or with what stands above them."""
    elements = column >> part * plane.width if part else column
    return elements & _WORD.type((1 << plane.width) - 1) if exact and part < plane.parts - 1 else elements
