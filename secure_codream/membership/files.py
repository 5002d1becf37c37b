"""Files of membership: short ones that are read from regular files alone, and new ones that replace nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from codream_protocols.errors import MalformedMessage
from codream_protocols.membership import MAX_STATEMENT_BYTES, read_statement

_S = TypeVar("_S", bound=Struct)


class WouldOverwrite(ValueError):
    """A file that is there already, where a new one was to be made."""


def read_bounded(path: Path, most: int) -> bytes:
    """A regular file's bytes.

    Raises:
        MalformedMessage: a pipe, a device or a folder, or more than `most` bytes.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedMessage(f"{path}, which is no regular file", "a file")
        data = file.read(most + 1)
    if len(data) > most:
        raise MalformedMessage(f"{path} of more than {most} bytes", f"at most {most}")
    return data


def statement_of(path: Path, kind: type[_S]) -> _S:
    """A statement from a file; nothing is known of its signature.

    Raises:
        MalformedMessage: it is none of this kind.
        OSError: it cannot be read.
    """
    try:
        return read_statement(read_bounded(path, MAX_STATEMENT_BYTES), kind)
    except MalformedMessage as error:
        raise MalformedMessage(f"{path}: {error.found}", error.allowed, error.remedy) from None


def write_new(path: Path, content: bytes) -> None:
    """Make a file of mode 0600, and of mode 0700 the folders above it that are not there.

    Raises:
        WouldOverwrite: something is in its place, be it a link.
        OSError: the disk does not take it; the error names the file.
    """
    for folder in (*reversed(path.parent.parents), path.parent):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)  # each of them: `parents=True` would leave those above readable
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise WouldOverwrite(
            f"{path}: found a file already; take it away, or choose another folder: nothing is overwritten"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # it is said which file
