"""Where a party's time went: `spans.json` in its folder, the share of the sum in it, and a round as a picture.

A span is one part of the work from its beginning to its end: a part of the sum (`codream_protocols.spans`), or what its
learner does. Of processor time a party counts all from its start on, the loading of libraries apart. Parts within
others count to the outer one, so that nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from codream_protocols.spans import Part
from secure_codream.reports.charts import Tick, axis
from secure_codream.reports.events import Event, RoundFinished, StepStarted
from secure_codream.reports.files import bytes_of, decode_record, write_struct
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.words import duration

SPANS = "spans.json"
PARTS: tuple[str, ...] = get_args(Part)
WORK = ("computing", "learning")
_LEAST_WIDTH = 0.1  # per cent of the picture, so that a short span is seen


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One piece of work: its name, when it began (seconds since 1970) and how long it took."""

    name: str
    began: float
    seconds: float


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """All spans of a name: how many, and their seconds, of processor time and on the clock."""

    times: int
    processor: float
    clock: float


class Spans(msgspec.Struct, frozen=True, kw_only=True):
    """What one party's process did.

    Attributes:
        processor: seconds of processor time of the whole process, once its libraries were there.
        totals: by name.
        latest: the latest spans, in the order in which they ended.
    """

    processor: float
    totals: dict[str, Total]
    latest: list[Span]


def write_spans(folder: Path, spans: Spans) -> Path:
    """Write a party's `spans.json`; returns its path."""
    return write_struct(folder / SPANS, spans, Spans)


def read_spans(folder: Path) -> Spans:
    """Read a party's; raises MissingRecord or MalformedRecord."""
    path = folder / SPANS
    return decode_record(bytes_of(path, "where the time of this party went"), path, Spans)


def spans_of(run: RunFolder) -> dict[str, Spans]:
    """The server's and all clients' of a run, by name; empty unless each client that is there has kept them."""
    folders = {"server": run.server, **{path.name: path for path in sorted(run.clients.glob("*")) if path.is_dir()}}
    if not all((folder / SPANS).exists() for folder in folders.values()):
        return {}
    return {name: read_spans(folder) for name, folder in folders.items()}


@dataclass(frozen=True)
class Shares:
    """Processor time of a federation, all its parties together.

    Attributes:
        name: of the run.
        parties: how many.
        processor: seconds of all of them.
        parts: seconds of each part of the sum.
        share: theirs together of all, 0 to 1.
    """

    name: str
    parties: int
    processor: float
    parts: dict[str, float]
    share: float


def shares_of(name: str, spans: Mapping[str, Spans]) -> Shares:
    """The shares in a run's spans, of which there is one party's or more."""
    parts = {
        part: sum(party.totals[part].processor for party in spans.values() if part in party.totals) for part in PARTS
    }
    processor = sum(party.processor for party in spans.values())
    return Shares(name, len(spans), processor, parts, sum(parts.values()) / processor)


@dataclass(frozen=True)
class Row:
    """One party's line of the picture: for each kind of work its bars, (start, width) in per cent."""

    name: str
    bars: list[tuple[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class RoundView:
    """A round as a picture: who did what when. Where nothing is drawn, a party waits for others."""

    number: int
    seconds: float
    rows: list[Row]
    ticks: list[Tick]
    shares: Shares


def round_view(name: str, spans: Mapping[str, Spans], events: Sequence[Event]) -> RoundView | None:
    """The last round of dreams that everybody still has spans of; None where there is none.

    Args:
        name: of the run.
        spans: by party.
        events: the server's.
    """
    kept_from = max((party.latest[0].began for party in spans.values() if party.latest), default=0.0)
    begun = {event.round: event.time for event in reversed(events) if isinstance(event, StepStarted)}
    rounds = [
        (event.round, begun[event.round], begun.get(event.round + 1, event.time))
        for event in events
        if isinstance(event, RoundFinished) and event.learnt and begun.get(event.round, 0.0) >= kept_from
    ]
    if not spans or not rounds:
        return None
    number, start, end = rounds[-1]
    length = max(end - start, 1e-3)

    def bars(party: Spans, names: Sequence[str]) -> list[tuple[float, float]]:
        inside = [span for span in party.latest if span.name in names and start <= span.began < end]
        return [
            (
                100 * (span.began - start) / length,
                max(_LEAST_WIDTH, 100 * (min(span.began + span.seconds, end) - span.began) / length),
            )
            for span in inside
        ]

    kinds = {**{one: (one,) for one in WORK}, "sum": PARTS}
    rows = [Row(party, [(kind, bars(found, names)) for kind, names in kinds.items()]) for party, found in spans.items()]
    ticks = [Tick(100 * at / length, duration(at) if at else "0") for at in axis(0, length) if at <= length]
    return RoundView(number, length, rows, ticks, shares_of(name, spans))
