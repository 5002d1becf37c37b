"""What stays together when images are divided: those of one group, and copies of one image.

An image that is there twice, once to learn from and once to measure by, makes every accuracy say too much, as a person
on both sides does. Where groups are known they alone count: one black picture that all have would make all of them one.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import Groups

Units = NDArray[np.int64]
DIGEST_BYTES = 16


def digests(images: NDArray[Any]) -> list[bytes]:
    """For images (N, ...), a digest of each one's values: the same for copies alone."""
    return [blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest() for image in images]


def copies_within(found: Sequence[bytes]) -> int:
    """How many images are there already, by the digests of all."""
    return len(found) - len(set(found))


def copies_of(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many images of the other part are in the one, by the digests of both."""
    return sum(map(set(one).__contains__, other))


def units_of(images: NDArray[Any], groups: Groups | None) -> Units:
    """For images (N, ...) and whose each is, where that is known, the number of each one's unit, (N,), from 0."""
    return units_by(digests(images) if groups is None else groups)


def units_by(marks: Sequence[bytes] | Groups) -> Units:
    """The same by the images' digests, or by their groups: images of one mark are one unit."""
    own = marks if isinstance(marks, np.ndarray) else np.array(marks, dtype=f"S{DIGEST_BYTES}")
    _, number = np.unique(own, return_inverse=True)
    return number.astype(np.int64)


def places(marks: Iterable[bytes], seed: int, purpose: str) -> NDArray[np.float64]:
    """For each mark a place in [0, 1) that hangs on nothing but it: random to whoever does not know the seed.

    Places of one `purpose` tell nothing of those of another.
    """
    key = blake2b(f"{seed}{purpose}".encode(), digest_size=32).digest()
    keyed = (blake2b(mark, digest_size=6, key=key).digest() for mark in marks)
    return np.array([int.from_bytes(found) / 2**48 for found in keyed])


def members_of(units: Units) -> list[NDArray[np.int64]]:
    """By its number, the indices of each unit's images, in their order."""
    order = np.argsort(units, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
