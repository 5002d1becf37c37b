"""One reader and one writer for the files of a run: whole or not at all, and refused with what was found."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from codream_protocols import durable

_T = TypeVar("_T")


class RecordError(Exception):
    """A file of a run's folder cannot be used."""


class MissingRecord(RecordError):
    """A file is not there."""

    def __init__(self, path: Path, expected: str) -> None:
        super().__init__(f"{path} does not exist; expected {expected}")
        self.path = path


class MalformedRecord(RecordError):
    """A file is there, but does not hold what it should."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(f"{path}: found {found}; expected {expected}")
        self.path = path


def write_whole(path: Path, content: bytes) -> Path:
    """Write `content` so that a reader finds the old file or the new one, never a part, also after a loss of power."""
    with written_whole(path) as file:
        file.write(content)
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write bit by bit, which takes its place once all is written; what raises on the way leaves the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.written_whole(path, durable.PUBLIC) as file:
        yield file


def write_struct(path: Path, record: msgspec.Struct, kind: type[msgspec.Struct]) -> Path:
    """Write a struct as JSON, and see that it can be read again; raises `MalformedRecord`."""
    try:
        content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    except (TypeError, msgspec.MsgspecError) as error:
        raise MalformedRecord(path, str(error), f"values of {kind.__name__}") from error
    decode_record(content, path, kind)
    return write_whole(path, content)


def decode_record(content: bytes, path: Path, kind: type[_T]) -> _T:
    """A struct from JSON; raises `MalformedRecord`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecord(path, str(error), f"JSON of {kind.__name__}") from error


def bytes_of(path: Path, expected: str) -> bytes:
    """A file's bytes; raises `MissingRecord`, `MalformedRecord`."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingRecord(path, expected) from error
    except OSError as error:
        raise MalformedRecord(path, error.strerror or type(error).__name__, expected) from error


def arrays_of(path: Path, keys: tuple[str, ...], expected: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an `.npz`; raises `MissingRecord`, `MalformedRecord`."""
    if not path.exists():
        raise MissingRecord(path, expected)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except KeyError as error:
        raise MalformedRecord(path, f"no array {error.args[0]}", expected) from error
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise MalformedRecord(path, str(error) or type(error).__name__, expected) from error
