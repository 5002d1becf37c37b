"""Images as they are stored, bytes from 0 to 255, and the scale that turns them into what a model sees.

A pixel p of channel c becomes (p / 255 - mean_c) / std_c. Everybody in a federation must use the same scale, since
dreams travel on it. Three kinds of scale, in the order in which they should be preferred:
  1. public constants: those published for a named set, or agreed on in the federation's configuration;
  2. `HALF`, mean 1/2 and deviation 1/2 (MedMNIST's convention: Yang et al., Scientific Data 2023): it depends on no
     data at all, so that clients with data of their own share it without a word;
  3. `Scale.of` a training part: for experiments, where one set is dealt out to all clients. In a deployment it would
     put each client on a scale of its own, and tell something about its images.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import (
    Augment,
    DatasetError,
    Groups,
    Images,
    LabelledImages,
    Labels,
    check_names_and_groups,
)

MAX_SIDE, MAX_CHANNELS, MAX_CLASSES = 1024, 16, 10_000
MAX_BYTES = 4 << 30
"""What one source of images may take in memory, unless its loader is told otherwise."""

LEAST_STD = 1 / 255
"""A channel that deviates by less than one grey level has no contrast; divided by less, a level would be a deviation
or more, and images as large as no model or bound expects."""

_CHUNK = 4096  # images at a time, which bounds the memory that statistics take


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each channel, for pixels divided by 255; one value serves all channels.

    Raises `DatasetError` unless both have the same length, at least 1, all values are finite and std is above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) > 0:
            raise DatasetError(
                f"{len(self.mean)} means and {len(self.std)} deviations; one of each per channel is needed"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and min(self.std) > 0):
            raise DatasetError(f"mean {self.mean}, std {self.std}; finite numbers are needed, std above 0")

    def __str__(self) -> str:
        return f"mean {self.mean} and std {self.std}"

    def columns(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std beside images (N, C, H, W): (C, 1, 1) each. Raises `DatasetError` if it has other channels."""
        if len(self.mean) not in (1, channels):
            raise DatasetError(f"a scale of {len(self.mean)} channels; 1 or {channels} are needed for these images")
        mean, std = (np.broadcast_to(np.array(part), channels).reshape(-1, 1, 1) for part in (self.mean, self.std))
        return mean, std

    def beyond(self, images: Images) -> tuple[str, str] | None:
        """Which values of images (N, C, H, W), N above 0, no pixel has on this scale: (found, allowed) of a channel.

        Half a grey level is rounding. None where all could be. Raises as `columns`.
        """
        mean, std = (column[:, 0, 0] for column in self.columns(images.shape[1]))
        for channel, (low, high) in enumerate(zip((0 - mean) / std, (1 - mean) / std, strict=True)):
            least, most, rounding = images[:, channel].min(), images[:, channel].max(), (high - low) / 510
            if least < low - rounding or most > high + rounding:
                return f"{least:.4g} to {most:.4g}", f"{low:.4g} to {high:.4g}"
        return None

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> "Scale":
        """The scale of `pixels` (N, H, W, C), exact, by channel; a channel without contrast gets `LEAST_STD`."""
        values = np.arange(256) / 255.0
        means, deviations = [], []
        for channel in range(pixels.shape[3]):
            counts = np.zeros(256, np.int64)
            for start in range(0, len(pixels), _CHUNK):
                counts += np.bincount(pixels[start : start + _CHUNK, :, :, channel].ravel(), minlength=256)
            shares = counts / counts.sum()
            mean = float(shares @ values)
            means.append(mean)
            deviations.append(max(float(np.sqrt(shares @ (values - mean) ** 2)), LEAST_STD))
        return cls(tuple(means), tuple(deviations))


HALF = Scale((0.5,), (0.5,))


@dataclass(frozen=True, eq=False)
class RawImages:
    """Pixels (N, H, W, C) uint8 and labels (N,) int64 in [0, classes).

    `class_names` and `groups` are those of `LabelledImages`.
    Raises `DatasetError` for any other shape or type, N = 0, more than 1024 pixels a side, 16 channels or 10,000
    classes, fewer than 2 classes, labels out of range, or names or groups that do not fit.
    """

    pixels: NDArray[np.uint8]
    labels: Labels
    classes: int
    class_names: tuple[str, ...] | None = None
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise DatasetError(
                f"images are {self.pixels.dtype} of shape {self.pixels.shape}; "
                "uint8 of shape (N, height, width, channels) is needed"
            )
        count, height, width, channels = self.pixels.shape
        if count == 0:
            raise DatasetError("no images; at least one is needed")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and 1 <= channels <= MAX_CHANNELS):
            raise DatasetError(
                f"images of {height} x {width} pixels in {channels} channels; at most {MAX_SIDE} x {MAX_SIDE} in "
                f"{MAX_CHANNELS} are allowed"
            )
        if self.labels.ndim != 1 or self.labels.dtype != np.int64 or len(self.labels) != count:
            raise DatasetError(
                f"labels are {self.labels.dtype} of shape {self.labels.shape}; int64 of shape ({count},) is needed"
            )
        if not 2 <= self.classes <= MAX_CLASSES:
            raise DatasetError(f"{self.classes} classes; 2 to {MAX_CLASSES} are allowed")
        if self.labels.min() < 0 or self.labels.max() >= self.classes:
            raise DatasetError(
                f"labels lie in [{self.labels.min()}, {self.labels.max()}]; "
                f"[0, {self.classes - 1}] is allowed for {self.classes} classes"
            )
        check_names_and_groups(self.class_names, self.groups, count=count, classes=self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image once it is standardised: (channels, height, width)."""
        height, width, channels = self.pixels.shape[1:]
        return channels, height, width

    def subset(self, indices: NDArray[np.integer[Any]]) -> "RawImages":
        """The images at `indices` (M,), in that order. Raises `DatasetError` if an index is out of range."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise DatasetError(f"indices lie in [{indices.min()}, {indices.max()}]; [0, {len(self) - 1}] is allowed")
        return replace(
            self,
            pixels=self.pixels[indices],
            labels=self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
        )

    def standardised(self, scale: Scale, augment: Augment = "none") -> LabelledImages:
        """The same images as float32 (N, C, H, W) on `scale`. Raises `DatasetError` if it has other channels."""
        channels = self.pixels.shape[3]
        mean, std = scale.columns(channels)
        images = np.empty((len(self), *self.shape), np.float32)
        values = np.arange(256, dtype=np.float32) / np.float32(255)
        tables = (values - mean[:, 0].astype(np.float32)) / std[:, 0].astype(np.float32)
        for channel in range(channels):
            images[:, channel] = tables[channel][self.pixels[..., channel]]
        return LabelledImages(images, self.labels, self.classes, augment, self.class_names, self.groups, scale)


def pixels_of(images: Images, scale: Scale) -> NDArray[np.uint8]:
    """The bytes nearest to images (N, C, H, W) on `scale`, in the same shape; on another scale they have the same."""
    mean, std = (column.astype(np.float32) for column in scale.columns(images.shape[1]))
    pixels: NDArray[np.uint8] = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return pixels


def on_scale(part: LabelledImages, scale: Scale) -> LabelledImages:
    """Images of a known scale on another one.

    Each value keeps its nearest byte, by which ledgers know the image; where rounding would make it another, half-way
    between two, it becomes that byte itself. Raises `DatasetError` if its scale is not known, or `scale` has other
    channels.
    """
    if part.scale is None:
        raise DatasetError("images on a scale that nobody said; a known one is needed to bring them to another")
    mean, std = part.scale.columns(part.shape[0])
    new_mean, new_std = scale.columns(part.shape[0])
    images = np.empty_like(part.images)
    for start in range(0, len(part), _CHUNK):
        some, known = part.images[start : start + _CHUNK], pixels_of(part.images[start : start + _CHUNK], part.scale)
        moved = ((some * std + mean - new_mean) / new_std).astype(np.float32)
        other = pixels_of(moved, scale) != known
        moved[other] = ((known / 255 - new_mean) / new_std)[other]
        images[start : start + _CHUNK] = moved
    return replace(part, images=images, scale=scale)


def with_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (N, H, W, C); (N, H, W) gets its one channel."""
    return pixels[..., None] if pixels.ndim == 3 else pixels


def train_and_test(
    train: tuple[NDArray[np.uint8], Labels],
    test: tuple[NDArray[np.uint8], Labels],
    classes: int,
    *,
    class_names: tuple[str, ...] | None = None,
    groups: tuple[Groups | None, Groups | None] = (None, None),
) -> tuple[RawImages, RawImages]:
    """Both parts; grey pixels (N, H, W) get their one channel.

    Raises `DatasetError` if a part is no set of images (see `RawImages`), or the parts differ in shape.
    """
    parts = []
    for name, (pixels, numbers), whose in zip(("training", "test"), (train, test), groups, strict=True):
        try:
            parts.append(RawImages(with_channels(pixels), numbers, classes, class_names, whose))
        except DatasetError as error:
            raise DatasetError(f"{name} part: {error}") from error
    if parts[0].shape != parts[1].shape:
        raise DatasetError(
            f"training images are of shape {parts[0].shape}, test images of {parts[1].shape}; one shape is needed"
        )
    return parts[0], parts[1]
