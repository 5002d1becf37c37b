"""A test part split off by a seed, where a source comes in one piece: of each class a share, and no group divided."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, Groups, Labels

Indices = NDArray[np.int64]


def split_off(labels: Labels, groups: Groups | None, share: float, seed: int) -> tuple[Indices, Indices]:
    """(train, test), indices in their order: `share` of each class, rounded, is for testing.

    With `groups` (N,) a group goes to one side as a whole, and shares are met as nearly as whole groups can.
    Raises `DatasetError` if a side would be empty.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    if groups is None:
        for label in np.unique(labels):
            of_class = rng.permutation(np.flatnonzero(labels == label))
            chosen[of_class[: round(share * len(of_class))]] = True
    else:
        chosen = np.isin(groups, _test_groups(labels, groups, share, rng))
    for side, taken in (("training", ~chosen), ("test", chosen)):
        if not taken.any():
            found, more = f"{len(labels)} images", "images of each class"
            if groups is not None:
                found, more = f"{found} of {len(np.unique(groups))} groups", "groups"
            raise DatasetError(
                f"no {side} images: {found} are too few to split off {share:.0%} of each class; more {more}, or a test "
                "part, are needed"
            )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _test_groups(labels: Labels, groups: Groups, share: float, rng: np.random.Generator) -> list[Any]:
    """Groups in a random order, each taken if that brings the classes' counts nearer to their shares."""
    names, inverse = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (inverse, labels), 1)
    missing = share * counts.sum(axis=0)
    taken = []
    for number in rng.permutation(len(names)):
        left = missing - counts[number]
        if np.abs(left).sum() < np.abs(missing).sum():
            missing = left
            taken.append(names[number])
    if not taken and len(names) > 1:  # every group is larger than the share
        taken.append(names[int(counts.sum(axis=1).argmin())])
    return taken
