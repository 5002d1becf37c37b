"""What a ledger's lines say, and what they come to for each who spends; `ledger` keeps them."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, get_args

import msgspec

from codream_clients.learning.undoing import TrainingRefused
from codream_clients.privacy.accounting import AccountingError, AnyAccountant, SampledGaussian
from codream_protocols.durable import chained

MAX_LINE_BYTES = 1 << 20
MAX_CHARGES = 4096
MAX_NAME = 200

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class LedgerError(TrainingRefused):
    """The ledger does not permit, or cannot vouch for, any spending."""


class BudgetExceeded(LedgerError):
    """A charge that would pass the budget; nothing was charged, and the mechanism must not run."""


class LedgerRolledBack(LedgerError):
    """The ledger holds less, or other entries, than its anchor has seen."""


class LedgerDamaged(LedgerError):
    """The ledger or its anchor cannot be read, or was altered."""


class LedgerMismatch(LedgerError):
    """The ledger has another budget, or a name is none."""


class LedgerBusy(LedgerError):
    """Another process is the same spender, or has held the ledger for longer than an entry takes."""


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


@dataclass(frozen=True)
class Spender:
    """Who spends: a member of a federation, in a run that `run` names. Raises `LedgerMismatch` for names out of range.

    `run` is a digest of all that defines what is released: images, model, settings.
    """

    federation: str
    member: str
    run: str = ""

    def __post_init__(self) -> None:
        for name in (self.federation, self.member):
            if not (0 < len(name) <= MAX_NAME and name.isprintable()):
                raise LedgerMismatch(f"a name of {len(name)} characters; 1 to {MAX_NAME} printable ones are allowed")


class _Entry(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    pass


class Opened(_Entry, frozen=True, tag="opened"):
    """The first: the ledger's own name, and what all may spend together."""

    ledger: Digest
    budget: Budget
    time: datetime


class Planned(_Entry, frozen=True, tag="plan"):
    """A whole run is reserved, in the place of what its spender had reserved."""

    by: Spender
    charges: Annotated[tuple[SampledGaussian, ...], msgspec.Meta(max_length=MAX_CHARGES)]
    time: datetime


class Charged(_Entry, frozen=True, tag="charge"):
    """A mechanism is about to run."""

    by: Spender
    charge: SampledGaussian
    time: datetime


class Released(_Entry, frozen=True, tag="released"):
    """What came of it is kept, and may be used."""

    by: Spender
    charge: SampledGaussian
    time: datetime


class Ended(_Entry, frozen=True, tag="end"):
    """What was reserved and never begun is given back."""

    by: Spender
    time: datetime


class Reissued(_Entry, frozen=True, tag="budget"):
    """Another budget, from now on."""

    budget: Budget
    time: datetime


Entry = Opened | Planned | Charged | Released | Ended | Reissued


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the file: an entry as its bytes, and the digest over all up to it."""

    entry: msgspec.Raw
    digest: Digest


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a ledger had got: how many entries, and the digest of the last."""

    entries: Annotated[int, msgspec.Meta(ge=0)]
    digest: Digest


@dataclass
class Account:
    """What one spender has reserved and not begun, begun, and released of it; `ended` gave back what was not begun.

    `times` has when each of `begun` was.
    """

    open: list[SampledGaussian] = field(default_factory=list)
    begun: list[SampledGaussian] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    released: list[SampledGaussian] = field(default_factory=list)
    ended: bool = False

    @property
    def unreleased(self) -> list[SampledGaussian]:
        """What was begun, and nothing ever came of."""
        return list((Counter(self.begun) - Counter(self.released)).elements())

    def take(self, entry: Planned | Charged | Released | Ended) -> None:
        """Count an entry of this spender."""
        match entry:
            case Planned():
                self.open, self.ended = list(entry.charges), False
            case Charged():
                self.begun.append(entry.charge)
                self.times.append(entry.time)
                if entry.charge in self.open:
                    self.open.remove(entry.charge)
            case Released():
                self.released.append(entry.charge)
            case Ended():
                self.open, self.ended = [], True


def parse(line: bytes, previous: str) -> tuple[Entry, str]:
    """The entry and the digest of one line; raises `ValueError` that says why it is none."""
    if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n"):
        raise ValueError(f"found {len(line)} bytes; at most {MAX_LINE_BYTES} and a line's end are needed")
    parsed = msgspec.json.decode(line, type=Line)
    if chained(previous, bytes(parsed.entry)) != parsed.digest:
        raise ValueError("the digest does not fit what stands before it")
    return msgspec.json.decode(parsed.entry, type=Entry), parsed.digest
