"""Arrays of images: where their channels stand, and what their values mean.

    (N, H, W)                     grey
    (N, H, W, C), (N, C, H, W)    1 or 3 channels where only one reading has so many; else as the federation's shape, or
                                  `channels`, says: 16 slices are not 16 channels because it would fit
    whole numbers 0 to 255        bytes, whatever their type
    fractions 0 to 1              bytes over 255, and truth values black and white
    values below 0                standardised already; of a user's own arrays alone

All parts are read alike. Only 0 and 1 in a type of numbers, fractions above 1 and more than 255 have no sure reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError
from codream_clients.data.understanding import Notes

Channels = Literal["first", "last"]
Meaning = Literal["bytes", "truth", "unit", "standardised"]
MAX_STANDARDISED = 100.0
"""Values further from 0 than this, in deviations, were surely not standardised."""

_CHUNK = 4096  # images at a time, which bounds the memory that a look at them takes
_USUAL = (1, 3)


@dataclass(frozen=True)
class Told:
    """What is known of arrays beforehand: where the channels stand, and an image's shape (C, H, W)."""

    channels: Channels | None = None
    shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    whole: bool


def images_of(
    parts: Mapping[str, NDArray[Any]], *, told: Told, notes: Notes, may_be_standardised: bool
) -> dict[str, NDArray[Any]]:
    """Name -> images: all bytes (N, H, W, C), or, where that may be, all standardised float32 (N, C, H, W).

    Raises `DatasetError`, naming the part, for arrays that are no images, or could be read in two ways.
    """
    for name, images in parts.items():
        if images.ndim and len(images) == 0:
            raise DatasetError(f"{name}: no images; at least one is needed")
        if images.dtype.kind not in "biuf" or images.ndim not in (3, 4) or 0 in images.shape:
            raise DatasetError(
                f"{name}: found {images.dtype} of shape {images.shape}; numbers of shape (N, H, W), (N, H, W, C) or "
                "(N, C, H, W) are needed"
            )
    orders = {name: _channels_of(name, images.shape, told, notes) for name, images in parts.items() if images.ndim == 4}
    if len(set(orders.values())) > 1:
        raise DatasetError(f"channels stand {', '.join(f'{order} in {name}' for name, order in orders.items())}")
    meaning = _meaning(parts, may_be_standardised, notes)
    if meaning == "standardised":
        return {name: _channels_first(images, orders.get(name)) for name, images in parts.items()}
    return {name: _bytes(images, meaning, orders.get(name)) for name, images in parts.items()}


def _channels_of(name: str, shape: tuple[int, ...], told: Told, notes: Notes) -> Channels:
    readings: dict[Channels, tuple[int, int, int]] = {
        "last": (shape[3], shape[1], shape[2]),
        "first": (shape[1], shape[2], shape[3]),
    }
    if told.channels is not None:
        return told.channels
    fits: list[Channels] = [order for order, form in readings.items() if form == told.shape]
    usual: list[Channels] = [order for order, form in readings.items() if form[0] in _USUAL]
    sure = fits if len(fits) == 1 else usual if not fits and len(usual) == 1 else []
    if not sure:
        last, first = readings["last"], readings["first"]
        found = f"{name} has shape {shape}: channels last, {_in_words(last)}, or first, {_in_words(first)}"
        if not usual and 4 in (last[0], first[0]):
            found += ", or colours with transparency (RGBA)"
        elif not usual:
            found += ", or a volume of slices"
        raise DatasetError(
            f"{found}; 1 or 3 channels in one reading alone are needed (cut volumes into slices, leave transparency "
            'out), or channels = "last" or "first" under [data]'
        )
    if sure[0] == "first":
        notes.reads(f"channels stand first: {_in_words(readings['first'])}")
    return sure[0]


def _in_words(form: tuple[int, int, int]) -> str:
    channels, height, width = form
    return f"{channels} channel{'s' if channels > 1 else ''} of {height} x {width}"


def _meaning(parts: Mapping[str, NDArray[Any]], may_be_standardised: bool, notes: Notes) -> Meaning:
    """What the values mean in all parts; a part of 0 and 1 alone means what the others do."""
    ranges = {name: _range(name, images) for name, images in parts.items()}
    readings = {name: _readings(name, images, ranges[name], may_be_standardised) for name, images in parts.items()}
    common = [meaning for meaning in _SAID if all(meaning in possible for possible in readings.values())]
    if not common:
        said = ", ".join(f"{name} {' or '.join(_SAID[one] for one in possible)}" for name, possible in readings.items())
        raise DatasetError(f"images differ in what their values mean: {said}; one meaning is needed")
    if common[0] != "truth" and all(_is_doubtful(one) for one in ranges.values()):
        name, images = next(iter(parts.items()))
        raise DatasetError(
            f"{name}: found {images.dtype} of shape {images.shape} with nothing but 0 and 1: black and white, or "
            "nearly black; truth values (bool), or 0 and 255, are needed"
        )
    if common[0] != "bytes" or any(images.dtype.kind == "f" for images in parts.values()):
        notes.reads(f"the images' values are {_SAID[common[0]]}")
    return common[0]


_SAID: dict[Meaning, str] = {
    "bytes": "whole numbers from 0 to 255",
    "truth": "truth values, black and white",
    "unit": "fractions from 0 to 1, taken times 255",
    "standardised": "standardised already",
}


def _readings(name: str, images: NDArray[Any], found: _Range, may_be_standardised: bool) -> tuple[Meaning, ...]:
    """What the values of a part may mean, the likeliest first."""
    floats = images.dtype.kind == "f"
    if images.dtype.kind == "b":
        return ("truth",)
    if found.low >= 0 and found.high <= 1 and floats:
        return ("bytes", "unit") if found.whole else ("unit",)
    if found.low >= 0 and found.high <= 255 and found.whole:
        return ("bytes",)
    if floats and may_be_standardised and found.low < 0 and max(-found.low, found.high) <= MAX_STANDARDISED:
        return ("standardised",)
    standardised = ", or standardised floats (mean about 0, deviation about 1)" if may_be_standardised else ""
    raise DatasetError(
        f"{name}: found {images.dtype} of shape {images.shape}, values from {found.low:g} to {found.high:g}; uint8 (0 "
        f"to 255) or floats from 0 to 1{standardised} are needed: choose a window of the values, and scale them"
    )


def _is_doubtful(found: _Range) -> bool:
    return found.whole and found.low >= 0 and found.high == 1


def _range(name: str, images: NDArray[Any]) -> _Range:
    low, high, whole = np.inf, -np.inf, True
    for start in range(0, len(images), _CHUNK):
        some = images[start : start + _CHUNK]
        if images.dtype.kind == "f":
            if not np.isfinite(some).all():
                raise DatasetError(f"{name} holds NaN or infinite values; numbers are needed in every pixel")
            whole = whole and bool((some == np.rint(some)).all())
        low, high = min(low, float(some.min())), max(high, float(some.max()))
    return _Range(low, high, whole)


def _channels_first(images: NDArray[Any], order: Channels | None) -> NDArray[np.float32]:
    if order is None:
        images = images[:, None]
    elif order == "last":
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, np.float32)


def _bytes(images: NDArray[Any], meaning: Meaning, order: Channels | None) -> NDArray[np.uint8]:
    if order is None:
        images = images[..., None]
    elif order == "first":
        images = images.transpose(0, 2, 3, 1)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CHUNK):
        some = images[start : start + _CHUNK]
        if meaning == "unit":
            some = np.rint(some.astype(np.float64) * 255)
        found[start : start + _CHUNK] = some.astype(np.uint8) * (255 if meaning == "truth" else 1)
    return found
