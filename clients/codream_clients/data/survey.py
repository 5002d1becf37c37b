"""What can be counted in images once they are understood: duplicates, few images of a class, persons on both sides."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import RawImages, Scale
from codream_clients.data.understanding import FEW, Understanding
from codream_clients.data.units import copies_of, copies_within, digests

Part = RawImages | LabelledImages


@dataclass(frozen=True)
class Survey:
    """Figures of a training and a test part.

    Attributes:
        duplicates: images that are there already, pixel by pixel, within each part: name -> how many.
        in_both: images of the test part that are in the training part too.
        two_labels: different images that are there with more than one label, in whichever parts.
        few: classes with fewer than `FEW` training images -> how many they have.
        groups_in_both: groups with images in both parts; None where no groups are known.
        mean: of the training part's pixels divided by 255, by channel, to three digits; None where they came
            standardised.
        std: their deviations.
    """

    duplicates: dict[str, int]
    in_both: int
    two_labels: int
    few: dict[str, int]
    groups_in_both: int | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        return asdict(self)


def survey(train: Part, test: Part, understood: Understanding) -> Survey:
    """Count; images are the same if all their pixels are."""
    labels: dict[bytes, set[int]] = defaultdict(set)
    seen = {name: _digests(part) for name, part in (("training", train), ("test", test))}
    for part, found in ((train, seen["training"]), (test, seen["test"])):
        for digest, label in zip(found, part.labels.tolist(), strict=True):
            labels[digest].add(label)
    both = None
    if train.groups is not None and test.groups is not None:
        both = len(np.intersect1d(train.groups, test.groups))
    training = understood.parts[0].by_class
    scale = Scale.of(train.pixels) if isinstance(train, RawImages) else None
    return Survey(
        duplicates={name: copies_within(found) for name, found in seen.items()},
        in_both=copies_of(seen["training"], seen["test"]),
        two_labels=sum(len(of_image) > 1 for of_image in labels.values()),
        few={understood.name_of(label): count for label, count in enumerate(training) if count < FEW},
        groups_in_both=both,
        mean=None if scale is None else tuple(round(value, 3) for value in scale.mean),
        std=None if scale is None else tuple(round(value, 3) for value in scale.std),
    )


def _digests(part: Part) -> Sequence[bytes]:
    return digests(part.pixels if isinstance(part, RawImages) else part.images)
