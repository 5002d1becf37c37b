"""Images that somebody hands over as arrays, in a script or from a function: the same gate as for files.

A part is `LabelledImages`, ready to train on, or a pair (images, labels) of arrays (NumPy, or anything that becomes
one), read as `arrays` and `labels` say. Floats with values below 0 are taken as standardised already.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.arrays import MAX_STANDARDISED, Told, images_of
from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.labels import labels_of
from codream_clients.data.pixels import RawImages, with_channels
from codream_clients.data.understanding import Notes

NEEDED = (
    "LabelledImages or (images, labels) with images uint8 (N, H, W[, C]) or standardised float32 (N, C, H, W) is needed"
)


def given_images(
    parts: Mapping[str, Any],
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    told: Told | None = None,
    notes: Notes,
) -> dict[str, RawImages] | dict[str, LabelledImages]:
    """The parts by name, all still bytes or all standardised, of one shape and the same classes.

    Args:
        parts: name -> `LabelledImages` or (images, labels).
        classes: how many there are; None takes one more than the largest label, if each below it is on some image.
        class_names: all classes in their order, for labels that are words.
        told: what is known of the arrays beforehand.
        notes: takes what was read.

    Raises:
        DatasetError: naming the part, with what came (type, shape, range) and what is needed.
    """
    ready = {name: part for name, part in parts.items() if isinstance(part, LabelledImages)}
    _check_standardised(ready)
    if len(ready) == len(parts):
        _one_shape(ready)
        return ready
    if ready and classes is None:
        classes = next(iter(ready.values())).classes
    arrays, labels = {}, {}
    for name, part in parts.items():
        if name in ready:
            continue
        if not (isinstance(part, tuple | list) and len(part) == 2):
            raise DatasetError(f"found {described(part)} for {name}; {NEEDED}")
        arrays[f"{name} images"] = _array(part[0], f"{name} images")
        labels[name] = _array(part[1], f"{name} labels")
    images = images_of(arrays, told=told or Told(), notes=notes, may_be_standardised=True)
    counted = {f"{name} labels": (labels[name], len(images[f"{name} images"])) for name in labels}
    numbers, classes, names = labels_of(counted, classes=classes, class_names=class_names, notes=notes)
    made: dict[str, Any] = dict(parts)
    for name in labels:
        pixels, own = images[f"{name} images"], numbers[f"{name} labels"]
        if pixels.dtype == np.uint8:
            if ready:
                raise DatasetError(f"{', '.join(ready)} is standardised, {name} is not; one kind is needed for all")
            made[name] = RawImages(with_channels(pixels), own, classes, names)
        else:
            made[name] = LabelledImages(pixels, own, classes, class_names=names)
    _one_shape(made)
    return made


def _check_standardised(parts: dict[str, LabelledImages]) -> None:
    for name, part in parts.items():
        if len(part) == 0:
            raise DatasetError(f"no {name} images; at least one is needed")
        if (largest := float(np.abs(part.images).max())) > MAX_STANDARDISED:
            raise DatasetError(
                f"{name} images are float32 with values up to {largest:g}; standardised ones are needed "
                "(mean about 0, deviation about 1), or uint8 from 0 to 255"
            )


def _one_shape(parts: Mapping[str, RawImages | LabelledImages]) -> None:
    (first, one), *others = parts.items()
    for name, part in others:
        if (part.shape, part.classes) != (one.shape, one.classes):
            raise DatasetError(
                f"{first} images are of shape {one.shape} in {one.classes} classes, {name} images of {part.shape} in "
                f"{part.classes}; one kind is needed"
            )
        if part.class_names != one.class_names:
            raise DatasetError(f"{first} and {name} images name their classes differently; one list is needed for all")
        if isinstance(part, LabelledImages) and isinstance(one, LabelledImages) and part.scale != one.scale:
            raise DatasetError(
                f"{first} images are standardised by {one.scale or 'what nobody said'}, {name} images by "
                f"{part.scale or 'what nobody said'}; one scale is needed for all"
            )


def _array(value: Any, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise DatasetError(f"found {described(value)} for {name}, which is no array: {error}") from error
    if array.dtype.hasobject and not all(isinstance(one, str) for one in array.flat):
        raise DatasetError(f"found {described(value)} for {name}, which is no array of numbers")
    return array


def described(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
