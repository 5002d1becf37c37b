"""Shamir's secret sharing over GF(2^8), bytewise and vectorised (Shamir, CACM 1979; field polynomial of AES, 0x11b).

A secret of L bytes is L independent secrets of one byte; share x of a secret is the value at x of a random
polynomial of degree threshold-1 whose constant term is the secret. All secrets of an epoch are shared in one call.

The n shares of one byte are a word of a generalised Reed-Solomon code (McEliece and Sarwate, CACM 1981): as long as at
most (n - threshold) // 2 points answer wrongly, one polynomial alone can have been dealt, and it is found. `decode`
locates wrong points after Peterson (IRE Trans. Inf. Theory 1960): with v_j = 1 / prod (x_j - x_i), the syndromes
S_k = sum v_j y_j x_j^k, k < n - threshold, are nothing but a sum over the wrong points, and a polynomial whose
coefficients annihilate them vanishes at all of those. A random sum of words is wrong nearly wherever one of them is, so
that a few sums usually show all wrong points at once, and show early that there are too many; but what they show is
never relied on. The polynomials rebuilt without those points are compared with every byte of the others, and the first
byte that does not fit is the next word to be decoded, until all fit.

Table look-ups are not constant-time with respect to the machine's caches; the tables (64 KiB) are touched
throughout, and only by the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
MAX_SHARES = 255
PROJECTIONS = 4


def _tables() -> tuple[Bytes, Bytes, Integers]:
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
    return product, exponential, logarithm


_PRODUCT, _EXPONENTIAL, _LOGARITHM = _tables()  # the logarithm of 0 stands as 0: a factor 0 counts as 1


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
    coefficients = np.frombuffer(random_bytes(degree * secrets.size), dtype=np.uint8).reshape(degree, secrets.size)
    logarithms = _LOGARITHM[np.array(points)]
    values = np.repeat(secrets.reshape(-1, 1), len(points), axis=1)  # of each byte, what every point gets
    for power, coefficient in zip(range(degree, 0, -1), coefficients, strict=True):
        multiples = np.ascontiguousarray(_PRODUCT[_EXPONENTIAL[logarithms * power % 255]].T)
        values ^= multiples[coefficient]  # all points' terms in one look-up a byte
    shares = values.T.copy()
    values[:] = 0
    return {point: share.reshape(secrets.shape) for point, share in zip(points, shares, strict=True)}


def combine(shares: Mapping[int, Bytes]) -> Bytes:
    """Interpolate at zero from exactly as many shares as the threshold was.

    Args:
        shares: point -> array of shape (items, length), uint8. Too few shares, or wrong ones, give a wrong secret
            without an error: the caller checks the result against a public value.

    Raises:
        LocalProtocolError: no shares, or points out of range.
    """
    points, words = _words(shares)
    return _multiply(_interpolation(points, [0]), words).reshape(next(iter(shares.values())).shape)


def decode(
    shares: Mapping[int, Bytes], threshold: int, random_bytes: Callable[[int], bytes]
) -> tuple[Bytes, set[int]] | None:
    """Interpolate at zero from all shares, up to (len(shares) - threshold) // 2 of which may be wrong.

    Args:
        shares: point -> array of shape (items, length), uint8; all of one shape. A wrong one may differ from what was
            dealt anywhere.
        threshold: how many shares rebuild a secret; 1 to len(shares).
        random_bytes: a generator, n -> n bytes. The result does not depend on it, only the time that it takes.

    Returns:
        The secrets, and the points whose shares were wrong. They are the ones that were dealt, always, unless more
        points are wrong than can be; then None, or secrets that fit all other shares: the caller checks them against a
        public value, as with as many shares as the threshold, of which none can be told to be wrong.

    Raises:
        LocalProtocolError: no shares, or points or threshold out of range.
    """
    points, words = _words(shares)
    if not 1 <= threshold <= len(points):
        raise LocalProtocolError(f"threshold {threshold} for {len(points)} shares", f"1 to {len(points)}")
    size, spare = words.shape[1], len(points) - threshold
    right = np.arange(len(points))
    drawn = PROJECTIONS if spare else 0
    weights = np.frombuffer(random_bytes(drawn * size), dtype=np.uint8).reshape(drawn, size)
    for weight in weights:
        fitting = _fitting(points[right], np.bitwise_xor.reduce(_PRODUCT[weight, words[right]], axis=1), threshold)
        if fitting is None:
            return None
        right = right[fitting]
    while len(points) - len(right) <= spare // 2:
        base, others = right[:threshold], right[threshold:]
        values = _multiply(_interpolation(points[base], [0, *points[others].tolist()]), words[base])
        misfits = np.flatnonzero((values[1:] != words[others]).any(axis=0))
        if not len(misfits):
            wrong = set(points.tolist()) - set(points[right].tolist())
            return values[0].reshape(next(iter(shares.values())).shape), wrong
        fitting = _fitting(points[right], words[right, misfits[0]], threshold)
        if fitting is None:
            return None
        right = right[fitting]
    return None


def _words(shares: Mapping[int, Bytes]) -> tuple[Integers, Bytes]:
    """The points, and a row of all bytes for each."""
    if not shares or not all(1 <= point <= MAX_SHARES for point in shares):
        raise LocalProtocolError("no shares, or points out of range", f"points from 1 to {MAX_SHARES}")
    return np.array(list(shares)), np.stack(
        [np.asarray(share, dtype=np.uint8).reshape(-1) for share in shares.values()]
    )


def _fitting(points: Integers, word: Bytes, threshold: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Where the one polynomial runs that misses at most (len(points) - threshold) // 2 points; None if none does."""
    count, spare = len(points), len(points) - threshold
    most = spare // 2
    fits = np.ones(count, dtype=np.bool_)
    powers = _EXPONENTIAL[_LOGARITHM[points][:, None] * np.arange(max(spare, most + 1)) % 255]
    differences = _LOGARITHM[points[:, None] ^ points].sum(axis=1)
    scaled = _PRODUCT[_EXPONENTIAL[-differences % 255], word]
    syndromes = np.bitwise_xor.reduce(_PRODUCT[scaled[:, None], powers[:, :spare]], axis=0)
    if not syndromes.any():
        return fits
    locator = _annihilator(syndromes[np.arange(spare - most)[:, None] + np.arange(most + 1)])
    if locator is None:
        return None
    vanishes = ~np.bitwise_xor.reduce(_PRODUCT[locator, powers[:, : most + 1]], axis=1).astype(np.bool_)
    base = np.flatnonzero(~vanishes)[:threshold]
    others = np.setdiff1d(np.arange(count), base)
    values = _multiply(_interpolation(points[base], points[others].tolist()), word[base, None])
    fits[others] = values[:, 0] == word[others]
    return fits if count - np.count_nonzero(fits) <= most else None


def _interpolation(points: Integers, targets: list[int]) -> Bytes:
    """The matrix that takes values at these points to values at the targets, which are none of them (Lagrange)."""
    distances = _LOGARITHM[np.array(targets, dtype=np.int64)[:, None] ^ points]
    differences = _LOGARITHM[points[:, None] ^ points].sum(axis=1)
    matrix: Bytes = _EXPONENTIAL[(distances.sum(axis=1)[:, None] - distances - differences) % 255]
    return matrix


def _multiply(matrix: Bytes, rows: Bytes) -> Bytes:
    """The product of two matrices."""
    product = np.zeros((rows.shape[1], len(matrix)), dtype=np.uint8)
    for factors, row in zip(matrix.T, rows, strict=True):
        product ^= np.ascontiguousarray(_PRODUCT[:, factors])[row]  # all multiples of the row in one look-up a byte
    return product.T


def _annihilator(matrix: Bytes) -> Bytes | None:
    """A vector that the matrix takes to zero, not zero itself; None if there is none."""
    system = matrix.copy()
    for column in range(system.shape[1]):  # so far, each column before this one is a unit vector
        below = np.flatnonzero(system[column:, column])
        if not len(below):
            vector = np.zeros(system.shape[1], dtype=np.uint8)
            vector[:column], vector[column] = system[:column, column], 1
            return vector
        chosen = column + int(below[0])
        system[[column, chosen]] = system[[chosen, column]]
        system[column] = _PRODUCT[_EXPONENTIAL[-_LOGARITHM[system[column, column]] % 255], system[column]]
        factors = system[:, column].copy()
        factors[column] = 0
        system ^= _PRODUCT[factors[:, None], system[column]]
    return None
