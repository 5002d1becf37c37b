"""Group tag: a one-time linear MAC that shows a published sum to be the sum of just the members it names.

Protocol 2, section 4. All members, and not the server, hold the secret of a step. From it come 128-bit numbers: a, one
a row; b, one a column; beta_i, one a member. Integers x are read as a matrix X, row by row, zeros at the end, and
member i's tag is

    w_i = a' X_i b + beta_i   mod 2^128.

Tags are sent under masks that cancel in the sum. With the sum Y comes the sum W of the tags, and everybody checks
W = a' Y b + the beta_i of the members named: both sides are linear in X, so a true sum always fits.

**Bound.** If no entry of a published Y can differ by 2^m or more from the sum of the members named (Y outside their
possible range is refused, and that is no wider), a Y that is not this sum fits with a probability of at most

    (q/2 + 1) 2^-q   with q = 129 - m:   2^-98 for m = 25, 2^-91 for m = 32, 2^-90 for m = 33, in each check.

Proof. Without the secret each w_i is uniform, as beta_i is: after all that a forger saw, a and b are still uniform.
- Let S be the members named. If one of them made no tag, its beta is uniform and the check fits with 2^-128. Else let
  D = Y - sum of X_i over S, not 0. To fit, a' D b must be one number, which the forger has fixed together with D.
- Entries of D are below 2^m, so those that are not 0 have a 2-adic valuation of at most m - 1. Take the least, v, and
  its row: D b is there 2^v u, with u uniform modulo 2^k, k = 128 - v >= q (an odd number times an entry of b is).
- Let g be the least valuation in the vector D b, at most 128. Given D b, a' (D b) is uniform over the 2^(128-g)
  multiples of 2^g: it is the fixed number with a probability of at most 2^(g-128), and g <= v + min(val u, k). Hence

      E 2^(min(val u, k) - k) = (sum over j < k of 2^-(j+1) 2^(j-k)) + 2^-k = (k/2 + 1) 2^-k <= (q/2 + 1) 2^-q.

So a key serves one step: two sums under the same pads would tell a' D b. A member knows the key and can move the sum;
its own input can do so anyway. The numbers are AES-256-CTR streams under keys that HKDF separates: the bound holds up
to their strength.

**Exactness.** float64 adds integers without an error while all partial sums stay below 2^53, in whichever order and on
however many threads. With b in limbs of 16 bits, 2^11 columns may hold |x| <= 2^26; in limbs of 8 bits, |x| < 2^33.
Each piece of X takes the wider limbs if its largest magnitude lets it, so time tells whether some |x| is above 2^26.
Words of 16 bits meet a first, in limbs of 32 bits, of which 2^5 rows are below 2^53: 4 limbs instead of 8, whatever
the words are. The few numbers left meet the other factor in thirds of 21 bits: with limbs of 16 bits, sums of up to
2^15 stay below 2^52.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from codream_protocols.cores import PIECE, each
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.keyschedule import KEY_BYTES, expand, labelled
from codream_protocols.secret import Secret
from codream_protocols.spans import part_of_sum

TAG_BYTES = 16
COLUMNS = 2048
MAXIMUM_LENGTH = 1 << 26  # 2^15 rows: the last sums in `TagKey.of` stay below 2^52
MAGNITUDE_BITS = 33

_MODULUS = 1 << 8 * TAG_BYTES
_WIDE_LIMB_BITS = 16
_NARROW_LIMB_BITS = 8
_WIDE_LIMBS_HOLD = 1 << 26  # 26 + 16 + 11 = 53
_LONG_LIMB_BITS = 32
_THIRD_BITS = 21
_ROWS = PIECE // COLUMNS  # 32
HALF_BITS = 32
_TYPES = tuple(np.dtype(name) for name in ("<i8", "<i4", "<u4", "<u2"))


def tag_bytes(tag: int) -> bytes:
    """A tag as `TAG_BYTES` bytes, little-endian.

    Raises:
        LocalProtocolError: not a number modulo 2^128.
    """
    if not 0 <= tag < _MODULUS:
        raise LocalProtocolError("a tag outside its ring", "0 to 2^128 - 1")
    return tag.to_bytes(TAG_BYTES, "little")


def tag_number(data: bytes) -> int:
    """The tag that `tag_bytes` wrote.

    Raises:
        VectorRefused: another number of bytes.
    """
    if len(data) != TAG_BYTES:
        raise VectorRefused(f"a tag of {len(data)} bytes", f"{TAG_BYTES} bytes")
    return int.from_bytes(data, "little")


def _keystream(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(bytes(16))).encryptor()


class TagKey:
    """The key of one step: makes this member's tag, then checks the sum's.

    Args:
        secret: the step's tag secret, 32 bytes, uniform, for this one step and never known to the server.
        length: coordinates of a vector, 1 to 2^26.

    Raises:
        LocalProtocolError: a secret or a length outside these.
    """

    __slots__ = ("_columns", "_length", "_pads", "_rows")

    def __init__(self, secret: bytes, length: int) -> None:
        if len(secret) != KEY_BYTES:
            raise LocalProtocolError(f"a tag secret of {len(secret)} bytes", f"{KEY_BYTES} bytes")
        if not 1 <= length <= MAXIMUM_LENGTH:
            raise LocalProtocolError(f"a tagged vector of {length} coordinates", f"1 to {MAXIMUM_LENGTH}")
        columns = _keystream(expand(secret, labelled("tag columns"))).update(bytes(16 * COLUMNS))
        rows = _keystream(expand(secret, labelled("tag rows"))).update(bytes(16 * -(-length // COLUMNS)))
        self._length = length
        self._columns = np.frombuffer(columns, dtype="<u2").reshape(COLUMNS, 8).astype(np.float64)
        self._rows = np.frombuffer(rows, dtype="<u2").reshape(-1, 8).astype(np.float64)
        self._pads = Secret(expand(secret, labelled("tag pads")))

    @part_of_sum("tags")
    def of(self, values: np.ndarray[Any, Any], doubles: np.ndarray[Any, Any] | None = None) -> int:
        """A' X b modulo 2^128.

        Args:
            values: shape (length,), int64, int32, uint32 or uint16, each below 2^33 in magnitude.
            doubles: shape (length,), float64, elsewhere in memory: filled with the values, for who needs them so, too.

        Raises:
            LocalProtocolError: another shape, dtype or magnitude, or the key was erased.
        """
        self._usable()
        if values.shape != (self._length,) or values.dtype not in _TYPES:
            raise LocalProtocolError(
                f"values of shape {values.shape} and dtype {values.dtype}",
                f"shape ({self._length},) and dtype int64, int32, uint32 or uint16",
            )
        if values.dtype.itemsize == 2:
            return _finished(self._rows_times(values, doubles), _LONG_LIMB_BITS, self._columns)
        return _finished(self._times_columns(values, doubles).T, _WIDE_LIMB_BITS, self._rows)

    def _rows_times(self, values: np.ndarray[Any, Any], doubles: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
        """A' X in limbs of 32 bits, (4, COLUMNS), int64: half as many products as X b in limbs of 16."""
        limbs = np.ascontiguousarray((self._rows[:, 0::2] + self._rows[:, 1::2] * (1 << _WIDE_LIMB_BITS)).T)
        sums = list[np.ndarray[Any, Any]]()

        def multiply(pieces: Iterator[int]) -> None:
            total, products = np.zeros((len(limbs), COLUMNS), dtype=np.int64), np.empty((len(limbs), COLUMNS))
            for piece in pieces:
                rows, first = _as_rows(values, piece, doubles), piece * _ROWS
                np.matmul(limbs[:, first : first + len(rows)], rows, out=products)
                total += products.astype(np.int64)  # below 2^53 each, of up to 2^10 pieces: below 2^63
            sums.append(total)

        each(-(-len(values) // PIECE), multiply)
        limbs[:] = 0
        total: np.ndarray[Any, Any] = np.add.reduce(sums)
        return total

    def _times_columns(
        self, values: np.ndarray[Any, Any], doubles: np.ndarray[Any, Any] | None
    ) -> np.ndarray[Any, Any]:
        """X b in limbs of 16 bits, (rows, 8), int64, below 2^61."""
        products = np.empty((len(self._rows), 8), dtype=np.int64)

        def multiply(pieces: Iterator[int]) -> None:
            narrow_columns: np.ndarray[Any, Any] | None = None  # b in limbs of 8 bits, which few vectors need
            for piece in pieces:
                magnitude, plain = _magnitude(values[piece * PIECE : (piece + 1) * PIECE]), values
                if values.dtype == np.uint32 and magnitude <= _WIDE_LIMBS_HOLD:
                    plain = values.view(np.int32)  # becomes doubles in half the time
                rows, first = _as_rows(plain, piece, doubles), piece * _ROWS
                if magnitude <= _WIDE_LIMBS_HOLD:
                    products[first : first + len(rows)] = rows @ self._columns
                elif magnitude >> MAGNITUDE_BITS:
                    raise LocalProtocolError("a value too large for a tag", f"magnitudes below 2^{MAGNITUDE_BITS}")
                else:
                    if narrow_columns is None:
                        narrow_columns = self._columns.astype("<u2").view(np.uint8).reshape(COLUMNS, 16).astype(float)
                    narrow = (rows @ narrow_columns).astype(np.int64)
                    products[first : first + len(rows)] = narrow[:, 0::2] + (narrow[:, 1::2] << _NARROW_LIMB_BITS)
            if narrow_columns is not None:
                narrow_columns[:] = 0

        each(-(-len(values) // PIECE), multiply)
        return products

    @property
    def limbs(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """For who multiplies elsewhere: a and b in limbs of 16 bits, the lowest first, (rows, 8) and (2048, 8), int64.

        Raises:
            LocalProtocolError: the key was erased.
        """
        self._usable()
        return self._rows.astype(np.int64), self._columns.astype(np.int64)

    def pad(self, member: int) -> int:
        """Beta of a member's number (0 to 2^32 - 1): 0 to 2^128 - 1.

        Raises:
            LocalProtocolError: no such number, or the key was erased.
        """
        return self._sum_of_pads([member])

    def _sum_of_pads(self, members: Sequence[int]) -> int:
        """Modulo 2^128. A member's pad is the block of the stream that has its number."""
        self._usable()
        stream = _keystream(self._pads.reveal())
        total = 0
        for member in members:
            if not 0 <= member < 1 << 32:
                raise LocalProtocolError(f"member number {member}", "0 to 2^32 - 1")
            stream.reset_nonce(member.to_bytes(16, "big"))
            total += int.from_bytes(stream.update(bytes(TAG_BYTES)), "little")
        return total % _MODULUS

    def tag(self, member: int, values: np.ndarray[Any, Any]) -> int:
        """The tag of a member's values, 0 to 2^128 - 1; arguments and errors as for `pad` and `of`."""
        return (self.of(values) + self.pad(member)) % _MODULUS

    def check(
        self,
        values: np.ndarray[Any, Any],
        total: int,
        survivors: Iterable[int],
        doubles: np.ndarray[Any, Any] | None = None,
    ) -> bool:
        """Whether `values` is the sum of the vectors of just these members.

        The bound above holds for values whose range the caller has checked.

        Args:
            values: the published sum, as for `of`.
            total: the published sum of tags modulo 2^128.
            survivors: numbers of the members, at least one, none twice.
            doubles: as for `of`.

        Raises:
            LocalProtocolError: arguments outside these, or the key was erased.
        """
        members = list(survivors)
        if not members or len(set(members)) != len(members):
            raise LocalProtocolError(f"survivors {members}", "at least one member, none twice")
        expected = (self.of(values, doubles) + self._sum_of_pads(members)) % _MODULUS
        return hmac.compare_digest(tag_bytes(expected), tag_bytes(total))

    def erase(self) -> None:
        """Overwrite the key with zeros; harmless when repeated, and every use after it raises."""
        for numbers in (self._columns, self._rows):
            numbers[:] = 0
        self._pads.erase()

    def _usable(self) -> None:
        if self._pads.erased:
            raise LocalProtocolError("use of an erased tag key", "use within its step, before its erasure")

    def __repr__(self) -> str:
        return f"<TagKey for {self._length} coordinates, {'erased' if self._pads.erased else 'hidden'}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a TagKey is never pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> TagKey:
        # As for Secret: a cloned client owns its key, or one erasure would reach both.
        twin = object.__new__(TagKey)
        twin._length = self._length
        twin._columns = self._columns.copy()
        twin._rows = self._rows.copy()
        twin._pads = self._pads.__deepcopy__(memo)
        return twin


def _as_rows(
    values: np.ndarray[Any, Any], piece: int, doubles: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A piece as rows of doubles, the last one filled up with zeros; in `doubles`, too, if given."""
    part = values[piece * PIECE : (piece + 1) * PIECE]
    rows = -(-len(part) // COLUMNS)
    room = None if doubles is None else doubles[piece * PIECE : (piece + 1) * PIECE]
    flat = room if room is not None and len(part) == rows * COLUMNS else np.empty(rows * COLUMNS)
    flat[: len(part)] = part
    flat[len(part) :] = 0
    if room is not None and room is not flat:
        room[:] = part
    return flat.reshape(rows, COLUMNS)


def _finished(numbers: np.ndarray[Any, Any], width: int, limbs: np.ndarray[Any, Any]) -> int:
    """Numbers (L, K), int64, in limbs of `width` bits, times (K, 8), in limbs of 16, modulo 2^128.

    K is 2^15 at most; why nothing is lost, the module says.
    """
    third = (1 << _THIRD_BITS) - 1
    thirds = np.concatenate((numbers & third, numbers >> _THIRD_BITS & third, numbers >> 2 * _THIRD_BITS))
    total = 0
    for line, entries in enumerate((thirds.astype(np.float64) @ limbs).astype(np.int64).tolist()):
        place, limb = divmod(line, len(numbers))
        base = place * _THIRD_BITS + limb * width
        total += sum(entry << base + _WIDE_LIMB_BITS * k for k, entry in enumerate(entries))
    return total % _MODULUS


def _magnitude(values: np.ndarray[Any, Any]) -> int:
    """The largest, without its sign."""
    least = 0 if values.dtype.kind == "u" else int(values.min())
    return max(-least, int(values.max()))


def joined(low: np.ndarray[Any, Any], high: np.ndarray[Any, Any]) -> int:
    """A' X b modulo 2^128 of a in limbs, transposed, times the lower 32 bits of X b in limbs, and times the upper ones.

    Args:
        low: int64, (8, 8).
        high: the same.
    """
    return (_weigh(low) + (_weigh(high) << HALF_BITS)) % _MODULUS


def _weigh(sums: np.ndarray[Any, Any]) -> int:
    """The sum of all entries [j, k], each times 2^(16 (j + k)), as a number without a bound."""
    limbs = sums.tolist()
    return sum(entry << _WIDE_LIMB_BITS * (j + k) for j, line in enumerate(limbs) for k, entry in enumerate(line))
