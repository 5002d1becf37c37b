"""The part of a client's own images that it does not train on, so that they can judge what training does to its model.

Of every class the same share, of a rare one a few images at least; all images of a group go the same way. Which ones,
follows from the seed: a client that starts again holds back the same.

Under differential privacy for each record the choice must be each image's own affair: were one image more to change who
else is trained on, the budget, which is for one record, would not cover the difference. So there an image (or its
group) is held back by a digest of itself, and shares are met on average alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import LabelledImages

LEAST_IMAGES = 100
"""Below, nothing is held back: a tenth would be too few to judge by, and too many to do without."""
LEAST_OF_CLASS = 3
"""Held back of a class at least, unless that would be more than a quarter of it."""

Chosen = NDArray[np.bool_]


def hold_back(
    data: LabelledImages, share: float, seed: int, *, one_by_one: bool = False
) -> tuple[LabelledImages, LabelledImages | None]:
    """Divide a client's images into those to train on and those that judge; None where nothing is held back.

    Args:
        data: all of them.
        share: of each class, in [0, 1).
        seed: the client's.
        one_by_one: choose each image or group by itself, as privacy for each record needs it.
    """
    if share == 0 or len(data) < LEAST_IMAGES:
        return data, None
    if one_by_one:
        chosen = _by_themselves(data, share, seed)
    else:
        rng, wanted = np.random.default_rng([seed, len(data)]), _wanted(data.class_counts, share)
        chosen = _of_classes(data, wanted, rng) if data.groups is None else _of_groups(data, wanted, rng)
    if not 0 < chosen.sum() < len(data):
        return data, None
    return data.subset(np.flatnonzero(~chosen)), data.subset(np.flatnonzero(chosen))


def _wanted(counts: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    wanted: NDArray[np.int64] = np.maximum(np.rint(share * counts), np.minimum(LEAST_OF_CLASS, counts // 4)).astype(
        np.int64
    )
    return wanted


def _of_classes(data: LabelledImages, wanted: NDArray[np.int64], rng: np.random.Generator) -> Chosen:
    chosen: Chosen = np.zeros(len(data), dtype=np.bool_)
    for label, count in enumerate(wanted):
        chosen[rng.permutation(np.flatnonzero(data.labels == label))[:count]] = True
    return chosen


def _of_groups(data: LabelledImages, wanted: NDArray[np.int64], rng: np.random.Generator) -> Chosen:
    """Whole groups, in random order, as long as no class gets more than is wanted of it.

    A class that got none, since its groups are larger than that, gives its smallest group, unless it is half of it.
    """
    assert data.groups is not None  # noqa: S101 - the caller has looked
    names, of = np.unique(data.groups, return_inverse=True)
    table = np.zeros((len(names), data.classes), dtype=np.int64)
    np.add.at(table, (of, data.labels), 1)
    held, taken = np.zeros(data.classes, dtype=np.int64), np.zeros(len(names), dtype=np.bool_)
    for group in rng.permutation(len(names)):
        if (held + table[group] <= np.where(table[group] > 0, wanted, held)).all():
            taken[group] = True
            held += table[group]
    for label in np.flatnonzero((held == 0) & (wanted > 0)):
        able = np.flatnonzero((table[:, label] > 0) & (2 * (held + table) <= data.class_counts).all(axis=1))
        if len(able):
            group = able[np.argmin(table[able].sum(axis=1))]
            taken[group] = True
            held += table[group]
    return taken[of]


def _by_themselves(data: LabelledImages, share: float, seed: int) -> Chosen:
    if data.groups is None:
        own = [image.tobytes() + label.tobytes() for image, label in zip(data.images, data.labels, strict=True)]
    else:
        own = [group.tobytes() for group in data.groups]
    below = int(share * 2**64)
    keyed = (hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "big")) for content in own)
    return np.array([int.from_bytes(found.digest()) < below for found in keyed], dtype=np.bool_)
