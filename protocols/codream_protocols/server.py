"""The server's machine for a whole federation. It routes, adds and hands on; it is trusted with nothing.

Theory of operation. A `ServerProtocol` takes messages (`receive`), and news from whoever runs it: a member is there
(`hello`), is gone (`lost`), the present phase has waited long enough (`expire`), an epoch may begin (`open_epoch`). It
returns effects. Vectors are added as they arrive: one running sum for each block of members, not one vector each.

    IDLE --open_epoch--> ADVERTISING -> SEALING -> COLLECTING -> (next step: COLLECTING ...) -> VOTING -> IDLE
    resilient:  COLLECTING -> (AGREEING, if one dropped) -> UNMASKING -> COLLECTING ...
    on a ring:  SEALING -> OPENING -> COLLECTING -> AGREEING, whoever dropped
    from every phase up to UNMASKING back to IDLE, without a result, when the epoch is given up

It runs the same course as the clients and so knows each chain; a member whose vector names another is told apart. An
epoch that somebody has voted for is not given up: members that were away vote on what they are shown. What a member
gives back of an epoch that this server does not know is a candidate: it is shown to the others, and counts once enough
have voted for it. A failed step is never run again: the next epoch starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, partial
from typing import Any, Protocol

from codream_protocols import chain as links
from codream_protocols.advertisements import (
    DistinctKeys,
    check_advertisement,
    check_distinct_keys,
    check_public_keys,
    check_shown,
    check_start_shares,
)
from codream_protocols.charter import Charter, Offer, Plan, check_charter
from codream_protocols.course import Array, Course, Publication, Sums
from codream_protocols.errors import (
    CertificateRefused,
    CharterRefused,
    CohortRefused,
    CourseDiverged,
    HelloNeeded,
    LocalProtocolError,
    ShareRefused,
    UnexpectedMessage,
    UnsupportedVersion,
    VectorRefused,
    WrongContext,
    WrongSum,
)
from codream_protocols.identity import Roster, verify
from codream_protocols.keyschedule import KEY_BYTES, PROTOCOL
from codream_protocols.lockstep import plain_seal_bytes, seal_statement
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Certificate,
    Complaint,
    EpochRecord,
    GivenUp,
    Hello,
    Invitation,
    MaskedInput,
    OpenedStarts,
    Published,
    Refusal,
    Seal,
    SealDelivery,
    Seals,
    SignedBy,
    Starts,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    ToServer,
    UnmaskShares,
    Vote,
    Welcome,
    largest_message,
    survivor_statement,
)
from codream_protocols.neighbours import Ring
from codream_protocols.packing import Packed, PackedSum, pack, unpack
from codream_protocols.record import History, HoldsHistory, Kept, Trajectory, valid_votes
from codream_protocols.running import Agreed, Closed, Delivered, Entry, Opened, Shown, Started, Summed
from codream_protocols.tag import tag_bytes, tag_number
from codream_protocols.unmasking import rebuild, rebuild_on, unmask

MOST_EPOCHS_AWAY = 64  # of a member that leaves set-ups: none the first time, then ever more
_ALL = -1  # in the place of a block's number
MOST_JUMPED_EPOCHS = 1024  # at once; more than attempts, and far less than what clients take


class Phase(Enum):
    """Where the federation stands."""

    IDLE = "idle"
    ADVERTISING = "advertising"
    SEALING = "sealing"
    OPENING = "opening"
    COLLECTING = "collecting"
    AGREEING = "agreeing"
    UNMASKING = "unmasking"
    VOTING = "voting"


@dataclass(frozen=True)
class SendTo:
    """Send a message, and the frames behind it, to one member."""

    member: int
    message: ToClient
    frames: tuple[bytes, ...] = ()


class SendSeals(SendTo):
    """Send one member what others sealed for it: read each time it is asked for, since all of it may fill the memory.

    Args:
        member: who.
        read: gives the message; it may raise `OSError`.
    """

    def __init__(self, member: int, read: Callable[[], SealDelivery]) -> None:
        object.__setattr__(self, "member", member)
        object.__setattr__(self, "frames", ())
        object.__setattr__(self, "_read", read)

    @property
    def message(self) -> SealDelivery:
        """What was sealed for the member."""
        read: Callable[[], SealDelivery] = self.__dict__["_read"]
        return read()


@dataclass(frozen=True)
class EpochBegan:
    """The set-up of an epoch has begun."""

    plan: Plan


@dataclass(frozen=True)
class StepBegan:
    """The members compute a step's vectors."""

    step: int
    task: str


@dataclass(frozen=True)
class StepFinished:
    """A step's sum is out.

    Attributes:
        step: the step.
        task: its task.
        sums: the sum of each block.
        survivors: whose inputs it holds.
        members: the epoch's members.
        agreed: whether a dropout made the consistency round necessary.
        frame: the packed sum, of `length` ring elements of `bits` bits.
    """

    step: int
    task: str
    sums: Sums
    survivors: tuple[int, ...]
    members: tuple[int, ...]
    agreed: bool
    frame: bytes
    length: int
    bits: int

    @cached_property
    def total(self) -> Array:
        """The same sum as ring elements, reduced modulo 2^m."""
        return unpack(self.frame, self.length, self.bits)


@dataclass(frozen=True)
class EpochCertified:
    """An epoch is certified.

    Attributes:
        number: how many epochs are certified now, those of predecessors counted.
        publication: what is learnt from it.
        kept: its record, with the votes, and its packed sums.
    """

    number: int
    publication: Publication
    kept: Kept


@dataclass(frozen=True)
class EpochGivenUp:
    """The epoch is over without a result; `wrong_sum`: because a member saw a sum fail its check."""

    epoch: int
    reason: str
    wrong_sum: bool = False


Effect = SendTo | EpochBegan | StepBegan | StepFinished | EpochCertified | EpochGivenUp


class ServerJournal(Protocol):
    """What a server writes down before it says so."""

    def running(self, entry: Entry, *, must: bool = False) -> None:
        """What the running epoch comes to next, before anybody is told.

        Raises:
            OSError: it cannot be kept, and `must` be; it is tried again. Otherwise nothing is raised, and a kill
                costs the epoch.
        """

    def sealed(self, member: int, items: tuple[Seal, ...]) -> None:
        """Hold what a member has sealed until its epoch is over; of all members it may be too much for memory.

        It must not raise.
        """

    def seals_for(self, member: int) -> tuple[Seal, ...]:
        """What was sealed for a member in the running epoch, by sender.

        Raises:
            OSError: it cannot be read now.
        """

    def given_up(self) -> None:
        """The running epoch is given up. It must not raise."""

    def held(self, frame: bytes) -> bytes:
        """The same packed sum, where it bears to be held until its epoch is over. It must not raise."""

    def certified(self, kept: Kept) -> None:
        """This epoch is certified."""

    def recall(self, place: int) -> Kept:
        """The certified epoch at this place, from 0, of the charter."""


class InMemory:
    """A journal for tests and simulations: nothing outlasts the process."""

    def __init__(self) -> None:
        self._certified: list[Kept] = []
        self._seals: dict[int, dict[int, Seal]] = {}  # by whom they are for, and who has sealed them
        self.entries: list[Entry] = []

    def running(self, entry: Entry, *, must: bool = False) -> None:
        """See `ServerJournal`."""
        if isinstance(entry, Opened):
            self.given_up()
        self.entries = [*self.entries, entry]

    def sealed(self, member: int, items: tuple[Seal, ...]) -> None:
        """See `ServerJournal`."""
        for item in items:
            self._seals.setdefault(item.member, {})[member] = item.sent_by(member)

    def seals_for(self, member: int) -> tuple[Seal, ...]:
        """See `ServerJournal`."""
        return tuple(seal for _, seal in sorted(self._seals.get(member, {}).items()))

    def given_up(self) -> None:
        """See `ServerJournal`."""
        self.entries, self._seals = [], {}

    def held(self, frame: bytes) -> bytes:
        """See `ServerJournal`."""
        return frame

    def certified(self, kept: Kept) -> None:
        """See `ServerJournal`."""
        self._certified.append(kept)

    def recall(self, place: int) -> Kept:
        """See `ServerJournal`."""
        return self._certified[place]


@dataclass
class _Step:
    """The running step: running sums, of vectors and of tags, of each block that has begun to come and of whole ones.

    A whole block is summed whatever comes, but on a ring, where it may lack neighbours.
    """

    number: int
    totals: dict[int, PackedSum] = field(default_factory=dict)
    tags: dict[int, int] = field(default_factory=dict)
    inputs: set[int] = field(default_factory=set)
    survivors: tuple[int, ...] = ()
    statement: tuple[bytes, ...] = ()  # what survivors' signatures cover: with thousands of them, made once
    total: Array | None = None
    tag: int = 0
    opened: bool = False  # whether `total` and `tag` have no masks any more
    signatures: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)

    def join(self, block: int) -> None:
        """All vectors of a block are there: its sums go into those of all."""
        total = self.totals.pop(block)
        if _ALL in self.totals:
            self.totals[_ALL].merge(total)
        else:
            self.totals[_ALL] = total
        self.tags[_ALL] = self.tags.get(_ALL, 0) + self.tags.pop(block)


@dataclass
class _Candidate:
    """An epoch that a member has given back, with the votes for it."""

    public: Trajectory
    giver: int
    votes: dict[int, SignedBy]


@dataclass
class _Epoch:
    """The running epoch."""

    plan: Plan
    advertised: dict[int, Advertisement] = field(default_factory=dict)
    keys: DistinctKeys = field(default_factory=DistinctKeys)  # of those
    shown: tuple[Advertisement, ...] = ()
    taking_part: frozenset[int] = frozenset()  # those that are shown
    transcript: bytes = b""
    ring: Ring | None = None
    starts: dict[int, bytes] = field(default_factory=dict)  # on a ring: start shares, as their knowers open them
    heard: set[int] = field(default_factory=set)  # who has opened those that it knows
    sealed: set[int] = field(default_factory=set)  # who has; the journal holds what
    members: tuple[int, ...] = ()
    gone: set[int] = field(default_factory=set)  # those that have lost their keys, or cannot take part
    unnamed: set[int] = field(default_factory=set)  # those that are there, and are not waited for any longer
    wrong_sums: set[int] = field(default_factory=set)  # those that saw a sum fail its check
    public: Trajectory | None = None
    step: _Step | None = None
    votes: dict[int, SignedBy] = field(default_factory=dict)
    dissent: set[int] = field(default_factory=set)  # those that have voted for another end of it

    def partners(self, member: int) -> tuple[int, ...]:
        """Who seals for a member that is shown, and for whom it seals, ascending."""
        if self.ring is not None:
            return self.ring.partners(member)
        return tuple(item.member for item in self.shown if item.member != member)

    @property
    def seals(self) -> int:
        """How many seals all members that are shown make for their partners."""
        count = len(self.shown)
        if self.ring is None:
            return count * (count - 1)
        neighbours = self.ring.degree.neighbours  # the first member has all others for partners, and they it
        return count * neighbours + 2 * (count - 1 - neighbours)

    def held(self, member: int) -> int:
        """Of how many members a member holds shares."""
        return len(self.members) if self.ring is None else len(self.ring.of(member))


class ServerProtocol(HoldsHistory):
    """The server's side of a charter's epochs.

    Args:
        charter: the charter.
        roster: the verified roster.
        course: the course that the charter names.
        beat_seconds: how often clients are to say that they are there.
        certified: the records of epochs certified in earlier processes, oldest first; checked again.
        running: what an earlier process wrote of its running epoch; gone on with unless it is certified.
        journal: where certified epochs are written; it must recall those given as `certified`.

    Raises:
        UnsafePlan: a promise of the protocol would fail under this charter.
        LocalProtocolError: the roster is not the charter's.
        RemoteProtocolError: what was written down does not fit the charter.
    """

    def __init__(
        self,
        charter: Charter,
        roster: Roster,
        course: Course,
        *,
        beat_seconds: float = 1.0,
        certified: Sequence[Kept] = (),
        running: Sequence[Entry] = (),
        journal: ServerJournal | None = None,
    ) -> None:
        check_charter(charter)
        self.history = History(charter, roster, course)
        self.charter, self.course, self.phase = charter, course, Phase.IDLE
        self.absent: set[int] = set(charter.everybody)
        self.conflicts: set[tuple[int, int]] = set()  # pairs of which one could not open what the other sealed
        self._blocks = {member: place for place, block in enumerate(charter.blocks) for member in block}
        self._left: dict[int, tuple[int, int]] = {}  # who left set-ups: how often, and until which epoch it stays away
        self._roster, self._beat_seconds, self._journal = roster, beat_seconds, journal or InMemory()
        self._at: dict[int, bytes] = {}  # each member's head, as it said or was told
        self._claims: dict[int, int] = {}  # each member's next epoch, as it said
        self._candidates: dict[tuple[bytes, bytes], _Candidate] = {}  # by plan and chain; one of each giver
        self._next_epoch = self._opened = (
            0  # numbers are also of what members claim; what is opened, this server counts
        )
        self._epoch: _Epoch | None = None
        for kept in certified:
            taken = self.history.take(kept)
            if journal is None:
                self._journal.certified(kept)
            self._next_epoch = max(self._next_epoch, taken.plan.offer.epoch + 1)
        if certified:  # until they say so, nobody is known to have heard of the last one
            self._at = dict.fromkeys(charter.everybody, b"")
        if running and isinstance(running[0], Opened) and running[0].offer.head == self.head and not self.done:
            self._go_on(running[0].offer, running[1:])

    @property
    def done(self) -> bool:
        """Whether all epochs of the course are certified, or it has ended early."""
        return self.history.over

    @property
    def plan(self) -> Plan | None:
        """The running epoch's plan."""
        return self._epoch.plan if self._epoch else None

    @property
    def members(self) -> tuple[int, ...]:
        """The running epoch's members; empty before they are known."""
        return self._epoch.members if self._epoch else ()

    @property
    def step(self) -> int | None:
        """The running step."""
        return self._epoch.step.number if self._epoch and self._epoch.step else None

    @property
    def steps_begun(self) -> int:
        """Of the running epoch, the one that is collected now among them."""
        if self._epoch is None or not self._epoch.members:
            return 0
        return self._epoch.plan.steps if self._epoch.step is None else self._epoch.step.number + 1

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message, without its frames, that an honest member sends in this phase."""
        final = max(0, self.course.epochs - 1)
        steps = max(len(self.course.schedule(min(at, final))) for at in (self.certified, max(0, self.certified - 1)))
        resilient = self.charter.aggregation.mode == "resilient"
        return largest_message(self.charter.members, steps, resilient=resilient)

    # -- members ---------------------------------------------

    def hello(self, member: int, message: Hello) -> list[Effect]:
        """A member says who it is and where it stands: tell it what it missed, and what it is waited for.

        Raises:
            UnsupportedVersion, CharterRefused: another version, or another charter.
        """
        if PROTOCOL not in message.versions:
            raise UnsupportedVersion(f"versions {', '.join(message.versions)}", PROTOCOL)
        if message.charter != self.charter.digest:
            raise CharterRefused(
                f"a client with charter {message.charter.hex()[:16]}…",
                f"this federation's charter {self.charter.digest.hex()[:16]}…",
                "compare roster.json and config.toml",
            )
        self.absent.discard(member)
        self._claims[member] = message.epoch
        effects: list[Effect] = [SendTo(member, Welcome(PROTOCOL, self._beat_seconds, self.head))]
        self._at[member] = message.head
        effects += self._catch_up(member)
        epoch = self._epoch
        if epoch is None:
            return effects
        if self.phase is Phase.VOTING:
            return effects + self._remind_voter(epoch, member, message.plan, message.sums)
        if member in epoch.advertised and message.plan != epoch.plan.digest:
            epoch.gone.add(member)  # it was started again, and its keys of this epoch are gone
            return effects + self._advance_or_give_up(member)
        if member in epoch.members and message.sums > (epoch.public.step if epoch.public else 0):
            epoch.gone.add(member)  # what this server told it was not kept: nothing it says fits any more
            name = self._roster.members[member].name
            return effects + self._advance_or_give_up(member, f"{name} has sums that this server has lost")
        return effects + self._repeat(member, message.sums)

    def beat(self, member: int, plan: bytes, sums: int) -> list[Effect]:
        """A member is there; if it lacks a sum that is out, send it again."""
        self.absent.discard(member)
        epoch = self._epoch
        if epoch is None or epoch.public is None or plan != epoch.plan.digest or member not in epoch.taking_part:
            return []
        return self._missing_sums(member, sums)

    def lost(self, member: int) -> list[Effect]:
        """A member has fallen silent: the resilient mode goes on without its block, lockstep waits for it."""
        self.absent.add(member)
        return self._advance()

    def expire(self) -> list[Effect]:
        """The present phase has waited long enough: go on with who is there, or give the epoch up.

        An epoch that more have voted for than may collude, in lockstep anybody, is not given up: it waits for votes.
        Who is there, and only has not answered yet, is named to nobody, nor counted: it would time that one's work.
        """
        if self._epoch is None:
            return []
        if self.phase is Phase.VOTING:
            return self._show_record(self._epoch) or self._abandoned_vote(self._epoch, patient=False)
        waited_for = set(self.waiting_for())
        self._epoch.unnamed = waited_for - self.absent
        self.absent |= waited_for
        effects = self._advance()
        if effects or self._epoch is None:
            return effects
        return self._give_up(f"too few answers while {self.phase.value}{self._without(self._epoch, waited_for)}")

    def settle_vote(self) -> list[Effect]:
        """Who has voted has had the time to say so again: an end that nobody can vote for any more is given up."""
        return [] if self._epoch is None or self.phase is not Phase.VOTING else self._abandoned_vote(self._epoch)

    def waiting_for(self) -> tuple[int, ...]:
        """Whose message the present phase waits for, those that are gone or absent included in lockstep."""
        epoch = self._epoch
        if epoch is None:
            return ()
        away = set() if self.charter.aggregation.mode == "lockstep" else self.absent | epoch.gone
        everybody, done = self._progress(epoch)
        return tuple(sorted(set(everybody) - set(done) - away))

    def _progress(self, epoch: _Epoch) -> tuple[Collection[int], Collection[int]]:
        """Whose message the present phase asks for, and who has sent it."""
        if self.phase is Phase.ADVERTISING:
            return epoch.plan.cohort, epoch.advertised
        if self.phase is Phase.SEALING:
            return epoch.taking_part, epoch.sealed
        if self.phase is Phase.OPENING:
            return epoch.members, epoch.heard
        if self.phase is Phase.VOTING:
            return epoch.members, epoch.votes
        if epoch.step is None:
            return (), ()
        done = {Phase.AGREEING: epoch.step.signatures, Phase.UNMASKING: epoch.step.answers}
        return epoch.members, done.get(self.phase, epoch.step.inputs)

    def _awaits_somebody(self) -> bool:
        """Whether `waiting_for` names anybody; seen by the numbers alone while many are missing."""
        if self._epoch is None:
            return False
        everybody, done = self._progress(self._epoch)
        surely = len(everybody) > len(done) + len(self.absent) + len(self._epoch.gone)
        return surely or bool(self.waiting_for())

    def behind(self) -> tuple[int, ...]:
        """Who has been heard of, and does not have the newest certificate."""
        return tuple(sorted(member for member, head in self._at.items() if head != self.head))

    @property
    def under_way(self) -> bool:
        """Whether epochs of this charter were opened before: some are certified, or members have joined one.

        More members than may collude must say so, so that a server that was started again knows it without its record.
        """
        return self.certified > self.charter.earlier or self._believed() > 0

    def bound_elsewhere(self) -> tuple[int, ...]:
        """Who has voted for an epoch, or for an end of the running one, that this server does not have.

        They go on with nothing else. After a loss of this server's record they give it back, and others vote for it;
        else they, or this server, are not what they seem.
        """
        dissent = self._epoch.dissent if self._epoch else set()
        return tuple(sorted(dissent.union(*(candidate.votes for candidate in self._candidates.values()))))

    def cohort(self) -> tuple[int, ...]:
        """Who could make an epoch now: present, at this head, whole blocks, without pairs that are in conflict.

        Empty when that is too few.
        """
        present = {
            member
            for member in self.charter.everybody
            if member not in self.absent and self._at.get(member) == self.head
        }
        if self._voted_elsewhere():
            return ()
        # Where nobody could go on without a pair in conflict, it may try again, and fail, and say so.
        return self._summable(present - self._barred(present)) or self._summable(present)

    def _summable(self, members: set[int]) -> tuple[int, ...]:
        chosen = self.charter.whole_blocks(members)
        try:
            self.charter.check_summed(chosen)
        except CohortRefused:
            return ()
        return chosen

    # -- an epoch ---------------------------------------------

    def open_epoch(self, cohort: Sequence[int]) -> list[Effect]:
        """Invite these members to the next epoch.

        Raises:
            LocalProtocolError: an epoch is running, or all are certified.
            CohortRefused: a cohort that must not be summed.
        """
        if self._epoch is not None or self.done:
            raise LocalProtocolError(f"open_epoch while {self.phase.value}", "while idle, before the last epoch")
        offer = Offer(self._number(), tuple(sorted(cohort)), self.head)
        plan = self.history.plan(offer)
        self._journal.running(Opened(offer))
        self._next_epoch, self._opened = offer.epoch + 1, self._opened + 1
        self._epoch, self.phase = _Epoch(plan), Phase.ADVERTISING
        invitation = Invitation(offer)
        return [EpochBegan(plan), *(SendTo(member, invitation) for member in offer.cohort)]

    def _number(self) -> int:
        """The next epoch's number: one that every honest member takes, whatever colluders say they have joined."""
        claims = self._claimed()
        return min(max([self._next_epoch, *claims]), max(self._next_epoch, self._believed()) + MOST_JUMPED_EPOCHS)

    def _believed(self) -> int:
        """The highest of the next epochs that members name, but those which colluders alone may have made up."""
        claims, colluders = self._claimed(), self.charter.aggregation.colluders
        return claims[colluders] if len(claims) > colluders else 0

    def _claimed(self) -> list[int]:
        return sorted((claim for member, claim in self._claims.items() if member not in self.absent), reverse=True)

    def receive(self, member: int, message: ToServer, frames: tuple[bytes, ...] = ()) -> list[Effect]:
        """Take one message of a member; the caller vouches that it came over that member's transport key.

        Raises:
            RemoteProtocolError: the message was refused; nothing has changed.
        """
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise UnexpectedMessage(f"{type(message).__name__} of member {member}", "messages of an epoch's members")
        if frames and not isinstance(message, MaskedInput | EpochRecord):
            raise VectorRefused(f"{len(frames)} frames behind {type(message).__name__}", "none")
        return handler(self, member, message, frames)

    # -- set-up ---------------------------------------------

    def _on_advertisement(self, member: int, message: Advertisement, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if self.phase is not Phase.ADVERTISING:
            if message == epoch.advertised.get(member, message):
                return []  # the same again, or too late
            raise UnexpectedMessage("a second advertisement", "one an epoch")
        if message.member != member:
            raise CohortRefused(f"member {message.member}'s advertisement from member {member}", "its own")
        if member in epoch.advertised:
            if message == epoch.advertised[member]:
                return []
            raise UnexpectedMessage("a second advertisement", "one an epoch")
        check_advertisement(epoch.plan, message)
        identity = self._roster.members[member].identity_key
        verify(identity, message.signature, "advertisement", *message.signed_parts())
        check_public_keys(epoch.plan, message)
        epoch.keys.add(message)
        epoch.advertised[member] = message
        return self._advance()

    def _on_seals(self, member: int, message: Seals, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if member in epoch.sealed:
            return []  # the same again, or too late
        if self.phase is not Phase.SEALING:
            raise UnexpectedMessage("late seals", f"none while {self.phase.value}")
        receivers = tuple(item.member for item in message.items)
        expected = epoch.partners(member) if member in epoch.taking_part else ()
        if not expected or receivers != expected:
            raise ShareRefused(f"seals for members {list(receivers)}", f"one for each of {list(expected)}")
        near = set(expected if epoch.ring is None else epoch.ring.of(member))
        for item in message.items:
            size = plain_seal_bytes(epoch.plan, shares=item.member in near)
            if len(item.ciphertext) != size:
                raise ShareRefused(f"a seal of {len(item.ciphertext)} bytes", f"{size} bytes")
            statement = seal_statement(epoch.transcript, member, item.member, item.kem, item.ciphertext)
            verify(self._roster.members[member].identity_key, item.signature, "seal", *statement)
        self._journal.sealed(member, message.items)
        epoch.sealed.add(member)
        return self._advance()

    def _on_opened_starts(self, member: int, message: OpenedStarts, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if self.phase in (Phase.ADVERTISING, Phase.SEALING) or epoch.ring is None or member not in epoch.taking_part:
            raise UnexpectedMessage(f"start shares of member {member}", "those of members that were sent seals")
        if self.phase is not Phase.OPENING or member in epoch.heard:
            return []
        known = sorted((member, *epoch.ring.partners(member)))
        check_start_shares(epoch.plan, [epoch.advertised[one] for one in known], message.shares)
        cut = range(0, len(message.shares), KEY_BYTES)
        epoch.starts |= zip(known, (message.shares[at : at + KEY_BYTES] for at in cut), strict=True)
        epoch.heard.add(member)
        return self._advance()

    def _on_complaint(self, member: int, message: Complaint, frames: tuple[bytes, ...]) -> list[Effect]:
        """A pair that cannot talk takes no part together in a later epoch; neither's secrets are shown for it."""
        epoch = self._current(message.plan)
        if member not in epoch.members or message.member not in epoch.members or member == message.member:
            raise CohortRefused("a complaint about a stranger", "about a member of the epoch")
        if self.phase is Phase.VOTING or (epoch.step is not None and epoch.step.number > 0):
            raise UnexpectedMessage("a complaint after the first step", "one at the end of the set-up")
        if message.member not in epoch.partners(member):
            raise CohortRefused("a complaint about a member that sealed nothing for this one", "about one that did")
        self.conflicts.add((min(member, message.member), max(member, message.member)))
        names = (self._roster.members[member].name, self._roster.members[message.member].name)
        return self._give_up(f"{names[0]} could not open what {names[1]} sealed for it")

    def _barred(self, present: set[int]) -> set[int]:
        """Who stays away.

        For a while, who left a set-up; and so that no pair in conflict meets, who is in most conflicts, else each side
        in turn.
        """
        if self.charter.aggregation.mode == "lockstep":
            return set()  # everybody or nobody: the epoch will fail again, and say who
        barred = {member for member, (_, until) in self._left.items() if self._opened < until} & present
        pairs = {pair for pair in self.conflicts if set(pair) <= present - barred}
        while pairs:
            counts = {member: sum(member in pair for pair in pairs) for pair in pairs for member in pair}
            turn = 1 if self._opened % 2 else -1  # a liar must not choose which of the two stays away for good
            worst = max(counts, key=lambda member: (counts[member], turn * member))
            barred.add(worst)
            pairs = {pair for pair in pairs if worst not in pair}
        return barred

    # -- a step ---------------------------------------------

    def _on_masked_input(self, member: int, message: MaskedInput, frames: tuple[bytes, ...]) -> list[Effect]:
        """A vector that comes too late is ignored, not refused: what is refused is said, and would time its sender."""
        if self._epoch is None or message.plan != self._epoch.plan.digest or self._is_late(message.plan, message.step):
            return []  # of an epoch that is over; or the same again, of a step whose sum is on its way to the member
        epoch, step = self._in_step(member, message.plan, message.step)
        if member in epoch.gone or self.phase is not Phase.COLLECTING:
            return []  # at another state than all others; or of a step whose survivors are announced
        if member in step.inputs:
            return self._advance()  # the same bytes again, after a reconnect; or the disk did not take the sum
        if len(frames) != 1:
            raise VectorRefused(f"{len(frames)} frames behind a masked input", "one")
        plan = epoch.plan
        form = plan.spec(step.number).words, plan.modulus_bits(step.number)
        vector = Packed(frames[0], *form)
        if epoch.public is None:
            check_start_shares(plan, epoch.shown, message.start)
            epoch.public = self.history.begin(plan, epoch.shown, message.start)
        if message.chain != epoch.public.chain:
            epoch.gone.add(member)
            name = self._roster.members[member].name
            error = CourseDiverged(f"a vector at another state than the server's in step {step.number}", "its chain")
            refusal = SendTo(member, Refusal(error.code, error.found, error.allowed, plan.digest))
            return [refusal, *self._advance_or_give_up(member, f"{name} stands at another state of the course")]
        block = self._block_of(member)
        if block not in step.totals:
            step.totals[block] = PackedSum(*form)
        step.totals[block].add(vector)
        del vector, frames  # what follows takes memory of its own
        step.tags[block] = step.tags.get(block, 0) + tag_number(message.tag)
        step.inputs.add(member)
        if epoch.ring is None and block != _ALL and step.inputs.issuperset(self.charter.blocks[block]):
            step.join(block)
        return self._advance()

    def _block_of(self, member: int) -> int:
        """Which running sum a member's vector goes into: its block's, or the one of all."""
        aggregation = self.charter.aggregation
        if aggregation.mode == "lockstep" or aggregation.losses == "allow":
            return _ALL
        return self._blocks[member]

    def _on_signature(self, member: int, message: SurvivorSignature, frames: tuple[bytes, ...]) -> list[Effect]:
        if self._is_late(message.plan, message.step):
            return []  # enough others have signed
        _, step = self._in_step(member, message.plan, message.step)
        if self.phase is not Phase.AGREEING:
            return []
        verify(self._roster.members[member].identity_key, message.signature, "survivors", *step.statement)
        step.signatures[member] = message.signature
        return self._advance()

    def _on_unmask(self, member: int, message: UnmaskShares, frames: tuple[bytes, ...]) -> list[Effect]:
        if self._is_late(message.plan, message.step):
            return []  # enough others have answered
        epoch, step = self._in_step(member, message.plan, message.step)
        if self.phase is not Phase.UNMASKING:
            raise UnexpectedMessage(f"unmasking shares of member {member}", "shares, when asked for")
        if len(message.shares) != KEY_BYTES * epoch.held(member):
            raise ShareRefused(f"{len(message.shares)} bytes of shares", f"{KEY_BYTES * epoch.held(member)}")
        if member in step.answers:
            return self._advance()  # perhaps the sum was rebuilt, and the disk did not take it
        step.answers[member] = message.shares
        return self._advance()

    def _on_refusal(self, member: int, message: Refusal, frames: tuple[bytes, ...]) -> list[Effect]:
        """What a member refused it will not answer; a sum that failed at more than all colluders ends the epoch."""
        epoch = self._epoch
        if epoch is None or member not in epoch.plan.invited or message.plan not in (b"", epoch.plan.digest):
            return []
        if not message.plan and self.phase is not Phase.ADVERTISING:
            return []  # about no plan: of this epoch's, only the invitation can be meant
        name, wrong = self._roster.members[member].name, message.code == WrongSum.code
        reason = f"{name} saw a sum that failed its check: the server or a member changed it" if wrong else ""
        known = member in epoch.gone
        epoch.gone.add(member)
        if wrong and message.plan:
            epoch.wrong_sums.add(member)
            if len(epoch.wrong_sums) > self.charter.aggregation.colluders:
                return self._give_up(reason, wrong_sum=True)
        if self.phase is Phase.VOTING:  # who refuses what it is shown is not shown it again
            return [] if known else self._show_record(epoch) or self._abandoned_vote(epoch)
        return self._advance_or_give_up(member, reason or f"{name} refused ({message.code})", wrong_sum=wrong)

    # -- progress ---------------------------------------------

    def _advance(self) -> list[Effect]:
        epoch = self._epoch
        if epoch is None:
            return []
        step, plan = epoch.step, epoch.plan
        if self.phase is Phase.AGREEING and step is not None and len(step.signatures) >= plan.least_signers:
            self._journal.running(Agreed(step.number, self._signatures(step).items))
            self.phase = Phase.UNMASKING
            return self._tell(self._signatures(step))
        if self.phase is Phase.OPENING and len(epoch.starts) == len(epoch.members):
            return self._tell_starts(epoch)
        if self.phase is Phase.UNMASKING and step is not None and self._enough_answers(epoch, step):
            effects = self._open_sum(epoch, step)
            if effects or self._epoch is None:
                return effects
        if self.phase is Phase.VOTING:
            return self._count_votes(epoch) or self._abandoned_vote(epoch)
        if self._awaits_somebody():
            return []
        if self.phase is Phase.ADVERTISING:
            return self._show_advertisements(epoch)
        if self.phase is Phase.SEALING:
            return self._close_set_up(epoch)
        if self.phase is Phase.COLLECTING and step is not None:
            return self._close_step(epoch, step)
        return self._give_up(f"too few answers while {self.phase.value}")

    def _advance_or_give_up(self, member: int, reason: str = "", *, wrong_sum: bool = False) -> list[Effect]:
        if self.charter.aggregation.mode == "lockstep":
            reason = reason or f"{self._roster.members[member].name} was started again"
            return self._give_up(reason, wrong_sum=wrong_sum)
        return self._advance()

    def _without(self, epoch: _Epoch, members: set[int]) -> str:
        """Who of these has left, for a reason; those that are there and have not answered are named nowhere."""
        left = sorted(members & (self.absent | epoch.gone) - epoch.unnamed)
        return f" without {', '.join(self._roster.members[member].name for member in left)}" if left else ""

    def _whole(self, epoch: _Epoch, members: set[int]) -> tuple[int, ...]:
        chosen = self._summable(members - epoch.gone)
        return chosen if len(chosen) >= epoch.plan.least_members else ()

    def _show_advertisements(self, epoch: _Epoch) -> list[Effect]:
        chosen = self._whole(epoch, set(epoch.advertised))
        if not chosen:
            missing = set(epoch.plan.cohort) - set(epoch.advertised)
            return self._give_up(f"too few members advertised{self._without(epoch, missing)}")
        shown = tuple(epoch.advertised[member] for member in chosen)
        self._journal.running(Shown(shown))
        self._seal(epoch, shown)
        message = Advertisements(epoch.plan.digest, epoch.shown)
        return [SendTo(member, message) for member in chosen]

    def _seal(self, epoch: _Epoch, shown: tuple[Advertisement, ...]) -> None:
        epoch.shown, epoch.taking_part = shown, frozenset(item.member for item in shown)
        epoch.transcript = links.transcript(epoch.plan.digest, [item.digest for item in shown])
        epoch.ring = epoch.plan.ring(epoch.transcript, tuple(item.member for item in shown))
        self.phase = Phase.SEALING

    def _close_set_up(self, epoch: _Epoch) -> list[Effect]:
        chosen = tuple(item.member for item in epoch.shown)
        if set(chosen) - set(epoch.sealed):
            # Who is in the epoch is fixed before anybody opens a value, or it would choose the start.
            missing = set(chosen) - set(epoch.sealed)
            for member in missing:
                count = self._left.get(member, (0, 0))[0] + 1
                self._left[member] = count, self._opened + min(1 << (count - 1), MOST_EPOCHS_AWAY) - 1
            return self._give_up(f"not all members sealed{self._without(epoch, missing)}")
        self._journal.running(Delivered(epoch.seals))
        self._deliver(epoch, chosen)
        deliveries = [SendSeals(member, partial(self._delivery, epoch, member)) for member in chosen]
        return [*deliveries, *([] if epoch.ring else [StepBegan(0, epoch.plan.spec(0).task)])]

    def _deliver(self, epoch: _Epoch, members: tuple[int, ...]) -> None:
        epoch.members, epoch.step = members, _Step(0)
        self.phase = Phase.COLLECTING if epoch.ring is None else Phase.OPENING

    def _tell_starts(self, epoch: _Epoch) -> list[Effect]:
        start = b"".join(epoch.starts[member] for member in epoch.members)
        self._journal.running(Started(start))
        self._start(epoch, start)
        return [*self._tell(Starts(epoch.plan.digest, start)), StepBegan(0, epoch.plan.spec(0).task)]

    def _start(self, epoch: _Epoch, start: bytes) -> None:
        epoch.public = self.history.begin(epoch.plan, epoch.shown, start)
        self.phase = Phase.COLLECTING

    def _delivery(self, epoch: _Epoch, member: int) -> SealDelivery:
        return SealDelivery(epoch.plan.digest, self._journal.seals_for(member))

    def _close_step(self, epoch: _Epoch, step: _Step) -> list[Effect]:
        """All vectors are there, or will not come: the sum is over whole blocks."""
        lockstep = self.charter.aggregation.mode == "lockstep"
        survivors = tuple(sorted(step.inputs)) if lockstep else self._summed(step.inputs)
        if not survivors or (lockstep and survivors != epoch.members):
            without = self._without(epoch, set(epoch.members) - step.inputs)
            return self._give_up(f"too few vectors for step {step.number}{without}")
        if step.total is None:
            blocks = set(map(self._block_of, survivors))
            chosen = {block if block in step.totals else _ALL for block in blocks}
            total, tag = _added(epoch.plan, step, chosen), sum(step.tags[block] for block in chosen) % (1 << 128)
            if survivors == epoch.members:  # none can come: only the total is kept
                step.total, step.tag, step.totals = total, tag, {}
        else:  # the disk did not take it
            total, tag = step.total, step.tag
        if lockstep:
            return self._publish(epoch, step, survivors)
        frame = pack(total, epoch.plan.modulus_bits(step.number))
        self._journal.running(Closed(step.number, survivors, tag_bytes(tag), frame, _start_of(epoch, step)))
        step.survivors, step.total, step.tag, step.totals = survivors, total, tag, {}
        self._after_close(epoch, step)
        return self._tell(Survivors(epoch.plan.digest, step.number, survivors))

    def _summed(self, inputs: set[int]) -> tuple[int, ...]:
        """Whose vectors the sum can hold, empty if too few: on a ring each has enough neighbours among them.

        A block that lacks some is left out, and again until none does. With `losses = "allow"` all vectors are in one
        running sum, of which nobody's can be taken away.
        """
        chosen, ring = self.charter.whole_blocks(inputs), self._epoch.ring if self._epoch else None
        while ring is not None and (few := ring.lacking(chosen, chosen)):
            if self.charter.aggregation.losses == "allow":
                return ()
            chosen = self.charter.whole_blocks(set(chosen) - set(few))
        return chosen if len(chosen) >= self.charter.aggregation.least_survivors else ()

    def _after_close(self, epoch: _Epoch, step: _Step) -> None:
        assert epoch.public is not None  # noqa: S101 - begun with the first vector
        step.statement = survivor_statement(epoch.public.chain, step.number, step.survivors)
        agreed = step.survivors == epoch.members and epoch.ring is None
        self.phase = Phase.UNMASKING if agreed else Phase.AGREEING

    def _enough_answers(self, epoch: _Epoch, step: _Step) -> bool:
        """On a ring each secret has other holders: all that are there are waited for."""
        return len(step.answers) >= epoch.plan.threshold and (epoch.ring is None or not self._awaits_somebody())

    def _open_sum(self, epoch: _Epoch, step: _Step) -> list[Effect]:
        assert step.total is not None and epoch.public is not None  # noqa: S101 - closed before
        if step.opened:  # the disk did not take it
            return self._publish(epoch, step, step.survivors)
        advertised = {item.member: item for item in epoch.shown}
        if epoch.ring is None:
            rebuilt = rebuild(epoch.plan, advertised, epoch.members, step.survivors, step.number, step.answers)
        else:
            rebuilt = rebuild_on(epoch.ring, epoch.plan, advertised, step.survivors, step.number, step.answers)
        if rebuilt is None:
            if self._awaits_somebody():
                return []
            return self._give_up(f"wrong shares in step {step.number}: its sum cannot be rebuilt")
        tag = unmask(
            epoch.plan,
            advertised,
            epoch.transcript,
            step.survivors,
            step.number,
            epoch.public.chain,
            rebuilt,
            step.total,
            step.tag,
            ring=epoch.ring,
        )
        step.total, step.tag, step.opened = _reduced(epoch.plan, step), tag % (1 << 128), True
        return self._publish(epoch, step, step.survivors)

    def _publish(self, epoch: _Epoch, step: _Step, survivors: tuple[int, ...]) -> list[Effect]:
        """Publish a step's sum and that of its tags, which have no masks; if it raises, it can be tried again.

        Raises:
            OSError: the last sum is not on disk: one member that votes for it would be bound to what nobody has.
        """
        assert step.total is not None and epoch.public is not None  # noqa: S101 - closed before
        plan, public = epoch.plan, epoch.public
        try:
            public.check_sum(survivors, step.total)
        except WrongSum:
            return self._give_up(f"a member sent numbers out of range in step {step.number}", wrong_sum=True)
        frame, tag = self._journal.held(pack(step.total, plan.modulus_bits(step.number))), tag_bytes(step.tag)
        entry = Summed(step.number, survivors, tag, frame, _start_of(epoch, step))
        self._journal.running(entry, must=step.number + 1 == plan.steps)
        step.total = None
        sums = public.absorb(survivors, frame, tag)
        message = Published(plan.digest, step.number, survivors, tag)
        effects: list[Effect] = [SendTo(member, message, (frame,)) for member in epoch.members]
        spec, agreed = plan.spec(step.number), survivors != epoch.members
        form = frame, spec.words, plan.modulus_bits(step.number)
        effects.append(StepFinished(step.number, spec.task, sums, survivors, epoch.members, agreed, *form))
        self._after_sum(epoch, public)
        if public.over:
            return effects
        effects.append(StepBegan(public.step, plan.spec(public.step).task))
        return effects

    def _after_sum(self, epoch: _Epoch, public: Trajectory) -> None:
        if public.over:
            epoch.step, self.phase = None, Phase.VOTING
        else:
            epoch.step, self.phase = _Step(public.step), Phase.COLLECTING

    # -- going on in a new process ---------------------------------------------

    def _go_on(self, offer: Offer, entries: Sequence[Entry]) -> None:
        """Members that still hold their keys are told what they lack, and answer as they did before.

        They count as there until it is said that they are lost.
        """
        epoch = self._epoch = _Epoch(self.history.plan(offer))
        self.phase, self._next_epoch = Phase.ADVERTISING, offer.epoch + 1
        self.absent -= set(offer.cohort)
        for entry in entries:
            self._go_on_with(epoch, entry)

    def _go_on_with(self, epoch: _Epoch, entry: Entry) -> None:
        plan, phase = epoch.plan, self.phase
        if isinstance(entry, Shown) and phase is Phase.ADVERTISING:
            check_shown(plan, entry.items)
            check_distinct_keys(entry.items)
            for item in entry.items:
                check_advertisement(plan, item)
                identity = self._roster.members[item.member].identity_key
                verify(identity, item.signature, "advertisement", *item.signed_parts())
            epoch.advertised = {item.member: item for item in entry.items}
            self._seal(epoch, entry.items)
        elif isinstance(entry, Delivered) and phase is Phase.SEALING:
            members = tuple(item.member for item in epoch.shown)
            if entry.seals != epoch.seals:
                raise ShareRefused(f"{entry.seals} seals written down", f"{epoch.seals} of the epoch's members")
            epoch.sealed = set(members)
            self._deliver(epoch, members)
        elif isinstance(entry, Started) and phase is Phase.OPENING:
            check_start_shares(plan, epoch.shown, entry.start)
            self._start(epoch, entry.start)
        elif isinstance(entry, Closed) and phase is Phase.COLLECTING and epoch.step is not None:
            self._begun(epoch, entry).check_members(entry.members)
            step = epoch.step
            step.inputs, step.survivors, step.tag = set(entry.members), entry.members, tag_number(entry.tag)
            step.total = unpack(entry.frame, plan.spec(step.number).words, plan.modulus_bits(step.number))
            self._after_close(epoch, step)
        elif isinstance(entry, Agreed) and phase is Phase.AGREEING and epoch.step is not None:
            self._agreed(epoch, epoch.step, entry)
        elif isinstance(entry, Summed) and epoch.step is not None:
            public = self._begun(epoch, entry)
            public.check_members(entry.members)
            public.absorb(entry.members, entry.frame, entry.tag)
            self._after_sum(epoch, public)
        else:
            raise WrongContext(f"{type(entry).__name__} written down while {phase.value}", "what follows there")

    def _agreed(self, epoch: _Epoch, step: _Step, entry: Agreed) -> None:
        for item in entry.items:
            verify(self._roster.members[item.member].identity_key, item.signature, "survivors", *step.statement)
            step.signatures[item.member] = item.signature
        if entry.step != step.number or len(step.signatures) < epoch.plan.least_signers:
            raise WrongContext(f"{len(step.signatures)} signatures of step {entry.step} written down", "enough")
        self.phase = Phase.UNMASKING

    def _begun(self, epoch: _Epoch, entry: Closed | Summed) -> Trajectory:
        if epoch.step is None or entry.step != epoch.step.number:
            raise WrongContext(f"step {entry.step} written down", "the steps in order")
        if epoch.public is None:
            check_start_shares(epoch.plan, epoch.shown, entry.start)
            epoch.public = self.history.begin(epoch.plan, epoch.shown, entry.start)
        return epoch.public

    # -- an epoch's end ---------------------------------------------

    def _on_vote(self, member: int, message: Vote, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._epoch
        vote = SignedBy(member, message.signature)
        public = epoch.public if epoch is not None and self.phase is Phase.VOTING else None
        if epoch is not None and public is not None and (message.plan, message.chain) == _ended(public):
            if member in epoch.votes and len(epoch.votes) < self.charter.quorum:
                return []
            epoch.votes.update(valid_votes(self._roster, public, [vote]))
            self._at[member] = self.head
            return self._count_votes(epoch)
        if epoch is not None and public is not None and message.plan == epoch.plan.digest:
            epoch.dissent.add(member)
        candidate = self._candidates.get((message.plan, message.chain))
        if candidate is not None:
            return self._more_votes(candidate, valid_votes(self._roster, candidate.public, [vote]))
        return []  # certified by others' votes meanwhile, or to be shown with its record

    def _count_votes(self, epoch: _Epoch) -> list[Effect]:
        assert epoch.public is not None  # noqa: S101 - VOTING
        if len(epoch.votes) >= self.charter.quorum:
            return self._certify(epoch.public, epoch.votes)
        # Who is left of the epoch and could vote by its own checks.
        surely = len(epoch.members) > len(epoch.votes) + len(self.absent) + len(epoch.gone)
        present = surely or set(epoch.members) - self.absent - epoch.gone - set(epoch.votes)
        return [] if present else self._show_record(epoch)

    def _certify(self, public: Trajectory, votes: Mapping[int, SignedBy]) -> list[Effect]:
        signed = tuple(votes[number] for number in sorted(votes))
        kept = public.record(signed)
        self._journal.certified(kept)
        running = self._epoch
        ended: list[Effect] = []
        if running is not None and running.public is not public:
            ended = self._give_up("an epoch that enough have voted for comes first")
        self.history.append(public)
        self._next_epoch = max(self._next_epoch, public.plan.offer.epoch + 1)
        for member in public.members:
            self._left.pop(member, None)
        self._epoch, self.phase, self._candidates = None, Phase.IDLE, {}
        effects: list[Effect] = []
        certificate = Certificate(public.plan.digest, signed)
        was_in = set(public.members) - running.gone if running is not None and running.public is public else set[int]()
        for member in self.charter.everybody:
            if member in was_in:
                if member not in self.absent and not self.done:
                    self._at[member] = self.head  # of the last one, it will say so itself
                effects.append(SendTo(member, certificate))
            elif member not in self.absent:
                try:
                    effects += self._catch_up(member)
                except OSError:  # of an earlier record; this epoch is certified all the same
                    error = HelloNeeded("a record that could not be read for this member", "Hello, to be told it")
                    effects.append(SendTo(member, Refusal(error.code, error.found, error.allowed)))
        return [*ended, EpochCertified(self.certified, public.publication(), kept), *effects]

    def _show_record(self, epoch: _Epoch) -> list[Effect]:
        """Show everybody present who has not voted what they can vote by; nothing while nobody has voted."""
        return [] if epoch.public is None else self._show(epoch.public, epoch.votes)

    def _show(self, public: Trajectory, votes: Mapping[int, SignedBy]) -> list[Effect]:
        if len(set(votes) & set(public.members)) <= self.charter.aggregation.colluders:
            return []  # it would move nobody
        record, frames = public.record([votes[number] for number in sorted(votes)])
        waiting = set(self.charter.everybody) - set(votes) - self.absent
        return [SendTo(member, record, frames) for member in sorted(waiting)]

    def _abandoned_vote(self, epoch: _Epoch, *, patient: bool = True) -> list[Effect]:
        """Give an epoch up that has all sums and will not be certified; who has voted for it is bound, and is named.

        In lockstep: if nobody has voted, and nobody is left who could by their own checks. Resilient: if no more have
        voted than may collude, which moves nobody by record, and of those who could vote by their own checks none is
        left, or none has for long; else a few could stop all others for good.
        """
        able = set(epoch.members) - epoch.gone - set(epoch.votes)
        if self.charter.aggregation.mode == "lockstep":
            if epoch.votes or able:
                return []
        elif len(epoch.votes) > self.charter.aggregation.colluders or (patient and able):
            return []
        if epoch.votes and epoch.public is not None:
            self._candidates[_ended(epoch.public)] = _Candidate(epoch.public, min(epoch.votes), dict(epoch.votes))
        return self._give_up("too few are left that checked all sums", wrong_sum=bool(epoch.wrong_sums))

    def _on_record(self, member: int, message: EpochRecord, frames: tuple[bytes, ...]) -> list[Effect]:
        """A member gives back what this server lost: a certified epoch, or one that it has voted for."""
        if message.offer.head != self.head:
            return []  # known, or after one that is not yet here
        given = {vote.member for vote in message.votes}
        if member not in given and len(given) < self.charter.quorum:
            raise CertificateRefused("a record without its giver's vote", "its own vote, or a certificate")
        public = self.history.replay((message, frames))
        votes = valid_votes(self._roster, public, message.votes)
        epoch = self._epoch
        if epoch is not None and epoch.public is not None and epoch.plan.digest == public.plan.digest:
            if self.phase is not Phase.VOTING or epoch.public.chain != public.chain:
                raise CertificateRefused("other sums than this server has published", "the same")
            epoch.votes.update(votes)
            return self._count_votes(epoch)
        key = _ended(public)
        if key not in self._candidates:
            colluders = self.charter.aggregation.colluders
            # One of each giver, or a member could fill the memory; but for those that an honest member is bound to.
            for known in [known for known, one in self._candidates.items() if one.giver == member]:
                if len(self._candidates[known].votes) <= colluders:
                    del self._candidates[known]
        return self._more_votes(self._candidates.setdefault(key, _Candidate(public, member, {})), votes)

    def _more_votes(self, candidate: _Candidate, votes: Mapping[int, SignedBy]) -> list[Effect]:
        """Count them; show the record where it moves others to vote: as its members' votes outnumber all colluders."""
        public, before = candidate.public, len(set(candidate.votes) & set(candidate.public.members))
        candidate.votes.update(votes)
        if len(candidate.votes) >= self.charter.quorum:
            return self._certify(public, candidate.votes)
        after = len(set(candidate.votes) & set(public.members))
        return self._show(public, candidate.votes) if before <= self.charter.aggregation.colluders < after else []

    def _voted_elsewhere(self) -> bool:
        """Whether members are bound by their votes to an epoch that must be certified first.

        In lockstep one vote is enough, since nothing goes on without that member; else more than all colluders' votes.
        """
        lockstep = self.charter.aggregation.mode == "lockstep"
        return len(self.bound_elsewhere()) > (0 if lockstep else self.charter.aggregation.colluders)

    def _catch_up(self, member: int) -> list[Effect]:
        """The next certified epoch that a member lacks; when it has it, it says Hello again, and gets the next."""
        at, heads = self._at.get(member), self.history.heads
        if at is None or at not in heads:
            return []  # further than this server: it will give back what is missing here
        place = heads.index(at)
        if place == len(heads) - 1:
            return [effect for candidate in self._candidates.values() for effect in self._show_to(member, candidate)]
        return [SendTo(member, *self._journal.recall(place))]

    def _show_to(self, member: int, candidate: _Candidate) -> list[Effect]:
        shown = self._show(candidate.public, candidate.votes)
        return [effect for effect in shown if isinstance(effect, SendTo) and effect.member == member]

    def _remind_voter(self, epoch: _Epoch, member: int, plan: bytes, sums: int) -> list[Effect]:
        if member in epoch.votes or epoch.public is None:
            return []
        if plan == epoch.plan.digest and member in epoch.members:  # not one that advertised, and was left out
            # Perhaps it has not even the seals; a server that was started again has them no more.
            seals: list[Effect] = [] if sums or not epoch.sealed else [SendTo(member, self._delivery(epoch, member))]
            if seals and epoch.ring is not None:
                seals.append(SendTo(member, Starts(plan, epoch.public.start)))
            return [*seals, *self._missing_sums(member, sums)]
        epoch.gone.add(member)  # it has no keys: it has forgotten what it checked, or voted, and gives that back
        shown = self._show_record(epoch) if epoch.votes else []
        return [one for one in shown if isinstance(one, SendTo) and one.member == member]

    # -- repeating ---------------------------------------------

    def _repeat(self, member: int, sums: int) -> list[Effect]:
        """What a member that is connected again is waited for. Clients answer repeats with the same bytes."""
        epoch = self._epoch
        assert epoch is not None  # noqa: S101 - asked within an epoch
        if self.phase is Phase.ADVERTISING:
            asked = set(epoch.plan.cohort) - epoch.gone
            return [SendTo(member, Invitation(epoch.plan.offer))] if member in asked else []
        if self.phase is Phase.SEALING:
            if member not in epoch.taking_part:
                return []
            return [SendTo(member, Advertisements(epoch.plan.digest, epoch.shown))]
        if member not in epoch.members or epoch.step is None:
            return []
        effects: list[Effect] = [SendTo(member, self._delivery(epoch, member))]
        if epoch.ring is not None and epoch.public is not None:
            effects.append(SendTo(member, Starts(epoch.plan.digest, epoch.public.start)))
        effects += self._missing_sums(member, sums)
        if self.phase in (Phase.AGREEING, Phase.UNMASKING):
            step = epoch.step
            effects.append(SendTo(member, Survivors(epoch.plan.digest, step.number, step.survivors)))
            if self.phase is Phase.UNMASKING and step.signatures:
                effects.append(SendTo(member, self._signatures(step)))
        return effects

    def _missing_sums(self, member: int, sums: int) -> list[Effect]:
        epoch = self._epoch
        if epoch is None or epoch.public is None:
            return []
        steps = list(zip(epoch.public.steps, epoch.public.frames, strict=True))
        return [
            SendTo(member, Published(epoch.plan.digest, number, step.members, step.tag), (frame,))
            for number, (step, frame) in enumerate(steps)
            if number >= sums
        ]

    def _tell(self, message: ToClient) -> list[Effect]:
        assert self._epoch is not None  # noqa: S101 - within an epoch
        return [SendTo(member, message) for member in self._epoch.members]

    def _signatures(self, step: _Step) -> SurvivorSignatures:
        assert self._epoch is not None  # noqa: S101 - within an epoch
        items = tuple(SignedBy(member, signature) for member, signature in sorted(step.signatures.items()))
        return SurvivorSignatures(self._epoch.plan.digest, step.number, items)

    def _give_up(self, reason: str, *, wrong_sum: bool = False) -> list[Effect]:
        epoch = self._epoch
        assert epoch is not None  # noqa: S101 - within an epoch
        self._journal.given_up()
        self._epoch, self.phase = None, Phase.IDLE
        message = GivenUp(epoch.plan.digest, reason[:512])
        told = [SendTo(member, message) for member in epoch.plan.cohort if member not in self.absent]
        return [EpochGivenUp(epoch.plan.offer.epoch, reason, wrong_sum), *told]

    # -- context ---------------------------------------------

    def _current(self, plan: bytes) -> _Epoch:
        if self._epoch is None or plan != self._epoch.plan.digest:
            raise WrongContext(f"a message of plan {plan.hex()[:16]}…", "the plan in force")
        return self._epoch

    def _is_late(self, plan: bytes, step: int) -> bool:
        """Whether a step's sum is out already."""
        epoch = self._current(plan)
        return epoch.public is not None and step < epoch.public.step

    def _in_step(self, member: int, plan: bytes, number: int) -> tuple[_Epoch, _Step]:
        epoch = self._current(plan)
        if epoch.step is None or number != epoch.step.number or member not in epoch.taking_part:
            at = epoch.step.number if epoch.step else "none"
            raise WrongContext(f"a message of member {member} for step {number}", f"members, for step {at}")
        return epoch, epoch.step


def _added(plan: Plan, step: _Step, blocks: Set[int]) -> Array:
    """The sum of some blocks' running sums."""
    first, *others = [step.totals[block] for block in sorted(blocks)]
    if not others:
        return first.total()
    packed = PackedSum(plan.spec(step.number).words, plan.modulus_bits(step.number))
    for part in (first, *others):
        packed.merge(part)
    return packed.total()


def _reduced(plan: Plan, step: _Step) -> Array:
    """A step's sum modulo 2^m, in place."""
    assert step.total is not None  # noqa: S101 - closed before
    step.total &= step.total.dtype.type((1 << plan.modulus_bits(step.number)) - 1)
    return step.total


def _start_of(epoch: _Epoch, step: _Step) -> bytes:
    """The start shares, of which a trajectory begins, with the first step."""
    assert epoch.public is not None  # noqa: S101 - closed before
    return epoch.public.start if step.number == 0 else b""


def _ended(public: Trajectory) -> tuple[bytes, bytes]:
    """What votes for an epoch name."""
    return public.plan.digest, public.chain


_Handler = Callable[[ServerProtocol, int, Any, tuple[bytes, ...]], list[Effect]]
_S = ServerProtocol
_HANDLERS: dict[type, _Handler] = {
    Hello: lambda server, member, message, frames: server.hello(member, message),
    Advertisement: _S._on_advertisement,
    Seals: _S._on_seals,
    OpenedStarts: _S._on_opened_starts,
    Complaint: _S._on_complaint,
    MaskedInput: _S._on_masked_input,
    SurvivorSignature: _S._on_signature,
    UnmaskShares: _S._on_unmask,
    Vote: _S._on_vote,
    EpochRecord: _S._on_record,
    Refusal: _S._on_refusal,
}
