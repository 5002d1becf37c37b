"""The part of a client's own images that it does not train on, so that they can judge what training does to its model.

Each image is held back, or not, by a digest of itself under the client's seed: a client that starts again, with images
added or taken away, holds back the same ones of those that stayed. Copies of one image, or else the images of a group,
go the same way: the least of their digests decides. Of each class about the share is held back, and of a rare one a few
images at least: these few may change where images are added.

Under differential privacy for each record the choice must be each image's own affair alone: were one image more to
change who else is trained on, the budget, which is for one record, would not cover the difference. So there nothing but
the digest counts: no least number of images, no least of a class, and no groups, whose other images would count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.units import digests, members_of, places, units_by

LEAST_IMAGES = 100
"""Below, nothing is held back: a tenth would be too few to judge by, and too many to do without."""
LEAST_OF_CLASS = 3
"""Held back of a class at least, unless that would be more than a quarter of it."""

Chosen = NDArray[np.bool_]
HELD_BACK = ""
"""The purpose of these places."""


def hold_back(
    data: LabelledImages, share: float, seed: int, *, one_by_one: bool = False
) -> tuple[LabelledImages, LabelledImages | None]:
    """Divide a client's images into those to train on and those that judge; None where nothing is held back.

    One by one, those that judge may be none at all, and are not None: whether there is a judge must not hang on images.

    Args:
        data: all of them.
        share: of each class, in [0, 1).
        seed: the client's.
        one_by_one: choose each image by itself alone, as privacy for each record needs it.

    Raises:
        DatasetError: one by one, images in groups, or all of them held back.
    """
    if share == 0 or not len(data) or (not one_by_one and len(data) < LEAST_IMAGES):
        return data, None
    chosen = _by_themselves(data, share, seed) if one_by_one else _of_units(data, share, seed)
    if not one_by_one and not chosen.any():
        return data, None
    return data.subset(np.flatnonzero(~chosen)), data.subset(np.flatnonzero(chosen))


def _by_themselves(data: LabelledImages, share: float, seed: int) -> Chosen:
    if data.groups is not None:
        raise DatasetError(
            "found images in groups to be held back one by one; under [privacy] a group would move with the images "
            "that are added to it: held_back = 0, or images without groups, are needed"
        )
    chosen: Chosen = places(digests(data.images), seed, HELD_BACK) < share
    if chosen.all():
        raise DatasetError(f"all of {len(data)} images would be held back; more images, or held_back = 0, are needed")
    return chosen


def _of_units(data: LabelledImages, share: float, seed: int) -> Chosen:
    """Units whose place is below the share, as long as no class gives too many; then what a class lacks."""
    own, counts = digests(data.images), data.class_counts
    units = units_by(own if data.groups is None else data.groups)
    members = members_of(units)
    place = places((min(own[image] for image in of_unit) for of_unit in members), seed, HELD_BACK)
    sizes = np.bincount(units)
    least = np.minimum(LEAST_OF_CLASS, counts // 4)
    most = np.maximum(np.rint(2 * share * counts).astype(np.int64), counts // 4)
    held, taken = np.zeros(data.classes, np.int64), np.zeros(len(members), np.bool_)

    def take(unit: int, limit: NDArray[np.int64]) -> None:
        labels, more = np.unique(data.labels[members[unit]], return_counts=True)
        if not taken[unit] and (held[labels] + more <= limit[labels]).all():
            taken[unit] = True
            held[labels] += more

    for unit in np.argsort(place)[: int((place < share).sum())]:
        take(unit, most)
    for label in np.flatnonzero(held < least):
        able = np.unique(units[data.labels == label])
        for unit in able[np.argsort(place[able])]:
            if held[label] < least[label]:
                take(unit, most)
        for unit in able[np.argsort(sizes[able], kind="stable")]:
            if held[label] == 0:  # all are larger than that: the smallest, up to half of the class
                take(unit, counts // 2)
    return taken[units]
