"""`metrics.jsonl`: a client's own figures after its training alone and after each round, one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.json_lines import json_lines

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Figures(msgspec.Struct):
    """What screens and pages rely on; a line has more."""

    rounds: _Count
    accuracy: _Share | None = None
    tested: _Count = 0
    held_accuracy: _Share | None = None
    best_accuracy: _Share | None = None
    best_round: _Count | None = None
    judged_by: _Count = 0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of figures as they were written, oldest first; none where there is no file.

    `rounds` is 0 in a training alone's. Lines of another kind are passed over, and those that break off (`json_lines`).

    Raises:
        MalformedRecord: a line is something else, with its number.
    """
    lines = []
    try:
        for number, found in json_lines(path, "a client's figures"):
            if found.get("event") != "metrics":
                continue
            try:
                msgspec.convert(found, type=_Figures)
            except msgspec.ValidationError as error:
                raise MalformedRecord(path, f"in line {number}: {error}", "a client's figures") from error
            lines.append(found)
    except MissingRecord:
        return []
    return lines
