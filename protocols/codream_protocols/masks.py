"""Mask streams: a key of 32 bytes stretched into ring elements, added to or taken from a running vector.

A stream comes in pieces of 2^18 bytes, which stay in the processor's cache, and any of which can be made alone: piece p
is the key stream of AES-256 in counter mode from the block p || 2 on, p in 12 bytes and 2 in 4, big-endian; or of
ChaCha20 (RFC 8439) with block counter 0 and the nonce p, little-endian in 12 bytes. The first is what GCM (NIST SP
800-38D) encrypts with under the nonce p, and processors make it faster than CTR mode; its tag is thrown away. A key
serves one stream only, so nonces that everybody knows are sound. Streams are read as little-endian words, 16 bits wide
up to a modulus of 2^16, else 32; the ring reduces at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from codream_protocols.cores import PIECE_BYTES, each
from codream_protocols.errors import LocalProtocolError
from codream_protocols.spans import part_of_sum

Stream = Callable[[int, memoryview, memoryview], object]
"""Writes a piece, by its number, as the encryption of the zeros given; room for 16 bytes more stands behind it."""

_ROOM = 16  # GCM's tag
_ZEROS = memoryview(bytes(PIECE_BYTES))


def _aes_256_ctr(key: bytes) -> Stream:
    cipher = AESGCM(key)
    return lambda piece, zeros, out: cipher.encrypt_into(piece.to_bytes(12, "big"), zeros, None, out)


def _chacha20(key: bytes) -> Stream:
    def fill(piece: int, zeros: memoryview, out: memoryview) -> None:
        nonce = bytes(4) + piece.to_bytes(12, "little")
        Cipher(ChaCha20(key, nonce), mode=None).encryptor().update_into(zeros, out)

    return fill


SUITES: Mapping[str, Callable[[bytes], Stream]] = {"aes-256-ctr": _aes_256_ctr, "chacha20": _chacha20}
"""Name -> the stream of a key: one entry a back-end; charters and policies take these names."""

if TYPE_CHECKING:
    Suite = str
else:
    Suite = Literal[tuple(SUITES)]


def word_type(modulus_bits: int) -> np.dtype[Any]:
    """The unsigned little-endian word in which a ring of `modulus_bits` (1 to 32) computes."""
    if not 1 <= modulus_bits <= 32:
        raise LocalProtocolError(f"a modulus of {modulus_bits} bits", "1 to 32 bits")
    return np.dtype("<u2") if modulus_bits <= 16 else np.dtype("<u4")


@part_of_sum("masking")
def add_masks(vector: np.ndarray[Any, Any], keys: Iterable[tuple[bytes, bool]], *, suite: str) -> None:
    """Add the streams of some keys to `vector`, and take those of others away, in place, modulo the width of its words.

    All streams meet in one piece of the vector before the next one, so that it stays in the processor's cache, too.

    Args:
        vector: contiguous, dtype from `word_type`.
        keys: keys of 32 bytes, each used for this stream only, and whether its stream is taken away.
        suite: one of `SUITES`.
    """
    streams = [(_stream(key, suite), np.subtract if negative else np.add) for key, negative in keys]
    count = PIECE_BYTES // vector.itemsize

    def add(pieces: Iterator[int]) -> None:
        buffer = np.empty(min(PIECE_BYTES, vector.nbytes) + _ROOM, dtype=np.uint8)
        for piece in pieces:
            part = vector[piece * count : (piece + 1) * count]
            room, zeros = buffer[: part.nbytes + _ROOM].data, _ZEROS[: part.nbytes]
            mask = buffer[: part.nbytes].view(vector.dtype)
            for stream, change in streams:
                stream(piece, zeros, room)
                change(part, mask, part)

    each(-(-len(vector) // count), add)


def add_mask(vector: np.ndarray[Any, Any], key: bytes, *, suite: str, negative: bool = False) -> None:
    """The same with one key."""
    add_masks(vector, [(key, negative)], suite=suite)


def stream_words(count: int, dtype: str, key: bytes, *, suite: str) -> np.ndarray[Any, Any]:
    """The first `count` words of the stream of a key of 32 bytes, of a little-endian unsigned `dtype`."""
    words, stream = np.dtype(dtype), _stream(key, suite)
    size = count * words.itemsize
    room = np.empty(size + _ROOM, dtype=np.uint8)
    for piece, start in enumerate(range(0, size, PIECE_BYTES)):
        zeros = _ZEROS[: min(PIECE_BYTES, size - start)]
        stream(piece, zeros, room[start : start + len(zeros) + _ROOM].data)  # the next piece takes the room
    return room[:size].view(words)


def stream_pieces(dtype: str, key: bytes, *, suite: str) -> Callable[[int, int], np.ndarray[Any, Any]]:
    """Gives, for a piece's number and a count, so many words from the beginning of that piece of a key's stream."""
    words, stream = np.dtype(dtype), _stream(key, suite)

    def piece_words(piece: int, count: int) -> np.ndarray[Any, Any]:
        size = count * words.itemsize
        room = np.empty(size + _ROOM, dtype=np.uint8)
        stream(piece, _ZEROS[:size], room.data)
        return room[:size].view(words)

    return piece_words


def _stream(key: bytes, suite: str) -> Stream:
    if suite not in SUITES:
        raise LocalProtocolError(f"mask suite {suite!r}", " or ".join(SUITES))
    return SUITES[suite](key)
