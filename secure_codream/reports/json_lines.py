"""Files of one JSON object a line, that a process appends to until it ends or is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from secure_codream.reports.files import MalformedRecord, bytes_of


def json_lines(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1, and its object.

    A line that breaks off was being written when the process was killed, or its disk was full: it is left out, whether
    it is the last or the next process went on after it on a line of its own.

    Args:
        path: the file.
        expected: what it holds, for the error where it is missing.

    Raises:
        MissingRecord: there is no such file.
        MalformedRecord: a line is something else, with its number.
    """
    lines = bytes_of(path, expected).split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number < len(lines) and _breaks_off(line)):
            continue
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise MalformedRecord(path, f"in line {number}: {error}", "one JSON object a line") from error
        yield number, found


def _breaks_off(line: bytes) -> bool:
    """Whether a line is the beginning of an object, and no more."""
    return line.startswith(b"{") and (_is_cut(line) or _is_cut(line + b"0"))  # a number may be cut, too


def _is_cut(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        return "truncated" in str(error)
    return False
