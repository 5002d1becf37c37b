"""Charts as plain SVG of 100 x 100 units; their words are HTML beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, `at` per cent from the left or the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve: an SVG path, with dots where points stand alone or are few."""

    label: str
    colour: str
    path: str
    dots: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Reference:
    """A level to compare with, `at` per cent from the top; its label stands at the left, or `right`."""

    label: str
    at: float
    right: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves in a frame of 100 x 100."""

    title: str
    x_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    references: list[Reference]


@dataclass(frozen=True)
class Histogram:
    """Bars in a frame of 100 x 100; `level` is the height that equal bars would have."""

    title: str
    note: str
    bars: str
    x_ticks: list[Tick]
    top: str
    colour: str
    level: float | None = None


def axis(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low..high, about `wanted` of them."""
    raw = max(high - low, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def svg_path(segments: Iterable[Sequence[Point]]) -> str:
    """Lines through points, one for each segment."""
    return " ".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in segment) for segment in segments if segment)


def dots(points: Iterable[Point]) -> str:
    """Zero-length strokes with round caps: dots that stay round when the frame is stretched."""
    return " ".join(f"M{x:.2f} {y:.2f}h0" for x, y in points)


def unbroken(points: Iterable[tuple[float, float | None]]) -> list[list[Point]]:
    """The runs of points that are known."""
    runs = itertools.groupby(points, key=lambda point: point[1] is not None)
    return [[(x, y) for x, y in run if y is not None] for known, run in runs if known]


def bars(counts: npt.NDArray[np.int64], top: float) -> str:
    """A histogram's bars; `top` is the count at full height."""
    width = 100 / len(counts)
    heights = 100 * counts / top
    return " ".join(
        f"M{i * width:.3f} 100v{-height:.3f}h{width:.3f}v{height:.3f}z"
        for i, height in enumerate(heights)
        if height > 0
    )


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
