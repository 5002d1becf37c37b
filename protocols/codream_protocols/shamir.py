"""Shamir's secret sharing over GF(2^8), bytewise and vectorised (Shamir, CACM 1979; field polynomial of AES, 0x11b).

A secret of L bytes is L independent secrets of one byte; share x of a secret is the value at x of a random
polynomial of degree threshold-1 whose constant term is the secret. All secrets of an epoch are shared in one call.
Table look-ups are not constant-time with respect to the machine's caches; the tables (64 KiB) are touched
throughout, and only by the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
MAX_SHARES = 255


def _tables() -> tuple[Bytes, Bytes]:
    exponential = np.zeros(510, dtype=np.uint8)
    logarithm = np.zeros(256, dtype=np.int64)
    value = 1
    for power in range(255):
        exponential[power] = exponential[power + 255] = value
        logarithm[value] = power
        doubled = (value << 1) ^ (0x11B if value & 0x80 else 0)
        value = doubled ^ value  # times 3, a generator of the multiplicative group
    product = exponential[logarithm[:, None] + logarithm[None, :]]
    product[0, :] = product[:, 0] = 0
    inverse = exponential[(255 - logarithm) % 255].copy()
    inverse[0] = 0
    return product, inverse


_PRODUCT, _INVERSE = _tables()


def split(secrets: Bytes, threshold: int, points: list[int], random_bytes: Callable[[int], bytes]) -> dict[int, Bytes]:
    """Share every row of `secrets`.

    Args:
        secrets: shape (items, length), uint8.
        threshold: how many shares rebuild a secret; 1 to len(points).
        points: distinct evaluation points, each 1 to 255.
        random_bytes: a cryptographic generator, n -> n bytes.

    Returns:
        For each point, the shares of all rows: shape (items, length), uint8.

    Raises:
        LocalProtocolError: threshold or points out of range.
    """
    if not 1 <= threshold <= len(points):
        raise LocalProtocolError(f"threshold {threshold} for {len(points)} shares", f"1 to {len(points)}")
    if len(set(points)) != len(points) or not all(1 <= point <= MAX_SHARES for point in points):
        raise LocalProtocolError("repeated or out-of-range share points", f"distinct points from 1 to {MAX_SHARES}")
    secrets = np.ascontiguousarray(secrets, dtype=np.uint8)
    degree = threshold - 1
    coefficients = np.frombuffer(random_bytes(degree * secrets.size), dtype=np.uint8).reshape(degree, *secrets.shape)
    shares: dict[int, Bytes] = {}
    for point in points:
        row = _PRODUCT[point]
        value = np.zeros_like(secrets)
        for coefficient in coefficients:
            value = row[value ^ coefficient]
        shares[point] = value ^ secrets
    return shares


def combine(shares: Mapping[int, Bytes]) -> Bytes:
    """Interpolate at zero from exactly as many shares as the threshold was.

    Args:
        shares: point -> array of shape (items, length), uint8. Too few shares, or wrong ones, give a wrong secret
            without an error: the caller checks the result against a public value.

    Raises:
        LocalProtocolError: no shares, or points out of range.
    """
    points = list(shares)
    if not points or not all(1 <= point <= MAX_SHARES for point in points):
        raise LocalProtocolError("no shares, or points out of range", f"points from 1 to {MAX_SHARES}")
    secret: Bytes | None = None
    for point in points:
        weight = 1
        for other in points:
            if other != point:
                weight = int(_PRODUCT[weight, _PRODUCT[other, _INVERSE[other ^ point]]])
        term = _PRODUCT[weight][shares[point]]
        secret = term if secret is None else secret ^ term
    assert secret is not None  # noqa: S101 - points is not empty
    return secret
