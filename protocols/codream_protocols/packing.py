"""Packing: ring elements at little more than m bits each, in planes that are packed and added up as whole columns.

The m bits of an element are cut, from the lowest on, into planes of 16 bits, then of 8 while more than 8 are left, then
of what is left. A plane of w bits lies in 16-bit words, k = floor(16 / w) elements a word: with W = ceil(N / k) words,
element j W + i has the bits j w to j w + w - 1 of word i. Planes follow one another, words are little-endian, all other
bits are zero. So m = 16 takes 2 bytes an element, m = 21 takes 2.67, m = 24 takes 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from codream_protocols.cores import PIECE, each_slice
from codream_protocols.errors import VectorRefused
from codream_protocols.masks import word_type
from codream_protocols.spans import part_of_sum

_WORD = np.dtype("<u2")
_WORD_BITS = 16
_HALF_BITS = 8
_PIECE = PIECE  # elements or words
_LEAST_ADDED = 16  # pieces that are worth a thread: one is added in 12 to 25 microseconds


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


def plane_words(count: int, bits: int) -> list[tuple[int, int]]:
    """Of each plane its width and how many 16-bit words it has."""
    return [(plane.width, plane.words) for plane in _planes(count, bits)]


@part_of_sum("packing")
def pack(vector: np.ndarray[Any, Any], bits: int) -> bytes:
    """Pack a vector of words of `word_type(bits)`, each modulo 2^bits: what is beyond falls away."""
    if bits == _WORD_BITS and vector.dtype == _WORD:
        return vector.tobytes()
    return b"".join(_packed(vector, plane).data for plane in _planes(len(vector), bits))


def _packed(vector: np.ndarray[Any, Any], plane: _Plane) -> np.ndarray[Any, Any]:
    """The words of a plane."""
    words, mask = np.empty(plane.words, dtype=_WORD), (1 << plane.width) - 1

    def pack_piece(piece: slice) -> None:
        column = words[piece]
        if plane.width == _WORD_BITS and not plane.shift:
            np.copyto(column, vector[piece], casting="unsafe")  # the low bits
            return
        for part in range(plane.parts):
            elements = vector[part * plane.words :][: plane.words][piece]
            one = _shifted(elements, part * plane.width - plane.shift).astype(_WORD, copy=False)
            one &= _WORD.type(mask << part * plane.width)
            if part:
                column[: len(one)] |= one
            else:
                column[:] = one

    _each_piece(plane.words, pack_piece)
    return words


def _shifted(words: np.ndarray[Any, Any], left: int) -> np.ndarray[Any, Any]:
    """Words moved so many bits up, or down if it is negative."""
    return words << left if left >= 0 else words >> -left


def _each_piece(length: int, work: Callable[[slice], object], least: int = 2) -> None:
    """Work on pieces that stay in a core's cache, so that nothing of the vector's size is made on the way."""
    each_slice(length, work, _PIECE, least)


class Packed:
    """One packed vector, read and checked, on the bytes that came.

    Args:
        data: the frame.
        count: elements of the vector, 1 or more.
        bits: m, 1 to 32.

    Raises:
        VectorRefused: the frame has another size, or bits are set where no element has any.
    """

    __slots__ = ("_bits", "_count", "columns")

    def __init__(self, data: bytes | memoryview, count: int, bits: int) -> None:
        size = packed_size(count, bits)
        if len(data) != size:
            raise VectorRefused(f"a frame of {len(data)} bytes", f"{size} bytes for {count} elements of {bits} bits")
        self._count, self._bits = count, bits
        words, self.columns, start = np.frombuffer(data, dtype=_WORD), list[np.ndarray[Any, Any]](), 0
        for plane in _planes(count, bits):
            column = words[start : start + plane.words]
            if _has_spare_bits(plane, column, count):
                raise VectorRefused("bits set where no element has any", "zero padding")
            self.columns.append(column)
            start += plane.words

    @property
    def elements(self) -> np.ndarray[Any, Any] | None:
        """The elements, read-only, if they lie in the frame as they are."""
        return self.columns[0] if self._bits == _WORD_BITS else None

    @part_of_sum("packing")
    def unpack(self, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The elements as words of `word_type(bits)`, in `out` if given."""
        result = np.empty(self._count, dtype=word_type(self._bits)) if out is None else out
        for plane, column in zip(_planes(self._count, self._bits), self.columns, strict=True):
            _unpack_plane(column, plane, result)
        return result


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
        self._count, self._bits = count, bits
        *lower, highest = _planes(count, bits)
        self._lower, self._highest = [_ExactSum(plane, bits) for plane in lower], _HighestSum(highest)

    @part_of_sum("packing")
    def add(self, packed: Packed) -> None:
        """Add a vector of as many elements and bits."""
        *lower, highest = packed.columns
        for plane, column in zip(self._lower, lower, strict=True):
            plane.add(column)
        self._highest.add(highest)

    def merge(self, other: PackedSum) -> None:
        """Add what another one, of as many elements and bits, has added up."""
        for own, theirs in zip(self._lower, other._lower, strict=True):
            own.merge(theirs)
        self._highest.add(other._highest.words)

    @part_of_sum("packing")
    def total(self) -> np.ndarray[Any, Any]:
        """The sum: words of `word_type(bits)`, shape (count,), each below 2^bits."""
        result = np.zeros(self._count, dtype=word_type(self._bits))
        for plane in self._lower:
            plane.add_to(result)
        self._highest.add_to(result)
        result &= result.dtype.type((1 << self._bits) - 1)
        return result


class _HighestSum:
    """Of the highest plane: what a part carries is beyond 2^bits, so parts are added where they lie.

    A word's parts are added without their highest bits, so that none reaches the next one; those are added by a
    difference.
    """

    def __init__(self, plane: _Plane) -> None:
        self._plane, self.words = plane, np.zeros(plane.words, dtype=_WORD)
        self._high = sum(1 << (part + 1) * plane.width - 1 for part in range(plane.parts))
        self._low = ~self._high & (1 << _WORD_BITS) - 1

    def add(self, column: np.ndarray[Any, Any]) -> None:
        high_bits, low_bits = _WORD.type(self._high), _WORD.type(self._low)

        def add_piece(piece: slice) -> None:
            total, added = self.words[piece], column[piece]
            if self._plane.parts == 1 and self._plane.width == _WORD_BITS:
                total += added
                return
            high = total ^ added
            high &= high_bits
            total &= low_bits
            total += added & low_bits
            total ^= high

        _each_piece(len(column), add_piece, _LEAST_ADDED)

    def add_to(self, result: np.ndarray[Any, Any]) -> None:
        _unpack_plane(self.words, self._plane, result)


class _ExactSum:
    """Of a plane with another one above it: each part's sum in words of its own, and how often each was carried over.

    A part of 8 bits is not: from its lowest bit on, an element has 15 bits or fewer.
    """

    def __init__(self, plane: _Plane, bits: int) -> None:
        self._plane = plane
        self.sums = [np.zeros(plane.words, dtype=_WORD) for _ in range(plane.parts)]
        self.carries: np.ndarray[Any, Any] | None = None
        if plane.width == _WORD_BITS:  # they wrap where they are beyond 2^bits
            self.carries = np.zeros(plane.words, dtype=np.uint8 if bits - _WORD_BITS <= _HALF_BITS else _WORD)

    def add(self, column: np.ndarray[Any, Any]) -> None:
        mask = _WORD.type((1 << self._plane.width) - 1)

        def add_piece(piece: slice) -> None:
            words = column[piece]
            if self.carries is not None:
                self._add_with_carry(piece, words)
                return
            for part, sums in enumerate(self.sums):
                one = words >> part * self._plane.width
                one &= mask
                sums[piece] += one

        _each_piece(len(column), add_piece, _LEAST_ADDED)

    def _add_with_carry(self, piece: slice, words: np.ndarray[Any, Any]) -> None:
        assert self.carries is not None  # noqa: S101 - by its caller
        total = self.sums[0][piece]
        total += words
        self.carries[piece] += (total < words).view(np.uint8)

    def merge(self, other: _ExactSum) -> None:
        for own, theirs in zip(self.sums, other.sums, strict=True):
            _each_piece(len(own), partial(self._merge_piece, own, theirs, other.carries), _LEAST_ADDED)

    def _merge_piece(
        self,
        own: np.ndarray[Any, Any],
        theirs: np.ndarray[Any, Any],
        carries: np.ndarray[Any, Any] | None,
        piece: slice,
    ) -> None:
        if self.carries is None or carries is None:
            own[piece] += theirs[piece]
        else:
            self._add_with_carry(piece, theirs[piece])
            self.carries[piece] += carries[piece]

    def add_to(self, result: np.ndarray[Any, Any]) -> None:
        for part, sums in enumerate(self.sums):
            elements = result[part * self._plane.words :][: self._plane.words]
            _each_piece(len(elements), partial(self._add_piece_to, elements, sums))

    def _add_piece_to(self, elements: np.ndarray[Any, Any], sums: np.ndarray[Any, Any], piece: slice) -> None:
        total = sums[piece].astype(elements.dtype)
        if self.carries is not None:
            total |= self.carries[piece].astype(elements.dtype) << _WORD_BITS
        elements[piece] += total << self._plane.shift if self._plane.shift else total


def unpack(data: bytes | memoryview, count: int, bits: int) -> np.ndarray[Any, Any]:
    """Unpack `count` elements of `bits` bits into words of `word_type(bits)`; errors as `Packed`'s."""
    return Packed(data, count, bits).unpack()


def _unpack_plane(column: np.ndarray[Any, Any], plane: _Plane, result: np.ndarray[Any, Any]) -> None:
    """Add a plane's words to the elements of `result`; the lowest plane, which is first, overwrites them."""
    mask = (1 << plane.width) - 1

    def unpack_piece(piece: slice) -> None:
        if plane.width == _WORD_BITS and not plane.shift:
            result[piece] = column[piece]
            return
        words = column[piece].astype(result.dtype, copy=False)
        for part in range(plane.parts):
            elements = result[part * plane.words :][: plane.words][piece]
            one = _shifted(words[: len(elements)], plane.shift - part * plane.width)
            one &= one.dtype.type(mask << plane.shift)
            if plane.shift:
                elements += one
            else:
                elements[:] = one

    _each_piece(plane.words, unpack_piece)
