"""What a party's screen says when its federation is over: what came of it, and where the files are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secure_codream.deployment.files import BEST, JOURNAL, MODEL, RECORD, SUMS, TEACHER
from secure_codream.reports.clipping import clipped_line
from secure_codream.reports.events import read_events
from secure_codream.reports.files import RecordError, bytes_of
from secure_codream.reports.judgements import harm_line, held_now
from secure_codream.reports.metrics import read_metrics
from secure_codream.reports.party_report import REPORT, write_party_report
from secure_codream.reports.words import counted, format_bytes

_CLIENT_FILES = (
    (REPORT, "all of this on a page, for this site's own eyes"),
    (MODEL, "the model as it is now"),
    (BEST, "the weights that its own judge likes best, of the round named above"),
    (TEACHER, "the weights that make and label its dreams"),
    (SUMS, "what was summed"),
    ("metrics.jsonl", "figures of each round"),
    ("privacy.html", "what may be said of privacy"),
    (JOURNAL, "the certified epochs; `secure-codream verify` checks them"),
)
_SERVER_FILES = (
    (REPORT, "what happened, and the dreams, on a page"),
    (SUMS, "what was summed"),
    ("rounds", "dreams and soft labels"),
    ("events.jsonl", "what happened"),
    ("privacy.html", "what may be said of privacy"),
    (RECORD, "the public record; `secure-codream verify` checks it"),
)


def client_ending(folder: Path) -> list[str]:
    """A client's accuracies alone, now and at best, and its files; its own screen alone says them."""
    try:
        said = accuracies(read_metrics(folder / "metrics.jsonl"))
    except RecordError as error:  # what was learnt is there all the same
        said = [f"no accuracies: {error}"]
    return [*said, *_reported(folder), *_files(folder, _CLIENT_FILES)]


def accuracies(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a client's figures say, from the newest training alone on; nothing where nothing was measured.

    Args:
        lines: of its `metrics.jsonl`.
    """
    if not lines:
        return []
    alone = next((line for line in reversed(lines) if line["rounds"] == 0), None)
    last = lines[-1]
    said = []
    for key, images in (("accuracy", "test images"), ("held_accuracy", _judging(last))):
        now = held_now(last) if key == "held_accuracy" else last.get(key)
        if now is None:
            continue
        parts = [] if alone is None or alone.get(key) is None else [f"alone {alone[key]:.1%}"]
        parts.append(f"now {now:.1%}")
        if key == "held_accuracy" and last.get("best_accuracy") is not None:
            of = "training alone" if last["best_round"] == 0 else f"round {last['best_round']}"
            parts.append(f"best {last['best_accuracy']:.1%} (of {of})")
        said.append(f"accuracy on {images}: {', '.join(parts)}")
    harm = None if alone is None else harm_line(alone, last)
    return said if harm is None else [*said, f"warning: {harm}"]


def server_ending(folder: Path) -> list[str]:
    """What a finished server has done, and its files.

    Raises:
        MissingRecord: it has not finished.
    """
    found = json.loads(bytes_of(folder / "server.json", "the totals of a finished server"))
    traffic = found["traffic"]
    totals = f"{counted(found['secure_steps'], 'secure step')} by this process; all clients together: "
    totals += f"{format_bytes(traffic['up'])} up, {format_bytes(traffic['down'])} down"
    return [totals, f"head {found['head']}", *_cut(folder), *_reported(folder), *_files(folder, _SERVER_FILES)]


def _cut(folder: Path) -> list[str]:
    """What bounds have cut, of the sums that this server has written down; a page says why they cannot be read."""
    try:
        cut = clipped_line(read_events(folder / "events.jsonl"))
    except RecordError:
        return []
    return [] if cut is None else [f"warning: {cut}"]


def _reported(folder: Path) -> list[str]:
    """Writes the party's page; why there is none, which ends nothing."""
    try:
        write_party_report(folder)
    except (RecordError, OSError) as error:
        return [f"no report was written: {error}; try again with: secure-codream report {folder}"]
    return []


def _judging(line: Mapping[str, Any]) -> str:
    return f"{line.get('judged_by', 0)} {'held-back' if line.get('held_back') else 'own'} images"


def _files(folder: Path, names: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {folder / name}: {about}" for name, about in names if _has_something(folder / name)]


def _has_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()
