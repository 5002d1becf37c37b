"""What a file that must outlast its process is written with: whole writes, synced folders, locks, chained digests.

Both sides of the protocol keep journals, and whoever runs them keeps results; all write here. It is the one module of
this room that touches a disk, and no other one of the room may import it: the machines ask for a journal, and never
know whether it is a file.

A whole write goes through five steps, and wherever it is cut off, a reader finds the old file or the new one:

    another file, beside it, made new    what a killed process has left is never written through
    all bytes written, and synced        a power cut must not leave the name on a part
    renamed                              the only step that a reader can see
    the folder synced                    what is acknowledged from here on stays
"""

import errno
import fcntl
import glob
import hashlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast

PRIVATE, PUBLIC = 0o600, 0o666
"""Who may read what is written: its owner, or whoever the process's umask lets."""
MAPPED_FROM = 1 << 20
"""Bytes: smaller files are read. A mapped one must not be cut; in what is kept here, files are replaced as a whole."""


def chained(previous: str, content: bytes) -> str:
    """SHA-256, in hexadecimal, over the digest before (hexadecimal too) and `content`."""
    return hashlib.sha256(bytes.fromhex(previous) + content).hexdigest()


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """All of it: a single call may write less. Raises `OSError`."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_parts(descriptor: int, parts: Iterable[bytes]) -> None:
    """All of them, one behind the other. Raises `OSError`."""
    for part in parts:
        write_all(descriptor, part)


def write_whole(path: Path, content: bytes | Iterable[bytes], mode: int = PRIVATE) -> None:
    """Write `content`, or its parts, as `written_whole` does; raises `OSError`."""
    with written_whole(path, mode) as file:
        write_parts(file.fileno(), [content] if isinstance(content, bytes) else content)


def content_of(path: Path) -> bytes | memoryview:
    """A file's bytes; those of a large one are mapped, and take no memory that is needed. Raises `OSError`."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= MAPPED_FROM:
            return file.read()
        return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))


@contextmanager
def written_whole(path: Path, mode: int = PRIVATE) -> Iterator[BinaryIO]:
    """A file to write bit by bit: a reader finds the old one or the whole new one, also after a loss of power.

    It takes its place when the context is left, and what raises within leaves the old one. Processes may write the same
    file at once: the last one to rename wins. Threads of one process may not.

    Args:
        path: in a folder that is there; a link of that name is replaced, not followed.
        mode: who may read it, less the process's umask: `PRIVATE` or `PUBLIC`.

    Raises:
        OSError: the disk does not take it. The old file is still there, or the new one is but may not be for good;
            write again.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove_stale(path)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None  # it is said which file
        raise
    sync_folder(path.parent)


class FileSpool:
    """A file without a name: what is on its way waits there until it is whole, and no process leaves anything of it.

    Args:
        folder: on whose disk it lies; None takes the one that this machine has for what passes.

    Raises:
        OSError: no file can be made there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._descriptor = _unnamed(folder or Path(tempfile.gettempdir()))

    def write(self, piece: bytes | memoryview) -> None:
        """Put it behind the others; raises `OSError`."""
        write_all(self._descriptor, piece)

    def read(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        """What was written, mapped: read from the disk as it is used, in memory that is not needed (`rest`).

        Raises:
            OSError: it cannot be mapped.
        """
        whole = memoryview(mmap.mmap(self._descriptor, sum(sizes), prot=mmap.PROT_READ))
        starts = accumulate(sizes, initial=0)
        frames = tuple(whole[start : start + size] for start, size in zip(starts, sizes, strict=False))
        return cast(tuple[bytes, ...], frames)  # whoever takes bytes here takes a view of them

    def close(self) -> None:
        """Let go of the file; what was read stays mapped. Repeats do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def rest(frames: Iterable[bytes]) -> None:
    """Frames that a spool has read are not used for a while: what of them is in memory need not stay there."""
    for frame in frames:
        if isinstance(frame, memoryview) and isinstance(frame.obj, mmap.mmap):
            frame.obj.madvise(mmap.MADV_DONTNEED)


def _unnamed(folder: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, PRIVATE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):  # a file system that lacks them
            raise
    path = folder / f".{secrets.token_hex(8)}.{os.getpid()}.partial"
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, PRIVATE)
    path.unlink()
    return descriptor


def sync_folder(folder: Path) -> None:
    """Returns once what was made, renamed or removed in `folder` is on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Whether this process now holds the file, alone; until it lets go, or ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(descriptor: int) -> bool:
    """Whether somebody holds the file; nothing is taken but for as long as this look lasts, and reading is enough."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    unlock(descriptor)
    return False


def unlock(descriptor: int) -> None:
    """Let go of the file that `try_lock` holds."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _remove_stale(path: Path) -> None:
    """Remove what processes that were killed have left of this file; one that runs may still be at it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True
