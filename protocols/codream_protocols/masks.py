"""Mask streams: a key of 32 bytes stretched into ring elements, added to or taken from a running vector.

AES-256-CTR (NIST SP 800-38A) with a zero initial counter, or ChaCha20 (RFC 8439 block function) with a zero nonce:
a key serves one stream only, so a fixed start is sound. The vector is walked in pieces that stay in the processor's
cache. Streams are read as little-endian words, 16 bits wide up to a modulus of 2^16, else 32; the ring reduces at
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR

from codream_protocols.errors import LocalProtocolError

SUITES: Mapping[str, Callable[[bytes], CipherContext]] = {
    "aes-256-ctr": lambda key: Cipher(AES(key), CTR(bytes(16))).encryptor(),
    "chacha20": lambda key: Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor(),
}
"""Name -> the stream of a key, as encryption of zeros: one entry a back-end; charters and policies take these names."""

if TYPE_CHECKING:
    Suite = str
else:
    Suite = Literal[tuple(SUITES)]

_PIECE_BYTES = 1 << 18
_ZEROS = bytes(_PIECE_BYTES)


def word_type(modulus_bits: int) -> np.dtype[Any]:
    """The unsigned little-endian word in which a ring of `modulus_bits` (1 to 32) computes."""
    if not 1 <= modulus_bits <= 32:
        raise LocalProtocolError(f"a modulus of {modulus_bits} bits", "1 to 32 bits")
    return np.dtype("<u2") if modulus_bits <= 16 else np.dtype("<u4")


def _keystream(key: bytes, suite: str) -> CipherContext:
    if suite not in SUITES:
        raise LocalProtocolError(f"mask suite {suite!r}", " or ".join(SUITES))
    return SUITES[suite](key)


def add_mask(vector: np.ndarray[Any, Any], key: bytes, *, suite: str, negative: bool = False) -> None:
    """Add (or subtract) the stream of `key` to `vector`, in place, modulo the width of its words.

    Args:
        vector: contiguous, dtype from `word_type`.
        key: 32 bytes, used for this stream only.
        suite: one of `SUITES`.
        negative: subtract instead.
    """
    stream = _keystream(key, suite)
    piece = _PIECE_BYTES // vector.itemsize
    buffer = bytearray(_PIECE_BYTES + 15)  # update_into asks for room for one block more
    for start in range(0, len(vector), piece):
        part = vector[start : start + piece]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
        words = np.frombuffer(buffer, dtype=vector.dtype, count=len(part))
        if negative:
            np.subtract(part, words, out=part)
        else:
            np.add(part, words, out=part)
