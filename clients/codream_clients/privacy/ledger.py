"""A site's privacy ledger: what one data set has spent, in all federations, and the last word on what it still may.

Write-ahead: `plan` reserves a whole run at its start, so that no federation ends half-way for want of budget; `reserve`
returns only once a charge is durable, and only then may its mechanism run. So what has run is never more than what is
written. What a run reserved and never began is given back by `end`; what it began stays spent.

    ledger.jsonl          one entry a line: {"entry": {...}, "digest": "..."}; the first names ledger and budget, all
                          others whose they are, and when; a digest is SHA-256 over the digest before and the entry
    ledger.jsonl.anchor   how many entries there are, and the digest of the last of them; replaced as a whole

An entry goes into the ledger (fsync), then into the anchor (fsync, rename, fsync of the folder), and then the call
returns. Processes take turns: each locks the file for one entry, and first reads what others have written. One spender
is one process: two of them would both make anew what nothing has come of yet. What a crash or a person may leave
behind, and what follows:

    after the anchor's entries, a line cut off or garbled   never acknowledged, so nothing ran: dropped, and logged
    after the anchor's entries, a whole line                not acknowledged either, yet it counts
    fewer entries than the anchor's, or other ones          an older copy was put back: `LedgerRolledBack`
    an anchor without a ledger, or the reverse              one of them was removed: `LedgerRolledBack`
    among the anchor's entries, a line that does not fit    altered or damaged: `LedgerDamaged`

Keep the anchor where a restored backup of the ledger does not bring it back too; an `Index` (`index`) is a second such
memory. Whoever puts all of them back, or rewrites them with fresh digests, is not found out: software alone cannot,
short of a counter in hardware or with another party. The ledger guards its owner against servers, crashes and
accidents, not against the owner.
"""

import hashlib
import os
import secrets
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec
import structlog

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.ledger_entries import (
    MAX_CHARGES,
    MAX_LINE_BYTES,
    Charged,
    Ended,
    Entry,
    Line,
    Opened,
    Planned,
    Reissued,
    Released,
    parse,
)
from codream_clients.privacy.ledger_entries import Account as Account
from codream_clients.privacy.ledger_entries import Budget as Budget
from codream_clients.privacy.ledger_entries import BudgetExceeded as BudgetExceeded
from codream_clients.privacy.ledger_entries import LedgerBusy as LedgerBusy
from codream_clients.privacy.ledger_entries import LedgerDamaged as LedgerDamaged
from codream_clients.privacy.ledger_entries import LedgerError as LedgerError
from codream_clients.privacy.ledger_entries import LedgerMismatch as LedgerMismatch
from codream_clients.privacy.ledger_entries import LedgerRolledBack as LedgerRolledBack
from codream_clients.privacy.ledger_entries import Seen as Seen
from codream_clients.privacy.ledger_entries import Spender as Spender
from codream_clients.privacy.turns import wait_for_turn
from codream_protocols.durable import chained, is_locked, sync_folder, try_lock, unlock, write_all, write_whole

MAX_LEDGER_BYTES = 64 << 20
_LOOKS, _A_LOOK = 20, 0.005
_START = hashlib.sha256(b"secure-codream privacy ledger, version 2").hexdigest()


class Memory(Protocol):
    """Remembers, in another place, how far ledgers have got."""

    def seen(self, ledger: str) -> Seen | None:
        """The most that was seen of the ledger of that name; None if nothing was."""

    def saw(self, ledger: str, path: Path, seen: Seen) -> None:
        """Remember it."""


class Ledger:
    """An open ledger, for one spender; others may have it open too. Make one with `open`; `close` it, or use `with`."""

    def __init__(self, path: Path, anchor: Path | None, descriptor: int, by: Spender, memory: Memory | None) -> None:
        self._path, self._anchor = path, anchor or path.with_name(path.name + ".anchor")
        self._file, self._by, self._memory = descriptor, by, memory
        self._lease = -1
        self._first: Opened | None = None
        self._budget: Budget | None = None
        self._accounts: dict[Spender, Account] = {}
        self._digests, self._bytes = [_START], 0
        self._usable = True
        self._asked_last: tuple[object, bool] | None = None

    @classmethod
    def open(
        cls, path: Path, *, by: Spender, budget: Budget | None, anchor: Path | None = None, memory: Memory | None = None
    ) -> "Ledger":
        """Open the ledger at `path`, or begin it; its anchor lies beside it unless given. Only the owner may read both.

        Args:
            path: the file.
            by: who spends.
            budget: what all may spend together; None takes that of a ledger that is there.
            anchor: where its anchor lies.
            memory: of the ledgers that this user has seen.

        Raises:
            LedgerBusy: the same spender has it open, or another process holds it.
            LedgerRolledBack: an older copy was put back, or one of the files was removed.
            LedgerDamaged: it was altered, or cannot be read.
            LedgerMismatch: it has another budget, which is changed by `reissue` alone; or there is none.
            OSError: the file system refuses.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if budget is not None else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if budget is not None:
                raise
            raise LedgerMismatch(f"{path}: found no ledger") from None
        ledger = cls(path, anchor, descriptor, by, memory)
        try:
            ledger._be_alone()
            with ledger._turn():
                os.fchmod(descriptor, 0o600)
                if ledger._first is None:
                    ledger._begin(budget)
            ledger._check_budget(budget)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def look(
        cls, path: Path, *, by: Spender, budget: Budget | None, anchor: Path | None = None, memory: Memory | None = None
    ) -> "Ledger | None":
        """The ledger as it is, to be read: nothing is written, locked or begun; None where none is.

        Raises:
            LedgerRolledBack, LedgerDamaged, LedgerMismatch, OSError: as `open` does.
        """
        ledger = cls(path, anchor, -1, by, memory)
        seen = ledger._read_anchor()  # before the ledger, which another process may begin meanwhile
        try:
            ledger._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if seen is not None and seen.entries:
                raise LedgerRolledBack(
                    f"{path}: found no ledger, but {ledger._anchor} has seen one; put it back"
                ) from None
            return None
        try:
            ledger._take_new()
            if ledger._first is None:
                return None
            ledger._check_budget(budget)
            return ledger
        finally:
            ledger.close()

    def plan(self, charges: Sequence[SampledGaussian], *, spare: int = 0, succeeds: bool = False) -> None:
        """Reserve all that a run will charge and has not begun, in the place of what it had reserved; all or nothing.

        What was begun before is part of it. A run that was ended reserves nothing any more.

        Args:
            charges: in order.
            spare: of how many of the last ones as many are reserved as fit, and none is missed.
            succeeds: whether it follows other runs of the same member in the same federation: then it takes the place
                of what they had reserved, too, unless another process goes on with them, and the log says so. Such a
                run plans anew when it comes back.

        Raises:
            BudgetExceeded: with it the ledger would pass the budget; nothing has changed.
            AccountingError, LedgerDamaged, LedgerBusy, OSError: as `reserve` does.
        """
        with self._turn():
            if self._own.ended:
                return
            if len(charges) > MAX_CHARGES:
                raise BudgetExceeded(
                    f"{self._path}: found {len(charges):,} charges planned; {MAX_CHARGES:,} or fewer are allowed"
                )
            before = self._succeeded() if succeeds else []
            beside, planned, surely = self._settled(charges, spare, before)
            if planned:  # also what was reserved already: a person may have made the budget smaller since
                self._check_fits(beside, planned[:surely], f"all that {self._by.federation!r} plans")
            if Counter(planned) != Counter(self._own.open):
                self._append(Planned(self._by, tuple(planned), _now()))
            for by in before:  # after the own: a crash between them leaves too much reserved, and never too little
                structlog.get_logger().warning(
                    "privacy-ledger-gives-back-for-successor",
                    path=str(self._path),
                    run=by.run,
                    charges=len(self._accounts[by].open),
                )
                # Not `Ended`, after which a run reserves nothing any more: who comes back plans anew, or is refused.
                self._append(Planned(by, (), _now()))

    def with_plan(
        self, charges: Sequence[SampledGaussian], *, spare: int = 0, succeeds: bool = False
    ) -> tuple[SampledGaussian, ...]:
        """All that would count were these planned, as far as was read; nothing is reserved. See `plan`."""
        beside, planned, _ = self._settled(charges, spare, self._succeeded() if succeeds else [])
        return (*beside, *planned)

    def reserve(self, charge: SampledGaussian) -> None:
        """Charge for a mechanism that is about to run; returns once that is durable, and only then may it run.

        What `plan` has reserved is begun; what it has not must still fit, and so must each charge once the budget was
        made smaller than what is reserved.

        Raises:
            BudgetExceeded: the charge would pass the budget; nothing has changed.
            AccountingError: no epsilon can be computed with it; nothing has changed.
            LedgerDamaged: an earlier write failed half-way, or the ledger is full; open it again.
            LedgerBusy: another process holds it; nothing has changed.
            OSError: this write failed; the charge may or may not count after the ledger is opened again.
        """
        with self._turn():
            if charge not in self._own.open:
                self._check_fits(self.charges, [charge], charge.purpose)
            elif not self._all_fits():
                begun = [begun for account in self._accounts.values() for begun in account.begun]
                self._check_fits(begun, [charge], charge.purpose)
            self._append(Charged(self._by, charge, _now()))

    def released(self, charge: SampledGaussian) -> None:
        """What came of a charge is kept, and may be used: from now on it cannot be made anew within the same charge.

        Repeats do nothing. Raises as `reserve` does when writing.
        """
        with self._turn():
            if charge in self._own.unreleased:
                self._append(Released(self._by, charge, _now()))

    def end(self) -> None:
        """Give back what was reserved and never begun. Repeats do nothing. Raises as `reserve` does when writing."""
        with self._turn():
            if self._own.open:
                self._append(Ended(self._by, _now()))

    def reissue(self, budget: Budget) -> None:
        """Replace the budget, smaller or larger, from now on: a person's decision, which no message may bring about.

        What was spent stays spent, counted at the new delta. Raises as `reserve` does when writing.
        """
        with self._turn():
            self._append(Reissued(budget, _now()))

    @property
    def name(self) -> str:
        """The ledger's own, wherever it lies: 64 hexadecimal digits."""
        assert self._first is not None  # noqa: S101 - an open ledger has one
        return self._first.ledger

    @property
    def budget(self) -> Budget:
        """The budget in force."""
        assert self._budget is not None  # noqa: S101 - an open ledger has one
        return self._budget

    @property
    def charges(self) -> tuple[SampledGaussian, ...]:
        """All that counts, of all spenders: what was begun, and after it what is reserved."""
        accounts = self._accounts.values()
        begun = [charge for account in accounts for charge in account.begun]
        return (*begun, *(charge for account in accounts for charge in account.open))

    @property
    def accounts(self) -> dict[Spender, Account]:
        """Each spender's."""
        return dict(self._accounts)

    @property
    def own(self) -> Account:
        """This spender's, as it was when the ledger was last read or written."""
        return self._own

    @property
    def earlier(self) -> tuple[SampledGaussian, ...]:
        """What the same member has begun in other runs of the same federation."""
        return tuple(charge for by in self._other_runs() for charge in self._accounts[by].begun)

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self._digests) - 1

    @property
    def head(self) -> str:
        """The digest of the last entry, over all before it."""
        return self._digests[-1]

    def had(self, entries: int, head: str) -> bool:
        """Whether it once had so many entries, the last of that digest: whether what stood there still does."""
        return 0 <= entries < len(self._digests) and self._digests[entries] == head

    @property
    def spent(self) -> float:
        """Epsilon of all that counts together, at the budget's delta."""
        return self._epsilon(self.charges)

    @property
    def left(self) -> float:
        """Epsilon up to the budget, at least 0. Epsilons do not add up: more than one charge of that much may fit."""
        return max(self.budget.epsilon - self.spent, 0.0)

    def close(self) -> None:
        """Give the file back; the ledger cannot be written any more. Repeats do nothing."""
        self._usable = False
        for descriptor in (self._file, self._lease):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lease = -1

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- rules ----------------------------------------------------------------------------------------

    @property
    def _own(self) -> Account:
        return self._accounts.get(self._by) or Account()

    def _other_runs(self) -> list[Spender]:
        own = self._by
        return [by for by in self._accounts if (by.federation, by.member) == (own.federation, own.member) and by != own]

    def _succeeded(self) -> list[Spender]:
        """The same member's other runs in the same federation that reserve something, and that no process has open."""
        return [by for by in self._other_runs() if self._accounts[by].open and not self._goes_on(by)]

    def _settled(
        self, charges: Sequence[SampledGaussian], spare: int, before: Iterable[Spender]
    ) -> tuple[list[SampledGaussian], list[SampledGaussian], int]:
        """All that counts beside a plan, what it reserves, and how many of those must fit; see `plan`."""
        instead = Counter(self._own.open)
        for by in before:
            instead += Counter(self._accounts[by].open)
        beside = list((Counter(self.charges) - instead).elements())
        begun, planned = Counter(self._own.begun), list[SampledGaussian]()
        for charge in charges:
            if begun[charge]:
                begun[charge] -= 1
            else:
                planned.append(charge)
        surely = max(len(planned) - spare, 0)
        more = bisect_left(
            range(surely + 1, len(planned) + 1),
            True,
            key=lambda many: self._epsilon([*beside, *planned[:many]]) > self.budget.epsilon,
        )
        return beside, planned[: surely + more], surely

    def _epsilon(self, charges: Sequence[SampledGaussian]) -> float:
        return epsilon_of(charges, self.budget.delta, self.budget.accountant)

    def _check_usable(self) -> None:
        if not self._usable:
            raise LedgerDamaged(f"{self._path}: closed, or a write failed half-way; open the ledger again")
        # Who opens another file of this name has another lock: from then on this one must stand still.
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file)):
            raise LedgerRolledBack(f"{self._path}: the file was replaced while it was open; open the ledger again")

    def _all_fits(self) -> bool:
        """Whether all that counts is within the budget: not so once it was made smaller, or where two runs reserved.

        What is begun was reserved, so the answer is the same for all steps of a plan, and kept.
        """
        asked = (self.budget, frozenset(Counter(self.charges).items()))
        if self._asked_last is None or self._asked_last[0] != asked:
            self._asked_last = asked, self._epsilon(self.charges) <= self.budget.epsilon
        return self._asked_last[1]

    def _check_fits(self, already: Sequence[SampledGaussian], more: Sequence[SampledGaussian], what: str) -> None:
        budget, after = self.budget, self._epsilon([*already, *more])
        if not after <= budget.epsilon:
            spent = self._epsilon(already)
            raise BudgetExceeded(
                f"{what}: epsilon would be {after:.4g} at delta {budget.delta:g} ({spent:.4g} spent or reserved), "
                f"{budget.epsilon:g} is allowed; so this client learns nothing more from its data"
            )

    def _check_budget(self, expected: Budget | None) -> None:
        if expected is not None and self.budget != expected:
            raise LedgerMismatch(
                f"{self._path}: found a ledger with {self.budget}; asked for {expected}. Only reissue changes a budget"
            )

    def _check_anchored(self, seen: Seen | None, digests: Sequence[str], where: object) -> None:
        """Whether the digests of all entries, `_START` first, go on from what was seen of them."""
        entries = len(digests) - 1
        if seen is None:
            if entries:
                raise LedgerRolledBack(
                    f"{self._path}: found {entries} entries, but no anchor at {where}; put the anchor back"
                )
        elif entries < seen.entries or digests[seen.entries] != seen.digest:
            raise LedgerRolledBack(
                f"{self._path}: found {entries} entries, but {where} has seen {seen.entries}, or other ones; "
                "put the newest ledger back, or let this member spend nothing more"
            )

    # -- reading ----------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This process's turn: nobody else writes, and all that others have written is known."""
        self._check_usable()
        wait_for_turn(lambda: try_lock(self._file), self._path)
        try:
            self._stay_alone()
            torn = self._take_new()
            if torn:
                structlog.get_logger().warning(
                    "privacy-ledger-torn-entry-dropped", path=str(self._path), after=self.entries
                )
                os.ftruncate(self._file, self._bytes)
                os.fsync(self._file)
            if self._first is not None and (seen := self._read_anchor()) != Seen(self.entries, self.head):
                assert seen is not None  # noqa: S101 - checked with the entries
                os.fsync(self._file)
                self._write_anchor()
            yield
        finally:
            self._unlock()

    def _be_alone(self) -> None:
        """No other process is this spender, until this one closes the ledger or ends."""
        lease = os.open(self._lock_of(self._by), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        for _ in range(_LOOKS):  # who only looks whether a process goes on is gone by the next one
            if try_lock(lease):
                break
            time.sleep(_A_LOOK)
        else:
            os.close(lease)
            raise LedgerBusy(
                f"{self._path}: {self._by.member!r} spends for {self._by.federation!r} in another process; one at a "
                "time may"
            )
        if self._lease >= 0:
            os.close(self._lease)
        self._lease = lease

    def _stay_alone(self) -> None:
        """Make the lease's file again where somebody removed it: others would think that nobody is this spender."""
        path = self._lock_of(self._by)
        if path.exists() and os.path.samestat(path.stat(), os.fstat(self._lease)):
            return
        self._be_alone()
        structlog.get_logger().warning("privacy-ledger-lock-was-removed", path=str(path))

    def _goes_on(self, by: Spender) -> bool:
        """Whether some process is that spender."""
        try:
            lease = os.open(self._lock_of(by), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return is_locked(lease)
        finally:
            os.close(lease)

    def _lock_of(self, by: Spender) -> Path:
        who = hashlib.sha256(msgspec.json.encode(by)).hexdigest()[:16]
        return self._path.with_name(f"{self._path.name}.{who}.lock")

    def _unlock(self) -> None:
        if self._file >= 0:
            unlock(self._file)

    def _take_new(self) -> bool:
        """Take what was added since the last time; whether a torn entry follows.

        What remembers the ledger is asked before the ledger is read, since who only looks does so while others write.
        """
        known = self._first
        remembered = None if self._memory is None or known is None else self._memory.seen(known.ledger)
        seen, content, torn = self._read_anchor(), self._content(), False
        digests, entries, whole = list(self._digests), [], self._bytes
        for line in content.splitlines(keepends=True):
            try:
                entry, digest = parse(line, digests[-1])
            except ValueError as error:
                if seen is None or len(digests) <= seen.entries:
                    raise LedgerDamaged(f"{self._path}, line {len(digests)}: {error}; it was altered") from None
                torn = True
                break
            entries.append(entry)
            digests.append(digest)
            whole += len(line)
        self._check_anchored(seen, digests, self._anchor)
        if remembered is not None:
            self._check_anchored(remembered, digests, self._memory)
        for entry in entries:
            self._count(entry)
        self._digests, self._bytes = digests, whole
        if self._memory is not None and known is None and self._first is not None:
            return self._take_new()  # now that its name is known
        return torn

    def _count(self, entry: Entry) -> None:
        if isinstance(entry, Opened) is not (self._first is None):
            raise LedgerDamaged(f"{self._path}: an entry of another kind where the opening is due, or a second opening")
        match entry:
            case Opened():
                self._first, self._budget = entry, entry.budget
            case Reissued():
                self._budget = entry.budget
            case _:
                self._accounts.setdefault(entry.by, Account()).take(entry)

    def _content(self) -> bytes:
        """What is in the file beyond what was read before."""
        size = os.fstat(self._file).st_size
        if size > MAX_LEDGER_BYTES:
            raise LedgerDamaged(f"{self._path}: {size} bytes; at most {MAX_LEDGER_BYTES} are allowed")
        if size < self._bytes:
            raise LedgerRolledBack(f"{self._path}: found {size} bytes, where there were {self._bytes}; put it back")
        return os.pread(self._file, size - self._bytes, self._bytes)

    def _read_anchor(self) -> Seen | None:
        try:
            with self._anchor.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_LINE_BYTES), type=Seen)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LedgerDamaged(f"{self._anchor}: {error}; put the anchor back") from None

    # -- writing ----------------------------------------------------------------------------------------

    def _begin(self, budget: Budget | None) -> None:
        if budget is None:
            raise LedgerMismatch(f"{self._path}: found no ledger")
        # First an anchor that has seen nothing: from here on a ledger without an anchor is one that lost it.
        self._write_anchor()
        self._append(Opened(secrets.token_hex(32), budget, _now()))

    def _append(self, entry: Entry) -> None:
        raw = msgspec.json.encode(entry)
        digest = chained(self.head, raw)
        line = msgspec.json.encode(Line(msgspec.Raw(raw), digest)) + b"\n"
        if len(line) > MAX_LINE_BYTES or self._bytes + len(line) > MAX_LEDGER_BYTES:
            raise LedgerDamaged(f"{self._path}: full with {MAX_LEDGER_BYTES} bytes; nothing more can be charged")
        with self._all_or_unusable():
            write_all(self._file, line)
            os.fsync(self._file)
            self._count(entry)
            self._digests.append(digest)
            self._bytes += len(line)
            self._write_anchor()

    @contextmanager
    def _all_or_unusable(self) -> Iterator[None]:
        """What fails half-way leaves an object that refuses all, until the ledger is opened and read again."""
        self._usable = False
        yield
        self._usable = True

    def _write_anchor(self) -> None:
        seen = Seen(self.entries, self.head)
        write_whole(self._anchor, msgspec.json.encode(seen))
        if self._path.parent != self._anchor.parent:
            sync_folder(self._path.parent)  # where a new ledger's name is
        if self._memory is not None and self._first is not None:
            self._memory.saw(self._first.ledger, self._path, seen)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
