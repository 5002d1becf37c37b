"""A test part split off by a seed, where a source comes in one piece: of each class a share, and no unit divided.

Under differential privacy for each record the choice is each image's own affair, as in `held_back`: a coin under the
seed and its digest, and neither its class's share nor who else is there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, Groups, Labels
from codream_clients.data.units import Units, digests, members_of, places, units_of

Indices = NDArray[np.int64]
TEST = "|test"
"""The purpose of the coins."""


def split_off(
    images: NDArray[Any], labels: Labels, groups: Groups | None, share: float, seed: int
) -> tuple[Indices, Indices]:
    """(train, test), indices in their order: `share` of each class, rounded, is for testing.

    Copies among the images (N, ...), and images of one of the `groups` (N,), go to one side together, and shares are
    then met as nearly as they can be. Raises `DatasetError` if a side would be empty.
    """
    rng = np.random.default_rng(seed)
    units = units_of(images, groups)
    count = int(units.max(initial=-1)) + 1
    chosen = np.zeros(len(labels), bool)
    if count == len(labels):
        for label in np.unique(labels):
            of_class = rng.permutation(np.flatnonzero(labels == label))
            chosen[of_class[: round(share * len(of_class))]] = True
    else:
        chosen = np.isin(units, _test_units(labels, units, count, share, rng))
    for side, taken in (("training", ~chosen), ("test", chosen)):
        if not taken.any():
            found, more = f"{len(labels)} images", "images of each class"
            if groups is not None:
                found, more = f"{found} of {count} groups", "groups"
            elif count < len(labels):
                found = f"{found}, {count} without copies,"
            raise DatasetError(
                f"no {side} images: {found} are too few to split off {share:.0%} of each class; more {more}, or a test "
                "part, are needed"
            )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def split_one_by_one(images: NDArray[Any], groups: Groups | None, share: float, seed: int) -> tuple[Indices, Indices]:
    """(train, test), indices in their order: each image (N, ...) is for testing with chance `share`, by itself.

    Raises `DatasetError` for images in groups, which would move with the images that are added to them, or if a side
    would be empty.
    """
    if groups is not None:
        raise DatasetError(
            "found images in groups, of which a test part would be split off one by one; under [privacy] a test part, "
            "or images without groups, are needed"
        )
    chosen = places(digests(images), seed, TEST) < share
    if chosen.all() or not chosen.any():
        raise DatasetError(
            f"no {'training' if chosen.all() else 'test'} images: {len(chosen)} images are too few to split off "
            f"{share:.0%} one by one; more images, or a test part, are needed"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _test_units(labels: Labels, units: Units, count: int, share: float, rng: np.random.Generator) -> list[int]:
    """Units in a random order, each taken if that brings the classes' counts nearer to their shares."""
    members = members_of(units)
    missing = share * np.bincount(labels)
    taken = []
    for number in rng.permutation(count).tolist():
        of_unit, more = np.unique(labels[members[number]], return_counts=True)
        left = missing[of_unit] - more
        if np.abs(left).sum() < np.abs(missing[of_unit]).sum():
            missing[of_unit] = left
            taken.append(number)
    if not taken and count > 1:  # every unit is larger than the share
        taken.append(int(np.bincount(units).argmin()))
    return taken
