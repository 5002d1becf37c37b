"""Bytes that must not be seen: hidden in every repr, compared in constant time, erased when used.

Erasure is best effort: CPython may have copied the bytes while handing them to a library. What this class
guarantees is that no attribute of this package keeps a secret longer than its step, and that none is printed or
pickled.
"""

from __future__ import annotations

import hmac
from typing import Any, NoReturn

import numpy as np

from codream_protocols.errors import LocalProtocolError


class Secret:
    """A mutable secret of fixed length.

    `reveal()` gives a copy to hand to a primitive; `erase()` overwrites the bytes, after which `reveal()` raises.
    """

    __slots__ = ("_bytes", "_erased")

    def __init__(self, value: bytes | bytearray) -> None:
        self._bytes = bytearray(value)
        self._erased = False

    def reveal(self) -> bytes:
        """Return a copy of the bytes.

        Raises:
            LocalProtocolError: the secret was erased.
        """
        if self._erased:
            raise LocalProtocolError("use of an erased secret", "one use, before its erasure")
        return bytes(self._bytes)

    def erase(self) -> None:
        """Overwrite the bytes with zeros; harmless when repeated."""
        self._bytes[:] = bytes(len(self._bytes))
        self._erased = True

    @property
    def erased(self) -> bool:
        """Whether the bytes are gone."""
        return self._erased

    def __len__(self) -> int:
        return len(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._bytes, other._bytes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Secret of {len(self._bytes)} bytes, {'erased' if self._erased else 'hidden'}>"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Secret is never pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        # The model checker clones whole clients; a clone must own its bytes, or one erasure would reach both.
        twin = Secret(self._bytes)
        twin._erased = self._erased
        return twin


class SecretArray:
    """A writable uint8 array of secrets, one row an item, erased row by row.

    Args:
        rows: array of shape (items, bytes) and dtype uint8; it is copied.
    """

    __slots__ = ("_erased", "_rows")

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._rows = np.array(rows, dtype=np.uint8, copy=True)
        self._erased: set[int] = set()

    def row(self, index: int) -> bytes:
        """Return a copy of one row.

        Raises:
            LocalProtocolError: the row was erased.
        """
        if index in self._erased:
            raise LocalProtocolError("use of an erased secret", "one use, before its erasure")
        row: bytes = self._rows[index].tobytes()
        return row

    def erase_row(self, index: int) -> None:
        """Overwrite one row with zeros."""
        self._rows[index] = 0
        self._erased.add(index)

    def erase(self) -> None:
        """Overwrite everything."""
        self._rows[:] = 0
        self._erased.update(range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<SecretArray of {len(self._rows)} rows, hidden>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a SecretArray is never pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> SecretArray:
        twin = SecretArray(self._rows)
        twin._erased = set(self._erased)
        return twin
