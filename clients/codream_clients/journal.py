"""What must outlast a client's process, in a folder of its own: `client.Journal` on disk, and `client.Memory` from it.

    journal.log           one line a fact, in order; each ends with a digest over the digest before and its own words
    journal.anchor        these digests again, one a line, each written once its fact is on the disk
    vote.record           what was voted for after the newest certificate (`record_file`)
    epoch-00000.record    the certified epochs, with their votes; numbers count those of predecessors
    lock                  held while the journal is open, so that a client started twice is refused

Every method returns only once what it was told is on the disk. A line is appended (write, fsync), then its digest to
the anchor (write, fsync); a record is written apart, synced, and renamed, and the folder synced, before its line, which
names the record's digest. What a crash leaves behind, and what follows:

    the last line cut off         its fact was never acknowledged, so nothing was sent that rests on it: dropped
    a line beyond the anchor      likewise not acknowledged, yet it counts
    a record without its line     likewise: a vote that is there binds
    a vote that is certified      the certificate counts, and the vote's file goes

Everything else is damage, and refused: an altered line, fewer lines than the anchor has seen, a record that is missing
or is not the one its line names. Whoever puts back an older copy of the whole folder is not found out here, but by its
own vote in the federation's record where an epoch was certified since; else it would join epochs and vote a second
time: a member so restored counts among the colluders.

The first line of version 2 begins with `charter`; that of a later version with `version` and its number. A journal or a
record of a version that is not known is refused, and nothing in the folder is changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import overload

from codream_protocols.client import Begun, Memory
from codream_protocols.durable import chained, content_of, sync_folder, try_lock, write_all, write_whole
from codream_protocols.errors import LocalProtocolError, MalformedMessage
from codream_protocols.record import Kept
from codream_protocols.record_file import (
    check_version,
    parse_record,
    record_name,
    record_numbers,
    record_parts,
)

LOG, ANCHOR, VOTE, LOCK = "journal.log", "journal.anchor", "vote.record", "lock"
MAX_LOG_BYTES = 1 << 30
VERSION = 2
_START = hashlib.sha256(b"secure-codream client journal, version %d" % VERSION).hexdigest()
_OF_VERSION = re.compile(rb"version (\d{1,9})[ \n]")


class JournalError(LocalProtocolError):
    """The journal cannot be used; without it a client takes no part."""

    code = "journal"


class JournalBusy(JournalError):
    """The journal is open elsewhere: this client is running already."""


class JournalVersion(JournalError):
    """The journal was written by another version of this program."""


class JournalDamaged(JournalError):
    """The journal was altered, or a part of it is missing."""


class JournalMismatch(JournalError):
    """The journal is of another charter or another member."""


@dataclass
class _Facts:
    """What the lines say."""

    next_epoch: int = 0
    attempts: int = 0
    steps: int = 0
    rho: float = 0.0
    wrong_sums: list[bytes] = field(default_factory=list)
    begun: Begun | None = None
    certified: list[str] = field(default_factory=list)
    vote: str = ""


class FileJournal:
    """An open journal. Make one with `open`; `close` it, or use `with`.

    Attributes:
        memory: what earlier processes wrote down; give it to `ClientProtocol` with the journal itself.
    """

    def __init__(self, folder: Path, lock: int, first: int) -> None:
        self.memory = Memory()
        self._folder, self._lock, self._log, self._anchor = folder, lock, -1, -1
        self._digest, self._first, self._usable = _START, first, True
        self._digests: list[str] = []  # of the certified epochs' records

    @classmethod
    def open(cls, folder: Path, *, charter: bytes, member: str, first: int = 0) -> FileJournal:
        """Open the journal in a folder, or begin it.

        Args:
            folder: made if it is not there; nobody else may read it.
            charter: digest of the charter it is for; every charter has a journal of its own.
            member: the client's name.
            first: how many epochs the charter's predecessors had certified.

        Raises:
            JournalBusy: another process has it open.
            JournalVersion: it is of a version that is not known; nothing was changed.
            JournalMismatch: it is another charter's or another member's.
            JournalDamaged: it was altered, or a part is missing.
            OSError: the file system refuses.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        journal = cls(folder, lock, first)
        try:
            journal._take_lock()
            _check_versions(folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            journal._log, journal._anchor = (os.open(folder / name, flags, 0o600) for name in (LOG, ANCHOR))
            sync_folder(folder)
            journal._load(f"charter {charter.hex()} {member}")
        except BaseException:
            journal.close()
            raise
        return journal

    # -- `client.Journal` ---------------------------------------------

    def joined(self, epoch: int, plan: bytes) -> None:
        """See `client.Journal`."""
        self._append(f"joined {epoch} {plan.hex()}")

    def began(self, begun: Begun, rho: float) -> None:
        """See `client.Journal`."""
        self._append(f"began {begun.plan.hex()} {begun.step} {begun.chain.hex()} {float(rho).hex()}")

    def voted(self, kept: Kept) -> None:
        """See `client.Journal`."""
        self._append(f"voted {self._write_record(VOTE, kept)}")

    def certified(self, kept: Kept) -> None:
        """See `client.Journal`."""
        digest = self._write_record(record_name(self._first + len(self._digests)), kept)
        self._append(f"certified {digest}")
        self._digests.append(digest)
        (self._folder / VOTE).unlink(missing_ok=True)

    def saw_wrong_sum(self, plan: bytes) -> None:
        """See `client.Journal`."""
        self._append(f"wrong-sum {plan.hex()}")

    def recall(self, place: int) -> Kept:
        """See `client.Journal`.

        Raises:
            JournalDamaged: the record is not what was written.
        """
        name = record_name(self._first + place)
        data = self._read_record(name)
        if not 0 <= place < len(self._digests) or _digest_of(data) != self._digests[place]:
            raise JournalDamaged(f"{name}, another record than was written", "the same bytes")
        return self._parsed(name, data)

    # -- the whole ---------------------------------------------

    def close(self) -> None:
        """Give the lock back; the journal cannot be used any more. Repeats do nothing."""
        self._usable = False
        for descriptor in (self._log, self._anchor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._anchor = self._lock = -1

    def __enter__(self) -> FileJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- reading ---------------------------------------------

    def _take_lock(self) -> None:
        if not try_lock(self._lock):
            raise JournalBusy(
                f"{self._folder} in use by another process", "one process for each client", "is it running already?"
            )

    def _load(self, title: str) -> None:
        lines, seen = (_whole_lines(descriptor, self._folder) for descriptor in (self._log, self._anchor))
        if self._says_nothing(lines, seen, title):
            lines, seen = [], []
        facts = _Facts()
        for number, line in enumerate(lines, start=1):
            try:
                words = self._checked(line)
                if number > 1:
                    _note(facts, words)
                elif words != title:
                    raise JournalMismatch(
                        f"{self._folder}, a journal of {words[:96]!r}",
                        f"{title[:96]!r}",
                        "config.toml or roster.json was changed since, or is another client's: put it back; to take "
                        "part under a new charter, move journal/ and model.safetensors away",
                    )
                if number <= len(seen) and seen[number - 1] != self._digest:
                    raise ValueError("not the line that the anchor has seen")
            except ValueError as error:
                raise JournalDamaged(
                    f"{self._folder / LOG}, line {number}: {error}", "the lines as they were written"
                ) from None
        if not len(seen) <= len(lines) <= len(seen) + 1:
            raise JournalDamaged(
                f"{self._folder / LOG} of {len(lines)} lines, {len(seen)} in {ANCHOR}", "all that were written"
            )
        if len(lines) > len(seen):
            os.fsync(self._log)
            self._anchor_last()
        if not lines:
            if any(self._folder.glob("*.record")):
                raise JournalDamaged(f"records in {self._folder} without {LOG}", "the journal that belongs to them")
            self._append(title)
        self._read_records(facts)

    def _says_nothing(self, lines: list[str], seen: list[str], title: str) -> bool:
        """Whether it is this member's of another charter, and never had a fact: then nothing rests on it."""
        if len(lines) != 1 or any(self._folder.glob("*.record")):
            return False
        words, _, digest = lines[0].rpartition(" ")
        if seen not in ([], [digest]):
            return False  # lines were lost
        same_member = words.split(" ")[0::2] == title.split(" ")[0::2]
        if not same_member or words == title or digest != chained(_START, words.encode("ascii")):
            return False
        for descriptor in (self._anchor, self._log):  # a crash in between leaves a line that nobody acknowledged
            os.ftruncate(descriptor, 0)
            os.fsync(descriptor)
        return True

    def _checked(self, line: str) -> str:
        """A line's words, if its digest goes on from the line before; raises `ValueError`."""
        words, _, digest = line.rpartition(" ")
        due = chained(self._digest, words.encode("ascii"))
        if digest != due:
            raise ValueError("its digest does not fit")
        self._digest = due
        return words

    def _read_records(self, facts: _Facts) -> None:
        numbers = record_numbers(entry.name for entry in self._folder.iterdir())
        first, due = self._first, len(facts.certified)
        if numbers not in ([*range(first, first + due)], [*range(first, first + due + 1)]):
            raise JournalDamaged(f"records of epochs {numbers} in {self._folder}", f"{due} of them, from {first} on")
        heads = set()
        for place, number in enumerate(numbers):
            data = self._read_record(record_name(number))
            if place < due and _digest_of(data) != facts.certified[place]:
                raise JournalDamaged(f"{record_name(number)}, another record than was written", "the same bytes")
            record, _ = self._parsed(record_name(number), data)
            if place == due:  # written whole, and nothing was said about it yet
                self._append(f"certified {_digest_of(data)}")
                facts.attempts, facts.vote = 0, ""
            self._digests.append(_digest_of(data))
            facts.next_epoch = max(facts.next_epoch, record.offer.epoch + 1)
            heads.add(record.offer.head)
        self.memory = Memory(
            next_epoch=facts.next_epoch,
            attempts=facts.attempts,
            steps=facts.steps,
            rho=facts.rho,
            wrong_sums=tuple(facts.wrong_sums),
            begun=facts.begun,
            certified=_Recalled(self, len(numbers)),
            vote=self._read_vote(facts, heads),
        )

    def _read_vote(self, facts: _Facts, heads: set[bytes]) -> Kept | None:
        path = self._folder / VOTE
        if not path.exists():
            if facts.vote:
                raise JournalDamaged(f"no {VOTE} in {self._folder}, though this client has voted", "the vote's record")
            return None
        data = self._read_record(VOTE)
        if facts.vote and _digest_of(data) != facts.vote:
            raise JournalDamaged(f"{VOTE}, another record than was voted for", "the same bytes")
        vote = self._parsed(VOTE, data)
        if vote[0].offer.head in heads:
            path.unlink()  # what came after that head is certified
            return None
        return vote

    def _read_record(self, name: str) -> bytes | memoryview:
        return content_of(self._folder / name)

    def _parsed(self, name: str, data: bytes | memoryview) -> Kept:
        try:
            return parse_record(data)
        except MalformedMessage as error:
            raise JournalDamaged(f"{self._folder / name}, {error.found}", error.allowed) from None

    # -- writing ---------------------------------------------

    def _append(self, words: str) -> None:
        self._check_usable()
        self._usable = False  # what fails half-way leaves a journal that refuses all, until it is opened again
        digest = chained(self._digest, words.encode("ascii"))
        write_all(self._log, f"{words} {digest}\n".encode("ascii"))
        os.fsync(self._log)
        self._digest = digest
        self._anchor_last()
        self._usable = True

    def _anchor_last(self) -> None:
        write_all(self._anchor, f"{self._digest}\n".encode("ascii"))
        os.fsync(self._anchor)

    def _write_record(self, name: str, kept: Kept) -> str:
        """Its digest."""
        self._check_usable()
        self._usable = False
        parts = record_parts(kept)
        write_whole(self._folder / name, parts)
        self._usable = True
        return _digest_of(*parts)

    def _check_usable(self) -> None:
        if not self._usable:
            raise JournalDamaged(
                f"{self._folder}, closed, or a write that failed half-way", "an open journal", "start the client again"
            )


class _Recalled(Sequence[Kept]):
    """The certified epochs, each read when it is asked for: together they may be larger than memory."""

    def __init__(self, journal: FileJournal, count: int) -> None:
        self._journal, self._count = journal, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Kept: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Kept]: ...

    def __getitem__(self, place: int | slice) -> Kept | Sequence[Kept]:
        if isinstance(place, slice):
            return [self._journal.recall(one) for one in range(*place.indices(self._count))]
        if not -self._count <= place < self._count:
            raise IndexError(place)
        return self._journal.recall(place % self._count)


def _check_versions(folder: Path) -> None:
    """Look at how the files begin, before any of them is touched."""
    found = _OF_VERSION.match(_beginning(folder / LOG))
    if found is not None and int(found[1]) != VERSION:
        raise JournalVersion(
            f"{folder / LOG}, a journal of version {int(found[1])}",
            f"version {VERSION}",
            "nothing was changed; start the version of secure-codream that wrote it, or a newer one",
        )
    for path in sorted(folder.glob("*.record")):
        try:
            check_version(_beginning(path))
        except MalformedMessage as error:
            raise JournalVersion(f"{path}, {error.found}", error.allowed, error.remedy) from None


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        return b""


def _note(facts: _Facts, words: str) -> None:
    """Add a line's fact; raises `ValueError` for one that is none."""
    kind, *rest = words.split(" ")
    if kind == "joined" and len(rest) == 2:
        facts.next_epoch, facts.attempts = max(facts.next_epoch, int(rest[0]) + 1), facts.attempts + 1
    elif kind == "began" and len(rest) == 4:
        facts.begun = Begun(bytes.fromhex(rest[0]), int(rest[1]), bytes.fromhex(rest[2]))
        facts.steps, facts.rho = facts.steps + 1, facts.rho + float.fromhex(rest[3])
    elif kind == "voted" and len(rest) == 1:
        facts.vote = rest[0]
    elif kind == "certified" and len(rest) == 1:
        facts.certified.append(rest[0])
        facts.attempts, facts.vote = 0, ""
    elif kind == "wrong-sum" and len(rest) == 1:
        facts.wrong_sums.append(bytes.fromhex(rest[0]))
    else:
        raise ValueError(f"found {words[:64]!r}, which is no fact of a journal")


def _whole_lines(descriptor: int, folder: Path) -> list[str]:
    """A file's lines; what a crash has left of one more is cut off."""
    size = os.fstat(descriptor).st_size
    if size > MAX_LOG_BYTES:
        raise JournalDamaged(f"a journal of {size} bytes in {folder}", f"at most {MAX_LOG_BYTES}")
    content = os.pread(descriptor, size, 0)
    whole = content.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)
        os.fsync(descriptor)
    try:
        return content[:whole].decode("ascii").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise JournalDamaged(f"byte {error.start} of a journal in {folder}, no text", "lines of text") from None


def _digest_of(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
