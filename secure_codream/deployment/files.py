"""The files of a party's folder that both sides have."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from codream_protocols.course import Publication

LOG_BYTES, KEPT = 8 << 20, 3  # of a log for people, and how many older ones are kept
CLIENT_FILE, RECORD, JOURNAL = "client.toml", "record", "journal"
MODEL, BEST, TEACHER = "model.safetensors", "best.safetensors", "teacher.safetensors"
SUMS, FAILURES = "sums.json", "failures.json"


class Appended:
    """A file that lines are appended to, unbuffered: each is there at once, and nothing is left to fail at the end.

    It is opened when it is first written to, so that a disk that fails stops nobody before. What is written begins on a
    line of its own, also after a process that was killed, or a disk that was full, in the middle of one.

    Args:
        path: the file.
        most_bytes: from this size on it becomes `NAME.1`, that one `NAME.2` and so on, and the oldest of `KEPT` goes;
            None lets it grow, as a file must whose reader needs all of it.
    """

    def __init__(self, path: Path, *, most_bytes: int | None = None) -> None:
        self._path, self._descriptor, self._torn = path, -1, False
        self._most_bytes = most_bytes

    def write(self, text: str) -> None:
        """Append whole lines. Raises `OSError`."""
        self._open()
        if self._most_bytes is not None and os.fstat(self._descriptor).st_size >= self._most_bytes:
            self._turn_over()
        content = memoryview(b"\n" * self._torn + text.encode())
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
                self._torn = bool(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None  # it is said which file

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Let go of the file; never fails."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _turn_over(self) -> None:
        """Begin a new file; where the folder does not let it, the old one goes on."""
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{number}") for number in range(1, KEPT + 1))]
        with contextlib.suppress(OSError):
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                if newer.exists():
                    newer.replace(older)
            self.close()
        self._open()

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            end = os.lseek(self._descriptor, 0, os.SEEK_END)
            self._torn = end > 0 and os.pread(self._descriptor, 1, end - 1) != b"\n"


class EventLog:
    """Appends events as JSON lines, each flushed, so that whoever watches sees it at once.

    Args:
        file: takes the lines.
        watch: called with each event, whole.
        kept: what of an event the file keeps; all unless given.
    """

    def __init__(
        self,
        file: TextIO | Appended,
        watch: Callable[[dict[str, Any]], object] | None = None,
        kept: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self._file, self._watch, self._kept = file, never_fails(watch), kept

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event with its time; a number that is not finite becomes null, since JSON has none."""
        written = _finite({"time": time.time(), **event})
        try:
            self._file.write(json.dumps(self._kept(written), allow_nan=False) + "\n")
            self._file.flush()
        finally:
            self._watch(written)  # a screen is not a disk


def never_fails(watch: Callable[[dict[str, Any]], object] | None) -> Callable[[dict[str, Any]], None]:
    """The same, but that a screen or a pipe that is gone takes nothing down with it."""

    def safe(event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError, SystemExit):  # rich leaves by SystemExit where a pipe is broken
            if watch is not None:
                watch(event)

    return safe


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sums_bytes(publication: Publication) -> bytes:
    """`sums.json`, what the course `sums` published: task -> block -> numbers, `members` among them."""
    tables: dict[str, dict[str, Any]] = {}
    for name, numbers in publication.items():
        task, _, block = name.rpartition(".")
        tables.setdefault(task, {})[block] = numbers.tolist()
    return json.dumps(tables, indent=2).encode() + b"\n"
