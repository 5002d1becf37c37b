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

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_codream.reports.charts import Chart, Line, Point, Reference, Tick, axis, dots, spread, svg_path, unbroken
from secure_codream.reports.course_of_events import ROUNDS_SHOWN, incidents_of, path_rows, timeline
from secure_codream.reports.dream_pictures import dream_round
from secure_codream.reports.events import (
    Event,
    RoundFinished,
    StepFinished,
    read_events,
)
from secure_codream.reports.files import MissingRecord, write_whole
from secure_codream.reports.judgements import rolled_back_note
from secure_codream.reports.pages import page_environment
from secure_codream.reports.run_folder import Exhibit, RunFolder, read_dreams, read_exhibit
from secure_codream.reports.spans import round_view, spans_of
from secure_codream.reports.starts import starts_of
from secure_codream.reports.statement import read_statement
from secure_codream.reports.summary import Summary, read_summary
from secure_codream.reports.what_the_server_saw import exhibit_view
from secure_codream.reports.words import counted, duration, listed, percent, size

POINTS_SHOWN = 800
PALETTE = 8


def write_report(folder: Path) -> Path:
    """Read the run in `folder` and write its `report.html`; returns that file's path.

    Raises MissingRecord without `summary.json`, and MalformedRecord for any file that does not fit.
    """
    run = RunFolder(folder)
    summary = read_summary(run.summary)
    events = _events(run)
    exhibit = _exhibit(run)
    rounds = run.finished_rounds()
    shown = spread(rounds, ROUNDS_SHOWN)
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
        rolled_back=rolled_back_note(summary.rolled_back),
        accuracy=_accuracy_chart(summary, events),
        dreams=[dream_round(number, dreams[number], starts_of(run.record, number)) for number in shown],
        dream_rounds=len(rounds),
        entropy=_entropy_chart(summary, events),
        traffic=_traffic(summary),
        exhibit=exhibit_view(exhibit, dreams) if exhibit else None,
        timeline=timeline(events),
        paths=path_rows(events),
        incidents=incidents_of(events),
        has_events=bool(events),
        spans=round_view(summary.name, spans_of(run), events),
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
        f"on average; after {counted(summary.rounds, 'round')} of exchanging dreams, {percent(together)}."
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


# --- pictures --------------------------------------------------------------------------------------


# --- charts ----------------------------------------------------------------------------------------


def _accuracy_chart(summary: Summary, events: Sequence[Event]) -> Chart | None:
    """Each client after each round, and the mean; that of round 0, each alone, only the sum of metrics tells."""
    means = _means(summary, events)
    if not means:
        return None
    table = summary.accuracy.by_round
    alone, central = summary.accuracy.finishers_alone, summary.accuracy.centralised
    known = [*means.values(), *(value for row in table for value in row if value is not None)]
    ticks = axis(min([alone, central, *known]), min(1.0, max([alone, central, *known])))
    low, high = ticks[0], ticks[-1]
    rounds = range(min(means), max(means) + 1)

    def x(r: int) -> float:
        return 100 * (r - rounds[0]) / (len(rounds) - 1) if len(rounds) > 1 else 50

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low)

    def line(label: str, colour: str, values: dict[int, float | None], bold: bool = False) -> Line:
        runs = unbroken((x(r), None if (v := values.get(r)) is None else y(v)) for r in rounds)
        points = [point for run in runs for point in run] if len(rounds) <= 25 else []
        return Line(label, colour, svg_path(runs), dots(points), bold)

    few = summary.clients <= PALETTE
    lines = [
        line(name, f"c{i}" if few else "grey", {r: row[i] for r, row in enumerate(table, start=1)})
        for i, name in enumerate(summary.client_names if table else [])
    ]
    lines.append(line("mean", "mean", dict(means), bold=True))
    return Chart(
        title="Test accuracy after each round",
        x_title="round; 0 is each client alone, before the first dreams" if rounds[0] == 0 else "round",
        x_ticks=[Tick(x(r), str(r)) for r in spread(rounds, 10)],
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
    ticks = axis(0, top, 4)
    high = ticks[-1]

    def at(index: int, entropy: float) -> Point:
        return 100 * index / last, 100 * (high - max(0.0, entropy)) / high

    rounds = [list(steps) for _, steps in itertools.groupby(measured, key=lambda step: step[1])]
    most = max(2, POINTS_SHOWN // len(rounds))
    runs = [[at(index, entropy) for index, _, entropy in spread(steps, most)] for steps in rounds]
    few = len(measured) <= 120
    return Chart(
        title="Entropy of the teachers on the dreams (nats), by secure step",
        x_title="round",
        x_ticks=[Tick(at(steps[0][0], 0)[0], str(steps[0][1] + 1)) for steps in spread(rounds, 10)],
        y_ticks=[Tick(at(0, tick)[1], f"{tick:g}") for tick in ticks],
        lines=[Line("mean of the clients", "mean", svg_path(runs), dots(itertools.chain(*runs)) if few else "", True)],
        references=[Reference(f"no idea: ln {classes} = {uniform:.2f}", at(0, uniform)[1])],
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
        bears=f"up to {counted(summary.colluders, 'client')}",
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
        returned=listed([name for name in summary.dropped if last[name] is not None]),
        lost=listed([name for name in summary.client_names if last[name] is None]),
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
