"""Labelled images, and two data sets to try a federation on.

Images are standardised with public constants of the whole data set, never with statistics of one client: the
dreams of all clients then live on one scale, and the scale tells nothing about anybody.
Digits: E. Alpaydin and C. Kaynak, UCI 1998, as packaged in scikit-learn. MNIST: LeCun et al., 1998.
Every other source of images (`data_sources`) ends in these types, too.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codream_clients.data.pixels import Scale

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Groups = NDArray[np.int64]
Augment = Literal["none", "shift", "affine", "flip-crop"]
"""How images may vary from one epoch to the next; see `augmentation`."""

DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3761


class DatasetError(ValueError):
    """A data set is missing, or its arrays do not fit together."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images (N, C, H, W) float32, standardised; labels (N,) int64 in [0, classes).

    `augment` travels with the images, so that whatever trains on them varies them alike; so do `class_names`, in the
    order of the labels, where the source has any, and `groups` (N,) int64, which say whose each image is: images of
    one group, a person for example, are never divided between parts. `scale` is what standardised them; None where
    they came so, by what nobody said.
    Raises `DatasetError` on construction for any other shape or type, labels out of range, values that are not
    finite, an unknown augmentation, or names, groups or a scale that do not fit.
    """

    images: Images
    labels: Labels
    classes: int
    augment: Augment = "none"
    class_names: tuple[str, ...] | None = None
    groups: Groups | None = None
    scale: "Scale | None" = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise DatasetError(
                f"images are {self.images.dtype} of shape {self.images.shape}; "
                "float32 of shape (N, channels, height, width) is needed"
            )
        if self.labels.ndim != 1 or self.labels.dtype != np.int64:
            raise DatasetError(
                f"labels are {self.labels.dtype} of shape {self.labels.shape}; int64 of shape (N,) is needed"
            )
        if len(self.images) != len(self.labels):
            raise DatasetError(f"{len(self.images)} images but {len(self.labels)} labels; one each is needed")
        if self.classes < 2:
            raise DatasetError(f"{self.classes} classes; at least 2 are needed")
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= self.classes):
            raise DatasetError(
                f"labels lie in [{self.labels.min()}, {self.labels.max()}]; "
                f"[0, {self.classes - 1}] is allowed for {self.classes} classes"
            )
        if not np.isfinite(self.images).all():
            raise DatasetError("images hold values that are not finite; clean them before training")
        if self.augment not in get_args(Augment):
            raise DatasetError(f"augment is {self.augment!r}; allowed are {', '.join(get_args(Augment))}")
        check_names_and_groups(self.class_names, self.groups, count=len(self.images), classes=self.classes)
        if self.scale is not None:
            self.scale.columns(self.shape[0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """How many images there are of each class, (classes,)."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.int64)

    def subset(self, indices: NDArray[np.integer[Any]]) -> "LabelledImages":
        """The images at `indices` (M,), in that order. Raises `DatasetError` if an index is out of range."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise DatasetError(f"indices lie in [{indices.min()}, {indices.max()}]; [0, {len(self) - 1}] is allowed")
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
        )


def check_names_and_groups(
    class_names: tuple[str, ...] | None, groups: Groups | None, *, count: int, classes: int
) -> None:
    """Raises `DatasetError` for names that are not one for each class, all different, or groups not one an image."""
    if class_names is not None and (len(class_names) != classes or len(set(class_names)) < classes):
        raise DatasetError(
            f"class names are {', '.join(map(repr, class_names[:12]))}; {classes} different ones are needed, one for "
            "each class"
        )
    if groups is not None and (groups.dtype != np.int64 or groups.shape != (count,)):
        raise DatasetError(
            f"groups are {groups.dtype} of shape {groups.shape}; int64 of shape ({count},) is needed, one an image"
        )


def pool(parts: list[LabelledImages], *, one_source: bool = False) -> LabelledImages:
    """All parts in one place, in order; with `one_source`, a group's number means the same in all of them.

    Raises `DatasetError` if there is none or they are of different kinds.
    """
    if not parts:
        raise DatasetError("no data to pool; give at least one part")
    kinds = {(part.shape, part.classes, part.augment, part.class_names, part.scale) for part in parts}
    if len(kinds) > 1:
        raise DatasetError(
            f"parts differ in (shape, classes, augment, class names, scale): {sorted(kinds, key=str)}; one kind can "
            "be pooled, not several"
        )
    return replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=_pooled_groups([part.groups for part in parts], one_source),
    )


def _pooled_groups(parts: list[Groups | None], one_source: bool) -> Groups | None:
    """The groups of all parts, those of two sources apart; None unless every part has some."""
    numbered: list[Groups] = []
    first = 0
    for groups in parts:
        if groups is None:
            return None
        if one_source:
            numbered.append(groups)
            continue
        found, inverse = np.unique(groups, return_inverse=True)
        numbered.append((inverse + first).astype(np.int64))
        first += len(found)
    return np.concatenate(numbered)


def load_digits_data(seed: int, test_size: int = 600) -> tuple[LabelledImages, LabelledImages]:
    """scikit-learn's digits as (train, test): 1,797 images of 1x8x8, ten classes, stratified split by `seed`.

    Raises `DatasetError` unless 10 <= test_size <= 1787.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from codream_clients.data.pixels import Scale

    pixels, labels = load_digits(return_X_y=True)
    if not 10 <= test_size <= len(labels) - 10:
        raise DatasetError(f"test_size is {test_size}; 10 to {len(labels) - 10} is allowed")
    images = ((pixels.reshape(-1, 1, 8, 8) / 16.0 - DIGITS_MEAN) / DIGITS_STD).astype(np.float32)
    train, test = train_test_split(np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=seed)
    scale = Scale((DIGITS_MEAN,), (DIGITS_STD,))  # the sixteen greys spread over a byte's range
    everything = LabelledImages(images, labels.astype(np.int64), classes=10, scale=scale)
    return everything.subset(train), everything.subset(test)
