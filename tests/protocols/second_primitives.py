"""What the second implementation is made of: sections 2, 3 (packed vectors) and 9 (masks) of docs/protocol.md.
Plain integers, and none of this project's modules.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

# -- section 2 ---------------------------------------------


def labelled(label: str, *parts: bytes) -> bytes:
    joined = (f"secure-codream/2 {label}".encode(), *parts)
    return b"".join(struct.pack(">I", len(part)) + part for part in joined)


def digest(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(labelled(label, *parts)).digest()


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def numbers(*members: int) -> bytes:
    """`bytes(x, y, ...)` of section 1."""
    return bytes(members) if max(members, default=0) < 256 else struct.pack(f">{len(members)}I", *members)


def expand(secret: bytes, label: str, *parts: bytes) -> bytes:
    return hmac.digest(secret, labelled(label, *parts) + b"\1", "sha256")  # RFC 5869: the first block is all of it


def extract(secret: bytes, salt: bytes, label: str, *parts: bytes) -> bytes:
    return expand(hmac.digest(salt, secret, "sha256"), label, *parts)


def agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def stream(key: bytes, count: int, counter: int = 0) -> bytes:
    return Cipher(AES(key), CTR(counter.to_bytes(16, "big"))).encryptor().update(bytes(count))


def product(left: int, right: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1, bit by bit."""
    result = 0
    while right:
        result ^= left if right & 1 else 0
        left = left << 1 ^ (0x11B if left & 0x80 else 0)
        right >>= 1
    return result


def inverse(value: int) -> int:
    """In GF(2^8): the 254th power."""
    square, result = value, 1
    for _ in range(7):
        square = product(square, square)
        result = product(result, square)
    return result


def interpolated(shares: dict[int, bytes]) -> bytes:
    """Each byte's polynomial through these points, at zero (Lagrange)."""
    secret = bytes(len(next(iter(shares.values()))))
    for x, share in shares.items():
        weight = 1
        for other in shares:
            weight = weight if other == x else product(weight, product(other, inverse(other ^ x)))
        secret = bytes(so_far ^ product(weight, byte) for so_far, byte in zip(secret, share, strict=True))
    return secret


def signed(key: bytes, signature: bytes, label: str, *parts: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, labelled(label, *parts))
    except InvalidSignature:
        return False
    return True


def advertisements_in(items: list[list[Any]]) -> list[list[Any]]:
    """An advertisement keeps its tag within another message."""
    assert all(item[0] == "advertisement" for item in items)
    return [item[1:] for item in items]


def cut(data: bytes) -> list[bytes]:
    return [data[start : start + 32] for start in range(0, len(data), 32)]


# -- section 3 ---------------------------------------------


def planes(count: int, bits: int) -> Iterator[tuple[int, int, int, int]]:
    """First bit, width, elements a word and words of each plane."""
    shift = 0
    while left := bits - shift:
        width = 16 if left >= 16 else 8 if left > 8 else left
        yield shift, width, 16 // width, -(-count // (16 // width))
        shift += width


def pack(elements: Sequence[int], bits: int) -> bytes:
    words = []
    for shift, width, parts, length in planes(len(elements), bits):
        column = [0] * length
        for place, element in enumerate(elements):
            part, word = divmod(place, length)
            assert part < parts
            column[word] |= (element >> shift & (1 << width) - 1) << part * width
        words += column
    return struct.pack(f"<{len(words)}H", *words)


def unpack(frame: bytes, count: int, bits: int) -> list[int]:
    words, elements = list(struct.unpack(f"<{len(frame) // 2}H", frame)), [0] * count
    for shift, width, _, length in planes(count, bits):
        column, words = words[:length], words[length:]
        for place in range(count):
            part, word = divmod(place, length)
            elements[place] |= (column[word] >> part * width & (1 << width) - 1) << shift
    assert not words and pack(elements, bits) == frame
    return elements


# -- section 9 ---------------------------------------------


def masked(elements: Sequence[int], key: bytes, sign: int, bits: int) -> list[int]:
    """With a mask added or, if `sign` is -1, taken away; all vectors here are shorter than a piece of the stream."""
    size, form = (2, "H") if bits <= 16 else (4, "I")
    assert len(elements) * size <= 1 << 18
    masks = struct.unpack(f"<{len(elements)}{form}", stream(key, size * len(elements), 2))
    return [(element + sign * mask) % (1 << bits) for element, mask in zip(elements, masks, strict=True)]


def tag_mask(key: bytes) -> int:
    return int.from_bytes(expand(key, "tag mask")[:16], "little")
