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


def wrong_points(shares: Mapping[int, Bytes], threshold: int, random_bytes: Callable[[int], bytes]) -> set[int] | None:
    """Which points gave wrong shares: up to (len(shares) - threshold) // 2 of them are found.

    A sharing is a Reed-Solomon codeword (McEliece and Sarwate, CACM 1981), decoded here after Berlekamp and Welch.
    All rows are first added up with random weights, so that a point that is wrong anywhere is wrong in the one
    codeword that is decoded, but for a probability of 1/256: the caller checks what it rebuilds without them.

    Args:
        shares: point -> array of shape (items, length), uint8; all of one shape.
        threshold: how many shares rebuild a secret.
        random_bytes: a cryptographic generator, n -> n bytes.

    Returns:
        The wrong points; None when there are more of them than can be found.
    """
    points = list(shares)
    most = (len(points) - threshold) // 2
    weights = np.frombuffer(random_bytes(shares[points[0]].size), dtype=np.uint8)
    word = [int(np.bitwise_xor.reduce(_PRODUCT[weights, shares[point].reshape(-1)])) for point in points]
    # Unknown: Q of degree < threshold + most, and the locator E = x^most + ... with Q(x) = y E(x) at every point.
    rows = []
    for point, value in zip(points, word, strict=True):
        powers = [1]
        for _ in range(threshold + most):
            powers.append(int(_PRODUCT[powers[-1], point]))
        row = powers[: threshold + most] + [int(_PRODUCT[value, power]) for power in powers[:most]]
        rows.append([*row, int(_PRODUCT[value, powers[most]])])
    solution = _solve(np.array(rows, dtype=np.uint8))
    if solution is None:
        return None
    quotient = _divide(solution[: threshold + most], [*solution[threshold + most :], 1])
    if quotient is None:
        return None
    return {point for point, value in zip(points, word, strict=True) if _evaluate(quotient, point) != value}


def _solve(system: Bytes) -> list[int] | None:
    """One solution of a linear system (last column: right side), free unknowns zero; None if there is none."""
    unknowns, pivots, top = system.shape[1] - 1, [], 0
    for column in range(unknowns):
        below = np.flatnonzero(system[top:, column])
        if not len(below):
            continue
        chosen = top + int(below[0])
        system[[top, chosen]] = system[[chosen, top]]
        system[top] = _PRODUCT[_INVERSE[system[top, column]], system[top]]
        factors = system[:, column].copy()
        factors[top] = 0
        system ^= _PRODUCT[factors[:, None], system[top][None, :]]
        pivots.append(column)
        top += 1
        if top == len(system):
            break
    if system[top:, -1].any():
        return None
    solution = [0] * unknowns
    for row, column in enumerate(pivots):
        solution[column] = int(system[row, -1])
    return solution


def _divide(dividend: list[int], divisor: list[int]) -> list[int] | None:
    """Polynomial division by a monic divisor, lowest power first; None unless it leaves no remainder."""
    rest, degree = list(dividend), len(divisor) - 1
    quotient = [0] * max(0, len(rest) - degree)
    for power in reversed(range(len(quotient))):
        factor = rest[power + degree]
        quotient[power] = factor
        for index, coefficient in enumerate(divisor):
            rest[power + index] ^= int(_PRODUCT[factor, coefficient])
    return None if any(rest) else quotient


def _evaluate(polynomial: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = int(_PRODUCT[value, point]) ^ coefficient
    return value
