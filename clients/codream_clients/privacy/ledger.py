"""A client's privacy ledger: what it has spent, on disk, and the last word on what it may still spend.

Write-ahead: `reserve` returns only once the charge is durable, and only then may the mechanism run. So what has run is
never more than what is written; a charge whose mechanism then never ran stays spent.

    ledger.jsonl          one entry a line: {"entry": {...}, "digest": "..."}; the first names the federation, the
                          member and the budget; a digest is SHA-256 over the digest before and the entry's bytes
    ledger.jsonl.anchor   how many entries there are, and the digest of the last of them; replaced as a whole

A charge goes into the ledger (fsync), then into the anchor (fsync, rename, fsync of the folder), and then `reserve`
returns. What a crash or a person may leave behind, and what follows:

    after the anchor's entries, a line cut off or garbled   never acknowledged, so nothing ran: dropped, and logged
    after the anchor's entries, a whole line                not acknowledged either, yet it counts as spent
    fewer entries than the anchor's, or other ones          an older copy was put back: `LedgerRolledBack`
    an anchor without a ledger, or the reverse              one of them was removed: `LedgerRolledBack`
    among the anchor's entries, a line that does not fit    altered or damaged: `LedgerDamaged`

Keep the anchor where a restored backup of the ledger does not bring it back too. Whoever puts back both, or removes
both, or rewrites both with fresh digests, is not found out: software alone cannot, short of a counter in hardware or
with another party. The ledger guards its owner against servers, crashes and accidents, not against the owner.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, get_args

import msgspec
import structlog

from codream_clients.privacy.accounting import AccountingError, AnyAccountant, SampledGaussian, epsilon_of
from codream_protocols.durable import chained, sync_folder, try_lock, write_all, write_whole

MAX_LINE_BYTES = 2048
MAX_LEDGER_BYTES = 16 << 20
MAX_NAME = 200
_START = hashlib.sha256(b"secure-codream privacy ledger, version 1").hexdigest()

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class LedgerError(RuntimeError):
    """The ledger does not permit, or cannot vouch for, any spending."""


class BudgetExceeded(LedgerError):
    """A charge that would pass the budget; nothing was charged, and the mechanism must not run."""


class LedgerRolledBack(LedgerError):
    """The ledger holds less, or other entries, than its anchor has seen."""


class LedgerDamaged(LedgerError):
    """The ledger or its anchor cannot be read, or was altered."""


class LedgerMismatch(LedgerError):
    """The ledger is another federation's, another member's or of another budget."""


class LedgerBusy(LedgerError):
    """Another process, or another object of this one, has the ledger open."""


@dataclass(frozen=True)
class Budget:
    """What a client may spend in all: `epsilon` at `delta`, as `accountant` counts.

    Raises `AccountingError` unless epsilon is finite and above 0 and delta in (0, 1).
    """

    epsilon: float
    delta: float
    accountant: AnyAccountant = "prv"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf") or not 0 < self.delta < 1:
            raise AccountingError(
                f"budget of epsilon {self.epsilon}, delta {self.delta}; a finite epsilon above 0 and a delta in (0, 1) "
                "are needed"
            )
        if self.accountant not in get_args(AnyAccountant):
            raise AccountingError(
                f"accountant is {self.accountant!r}; {' or '.join(get_args(AnyAccountant))} is allowed"
            )


class _Opened(msgspec.Struct, frozen=True, tag_field="kind", tag="opened", forbid_unknown_fields=True):
    federation: str
    member: str
    budget: Budget


class _Charged(msgspec.Struct, frozen=True, tag_field="kind", tag="charge", forbid_unknown_fields=True):
    charge: SampledGaussian


class _Reissued(msgspec.Struct, frozen=True, tag_field="kind", tag="budget", forbid_unknown_fields=True):
    budget: Budget


_Entry = _Opened | _Charged | _Reissued


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    digest: Digest


class _Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entries: Annotated[int, msgspec.Meta(ge=0)]
    digest: Digest


class Ledger:
    """An open ledger, which no other process can open meanwhile. Make one with `open`; `close` it, or use `with`."""

    def __init__(self, path: Path, anchor: Path, descriptor: int) -> None:
        self._path, self._anchor, self._file = path, anchor, descriptor
        self._entries: list[_Entry] = []
        self._digest = _START
        self._usable = True

    @classmethod
    def open(cls, path: Path, *, federation: str, member: str, budget: Budget, anchor: Path | None = None) -> "Ledger":
        """Open the ledger at `path`, or begin it; its anchor lies beside it unless given. Only the owner may read both.

        Raises:
            LedgerBusy: it is open elsewhere.
            LedgerRolledBack: an older copy was put back, or one of the two files was removed.
            LedgerDamaged: it was altered, or cannot be read.
            LedgerMismatch: it belongs to another federation, member or budget. A budget is changed by `reissue` alone.
            OSError: the file system refuses.
        """
        for name in (federation, member):
            if not (0 < len(name) <= MAX_NAME and name.isprintable()):
                raise LedgerMismatch(f"a name of {len(name)} characters; 1 to {MAX_NAME} printable ones are allowed")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        ledger = cls(path, anchor or path.with_name(path.name + ".anchor"), descriptor)
        try:
            ledger._lock()
            os.fchmod(descriptor, 0o600)
            ledger._read(_Opened(federation, member, budget))
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def look(cls, path: Path, *, federation: str, member: str, budget: Budget) -> tuple[SampledGaussian, ...]:
        """What was charged until now, without writing, locking or beginning anything; nothing where no ledger is.

        Raises:
            LedgerRolledBack, LedgerDamaged, LedgerMismatch, OSError: as `open` does.
        """
        anchor = path.with_name(path.name + ".anchor")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if anchor.exists() and (seen := cls(path, anchor, -1)._read_anchor()) is not None and seen.entries:
                raise LedgerRolledBack(f"{path}: found no ledger, but {anchor} has seen one; put it back") from None
            return ()
        ledger = cls(path, anchor, descriptor)
        try:
            ledger._load()
            if ledger._entries:
                ledger._check_belongs(_Opened(federation, member, budget))
            return ledger.charges
        finally:
            ledger.close()

    def reserve(self, charge: SampledGaussian) -> None:
        """Charge for a mechanism that is about to run; returns once that is durable, and only then may it run.

        Raises:
            BudgetExceeded: the charge would pass the budget; nothing has changed.
            AccountingError: no epsilon can be computed with it; nothing has changed.
            LedgerDamaged: an earlier write failed half-way, or the ledger is full; open it again.
            OSError: this write failed; the charge may or may not count after the ledger is opened again.
        """
        self._check_usable()
        self._check_fits(charge)
        self._append(_Charged(charge))

    def reissue(self, budget: Budget) -> None:
        """Replace the budget, smaller or larger, from now on: a person's decision, which no message may bring about.

        What was spent stays spent, counted at the new delta. Raises as `reserve` does when writing.
        """
        self._check_usable()
        self._append(_Reissued(budget))

    @property
    def budget(self) -> Budget:
        """The budget in force."""
        return next(entry.budget for entry in reversed(self._entries) if not isinstance(entry, _Charged))

    @property
    def charges(self) -> tuple[SampledGaussian, ...]:
        """All that was charged, in order."""
        return tuple(entry.charge for entry in self._entries if isinstance(entry, _Charged))

    @property
    def spent(self) -> float:
        """Epsilon of all charges together, at the budget's delta."""
        return epsilon_of(self.charges, self.budget.delta, self.budget.accountant)

    @property
    def left(self) -> float:
        """Epsilon up to the budget, at least 0. Epsilons do not add up: more than one charge of that much may fit."""
        return max(self.budget.epsilon - self.spent, 0.0)

    def close(self) -> None:
        """Give the file and its lock back; the ledger cannot be used any more. Repeats do nothing."""
        self._usable = False
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- rules ----------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if not self._usable:
            raise LedgerDamaged(f"{self._path}: closed, or a write failed half-way; open the ledger again")
        # Who opens another file of this name has another lock: from then on this one must stand still.
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file)):
            raise LedgerRolledBack(f"{self._path}: the file was replaced while it was open; open the ledger again")

    def _check_fits(self, charge: SampledGaussian) -> None:
        budget = self.budget
        after = epsilon_of([*self.charges, charge], budget.delta, budget.accountant)
        if not after <= budget.epsilon:
            raise BudgetExceeded(
                f"{charge.purpose}: epsilon would be {after:.4g} at delta {budget.delta:g} ({self.spent:.4g} spent), "
                f"{budget.epsilon:g} is allowed; so this client learns nothing more from its data"
            )

    def _check_anchored(self, seen: _Anchor | None, digests: Sequence[str]) -> None:
        """Whether the digests of all entries, `_START` first, go on from what the anchor has seen."""
        entries = len(digests) - 1
        if seen is None:
            if entries:
                raise LedgerRolledBack(
                    f"{self._path}: found {entries} entries, but no anchor at {self._anchor}; put the anchor back"
                )
        elif entries < seen.entries or digests[seen.entries] != seen.digest:
            raise LedgerRolledBack(
                f"{self._path}: found {entries} entries, but {self._anchor} has seen {seen.entries}, or other ones; "
                "put the newest ledger back, or let this member spend nothing more"
            )

    # -- reading ----------------------------------------------------------------------------------------

    def _lock(self) -> None:
        if not try_lock(self._file):
            raise LedgerBusy(f"{self._path}: open elsewhere; one process at a time may spend")

    def _read(self, expected: _Opened) -> None:
        content, seen, digests, whole = self._load()
        self._digest = digests[-1]
        if whole < len(content):
            structlog.get_logger().warning(
                "privacy-ledger-torn-entry-dropped", path=str(self._path), after=len(digests) - 1
            )
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        if not self._entries:
            # First an anchor that has seen nothing: from here on a ledger without an anchor is one that lost it.
            self._write_anchor()
            self._append(expected)
        elif seen is None or seen.digest != self._digest:
            os.fsync(self._file)
            self._write_anchor()
        self._check_belongs(expected)

    def _load(self) -> tuple[bytes, _Anchor | None, list[str], int]:
        """Take the entries; the file's bytes, what the anchor has seen, all digests, and how many bytes are whole."""
        seen = self._read_anchor()
        content = self._content()
        digests, whole = [_START], 0
        for line in content.splitlines(keepends=True):
            try:
                entry, digest = _parse(line, digests[-1])
            except ValueError as error:
                if seen is None or len(digests) <= seen.entries:
                    raise LedgerDamaged(f"{self._path}, line {len(digests)}: {error}; it was altered") from None
                break
            self._entries.append(entry)
            digests.append(digest)
            whole += len(line)
        self._check_anchored(seen, digests)
        return content, seen, digests, whole

    def _check_belongs(self, expected: _Opened) -> None:
        first = self._entries[0]
        if not isinstance(first, _Opened) or any(isinstance(entry, _Opened) for entry in self._entries[1:]):
            raise LedgerDamaged(f"{self._path}: an entry of another kind where the opening is due, or a second opening")
        found = (first.federation, first.member, self.budget)
        if found != (expected.federation, expected.member, expected.budget):
            raise LedgerMismatch(
                f"{self._path}: found a ledger of {found[1]!r} in {found[0]!r} with {found[2]}; asked for "
                f"{expected.member!r} in {expected.federation!r} with {expected.budget}. Only reissue changes a budget"
            )

    def _content(self) -> bytes:
        size = os.fstat(self._file).st_size
        if size > MAX_LEDGER_BYTES:
            raise LedgerDamaged(f"{self._path}: {size} bytes; at most {MAX_LEDGER_BYTES} are allowed")
        return os.pread(self._file, size, 0)

    def _read_anchor(self) -> _Anchor | None:
        try:
            with self._anchor.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_LINE_BYTES), type=_Anchor)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LedgerDamaged(f"{self._anchor}: {error}; put the anchor back") from None

    # -- writing ----------------------------------------------------------------------------------------

    def _append(self, entry: _Entry) -> None:
        raw = msgspec.json.encode(entry)
        digest = chained(self._digest, raw)
        line = msgspec.json.encode(_Line(msgspec.Raw(raw), digest)) + b"\n"
        if os.fstat(self._file).st_size + len(line) > MAX_LEDGER_BYTES:
            raise LedgerDamaged(f"{self._path}: full with {MAX_LEDGER_BYTES} bytes; nothing more can be charged")
        with self._all_or_unusable():
            write_all(self._file, line)
            os.fsync(self._file)
            self._entries.append(entry)
            self._digest = digest
            self._write_anchor()

    @contextmanager
    def _all_or_unusable(self) -> Iterator[None]:
        """What fails half-way leaves an object that refuses all, until the ledger is opened and read again."""
        self._usable = False
        yield
        self._usable = True

    def _write_anchor(self) -> None:
        write_whole(self._anchor, msgspec.json.encode(_Anchor(len(self._entries), self._digest)))
        if self._path.parent != self._anchor.parent:
            sync_folder(self._path.parent)  # where a new ledger's name is


def _parse(line: bytes, previous: str) -> tuple[_Entry, str]:
    """The entry and the digest of one line; raises `ValueError` that says why it is none."""
    if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n"):
        raise ValueError(f"found {len(line)} bytes; at most {MAX_LINE_BYTES} and a line's end are needed")
    parsed = msgspec.json.decode(line, type=_Line)
    if chained(previous, bytes(parsed.entry)) != parsed.digest:
        raise ValueError("the digest does not fit what stands before it")
    return msgspec.json.decode(parsed.entry, type=_Entry), parsed.digest
