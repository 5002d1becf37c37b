"""The report of a run: one self-contained HTML page, made from the run's folder.

This module turns records into facts and figures; the page's words are in `templates/report.html.j2`,
its charts in `templates/charts.html.j2`, its looks in `templates/report.css`. A chart is a plain SVG of
100 x 100 units that stretches with the page; its labels are HTML placed in per cent, so that letters
keep their size on a small screen. Nothing is loaded from elsewhere, and there is no script. All text
from the records is escaped by Jinja2.

Parts that a run need not have (dreams, events, the exhibit) may be missing, and their sections say so.
A part that is there but malformed raises `MalformedRecord`: half a truth is not shown.
"""

from __future__ import annotations

import base64
import itertools
import math
import statistics
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_codream.pages import page_environment
from secure_codream.panel import format_bytes
from secure_codream.records import (
    ClientJoined,
    ClientLost,
    Dreams,
    EpochGivenUp,
    Event,
    Exhibit,
    FederationStarted,
    MissingRecord,
    Refused,
    RoundFinished,
    RunFolder,
    StepFinished,
    Summary,
    read_dreams,
    read_events,
    read_exhibit,
    read_summary,
    write_whole,
)
from secure_codream.statement import read_statement

DREAMS_SHOWN = 20
ROUNDS_SHOWN = 8
PIXEL_STRIP = 10
HISTOGRAM_BINS = 64
POINTS_SHOWN = 800
PALETTE = 8

Pixels = npt.NDArray[np.uint8]
Point = tuple[float, float]


def write_report(folder: Path) -> Path:
    """Read the run in `folder` and write its `report.html`; returns that file's path.

    Raises MissingRecord without `summary.json`, and MalformedRecord for any file that does not fit.
    """
    run = RunFolder(folder)
    summary = read_summary(run.summary)
    events = _events(run)
    exhibit = _exhibit(run)
    rounds = run.finished_rounds()
    shown = _spread(rounds, ROUNDS_SHOWN)
    dreams = {number: read_dreams(run.round(number)) for number in shown}
    page = page_environment(percent=percent, size=size, duration=duration).get_template("report.html.j2")
    html = page.render(
        s=summary,
        headline=headline(summary),
        clients=_client_rows(summary),
        alone=summary.accuracy.finishers_alone,
        finishers="clients that finished" if None in summary.accuracy.codream.clients else "clients",
        sums=_sums(summary),
        dropped=_dropped(summary),
        accuracy=_accuracy_chart(summary, events),
        dreams=[_dream_round(number, dreams[number]) for number in shown],
        dream_rounds=len(rounds),
        entropy=_entropy_chart(summary, events),
        traffic=_traffic(summary),
        exhibit=_exhibit_view(exhibit, dreams) if exhibit else None,
        timeline=_timeline(events, summary.rounds),
        paths=_path_rows(events),
        incidents=_incidents(events),
        has_events=bool(events),
        statement=read_statement(run.path) if (run.path / "privacy.json").exists() else None,
        config=run.config.read_text("utf-8", errors="replace") if run.config.exists() else None,
    )
    return write_whole(run.report, html.encode())


def headline(summary: Summary) -> str:
    """The result in words for a person who knows none of the terms."""
    accuracy, closure = summary.accuracy, summary.gap_closure
    alone, together = accuracy.finishers_alone, accuracy.codream.mean
    lost = accuracy.codream.clients.count(None)
    clients = f"{summary.clients - lost} clients" + (" that finished" if lost else "")
    before = (
        f"Each learning alone, the {clients} recognise {percent(alone)} of unseen examples "
        f"on average; after {_counted(summary.rounds, 'round')} of exchanging dreams, {percent(together)}."
    )
    if together <= alone:
        after = "In this run the dreams did not help."
    elif closure is None or accuracy.centralised <= alone:
        after = f"All the data in one place would give {percent(accuracy.centralised)}."
    elif closure >= 1:
        after = f"That is no less than all the data in one place would give ({percent(accuracy.centralised)})."
    else:
        after = (
            f"All the data in one place would give {percent(accuracy.centralised)}: "
            f"the dreams closed {100 * closure:.0f}\N{NO-BREAK SPACE}% of that gap."
        )
    return f"{before} {after}"


# --- numbers in words ------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share as per cent with one decimal: "84.6 %"."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def size(count: float) -> str:
    """A number of bytes with its unit, which stays on its line: "1.2 MB"."""
    return format_bytes(count).replace(" ", "\N{NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: "46 ms", "2.1 s", "3 min 05 s"."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}\N{NO-BREAK SPACE}ms"
    if seconds < 99.95:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    words = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- pictures --------------------------------------------------------------------------------------


def png(pixels: Pixels) -> bytes:
    """Encode `pixels`, uint8 of shape (H, W) for grey or (H, W, 3) for RGB, as PNG (RFC 2083)."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"found {pixels.dtype} {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
    height, width = pixels.shape[:2]
    colour_type = 0 if pixels.ndim == 2 else 2
    # Each row begins with its filter; 0 is none.
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _data_uri(pixels: Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _stretched(values: npt.NDArray[Any]) -> Pixels:
    """Values to 0..255, from the 1st to the 99th per cent of them."""
    low, high = np.percentile(values, (1, 99))
    scaled = (values.astype(np.float64) - low) / max(float(high - low), 1e-12)
    return np.asarray(np.clip(255 * scaled + 0.5, 0, 255), dtype=np.uint8)


def _picture(image: npt.NDArray[np.float32]) -> Pixels:
    """A dream (C, H, W) as pixels: three channels in colour, otherwise the channels' mean in grey."""
    return _stretched(image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0))


# --- charts ----------------------------------------------------------------------------------------


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


def _axis(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low..high, about `wanted` of them."""
    raw = max(high - low, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _path(segments: Iterable[Sequence[Point]]) -> str:
    return " ".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in segment) for segment in segments if segment)


def _dots(points: Iterable[Point]) -> str:
    """Zero-length strokes with round caps: dots that stay round when the frame is stretched."""
    return " ".join(f"M{x:.2f} {y:.2f}h0" for x, y in points)


def _unbroken(points: Iterable[tuple[float, float | None]]) -> list[list[Point]]:
    runs = itertools.groupby(points, key=lambda point: point[1] is not None)
    return [[(x, y) for x, y in run if y is not None] for known, run in runs if known]


def _accuracy_chart(summary: Summary, events: Sequence[Event]) -> Chart | None:
    """Each client after each round, and the mean; that of round 0, each alone, only the sum of metrics tells."""
    means = _means(summary, events)
    if not means:
        return None
    table = summary.accuracy.by_round
    alone, central = summary.accuracy.finishers_alone, summary.accuracy.centralised
    known = [*means.values(), *(value for row in table for value in row if value is not None)]
    ticks = _axis(min([alone, central, *known]), min(1.0, max([alone, central, *known])))
    low, high = ticks[0], ticks[-1]
    rounds = range(min(means), max(means) + 1)

    def x(r: int) -> float:
        return 100 * (r - rounds[0]) / (len(rounds) - 1) if len(rounds) > 1 else 50

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low)

    def line(label: str, colour: str, values: dict[int, float | None], bold: bool = False) -> Line:
        runs = _unbroken((x(r), None if (v := values.get(r)) is None else y(v)) for r in rounds)
        points = [point for run in runs for point in run] if len(rounds) <= 25 else []
        return Line(label, colour, _path(runs), _dots(points), bold)

    few = summary.clients <= PALETTE
    lines = [
        line(name, f"c{i}" if few else "grey", {r: row[i] for r, row in enumerate(table, start=1)})
        for i, name in enumerate(summary.client_names if table else [])
    ]
    lines.append(line("mean", "mean", dict(means), bold=True))
    return Chart(
        title="Test accuracy after each round",
        x_title="round; 0 is each client alone, before the first dreams" if rounds[0] == 0 else "round",
        x_ticks=[Tick(x(r), str(r)) for r in _spread(rounds, 10)],
        y_ticks=[Tick(y(tick), f"{100 * tick:.3g}\N{NO-BREAK SPACE}%") for tick in ticks],
        lines=lines,
        references=[
            Reference(f"all data in one place, {percent(central)}", y(central)),
            Reference(f"alone, mean {percent(alone)}", y(alone), right=rounds[0] == 0),
        ],
    )


def _means(summary: Summary, events: Sequence[Event]) -> dict[int, float]:
    """The mean accuracy after so many rounds: of the clients' own figures where there are any, else of their sum."""
    means = {
        event.metrics_round: accuracy
        for event in events
        if isinstance(event, RoundFinished)
        and event.metrics_round is not None
        and (accuracy := event.metrics.get("accuracy")) is not None
    }
    for r, row in enumerate(summary.accuracy.by_round, start=1):
        if present := [value for value in row if value is not None]:
            means[r] = statistics.fmean(present)
    return means


def _entropy_chart(summary: Summary, events: Sequence[Event]) -> Chart | None:
    measured = [
        (index, event.round, event.entropy)
        for index, event in enumerate(e for e in events if isinstance(e, StepFinished) and e.task == "update")
        if event.entropy is not None
    ]
    if not measured:
        return None
    classes = len(summary.label_counts[0])
    uniform = math.log(classes) if classes > 1 else 1.0
    last = max(1, measured[-1][0])
    top = max(uniform, max(entropy for _, _, entropy in measured))
    ticks = _axis(0, top, 4)
    high = ticks[-1]

    def at(index: int, entropy: float) -> Point:
        return 100 * index / last, 100 * (high - max(0.0, entropy)) / high

    rounds = [list(steps) for _, steps in itertools.groupby(measured, key=lambda step: step[1])]
    most = max(2, POINTS_SHOWN // len(rounds))
    runs = [[at(index, entropy) for index, _, entropy in _spread(steps, most)] for steps in rounds]
    few = len(measured) <= 120
    return Chart(
        title="Entropy of the teachers on the dreams (nats), by secure step",
        x_title="round",
        x_ticks=[Tick(at(steps[0][0], 0)[0], str(steps[0][1] + 1)) for steps in _spread(rounds, 10)],
        y_ticks=[Tick(at(0, tick)[1], f"{tick:g}") for tick in ticks],
        lines=[Line("mean of the clients", "mean", _path(runs), _dots(itertools.chain(*runs)) if few else "", True)],
        references=[Reference(f"no idea: ln {classes} = {uniform:.2f}", at(0, uniform)[1])],
    )


def _bars(counts: npt.NDArray[np.int64], top: float) -> str:
    width = 100 / len(counts)
    heights = 100 * counts / top
    return " ".join(
        f"M{i * width:.3f} 100v{-height:.3f}h{width:.3f}v{height:.3f}z"
        for i, height in enumerate(heights)
        if height > 0
    )


# --- facts of the sections -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """How sums were made, in words: over whom, who may collude, who certifies, what a byte apart from vectors is."""

    lockstep: bool
    over: str
    bears: str
    certified: str
    other: str


def _sums(summary: Summary) -> Sums:
    everybody, quorum = summary.clients, (summary.clients + summary.colluders) // 2 + 1
    if summary.mode == "lockstep":
        return Sums(
            lockstep=True,
            over=f"all {everybody} clients",
            bears=f"any {everybody - 2} clients" if everybody > 3 else "any client",
            certified=f"all {everybody} clients",
            other="tags, votes, framing",
        )
    many = len(summary.blocks) > 1
    return Sums(
        lockstep=False,
        over="whole blocks of clients that were fixed before"
        if many
        else f"all {everybody} clients, which are one block",
        bears=f"up to {_counted(summary.colluders, 'client')}",
        certified=f"{quorum} or more of the {everybody} clients",
        other="shares, signatures, tags, votes, framing",
    )


@dataclass(frozen=True)
class Dropped:
    """Who was killed on the way: who came back, and who did not."""

    returned: str
    lost: str


def _dropped(summary: Summary) -> Dropped:
    last = dict(zip(summary.client_names, summary.accuracy.codream.clients, strict=True))
    return Dropped(
        returned=_listed([name for name in summary.dropped if last[name] is not None]),
        lost=_listed([name for name in summary.client_names if last[name] is None]),
    )


@dataclass(frozen=True)
class ClientRow:
    """A line of the table of results; `strip` pairs each class's count with its shade, 0..1."""

    name: str
    colour: str
    model: str
    samples: int
    strip: list[tuple[int, float]]
    alone: float
    together: float | None


def _client_rows(summary: Summary) -> list[ClientRow]:
    most = max(1, max(max(counts, default=0) for counts in summary.label_counts))
    few = summary.clients <= PALETTE
    return [
        ClientRow(
            name=summary.client_names[i],
            colour=f"c{i}" if few else "grey",
            model=summary.models[i],
            samples=sum(summary.label_counts[i]),
            strip=[(count, count / most) for count in summary.label_counts[i]],
            alone=summary.accuracy.independent.clients[i],
            together=summary.accuracy.codream.clients[i],
        )
        for i in range(summary.clients)
    ]


@dataclass(frozen=True)
class DreamView:
    """A dream with its three likeliest classes and their probabilities."""

    uri: str
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class DreamRound:
    """The dreams of a round: how many in all, how many of each class, and a selection."""

    number: int
    total: int
    shape: str
    by_class: list[tuple[int, float]]
    shown: list[DreamView]


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _dream_round(number: int, dreams: Dreams) -> DreamRound:
    probabilities = _softmax(dreams.logits)
    predicted = probabilities.argmax(axis=1)
    counts = np.bincount(predicted, minlength=probabilities.shape[1])
    chosen = _most_confident_in_turn(probabilities)
    return DreamRound(
        number=number,
        total=len(predicted),
        shape=" × ".join(map(str, dreams.images.shape[1:])),
        by_class=[(int(count), float(count) / max(1, int(counts.max()))) for count in counts],
        shown=[
            DreamView(
                uri=_data_uri(_picture(dreams.images[i])),
                top=[(int(k), float(probabilities[i, k])) for k in np.argsort(-probabilities[i])[:3]],
            )
            for i in chosen
        ],
    )


def _most_confident_in_turn(probabilities: npt.NDArray[np.float64]) -> list[int]:
    """Of each class the most confident, then of each the second, and so on; the result is by class."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    ranks: Counter[int] = Counter()
    ranked = []
    for i in np.argsort(-confidence, kind="stable"):
        k = int(predicted[i])
        ranked.append((ranks[k], k, int(i)))
        ranks[k] += 1
    taken = sorted(ranked)[:DREAMS_SHOWN]
    return [i for _, _, i in sorted(taken, key=lambda entry: (entry[1], entry[0]))]


@dataclass(frozen=True)
class TrafficPart:
    """A part of the bytes that a client sends; `width` is per cent of the widest bar."""

    label: str
    style: str
    bytes: float
    width: float


@dataclass(frozen=True)
class TrafficView:
    """What one client sent, in parts, and what it received."""

    up: list[TrafficPart]
    down: TrafficPart


def _traffic(summary: Summary) -> TrafficView:
    sent = summary.bytes
    other = max(0.0, sent.up_per_client - sent.payload_per_client - sent.setup_per_client)
    widest = max(sent.up_per_client, sent.down_per_client, 1.0)
    parts = (
        ("payload: masked vectors, packed", "payload", sent.payload_per_client),
        ("key set-up", "setup", sent.setup_per_client),
        (_sums(summary).other, "other", other),
    )
    return TrafficView(
        up=[TrafficPart(label, style, count, 100 * count / widest) for label, style, count in parts],
        down=TrafficPart("received", "down", sent.down_per_client, 100 * sent.down_per_client / widest),
    )


@dataclass(frozen=True)
class ExhibitView:
    """What the server saw of one client, beside what that client held."""

    client: str
    round: int
    step: int
    coordinates: int
    modulus_bits: int
    value_bits: int
    equal: int
    histograms: list[Histogram]
    correlation: float
    chi_square: float
    freedom: int
    pictures: list[tuple[str, str]]
    numbers: list[tuple[str, list[int]]]


def _exhibit_view(exhibit: Exhibit, dreams: dict[int, Dreams]) -> ExhibitView:
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
        value_bits=exhibit.value_bits,
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
        bars=_bars(counts, top),
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
        pixels = _stretched(values[: count * channels * height * width])
        images = pixels.reshape(count, channels, height, width)
        gap = np.full((height, 1), 128, dtype=np.uint8)
        parts = [part for image in images for part in (image[0], gap)][:-1]
        return _data_uri(np.ascontiguousarray(np.concatenate(parts, axis=1)))

    return [
        ("plain update", strip(_around_middle(exhibit.plain, modulus))),
        ("masked, as the server saw it", strip(exhibit.masked)),
        ("sum that the server recovered", strip(_around_middle(exhibit.recovered_sum, modulus))),
    ]


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of one round that went the same way."""

    path: str
    first: int
    last: int
    survivors: int
    cohort: int


def _timeline(events: Sequence[Event], learnt: int) -> list[tuple[str, list[Stretch]]]:
    """Round by round, how the steps went; after the last one come the metrics of what was learnt."""
    flow = [event for event in events if isinstance(event, StepFinished | EpochGivenUp)]
    rounds: list[tuple[int, list[Stretch]]] = []
    for number, steps in itertools.groupby(flow, key=lambda event: event.round):
        stretches: list[Stretch] = []
        for event in steps:
            if isinstance(event, EpochGivenUp):
                stretches.append(Stretch("failed" if event.wrong_sum else "given-up", 0, 0, 0, 0))
                continue
            survivors, cohort = len(event.survivors), len(event.survivors) + len(event.dropped)
            before = stretches[-1] if stretches else None
            same = before and (before.path, before.survivors, before.cohort) == (
                event.path,
                survivors,
                cohort,
            )
            first = before.first if same and before else event.step
            if same:
                stretches.pop()
            stretches.append(Stretch(event.path, first, event.step, survivors, cohort))
        rounds.append((number, stretches))
    incidents = [entry for entry in rounds if any(stretch.path != "fast" for stretch in entry[1])]
    kept = {number for number, _ in (*_spread(rounds, ROUNDS_SHOWN), *incidents[: 2 * ROUNDS_SHOWN])}
    names = {number: f"round {number + 1}" if number < learnt else "at the end" for number in kept}
    return [(names[number], stretches) for number, stretches in rounds if number in kept]


@dataclass(frozen=True)
class PathRow:
    """The steps that went by one path, with the median of their seconds."""

    path: str
    steps: int
    seconds: float


def _path_rows(events: Sequence[Event]) -> list[PathRow]:
    steps = [event for event in events if isinstance(event, StepFinished)]
    by_path = {path: [step.seconds for step in steps if step.path == path] for path in ("fast", "dropout")}
    return [PathRow(path, len(times), statistics.median(times)) for path, times in by_path.items() if times]


def _incidents(events: Sequence[Event]) -> list[tuple[float, str, str]]:
    """What went otherwise than planned: seconds since the start, kind, words."""
    start = next((event.time for event in events if isinstance(event, FederationStarted)), None)
    if start is None:
        start = events[0].time if events else 0.0
    found: list[tuple[float, str, str]] = []
    missing: set[str] = set()
    lost: dict[str, float] = {}
    for event in events:
        since = event.time - start
        match event:
            case ClientLost():
                lost[event.client] = since
                found.append((since, "lost", f"{event.client} no longer answered"))
            case ClientJoined() if event.client in lost:
                away = duration(max(0.0, since - lost.pop(event.client)))
                found.append((since, "back", f"{event.client} is back after {away}"))
            case StepFinished():
                if left_out := sorted(set(event.dropped) - missing):
                    where = f"round {event.round + 1}, step {event.step + 1}"
                    words = (
                        f"without {_listed(left_out)} from {where} on; the sum is over {len(event.survivors)} clients"
                    )
                    found.append((since, "dropout", words))
                missing = (missing | set(event.dropped)) - set(event.survivors)
            case EpochGivenUp():
                kind = "failed" if event.wrong_sum else "given up"
                again = "nothing of it is learnt, it begins anew"
                found.append((since, kind, f"round {event.round + 1}: {event.reason}; {again}"))
            case Refused():
                kind = "late" if event.ordinary else "refused"
                whose = f"{event.client} refused a message" if event.by == "client" else f"a message of {event.client}"
                about = f", {event.found}" if event.found else ""
                found.append((since, kind, f"{whose}: {event.code}{about}"))
    return found


# --- reading and rendering -------------------------------------------------------------------------


def _events(run: RunFolder) -> list[Event]:
    try:
        return read_events(run.events)
    except MissingRecord:
        return []


def _exhibit(run: RunFolder) -> Exhibit | None:
    try:
        return read_exhibit(run.exhibit)
    except MissingRecord:
        return None


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
