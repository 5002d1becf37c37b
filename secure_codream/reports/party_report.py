"""The report of one party of a real run: one self-contained page, made of the files in its own folder.

An aggregator's page tells what a server may know: sums, what happened, who was there, and codes of refusals. A site's
page tells its own figures, and is for its own eyes: nothing of it is sent. Parts that are not there yet are said to be
missing; a part that is malformed raises `MalformedRecord`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_codream.reports.charts import Chart, Line, Reference, Tick, axis, dots, spread, svg_path, unbroken
from secure_codream.reports.clipping import clipped_line
from secure_codream.reports.course_of_events import (
    ROUNDS_SHOWN,
    incidents_of,
    path_rows,
    timeline,
    traffic_of,
)
from secure_codream.reports.dream_pictures import DreamRound, dream_round
from secure_codream.reports.events import FederationStarted, RoundFinished, StepFinished, read_events
from secure_codream.reports.files import write_whole
from secure_codream.reports.judgements import harm_line, held_now
from secure_codream.reports.metrics import read_metrics
from secure_codream.reports.pages import page_environment
from secure_codream.reports.run_folder import read_dreams
from secure_codream.reports.starts import starts_of
from secure_codream.reports.statement import read_statement
from secure_codream.reports.status import Status, read_status
from secure_codream.reports.words import counted, duration, percent, size

REPORT = "report.html"


def write_party_report(folder: Path) -> Path:
    """Read a server's or a client's folder, running or finished, and write its `report.html`; returns its path.

    Raises:
        MissingRecord: it has never run.
        MalformedRecord: a file does not fit.
    """
    status = read_status(folder)
    facts = _of_server(folder, status) if status.members else _of_client(folder, status)
    environment = page_environment(percent=percent, size=size, duration=duration)
    html = environment.get_template("party.html.j2").render(
        status=status,
        statement=read_statement(folder) if (folder / "privacy.json").exists() else None,
        config=_text_of(folder / "config.toml"),
        **facts,
    )
    return write_whole(folder / REPORT, html.encode())


def _of_server(folder: Path, status: Status) -> dict[str, Any]:
    events = read_events(folder / "events.jsonl")
    numbers = _dream_numbers(folder / "rounds")
    ends = [event for event in events if isinstance(event, RoundFinished)]
    started = next((event for event in events if isinstance(event, FederationStarted)), None)
    means = {
        event.metrics_round: event.metrics["accuracy"]
        for event in ends
        if event.metrics_round is not None and event.metrics.get("accuracy") is not None
    }
    up, down = traffic_of(events)
    return {
        "server": True,
        "headline": _server_headline(status, means),
        "harm": clipped_line(events),
        "chart": _chart("Mean accuracy of all clients, from their sum", {"mean": means}),
        "members": [] if started is None else started.clients,
        "lockstep": started is None or started.mode == "lockstep",
        "dreams": _dreams(folder / "rounds", numbers),
        "dream_rounds": len(numbers),
        "timeline": timeline(events),
        "paths": path_rows(events),
        "incidents": incidents_of(events, codes_alone=True),
        "head": next((event.head for event in reversed(ends) if event.head), ""),
        "steps": sum(isinstance(event, StepFinished) for event in events),
        "up": up,
        "down": down,
    }


def _server_headline(status: Status, means: Mapping[int, float | None]) -> str:
    stands = f"{status.certified:,} of {counted(status.epochs, 'epoch')} are certified"
    if len(means) < 2 or means[min(means)] is None:
        return f"{stands}."
    first, last = means[min(means)], means[max(means)]
    assert first is not None and last is not None  # noqa: S101 - kept where they are numbers
    return (
        f"{stands}. In the mean over all clients, accuracy was {percent(first)} after {_rounds(min(means))} and "
        f"{percent(last)} after {_rounds(max(means))}."
    )


def _rounds(number: int) -> str:
    return "training alone" if number == 0 else f"round {number}"


@dataclass(frozen=True)
class RoundRow:
    """A line of a site's table: its figures after so many rounds, and what its judge did."""

    rounds: int
    accuracy: float | None
    held: float | None
    note: str


def _of_client(folder: Path, status: Status) -> dict[str, Any]:
    lines = _since_training(read_metrics(folder / "metrics.jsonl"))
    rows = [
        RoundRow(
            rounds=line["rounds"],
            accuracy=line.get("accuracy"),
            held=held_now(line),
            note=_judged(line),
        )
        for line in lines
    ]
    curves = {
        "test images": {row.rounds: row.accuracy for row in rows if row.accuracy is not None},
        "its own images, by which it is judged": {row.rounds: row.held for row in rows if row.held is not None},
    }
    judged = lines[-1] if lines else {}
    return {
        "server": False,
        "headline": _client_headline(status, rows),
        "harm": harm_line(lines[0], judged) if lines and lines[0]["rounds"] == 0 else None,
        "chart": _chart("Accuracy of this site's model", {title: curve for title, curve in curves.items() if curve}),
        "rows": rows,
        "judged_by": judged.get("judged_by", 0),
        "held_back": bool(judged.get("held_back")),
        "head": "",
    }


def _judged(line: Mapping[str, Any]) -> str:
    if line.get("rolled_back"):
        made = line.get("held_accuracy")
        return "rolled back" if made is None else f"rolled back from {percent(made)}"
    return "worse; kept" if line.get("worse") else ""


def _client_headline(status: Status, rows: Sequence[RoundRow]) -> str:
    stands = f"{status.certified:,} of {counted(status.epochs, 'epoch')} are certified"
    known = [(row.rounds, row.accuracy if row.accuracy is not None else row.held) for row in rows]
    figures = [(rounds, value) for rounds, value in known if value is not None]
    if not figures or figures[0][0] != 0:
        return f"{stands}."
    images = "test images" if rows[0].accuracy is not None else "images of its own"
    return f"{stands}. On {images} this site reached {percent(figures[0][1])} alone, and {percent(figures[-1][1])} now."


def _since_training(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """From the newest training alone on; of a round that was measured twice the newer line."""
    begins = max((place for place, line in enumerate(lines) if line["rounds"] == 0), default=0)
    return sorted({line["rounds"]: line for line in lines[begins:]}.values(), key=lambda line: int(line["rounds"]))


def _chart(title: str, curves: Mapping[str, Mapping[int, float | None]]) -> Chart | None:
    """Curves over rounds; None where there is no point."""
    values = [value for curve in curves.values() for value in curve.values() if value is not None]
    if not values:
        return None
    ticks = axis(min(values), min(1.0, max(values)))
    low, high = ticks[0], ticks[-1]
    rounds = sorted({number for curve in curves.values() for number in curve})
    last = max(1, rounds[-1] - rounds[0])

    def at(number: int, value: float | None) -> tuple[float, float | None]:
        x = 100 * (number - rounds[0]) / last if len(rounds) > 1 else 50.0
        return x, None if value is None else 100 * (high - value) / (high - low)

    lines = []
    for place, (name, curve) in enumerate(curves.items()):
        runs = unbroken(at(number, curve.get(number)) for number in rounds)
        lines.append(
            Line(name, f"c{place}", svg_path(runs), dots(point for run in runs for point in run), bold=place == 0)
        )
    first = next(iter(curves.values())).get(0)
    return Chart(
        title=title,
        x_title="round; 0 is training alone" if rounds[0] == 0 else "round",
        x_ticks=[Tick(at(number, None)[0], str(number)) for number in spread(rounds, 10)],
        y_ticks=[Tick(100 * (high - tick) / (high - low), f"{100 * tick:.3g}\N{NO-BREAK SPACE}%") for tick in ticks],
        lines=lines,
        references=[]
        if first is None
        else [Reference(f"alone, {percent(first)}", 100 * (high - first) / (high - low), right=len(rounds) > 1)],
    )


def _dream_numbers(rounds: Path) -> list[int]:
    names = (path.stem.removeprefix("round-") for path in rounds.glob("round-*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def _dreams(rounds: Path, numbers: Sequence[int]) -> list[DreamRound]:
    return [
        dream_round(
            number, read_dreams(rounds / f"round-{number:03d}.npz"), starts_of(rounds.parent / "record", number)
        )
        for number in spread(numbers, ROUNDS_SHOWN)
    ]


def _text_of(path: Path) -> str | None:
    return path.read_text("utf-8", errors="replace") if path.exists() else None
