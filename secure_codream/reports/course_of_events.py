"""What a server's events tell, as a page shows it: how the steps went, how long they took, what went otherwise."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from secure_codream.reports.charts import spread
from secure_codream.reports.events import (
    ClientJoined,
    ClientLost,
    EpochGivenUp,
    Event,
    FederationStarted,
    Refused,
    RoundFinished,
    StepFinished,
)
from secure_codream.reports.words import duration, listed

ROUNDS_SHOWN = 8


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of one round that went the same way."""

    path: str
    first: int
    last: int
    survivors: int
    cohort: int


def timeline(events: Sequence[Event]) -> list[tuple[str, list[Stretch]]]:
    """Round by round, how the steps went; after the last one come the metrics of what was learnt."""
    ends = _epochs_at_the_end(events)
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
    troubled = [entry for entry in rounds if any(stretch.path != "fast" for stretch in entry[1])]
    kept = {number for number, _ in (*spread(rounds, ROUNDS_SHOWN), *troubled[: 2 * ROUNDS_SHOWN])}
    names = {number: "at the end" if number in ends else f"round {number + 1}" for number in kept}
    return [(names[number], stretches) for number, stretches in rounds if number in kept]


def _epochs_at_the_end(events: Sequence[Event]) -> set[int]:
    """Those of metrics alone: certified ones say so, and one that is running follows the course's last round."""
    ends = {event.round: not event.learnt for event in events if isinstance(event, RoundFinished)}
    planned = [event.rounds for event in events if isinstance(event, FederationStarted)][-1:]
    return {number for number, end in ends.items() if end} | (set(planned) - ends.keys())


@dataclass(frozen=True)
class PathRow:
    """The steps that went by one path, with the median of their seconds."""

    path: str
    steps: int
    seconds: float


def path_rows(events: Sequence[Event]) -> list[PathRow]:
    """Each path that steps went by, with how many, and the median of their seconds."""
    steps = [event for event in events if isinstance(event, StepFinished)]
    by_path = {path: [step.seconds for step in steps if step.path == path] for path in ("fast", "dropout")}
    return [PathRow(path, len(times), statistics.median(times)) for path, times in by_path.items() if times]


def traffic_of(events: Sequence[Event]) -> tuple[int, int]:
    """Bytes from and to all clients together, of all processes of the server; each counts its own."""
    totals = [(0, 0)]
    for event in events:
        match event:
            case FederationStarted():
                totals.append((0, 0))
            case StepFinished():
                totals[-1] = (event.bytes_up, event.bytes_down)
    return sum(up for up, _ in totals), sum(down for _, down in totals)


def incidents_of(events: Sequence[Event], *, codes_alone: bool = False) -> list[tuple[float | None, str, str]]:
    """What went otherwise than planned: seconds since the start, kind, words.

    Args:
        events: of the server.
        codes_alone: of what was refused, say once whose it was and the code, as an aggregator's page may. When a
            message came, and that it was late, time its sender's computing; and more lines of a kind count its
            messages.
    """
    start = next((event.time for event in events if isinstance(event, FederationStarted)), None)
    if start is None:
        start = events[0].time if events else 0.0
    found: list[tuple[float | None, str, str]] = []
    said: set[tuple[str, str]] = set()
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
                        f"without {listed(left_out)} from {where} on; the sum is over {len(event.survivors)} clients"
                    )
                    found.append((since, "dropout", words))
                missing = (missing | set(event.dropped)) - set(event.survivors)
            case EpochGivenUp():
                kind = "failed" if event.wrong_sum else "given up"
                again = "nothing of it is learnt, it begins anew"
                found.append((since, kind, f"round {event.round + 1}: {event.reason}; {again}"))
            case Refused():
                whose = f"{event.client} refused a message" if event.by == "client" else f"a message of {event.client}"
                words = f"{whose}: {event.code}"
                if not codes_alone:
                    found.append((since, "late" if event.ordinary else "refused", words))
                elif not event.ordinary and (event.client, event.code) not in said:
                    said.add((event.client, event.code))
                    found.append((None, "refused", words))
    return found
