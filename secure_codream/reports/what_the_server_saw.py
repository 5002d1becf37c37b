"""One step from both sides: what a client encoded, what the server got, and the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_codream.reports.charts import Histogram, Tick, bars
from secure_codream.reports.pictures import data_uri, stretched
from secure_codream.reports.run_folder import Dreams, Exhibit
from secure_codream.reports.words import percent

PIXEL_STRIP = 10
HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class ExhibitView:
    """What the server saw of one client, beside what that client held."""

    client: str
    round: int
    step: int
    coordinates: int
    modulus_bits: int
    top: int
    equal: int
    histograms: list[Histogram]
    correlation: float
    chi_square: float
    freedom: int
    pictures: list[tuple[str, str]]
    numbers: list[tuple[str, list[int]]]


def exhibit_view(exhibit: Exhibit, dreams: dict[int, Dreams]) -> ExhibitView:
    """Figures and pictures of an exhibit; `dreams` of its round show what is computed on."""
    n = len(exhibit.plain)
    modulus = 1 << exhibit.modulus_bits
    plain = _around_middle(exhibit.plain, modulus)
    in_plain = _ring_histogram(exhibit.plain, exhibit.modulus_bits)
    in_masked = _ring_histogram(exhibit.masked, exhibit.modulus_bits)
    expected = n / len(in_masked)
    constant = not plain.any() or exhibit.masked.min() == exhibit.masked.max()
    ring_ticks = [
        Tick(0, "0"),
        Tick(50, f"{modulus // 2:,}"),
        Tick(100, f"{modulus:,}"),
    ]
    return ExhibitView(
        client=exhibit.client,
        round=exhibit.round,
        step=exhibit.step,
        coordinates=n,
        modulus_bits=exhibit.modulus_bits,
        top=exhibit.top,
        equal=int(np.count_nonzero(exhibit.recovered_sum == exhibit.plain_sum)),
        histograms=[
            _close_up(plain),
            _histogram("The same, in the whole ring", in_plain, n, ring_ticks, "plain"),
            _histogram("Masked: what the server saw", in_masked, n, ring_ticks, "masked", level=expected),
        ],
        correlation=0.0 if constant else float(np.corrcoef(plain, exhibit.masked.astype(np.float64))[0, 1]),
        chi_square=float(((in_masked - expected) ** 2 / expected).sum()),
        freedom=len(in_masked) - 1,
        pictures=_strips(exhibit, dreams),
        numbers=[
            ("plain", exhibit.plain[:6].tolist()),
            ("masked", exhibit.masked[:6].tolist()),
            ("recovered sum", exhibit.recovered_sum[:6].tolist()),
            ("plain sum", exhibit.plain_sum[:6].tolist()),
        ],
    )


def _around_middle(vector: npt.NDArray[np.uint32], modulus: int) -> npt.NDArray[np.float64]:
    """Distances from the median on the ring's circle, so that neither an offset nor the wrap shows."""
    signed = ((vector.astype(np.int64) + modulus // 2) % modulus) - modulus // 2
    shifted = vector.astype(np.int64) - int(np.median(signed))
    return np.asarray((shifted + modulus // 2) % modulus - modulus // 2, dtype=np.float64)


def _ring_histogram(vector: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """Counts in equal bins of the whole ring, exact because bins are powers of two."""
    bins = min(HISTOGRAM_BINS, 1 << bits)
    return np.bincount(vector.astype(np.int64) >> (bits - bins.bit_length() + 1), minlength=bins)


def _close_up(plain: npt.NDArray[np.float64]) -> Histogram:
    reach = max(1.0, float(np.quantile(np.abs(plain), 0.995)))
    counts, _ = np.histogram(plain, bins=HISTOGRAM_BINS - 1, range=(-reach, reach))
    ticks = [Tick(0, f"−{reach:,.0f}"), Tick(50, "0"), Tick(100, f"+{reach:,.0f}")]
    return _histogram("Plain, around its median", counts, len(plain), ticks, "plain")


def _histogram(
    title: str,
    counts: npt.NDArray[np.int64],
    n: int,
    ticks: list[Tick],
    colour: str,
    level: float | None = None,
) -> Histogram:
    # A flat histogram fills two thirds of its frame, so that its evenness is seen, not its noise.
    top = max(float(counts.max()), 1.5 * level if level else 1.0)
    low, high = int(counts.min()) / n, int(counts.max()) / n
    return Histogram(
        title=title,
        note=f"{100 * low:.2f} to {100 * high:.2f} % of the coordinates in a bar",
        bars=bars(counts, top),
        x_ticks=ticks,
        top=percent(top / n),
        colour=colour,
        level=None if level is None else 100 * (1 - level / top),
    )


def _strips(exhibit: Exhibit, dreams: dict[int, Dreams]) -> list[tuple[str, str]]:
    """The first coordinates drawn as pixels in the dreams' shape, where the shape is known."""
    known = next(iter(dreams.values()), None)
    if known is None:
        return []
    channels, height, width = known.images.shape[1:]
    count = min(PIXEL_STRIP, len(exhibit.plain) // (channels * height * width))
    if count == 0:
        return []
    modulus = 1 << exhibit.modulus_bits

    def strip(values: npt.NDArray[Any]) -> str:
        pixels = stretched(values[: count * channels * height * width])
        images = pixels.reshape(count, channels, height, width)
        gap = np.full((height, 1), 128, dtype=np.uint8)
        parts = [part for image in images for part in (image[0], gap)][:-1]
        return data_uri(np.ascontiguousarray(np.concatenate(parts, axis=1)))

    return [
        ("plain update", strip(_around_middle(exhibit.plain, modulus))),
        ("masked, as the server saw it", strip(exhibit.masked)),
        ("sum that the server recovered", strip(_around_middle(exhibit.recovered_sum, modulus))),
    ]
