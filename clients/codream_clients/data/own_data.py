"""Images from a user's own function, `my_module:load`, without registration or subclassing.

It takes no argument and returns (train, test). Each is either `LabelledImages`, ready to train on, or a pair (images,
labels) of arrays (NumPy, or anything that becomes one): images uint8 (N, H, W) or (N, H, W, C), which are standardised
like a file's, or float32 (N, C, H, W), which are taken as standardised already; labels integers (N,) or (N, 1).
Loading it runs the module's code; see `own_parts`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, LabelledImages, Labels
from codream_clients.data.pixels import RawImages, classes_of, flat_labels, train_and_test
from codream_clients.own_parts import OwnPartError, call_own_part

MAX_STANDARDISED = 100.0
"""Float images with larger values than this, in deviations from 0, were surely not standardised."""

_NEEDED = (
    "(train, test) is needed, each LabelledImages or (images, labels) with images uint8 (N, H, W[, C]) "
    "or standardised float32 (N, C, H, W)"
)


def load_own_data(
    reference: str, *, classes: int | None = None
) -> tuple[RawImages, RawImages] | tuple[LabelledImages, LabelledImages]:
    """What the function that `reference` names returns, checked, as (train, test).

    `classes`: how many there are; None takes one more than the largest label, where every label below it is on some
    image (LabelledImages say it themselves).
    Raises `OwnPartError` if the function cannot be loaded or fails, returns anything else than described above, or
    its arrays do not fit; the text says what came (type, shape, range) and what is needed.
    """
    returned = call_own_part(reference)
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise OwnPartError(f"{reference}() returned {_described(returned)}; {_NEEDED}")
    try:
        return _parts(reference, returned[0], returned[1], classes)
    except DatasetError as error:
        raise OwnPartError(f"{reference}(): {error}") from error


def _parts(
    reference: str, train: Any, test: Any, classes: int | None
) -> tuple[RawImages, RawImages] | tuple[LabelledImages, LabelledImages]:
    if isinstance(train, LabelledImages) and isinstance(test, LabelledImages):
        return _same_kind(train, test)
    pairs: list[tuple[NDArray[Any], Labels]] = []
    for name, part in (("train", train), ("test", test)):
        if not (isinstance(part, tuple | list) and len(part) == 2):
            raise OwnPartError(f"{reference}() returned {_described(part)} for {name}; {_NEEDED}")
        pairs.append((_array(reference, part[0]), flat_labels(_array(reference, part[1]), f"{name} labels")))
    kinds = {images.dtype.name for images, _ in pairs}
    if kinds == {"uint8"}:
        return train_and_test(pairs[0], pairs[1], classes)
    if kinds != {"float32"}:
        raise OwnPartError(f"{reference}() returned images of {', '.join(sorted(kinds))}; {_NEEDED}")
    if classes is None:
        classes = classes_of(pairs[0][1], pairs[1][1])
    first, second = (LabelledImages(np.ascontiguousarray(images), labels, classes) for images, labels in pairs)
    return _same_kind(first, second)


def _same_kind(train: LabelledImages, test: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    if (train.shape, train.classes) != (test.shape, test.classes):
        raise DatasetError(
            f"training images are of shape {train.shape} in {train.classes} classes, test images of {test.shape} in "
            f"{test.classes}; one kind is needed"
        )
    for name, part in (("training", train), ("test", test)):
        if len(part) == 0:
            raise DatasetError(f"no {name} images; at least one is needed")
        if (largest := float(np.abs(part.images).max())) > MAX_STANDARDISED:
            raise DatasetError(
                f"{name} images are float32 with values up to {largest:g}; standardised ones are needed "
                "(mean about 0, deviation about 1), or uint8 from 0 to 255"
            )
    return train, test


def _array(reference: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise OwnPartError(f"{reference}() returned {_described(value)}, which is no array: {error}") from error
    if array.dtype.hasobject:
        raise OwnPartError(f"{reference}() returned {_described(value)}, which is no array of numbers")
    return array


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
