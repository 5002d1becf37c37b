"""What a server keeps on disk, and what anybody can verify: the public record of a charter.

    roster.json           the signed roster, byte for byte
    charter.json          the charter's settings, byte for byte
    epoch-00000.record    the certified epochs, in order; numbers count those of predecessors
    running               what the newest epoch has come to (`running`): no part of what is verified
    seals                 what was sealed in it (`seal_file`): no part of it either

An epoch's file is complete, or not there: it is written apart, synced and renamed, and the folder is synced, before its
certificate is sent to anybody. A server that starts again reads all of them, goes on from the last, and in the epoch
that was running. A file of a version that is not known is refused before anything is written.

One process holds the folder at a time. The descriptors for the next file, for `running` and for `seals` are opened in
advance, so that an epoch can still be kept when the process has run out of them. A disk that fails is the caller's to
tell of; the same epoch may be written again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from codream_protocols.durable import (
    MAPPED_FROM,
    PRIVATE,
    PUBLIC,
    FileSpool,
    content_of,
    rest,
    try_lock,
    write_all,
    write_parts,
    write_whole,
)
from codream_protocols.errors import LocalProtocolError, MalformedMessage
from codream_protocols.messages import Seal
from codream_protocols.record import Kept
from codream_protocols.record_file import check_version, parse_record, record_name, record_numbers, record_parts
from codream_protocols.running import MAGIC, Delivered, Entry, Opened, Summed, Writer, needed_after_a_sum, parse_running
from codream_protocols.running import check_version as check_running_version
from codream_server import seal_file
from codream_server.seal_file import SealFile

ROSTER, CHARTER, NEXT, RUNNING, SEALS = "roster.json", "charter.json", "next.partial", "running", "seals"


class RecordFolderRefused(LocalProtocolError):
    """A folder that holds another federation's record, or whose files are not whole."""

    code = "record-folder"


class RecordFolderBusy(RecordFolderRefused):
    """A folder that another process serves from."""

    code = "record-folder-busy"


class RecordFolder:
    """The record of one charter on disk; a `ServerJournal`.

    Args:
        folder: made if it is not there.
        roster: the bytes of the signed roster.
        charter: the bytes of the charter's settings.
        first: how many epochs the charter's predecessors had certified.

    Raises:
        RecordFolderRefused: the folder holds the record of another roster or charter, a file is missing, or one is of
            a version that is not known.
        RecordFolderBusy: another server holds it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, *, roster: bytes, charter: bytes, first: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._next: int | None = None
        self._running = self._sealed = -1
        self._writer: Writer | None = None  # unless the file lacks one of `_entries`
        self._entries: list[Entry] = []  # of the running epoch: what a file that failed is written anew from
        self._newest: Kept | None = None
        self._held: tuple[bytes, ...] = ()
        try:
            self._lock()
            self._check_versions()
            for name, data in ((ROSTER, roster), (CHARTER, charter)):
                self._keep_same(name, data)
            numbers = record_numbers(path.name for path in folder.iterdir())
            if numbers != list(range(first, first + len(numbers))):
                raise RecordFolderRefused(
                    f"records of epochs {numbers} in {folder}",
                    f"all from {first} on",
                    "put back the file that is missing",
                )
            self._number = first + len(numbers)
            self._first = first
            self._open_next()
            self._sealed = os.open(SEALS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE, dir_fd=self._directory)
            self._open_running()  # which syncs the names of both
            self._seals = SealFile(self._sealed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the folder; what is in it stays."""
        if self._next is not None:
            os.close(self._next)
            self._next = None
        for name, descriptor in ((RUNNING, self._running), (SEALS, self._sealed)):
            if descriptor < 0:
                continue
            if os.fstat(descriptor).st_size == 0:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
            os.close(descriptor)
        self._running = self._sealed = -1
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def epochs(self) -> list[Kept]:
        """The certified epochs, oldest first, as they were written; what they are worth, their reader checks.

        Raises:
            RecordFolderRefused: a file that is no record.
        """
        return [self._read(number) for number in range(self._first, self._number)]

    def recall(self, place: int) -> Kept:
        """See `ServerJournal`.

        Raises:
            OSError: the file cannot be read now, or is no record any more; a person may put it back meanwhile.
        """
        number = self._first + place
        if self._newest is not None and number == self._number - 1:
            return self._newest
        try:
            return self._read(number)
        except RecordFolderRefused as error:
            raise OSError(errno.EIO, str(error)) from error

    def _read(self, number: int) -> Kept:
        path = self.folder / record_name(number)
        try:
            return parse_record(content_of(path))
        except MalformedMessage as error:
            raise RecordFolderRefused(f"{path}: {error.found}", error.allowed, "put back the whole file") from error

    def running(self, entry: Entry, *, must: bool = False) -> None:
        """See `ServerJournal`: without an entry that need not be kept a kill costs the epoch, and nothing that is done.

        A file that lacks an entry is emptied, and written anew as a whole with the next one.
        """
        if isinstance(entry, Opened):
            self._writer, self._entries = None, []
            self._seals.clear()
        if self._entries[-1:] != [entry]:  # else it is tried again
            self._entries.append(entry)
        try:
            if any(isinstance(one, Delivered) for one in self._entries):
                self._seals.sync()
            if self._writer is None:
                self._write_running()
            else:
                write_parts(self._running, self._writer.entry_parts(entry))
                os.fsync(self._running)
        except OSError:
            self._empty_running()
            if must:
                raise
        if isinstance(entry, Summed):  # what it was made of is needed no more
            self._entries = [one for one in self._entries if needed_after_a_sum(one)]

    def held(self, frame: bytes) -> bytes:
        """See `ServerJournal`: on this disk, if it is large and the disk takes it."""
        if len(frame) <= MAPPED_FROM:
            return frame
        with contextlib.suppress(OSError), contextlib.closing(FileSpool(self.folder)) as spool:
            spool.write(frame)
            rest(self._held)
            self._held = spool.read([len(frame)])
            return self._held[0]
        return frame

    def sealed(self, member: int, items: tuple[Seal, ...]) -> None:
        """See `ServerJournal`."""
        self._seals.put(member, items)

    def seals_for(self, member: int) -> tuple[Seal, ...]:
        """See `ServerJournal`."""
        return self._seals.of(member)

    def given_up(self) -> None:
        """See `ServerJournal`."""
        self._entries = []
        self._empty_running()
        self._seals.clear()

    def _write_running(self) -> None:
        """All entries of the epoch so far, as a whole."""
        if self._running >= 0 and os.fstat(self._running).st_nlink == 0:  # somebody tidied it away
            os.close(self._running)
            self._running = -1
        self._open_running()
        writer = Writer()
        os.ftruncate(self._running, 0)
        write_all(self._running, MAGIC)
        for entry in self._entries:
            write_parts(self._running, writer.entry_parts(entry))
        os.fsync(self._running)
        self._writer = writer

    def _open_running(self) -> None:
        if self._running < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._running = os.open(RUNNING, flags, 0o644, dir_fd=self._directory)
            os.fsync(self._directory)

    def _empty_running(self) -> None:
        self._writer = None
        if self._running >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._running, 0)

    def unfinished(self) -> list[Entry]:
        """What was kept by `running`; whether it was certified since, its reader sees by its head.

        With the next entry, all are written anew as a whole. Without what was sealed, that it was delivered is none
        of them.

        Raises:
            RecordFolderRefused: a file with something else in it.
        """
        path = self.folder / RUNNING
        self._writer = None
        self._seals.load()
        if not path.exists():
            return []
        try:
            with path.open("rb") as file:
                entries = parse_running(file.read, os.fstat(file.fileno()).st_size)
        except MalformedMessage as error:
            raise RecordFolderRefused(f"{path}: {error.found}", error.allowed, "take that file away") from error
        delivered = [(place, one.seals) for place, one in enumerate(entries) if isinstance(one, Delivered)]
        if not delivered:
            self._seals.clear()  # who has not been delivered any sends them again
        elif delivered[0][1] != self._seals.count:
            self._seals.clear()
            del entries[delivered[0][0] :]
        self._entries = list(entries)
        return entries

    def certified(self, kept: Kept) -> None:
        """See `ServerJournal`: returns once the epoch is on disk.

        Raises:
            OSError: it is not; call again.
        """
        descriptor = self._open_next()
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        write_parts(descriptor, record_parts(kept))
        os.fsync(descriptor)
        try:
            os.rename(NEXT, record_name(self._number), src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileNotFoundError:  # somebody tidied it away: what the descriptor holds has no name any more
            os.close(descriptor)
            self._next = None
            raise
        os.close(descriptor)
        self._next = None
        os.fsync(self._directory)
        self.given_up()  # the running epoch is a certified one
        self._number += 1  # only now: an epoch that must be written again takes the same name
        self._newest = kept  # what is asked for most, and what must be there although the disk fails
        try:
            self._open_next()
        except OSError:
            return  # the epoch is kept; the next one tries again

    def _check_versions(self) -> None:
        checks = {RUNNING: check_running_version, SEALS: seal_file.check_version}
        for path in sorted((*self.folder.glob("*.record"), *map(self.folder.joinpath, checks))):
            if not path.exists():
                continue
            with path.open("rb") as file:
                beginning = file.read(64)
            try:
                checks.get(path.name, check_version)(beginning)
            except MalformedMessage as error:
                raise RecordFolderRefused(f"{path}: {error.found}", error.allowed, error.remedy) from error

    def _lock(self) -> None:
        if not try_lock(self._directory):
            raise RecordFolderBusy(
                f"{self.folder} in use", "one server for a record folder", "this server is running already"
            )

    def _open_next(self) -> int:
        if self._next is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._next = os.open(NEXT, flags, 0o644, dir_fd=self._directory)
        return self._next

    def _keep_same(self, name: str, data: bytes) -> None:
        path = self.folder / name
        if path.exists():
            if path.read_bytes() != data:
                raise RecordFolderRefused(
                    f"another {name} in {self.folder}",
                    "the one that this federation has",
                    "a new charter needs a record folder of its own",
                )
            return
        write_whole(path, data, PUBLIC)
