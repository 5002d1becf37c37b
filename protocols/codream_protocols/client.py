"""The client's machine. EVERYTHING THAT DECIDES WHAT A CLIENT REVEALS LIVES IN THIS FILE.

Theory of operation. One `ClientProtocol` serves a member for its whole life under one charter. It takes messages
(`receive`) and the member's own numbers (`provide`) and returns effects; it never waits and opens nothing. A server is
not believed: it offers an epoch, a cohort and a head, from which the client derives everything else; it hands on sums,
which the client checks; it never says what to compute. A refused message changes nothing.

    IDLE --invitation--> ADVERTISED --advertisements--> SEALED --seals--> COMPUTING --provide--> MASKED
    MASKED --published--> COMPUTING (next step) ... after the last sum: VOTED --certificate--> IDLE, one epoch further
    resilient:  MASKED --survivors--> SIGNED --signatures--> ANSWERED --published--> ...   (all there: straight to
                ANSWERED); who is not in a sum follows all the same: COMPUTING --survivors--> ..., --published--> ...
    on a ring:  SEALED --seals--> OPENED --starts--> COMPUTING, and every set of survivors is signed
    COMPUTING --provide, whose device fails with the masks taken--> IDLE: they are used up, so the epoch is left
    from every state but VOTED an invitation to a LATER epoch is taken: everything kept is erased first
    from every state the record of an epoch after this client's head is taken: with enough votes it is certified; with
    more than all colluders' it is voted for, as far as it does not contradict what this client has seen of that epoch
    a message that repeats what was answered gets the very same bytes again; one that contradicts it is refused

What must outlast a crash is handed to a `Journal` before anything is sent: a plan as joined, a step as begun, a vote, a
certificate. Each rule is one method `_rule_...`; the model checker and the threat suite switch a rule off by overriding
it in a subclass, and find the leak that it prevents. The argument: docs/protocol.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from codream_protocols import chain as links
from codream_protocols import hybrid, keyschedule
from codream_protocols.accelerator import Accelerator, Masked, NotErased, Ready
from codream_protocols.advertisements import (
    check_advertisement,
    check_distinct_keys,
    check_public_keys,
    check_shown,
    check_start_shares,
)
from codream_protocols.charter import Charter, Offer, Plan, Policy, check_charter
from codream_protocols.course import Array, Course, Publication, Task
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.encoding import check_range, encode, integers
from codream_protocols.errors import (
    AggregationFailed,
    AttemptsUsed,
    BoundByVote,
    CertificateRefused,
    CohortRefused,
    DeviceFailed,
    InconsistentSurvivors,
    LocalProtocolError,
    PolicyViolation,
    SecondSurvivorSet,
    ShareRefused,
    UnexpectedMessage,
    VectorRefused,
    WrongContext,
    WrongHead,
    WrongSum,
)
from codream_protocols.identity import Roster, Signer, verify
from codream_protocols.lockstep import LockstepKeys, SealDoesNotOpen, plain_seal_bytes, seal_statement
from codream_protocols.masks import add_masks
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Certificate,
    Complaint,
    EpochRecord,
    Farewell,
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
    encode_message,
    survivor_statement,
)
from codream_protocols.neighbours import Ring
from codream_protocols.packing import pack
from codream_protocols.record import History, HoldsHistory, Kept, Trajectory, Unpacked, check_certificate, valid_votes
from codream_protocols.resilient import ResilientKeys, make_keys
from codream_protocols.secret import Secret
from codream_protocols.specs import VectorSpec
from codream_protocols.tag import TagKey, tag_bytes, tag_number

_T = TypeVar("_T")
MOST_SKIPPED_EPOCHS = 1 << 20  # at once; a server must not be able to use up the numbers of epochs


class State(Enum):
    """Where a client stands."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    SEALED = "sealed"
    OPENED = "opened"
    COMPUTING = "computing"
    MASKED = "masked"
    SIGNED = "signed"
    ANSWERED = "answered"
    VOTED = "voted"


@dataclass(frozen=True)
class Send:
    """Send this message, and behind it these frames, to the server."""

    message: ToServer
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Compute:
    """Compute the vector of a step from the public state, and hand its numbers to `provide`.

    Attributes:
        plan: digest of the plan it is for.
        step: the step.
        spec: the vector: its blocks and their bounds.
        task: what to compute, and the public arrays to go by, read-only.
    """

    plan: bytes
    step: int
    spec: VectorSpec
    task: Task


@dataclass(frozen=True)
class Certified:
    """An epoch is certified: learn from what it published.

    Attributes:
        number: how many epochs are certified now, those of predecessors counted.
        head: the new head.
        publication: what there is to learn from, the same for everybody.
        plan: the digest of its plan.
        counted: the steps whose sums hold this client's vector.
    """

    number: int
    head: bytes
    publication: Publication
    plan: bytes
    counted: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """The epoch is over without a result; nothing of it is learnt. `wrong_sum`: because a sum failed its check."""

    reason: str
    wrong_sum: bool = False


@dataclass(frozen=True)
class Notice:
    """Something that this client's own operator should see; nobody else is told."""

    text: str


Effect = Send | Compute | Certified | Ended | Notice


class Journal(Protocol):
    """What a client writes down for good, before it goes on. If a method raises, the client does not go on."""

    def joined(self, epoch: int, plan: bytes) -> None:
        """It takes part in this epoch, and will in none before it."""

    def began(self, begun: Begun, rho: float) -> None:
        """It begins to answer a step, at this cost in client-level zCDP."""

    def voted(self, kept: Kept) -> None:
        """It votes for this epoch, its own vote among the record's: from now on for nothing else after that head."""

    def certified(self, kept: Kept) -> None:
        """This epoch is certified; the record has enough votes."""

    def saw_wrong_sum(self, plan: bytes) -> None:
        """A sum of this plan failed its check."""

    def recall(self, place: int) -> Kept:
        """The certified epoch at this place, from 0, of the charter."""


class InMemory:
    """A journal for tests and simulations: nothing outlasts the process."""

    def __init__(self) -> None:
        self._certified: list[Kept] = []

    def joined(self, epoch: int, plan: bytes) -> None:
        """See `Journal`."""

    def began(self, begun: Begun, rho: float) -> None:
        """See `Journal`."""

    def voted(self, kept: Kept) -> None:
        """See `Journal`."""

    def certified(self, kept: Kept) -> None:
        """See `Journal`."""
        self._certified.append(kept)

    def saw_wrong_sum(self, plan: bytes) -> None:
        """See `Journal`."""

    def recall(self, place: int) -> Kept:
        """See `Journal`."""
        return self._certified[place]


@dataclass(frozen=True)
class Begun:
    """The newest step that a client has begun to answer: of which plan, which one, and at which chain."""

    plan: bytes
    step: int
    chain: bytes


@dataclass(frozen=True)
class Memory:
    """What earlier processes of this client wrote down.

    Attributes:
        next_epoch: one more than the highest epoch joined.
        attempts: epochs joined since the newest certificate.
        steps: steps begun.
        rho: client-level zCDP spent.
        wrong_sums: the plans of which a sum failed its check, once for each.
        begun: the newest step begun.
        certified: the certified epochs, oldest first; a journal that is given too must recall the same.
        vote: what was voted for after the newest certificate, if anything.
    """

    next_epoch: int = 0
    attempts: int = 0
    steps: int = 0
    rho: float = 0.0
    wrong_sums: tuple[bytes, ...] = ()
    begun: Begun | None = None
    certified: Sequence[Kept] = ()
    vote: Kept | None = None


@dataclass
class _Step:
    """What is kept of the current step."""

    number: int
    tag_key: TagKey
    masked: Send | None = None
    survivors: tuple[int, ...] | None = None
    signature: Send | None = None
    answer: Send | None = None


@dataclass
class _Epoch:
    """What is kept of the current epoch."""

    plan: Plan
    keys: LockstepKeys
    advertisement: Advertisement
    advertised: Mapping[int, Advertisement] = field(default_factory=dict)
    transcript: bytes = b""
    seals: Send | None = None
    ring: Ring | None = None
    delivered: bytes = b""  # the digest of what was
    opened: Send | None = None
    group_key: Secret | None = None
    public: Trajectory | None = None
    step: _Step | None = None

    def partners(self, member: int) -> tuple[int, ...]:
        """Who seals for a member, and for whom it seals."""
        if self.ring is not None:
            return self.ring.partners(member)
        return tuple(other for other in self.advertised if other != member)

    def erase(self) -> None:
        self.keys.erase()
        if self.group_key is not None:
            self.group_key.erase()
        if self.step is not None:
            self.step.tag_key.erase()


class ClientProtocol(HoldsHistory):
    """One member's side of every epoch of a charter.

    Args:
        charter: the charter, from this client's own files.
        roster: the verified roster.
        course: the course that the charter names.
        member: this client's number in the roster.
        signer: its identity key; must be the roster's.
        policy: what it permits.
        memory: what earlier processes wrote down; what it holds is checked again.
        journal: where this one writes.
        random_bytes: a cryptographic generator, n -> n bytes; the operating system's unless a simulation seeds it.
        accelerator: masks vectors where their numbers lie, if they are for it; nobody unless given.

    Raises:
        LocalProtocolError: the signer is not the roster's member, or the roster not the charter's.
        RemoteProtocolError: what was written down does not fit the charter.
    """

    def __init__(
        self,
        *,
        charter: Charter,
        roster: Roster,
        course: Course,
        member: int,
        signer: Signer,
        policy: Policy,
        memory: Memory | None = None,
        journal: Journal | None = None,
        random_bytes: RandomBytes = secrets.token_bytes,
        accelerator: Accelerator | None = None,
    ) -> None:
        if not 0 <= member < len(roster.members) or roster.members[member].identity_key != signer.public:
            raise LocalProtocolError(f"an identity key that is not member {member}'s", "the key of the roster's entry")
        self._alike("charter", (charter,), lambda: check_charter(charter))
        self.history = History(charter, roster, course)
        memory = memory or Memory()
        self.state = State.IDLE
        self.charter, self.steps_begun, self.spent_rho = charter, memory.steps, memory.rho
        self._wrong_sums, self._begun = list(memory.wrong_sums), memory.begun
        self._roster, self._course, self._member, self._signer, self._policy = roster, course, member, signer, policy
        self._journal, self._random, self._accelerator = journal or InMemory(), random_bytes, accelerator
        self._next_epoch, self._attempts = memory.next_epoch, memory.attempts
        self._epoch: _Epoch | None = None
        self._vote: tuple[Trajectory, dict[int, SignedBy]] | None = None  # with all votes that are known, the own too
        for kept in memory.certified:
            taken = self.history.take(kept)
            if journal is None:
                self._journal.certified(kept)
            self._next_epoch = max(self._next_epoch, taken.plan.offer.epoch + 1)
        if memory.vote is not None:
            trajectory = self.history.replay(memory.vote)
            votes = valid_votes(roster, trajectory, memory.vote[0].votes)
            if member not in votes:
                raise CertificateRefused("a vote written down without this client's own signature", "its own")
            self._vote = trajectory, votes
            self.state = State.VOTED

    def __repr__(self) -> str:
        return f"<ClientProtocol of member {self._member}, {self.state.value}>"

    @property
    def plan(self) -> Plan | None:
        """The current epoch's plan."""
        return self._epoch.plan if self._epoch else None

    @property
    def members(self) -> tuple[int, ...]:
        """The current epoch's members; empty before the seals are opened."""
        return self._epoch.public.members if self._epoch and self._epoch.public else ()

    @property
    def progress(self) -> tuple[bytes, int]:
        """The digest of the plan that it holds keys of, empty if none, and how many of its sums it has."""
        if self._epoch is None:
            return b"", 0
        return self._epoch.plan.digest, self._epoch.public.step if self._epoch.public else 0

    def hello(self) -> Hello:
        """What to say first on a connection."""
        return Hello((keyschedule.PROTOCOL,), self.charter.digest, self.head, self._next_epoch, *self.progress)

    # -- events ---------------------------------------------

    def receive(self, message: ToClient, frames: tuple[bytes, ...] = ()) -> list[Effect]:
        """Take one message of the server.

        Returns:
            What to do, in order.

        Raises:
            RemoteProtocolError: the message was refused; nothing has changed.
        """
        handler = TRANSITIONS.get((self.state, type(message)))
        if handler is None:
            taken = sorted(kind.__name__ for state, kind in TRANSITIONS if state is self.state)
            raise UnexpectedMessage(f"{type(message).__name__} while {self.state.value}", ", ".join(taken))
        if frames and not isinstance(message, Published | EpochRecord):
            raise VectorRefused(f"{len(frames)} frames behind {type(message).__name__}", "none")
        return handler(self, message, frames)

    def provide(self, plan: bytes, step: int, values: Mapping[str, Array] | None) -> list[Effect]:
        """Encode, mask and send this client's numbers of a step, once.

        Args:
            plan: of the `Compute` effect.
            step: the step of the `Compute` effect.
            values: block name -> array, as the effect's `spec` says; None, when the computation failed, sends zeros,
                with the noise that others count on.

        Returns:
            The message to send; nothing when the epoch has gone on meanwhile. Where an accelerator fails with its masks
            taken, the epoch is left.

        Raises:
            LocalProtocolError: not asked for, or blocks that do not fit.
            AggregationFailed: the accelerator failed, and cannot erase what it was given; the epoch is left.
        """
        epoch = self._epoch
        if epoch is None or epoch.plan.digest != plan:
            return []
        if epoch.step is None or epoch.public is None or step > epoch.step.number:
            raise LocalProtocolError(f"numbers for step {step}", "those of the step that was asked for")
        if step < epoch.step.number or (self.state is not State.COMPUTING and epoch.step.survivors is not None):
            return []
        if self.state is not State.COMPUTING:
            raise LocalProtocolError(f"a second vector for step {step}", "one vector a step")
        current, chain = epoch.step, epoch.public.chain
        try:
            masked, keys = self._mask(epoch, current, chain, values)
        except DeviceFailed as error:  # for all others it is as if this client had been started again
            going_on = "nothing of it has left; from the next epoch on this client masks on the processor"
            return [Send(Refusal(error.code, "a vector", error.allowed, plan)), Ended(f"{error.found}; {going_on}")]
        tag = masked.product + current.tag_key.pad(self._member) + hybrid.tag_masks(keys)
        start = epoch.public.start if step == 0 and epoch.ring is None else b""
        message = MaskedInput(epoch.plan.digest, step, chain, tag_bytes(tag % (1 << 128)), start)
        current.masked = Send(message, (masked.frame,))
        self.state = State.MASKED
        notices: list[Effect] = []
        if values is None:
            notices = [Notice(f"step {step}: the computation failed; zeros were sent in its place")]
        elif masked.replaced:
            notices = [Notice(f"step {step}: {masked.replaced} numbers were not finite and were sent as zeros")]
        return [*notices, current.masked]

    def _mask(
        self, epoch: _Epoch, current: _Step, chain: bytes, values: Mapping[str, Array] | None
    ) -> tuple[Masked, list[tuple[bytes, bool]]]:
        """A step's masked vector and its keys, which are taken only when nothing can be wrong with the numbers."""
        plan, step = epoch.plan, current.number
        if values is not None and self._accelerator is not None:
            ready = self._accelerator.ready(plan, step, values, self._random)
            if ready is not None:
                keys = epoch.keys.stream_keys(step, chain)
                return self._on_device(ready, current, keys), keys
        vector, replaced = self._encode(plan, step, values)
        product = current.tag_key.of(integers(plan, step, vector))
        keys = epoch.keys.stream_keys(step, chain)
        add_masks(vector, keys, suite=plan.aggregation.suite)  # in place: from here on only the masked one is left
        return Masked(pack(vector, plan.modulus_bits(step)), product, replaced), keys

    def _on_device(self, ready: Ready, current: _Step, keys: list[tuple[bytes, bool]]) -> Masked:
        """Where it fails, this client leaves the epoch: nothing else may be masked by these keys."""
        try:
            return ready.masked(keys, current.tag_key)
        except Exception as error:  # whatever it is
            self.abandon()
            self._accelerator = None  # the next epoch must not be lost to the same device
            found = f"step {current.number} not masked on the device ({type(error).__name__}), and its masks used up"
            if isinstance(error, NotErased):
                raise AggregationFailed(found, "a device that erases them", "start this client again") from error
            raise DeviceFailed(found, "a device that masks what it has memory for") from error

    def _encode(self, plan: Plan, step: int, values: Mapping[str, Array] | None) -> tuple[Array, int]:
        try:
            return encode(plan, step, values, self._random)
        except LocalProtocolError:
            raise
        except Exception as error:  # what a learner of one's own gave is no array of numbers
            raise LocalProtocolError(
                f"numbers that cannot be read ({type(error).__name__})", "arrays of reals"
            ) from error

    def abandon(self) -> None:
        """Leave the epoch: everything secret that is kept of it is erased. A vote stays binding."""
        if self._epoch is not None:
            self._epoch.erase()
        self._epoch = None
        self.state = State.IDLE if self._vote is None else State.VOTED

    def _make_keys(self, plan: Plan) -> LockstepKeys:
        return make_keys(plan, self._member, self._random)

    def _make_tag_key(self, secret: bytes, length: int) -> TagKey:
        return TagKey(secret, length)

    def _alike(self, what: str, on: tuple[object, ...], compute: Callable[[], _T]) -> _T:
        """What every member of an epoch computes alike from what all are shown; a simulation may remember it.

        Args:
            what: names it.
            on: all that it hangs on but charter, roster and course: digests, and what was received.
            compute: computes it.
        """
        return compute()

    # -- set-up ---------------------------------------------

    def _on_invitation(self, message: Invitation, frames: tuple[bytes, ...]) -> list[Effect]:
        offer = message.offer
        if self._epoch is not None and offer == self._epoch.plan.offer:
            return [Send(self._epoch.advertisement)]
        self._rule_bound_by_vote(offer)
        if offer.head not in self.history.heads:
            return [Send(self.hello())]  # this client has missed a certificate, and will be told
        self._rule_same_head(offer)
        self._rule_whole_blocks(offer.cohort)
        if self._member not in offer.cohort:
            raise CohortRefused("a cohort without this client", "one that includes it")
        plan = self._alike("plan", (self.head, offer), lambda: self.history.plan(offer))
        self._rule_policy(plan)
        self._rule_budget(plan.steps)
        self._rule_privacy_budget(plan.total_rho)
        self._rule_fresh_epoch(offer.epoch)
        self._rule_attempts()
        self._rule_wrong_sums()
        self._journal.joined(offer.epoch, plan.digest)
        self.abandon()
        self._next_epoch, self._attempts = offer.epoch + 1, self._attempts + 1
        keys = self._make_keys(plan)
        self._epoch = _Epoch(plan, keys, keys.advertise(self._signer))
        self.state = State.ADVERTISED
        return [Send(self._epoch.advertisement)]

    def _on_advertisements(self, message: Advertisements, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        advertised = self._alike("advertised", (message,), lambda: {item.member: item for item in message.items})
        if self.state is not State.ADVERTISED:
            if advertised == epoch.advertised and epoch.seals is not None:
                return [epoch.seals]
            raise CohortRefused("a second, different set of advertisements", "one set an epoch")
        self._rule_members(epoch.plan, message.items)
        if advertised.get(self._member) != epoch.advertisement:
            raise CohortRefused(
                "advertisements without this client's own, or with another in its name", "its own, unchanged"
            )
        transcript, ring = self._alike(
            "shown", (epoch.plan.digest, message), lambda: self._check_shown(epoch.plan, message.items)
        )
        near: Mapping[int, Advertisement] = advertised
        if ring is not None:
            epoch.keys.stand_on(ring)
            near = {member: advertised[member] for member in sorted((self._member, *ring.partners(self._member)))}
        sealed = self._or_abandon(lambda: epoch.keys.seal(self._signer, transcript, near))
        epoch.advertised, epoch.transcript, epoch.ring = advertised, transcript, ring
        epoch.seals = Send(Seals(epoch.plan.digest, sealed))
        self.state = State.SEALED
        return [epoch.seals]

    def _check_shown(self, plan: Plan, items: tuple[Advertisement, ...]) -> tuple[bytes, Ring | None]:
        """Of everybody's advertisements: the transcript, and the graph that it gives."""
        for item in items:
            check_advertisement(plan, item)
            self._rule_signed_advertisement(item)
        self._rule_distinct_keys(items)
        for item in items:
            check_public_keys(plan, item)
        transcript = links.transcript(plan.digest, [item.digest for item in items])
        return transcript, plan.ring(transcript, tuple(item.member for item in items))

    def _on_seal_delivery(self, message: SealDelivery, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if self.state is not State.SEALED:
            if _digest_of(message) == epoch.delivered:
                masked = epoch.step.masked if epoch.step and self.state is State.MASKED else None
                opened = epoch.opened if epoch.public is None else None
                return [one for one in (opened, masked) if one is not None]
            raise CohortRefused("a second, different delivery", "one an epoch")
        partners = epoch.partners(self._member)
        members = tuple(sorted((self._member, *partners)))
        seals = {item.member: item for item in message.items}
        if tuple(item.member for item in message.items) != partners:
            raise CohortRefused("seals of others than the epoch's members", "one of each other member, ascending")
        for item in message.items:
            self._rule_signed_seal(epoch, item)
        try:
            values = epoch.keys.open(epoch.transcript, members, epoch.advertised, seals)
        except SealDoesNotOpen as error:  # validly signed: its sender's doing, and no server's
            self.abandon()
            return [Send(Complaint(message.plan, error.member)), Ended(str(error))]
        shares = b"".join(map(hybrid.start_share, values))
        if epoch.ring is None:
            epoch.group_key = Secret(hybrid.group_key(epoch.transcript, members, values))
            effects = self._begin(epoch, shares)
        else:  # nobody knows all values: the first member's, which everybody is sealed, makes the key
            epoch.group_key = Secret(hybrid.group_key(epoch.transcript, epoch.ring.members, values[:1]))
            epoch.opened = Send(OpenedStarts(message.plan, shares))
            self.state = State.OPENED
            effects = [epoch.opened]
        epoch.delivered, epoch.seals = _digest_of(message), None
        return effects

    def _on_starts(self, message: Starts, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if self.state is not State.OPENED:
            if epoch.public is not None and message.shares == epoch.public.start:
                return []
            raise CohortRefused("a second, different start", "one an epoch")
        self._alike("start", (epoch.transcript, message), lambda: self._rule_committed_start(epoch, message.shares))
        return self._begin(epoch, message.shares)

    def _begin(self, epoch: _Epoch, shares: bytes) -> list[Effect]:
        def begin() -> list[Effect]:
            epoch.public = self._alike(
                "begun",
                (epoch.transcript, shares),
                lambda: self.history.begin(epoch.plan, tuple(epoch.advertised.values()), shares),
            )
            return self._begin_step(epoch)

        return self._or_abandon(begin)

    # -- a step ---------------------------------------------

    def _begin_step(self, epoch: _Epoch) -> list[Effect]:
        assert epoch.public is not None and epoch.group_key is not None  # noqa: S101 - set up
        step = epoch.public.step
        spec = epoch.plan.spec(step)
        rho = epoch.plan.rho(spec)
        self._rule_budget(1)
        self._rule_privacy_budget(rho)
        task = self._course.task(epoch.public.state, step)
        begun = Begun(epoch.plan.digest, step, epoch.public.chain)
        self._journal.began(begun, rho)
        self._begun = begun
        self.steps_begun += 1
        self.spent_rho += rho
        epoch.keys.pass_over(step)
        secret = hybrid.tag_secret(epoch.group_key.reveal(), step, epoch.public.chain)
        if epoch.step is not None:
            epoch.step.tag_key.erase()
        epoch.step = _Step(step, self._make_tag_key(secret, spec.words))
        self.state = State.COMPUTING
        return [Compute(epoch.plan.digest, step, spec, task)]

    def _or_abandon(self, act: Callable[[], _T]) -> _T:
        """Do what cannot be taken back; if it fails half-way (a full disk, a course of one's own), leave the epoch."""
        try:
            return act()
        except Exception:
            self.abandon()
            raise

    def _on_survivors(self, message: Survivors, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch, current, public = self._current_step(message.plan, message.step)
        if not isinstance(epoch.keys, ResilientKeys):
            raise UnexpectedMessage("survivors in lockstep", "everybody's sum, or none")
        if current.survivors is not None:
            repeated = self._rule_one_survivor_set(current, message.members)
            if repeated is not None:
                return [repeated]
        self._alike("survivors", (public.chain, message), lambda: self._check_survivors(epoch, public, message.members))
        self._rule_enough_survivors(epoch.plan, message.members)
        current.survivors, current.signature, current.answer = message.members, None, None
        if message.members == public.members and epoch.ring is None:
            return self._answer(epoch, epoch.keys, current)
        statement = self._alike(
            "statement",
            (public.chain, message),
            lambda: survivor_statement(public.chain, current.number, message.members),
        )
        current.signature = Send(
            SurvivorSignature(epoch.plan.digest, current.number, self._signer.sign("survivors", *statement))
        )
        self.state = State.SIGNED
        return [current.signature]

    def _check_survivors(self, epoch: _Epoch, public: Trajectory, members: tuple[int, ...]) -> None:
        self._rule_whole_blocks(members)
        if not set(members) <= set(public.members):
            raise CohortRefused("survivors who are no members of the epoch", "the epoch's members")
        self._rule_neighbours_survive(epoch, members)

    def _on_signatures(self, message: SurvivorSignatures, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch, current, public = self._current_step(message.plan, message.step)
        if current.answer is not None:
            return [current.answer]
        assert current.survivors is not None and isinstance(epoch.keys, ResilientKeys)  # noqa: S101 - SIGNED
        self._rule_signed_survivors(epoch.plan, public, current, message)
        return self._answer(epoch, epoch.keys, current)

    def _answer(self, epoch: _Epoch, keys: ResilientKeys, current: _Step) -> list[Effect]:
        assert current.survivors is not None  # noqa: S101 - set before
        shares = keys.answer(current.number, current.survivors)
        current.answer = Send(UnmaskShares(epoch.plan.digest, current.number, shares))
        self._rule_erase_answered(keys, current.number)
        self.state = State.ANSWERED
        return [current.answer]

    def _on_published(self, message: Published, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        public, current = epoch.public, epoch.step
        assert public is not None and current is not None  # noqa: S101 - from COMPUTING on
        if message.step < public.step and frames == (public.frames[message.step],):
            return []  # the same again
        if message.step != public.step:
            raise WrongContext(f"a sum of step {message.step}", f"step {public.step}")
        if len(frames) != 1:
            raise VectorRefused(f"{len(frames)} frames behind a sum", "one")
        if epoch.plan.aggregation.mode == "lockstep" and self.state is State.COMPUTING:
            raise UnexpectedMessage("a sum of everybody without this client's vector", "one with it")
        self._alike("summed", (public.chain, message), lambda: self._check_summed(public, message.members))
        if current.survivors is not None and message.members != current.survivors:
            raise SecondSurvivorSet(f"a sum over others than signed in step {message.step}", "the set signed")
        try:
            checked = self._alike(
                "sum",
                (public.chain, message, frames[0]),
                lambda: self._rule_true_sum(epoch.plan, current.tag_key, message, frames[0]),
            )
        except WrongSum as error:
            return self._wrong_sum(epoch.plan, message.step, error)

        current.masked = None  # its step is over, and nobody asks for it any more

        def go_on() -> list[Effect]:
            epoch.public = following = self._alike(
                "after",
                (public.chain, message, frames[0]),
                lambda: public.after(message.members, frames[0], message.tag, checked),
            )
            return self._cast_vote(following) if following.over else self._begin_step(epoch)

        return self._or_abandon(go_on)

    def _check_summed(self, public: Trajectory, members: tuple[int, ...]) -> None:
        self._rule_whole_blocks(members)
        public.check_members(members)

    def _wrong_sum(self, plan: Plan, step: int, error: WrongSum) -> list[Effect]:
        """A sum that fails its check ends the epoch for good."""
        self._journal.saw_wrong_sum(plan.digest)
        self._wrong_sums.append(plan.digest)
        self.abandon()
        reason = f"the server or a member changed the sum of step {step}"
        return [Send(Refusal(error.code, error.found, error.allowed, plan.digest)), Ended(reason, wrong_sum=True)]

    # -- an epoch's end ---------------------------------------------

    def _cast_vote(self, public: Trajectory, others: Mapping[int, SignedBy] | None = None) -> list[Effect]:
        statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
        own = SignedBy(self._member, self._signer.sign("vote", *statement))
        votes = {**(others or {}), self._member: own}
        self._journal.voted(public.record(votes.values()))
        if self._epoch is not None:
            self._epoch.erase()  # all sums are in: no key of the epoch is needed any more
            self._epoch = None
        self._vote = public, votes
        self.state = State.VOTED
        return [self._own_vote()]

    def _own_vote(self) -> Send:
        assert self._vote is not None  # noqa: S101 - VOTED
        public, votes = self._vote
        return Send(Vote(public.plan.digest, public.chain, votes[self._member].signature))

    def _on_certificate(self, message: Certificate, frames: tuple[bytes, ...]) -> list[Effect]:
        assert self._vote is not None  # noqa: S101 - VOTED
        public, _ = self._vote
        if message.plan != public.plan.digest:
            raise WrongContext(f"a certificate of plan {message.plan.hex()[:16]}…", "the plan that was voted for")
        effects = self._certify(public, message.votes)
        # A server that has the last word must know that it was heard, before it ends.
        return [*effects, Send(self.hello())] if self.history.over else effects

    def _on_repeated(self, message: Published | SealDelivery | Starts, frames: tuple[bytes, ...]) -> list[Effect]:
        """A server that repeats what was answered has missed the vote."""
        assert self._vote is not None  # noqa: S101 - VOTED
        if message.plan != self._vote[0].plan.digest:
            raise WrongContext(f"a message of plan {message.plan.hex()[:16]}…", "the plan that was voted for")
        return [self._own_vote()]

    def _on_other_certificate(self, message: Certificate, frames: tuple[bytes, ...]) -> list[Effect]:
        """One that comes again changes nothing; one of an epoch that lacks sums here says that some were lost."""
        lost = self._epoch is not None and message.plan == self._epoch.plan.digest
        return [Send(self.hello())] if lost else []

    def _certify(self, public: Trajectory, votes: Sequence[SignedBy]) -> list[Effect]:
        valid, kept = self._alike("votes", (public.chain, votes), lambda: self._check_votes(public, votes))
        self._rule_certificate(valid)
        self._journal.certified(kept)
        self._vote = None
        self.abandon()
        self.history.append(public)
        self._attempts, self._next_epoch = 0, max(self._next_epoch, public.plan.offer.epoch + 1)
        counted = public.counted(self._member)
        return [Certified(self.certified, self.head, public.publication(), public.plan.digest, counted)]

    def _check_votes(self, public: Trajectory, votes: Sequence[SignedBy]) -> tuple[dict[int, SignedBy], Kept]:
        valid = valid_votes(self._roster, public, votes)
        return valid, public.record([valid[number] for number in sorted(valid)])

    def _on_record(self, message: EpochRecord, frames: tuple[bytes, ...]) -> list[Effect]:
        """What this client missed: certified if enough have voted, else voted for on more votes than colluders have."""
        if message.offer.head in self.history.heads[:-1]:
            return [Send(self.hello())]  # certified long ago; the server does not know where this client stands
        voters = {vote.member for vote in message.votes}
        counted = voters & {item.member for item in message.advertisements}
        if self._vote is None and len(voters) < self.charter.quorum:
            self._rule_others_vote(counted)  # before the work of a replay
        public = self.history.replay((message, frames))
        valid = valid_votes(self._roster, public, message.votes)
        if len(valid) >= self.charter.quorum:
            # Whoever has missed this may have missed more: say where it stands now.
            return [*self._certify(public, message.votes), Send(self.hello())]
        if self._vote is not None:
            bound, _ = self._vote
            if bound.chain != public.chain or bound.plan.digest != public.plan.digest:
                raise BoundByVote("a record of another epoch than was voted for", "the epoch that was voted for")
            return [self._own_vote()]
        self._rule_known_epoch(public)
        self._rule_others_vote(set(valid) & set(public.members))
        self._rule_wrong_sums()
        return self._cast_vote(public, valid)

    def _on_welcome(self, message: Welcome, frames: tuple[bytes, ...]) -> list[Effect]:
        """Give back to a server what it lost: certified epochs after its head, and what was voted for."""
        heads = self.history.heads
        if message.head in heads[:-1]:
            return [Send(*self._journal.recall(heads.index(message.head)))]
        if message.head == self.head and self._vote is not None:
            public, votes = self._vote
            return [Send(*public.record(votes[number] for number in sorted(votes)))]
        return []

    def _on_given_up(self, message: GivenUp, frames: tuple[bytes, ...]) -> list[Effect]:
        if self._epoch is None or message.plan != self._epoch.plan.digest:
            return []
        self.abandon()
        return [Ended(message.reason)]

    def _on_farewell(self, message: Farewell, frames: tuple[bytes, ...]) -> list[Effect]:
        self.abandon()
        return []

    # -- rules ---------------------------------------------

    def _rule_policy(self, plan: Plan) -> None:
        """The client's own policy has the last word."""
        self._policy.check(plan)

    def _rule_budget(self, steps: int) -> None:
        """An endless federation stops at the policy's total."""
        if self.steps_begun + steps > self._policy.most_total_steps:
            raise PolicyViolation(
                f"{steps} more steps after {self.steps_begun}", f"{self._policy.most_total_steps} in all"
            )

    def _rule_privacy_budget(self, rho: float) -> None:
        """Client-level privacy is spent as a step is begun, and never beyond the policy's total."""
        most = self._policy.most_rho
        if most is not None and self.spent_rho + rho > most * (1 + 1e-9):  # the sum of many steps is rounded
            raise PolicyViolation(
                f"a cost of rho {rho:.4g} after {self.spent_rho:.4g} spent",
                f"{most:.4g} in all",
                "the budget is used up",
            )

    def _rule_bound_by_vote(self, offer: Offer) -> None:
        """After a vote, nothing else is begun at that head."""
        if self._vote is not None:
            raise BoundByVote(f"epoch {offer.epoch} after a head at which this client has voted", "its certificate")

    def _rule_same_head(self, offer: Offer) -> None:
        """Only who stands at the same history goes on together."""
        if offer.head != self.head:
            raise WrongHead(f"an epoch after head {offer.head.hex()[:16]}…", f"one after {self.head.hex()[:16]}…")

    def _rule_fresh_epoch(self, epoch: int) -> None:
        """An epoch is taken part in once, and in ascending order, restarts included."""
        if not self._next_epoch <= epoch <= self._next_epoch + MOST_SKIPPED_EPOCHS:
            raise WrongContext(f"epoch {epoch}", f"{self._next_epoch} to {self._next_epoch + MOST_SKIPPED_EPOCHS}")

    def _rule_attempts(self) -> None:
        """Who can stop an epoch chooses among no more starts than the charter permits."""
        most = self.charter.aggregation.attempts
        if self._attempts >= most:
            raise AttemptsUsed(
                f"{self._attempts} epochs given up after one certificate",
                f"{most}",
                "the administrator must look, and sign a charter that follows this one",
            )

    def _rule_wrong_sums(self) -> None:
        """After sums that failed their check a person must look."""
        if len(self._wrong_sums) > self._policy.most_wrong_sums:
            raise WrongSum(
                f"{len(self._wrong_sums)} sums that failed their check",
                f"{self._policy.most_wrong_sums} before a person looks",
                "raise most_wrong_sums in [policy] of client.toml once the cause is known",
            )

    def _rule_whole_blocks(self, members: tuple[int, ...]) -> None:
        """Cohorts and sums are unions of the charter's blocks, and large enough."""
        self._alike("whole blocks", (members,), lambda: self.charter.check_summed(members))

    def _rule_members(self, plan: Plan, items: Sequence[Advertisement]) -> None:
        """Everybody who is shown takes part, in whole blocks, enough of them, and this client is one."""
        members = self._alike("members", (plan.digest, items), lambda: check_shown(plan, items))
        if self._member not in members:
            raise CohortRefused("members without this client", "a set that includes it")
        if len(members) < self._policy.least_cohort:
            raise CohortRefused(f"{len(members)} members", f"{self._policy.least_cohort} or more")

    def _rule_signed_advertisement(self, item: Advertisement) -> None:
        """Keys count only with the signature of the roster's member: a server can neither swap nor invent members."""
        identity = self._roster.members[item.member].identity_key
        verify(identity, item.signature, "advertisement", *item.signed_parts())

    def _rule_distinct_keys(self, items: tuple[Advertisement, ...]) -> None:
        """No key occurs twice: whoever repeats another's key would cancel, or share, that one's masks."""
        check_distinct_keys(items)

    def _rule_signed_seal(self, epoch: _Epoch, item: Seal) -> None:
        """What was sealed counts only with its sender's signature over the KEM ciphertext too, or hybrid is void."""
        near = epoch.ring is None or item.member in epoch.ring.of(self._member)
        size = plain_seal_bytes(epoch.plan, shares=near)
        if len(item.ciphertext) != size:
            raise ShareRefused(f"a seal of {len(item.ciphertext)} bytes", f"{size}")
        statement = seal_statement(epoch.transcript, item.member, self._member, item.kem, item.ciphertext)
        verify(self._roster.members[item.member].identity_key, item.signature, "seal", *statement)

    def _rule_one_survivor_set(self, current: _Step, members: tuple[int, ...]) -> Send | None:
        """One survivor set a step: two would give both kinds of share, or two sums whose difference is one input."""
        if members != current.survivors:
            raise SecondSurvivorSet(f"a second survivor set for step {current.number}", "the first, again")
        return current.answer or current.signature

    def _rule_erase_answered(self, keys: ResilientKeys, step: int) -> None:
        """What was answered is erased, so that even a client taken over later cannot give the other kind of share."""
        keys.erase_shares_before(step + 1)

    def _rule_enough_survivors(self, plan: Plan, members: tuple[int, ...]) -> None:
        """No sum over fewer than the charter's and the policy's minimum."""
        least = max(plan.aggregation.least_survivors, self._policy.least_survivors)
        if len(members) < least:
            raise CohortRefused(f"{len(members)} survivors", f"{least} or more")

    def _rule_neighbours_survive(self, epoch: _Epoch, members: tuple[int, ...]) -> None:
        """On a ring, each survivor has `threshold` neighbours among them: else who is called dropped uncovers it.

        Every client sees to it for all survivors, since the neighbours' shares, not the victim's, would open its input.
        """
        if epoch.ring is not None and (lacking := epoch.ring.lacking(members, members)):
            raise CohortRefused(
                f"{len(lacking)} survivors with too few neighbours among the survivors",
                f"{epoch.plan.threshold} or more of each",
            )

    def _rule_committed_start(self, epoch: _Epoch, shares: bytes) -> None:
        """Every start share is the one that its member had committed to before it saw another."""
        check_start_shares(epoch.plan, tuple(epoch.advertised.values()), shares)

    def _rule_signed_survivors(
        self, plan: Plan, public: Trajectory, current: _Step, message: SurvivorSignatures
    ) -> None:
        """With a dropout, shares leave only after `threshold` members have signed the very same set at this state.

        On a ring, whoever dropped, and after more than half of all members and colluders have: of two sets that are
        both answered for, each member's neighbours could be told another one than all others.
        """
        survivors = current.survivors
        assert survivors is not None  # noqa: S101 - SIGNED
        signers = self._alike(
            "signers", (public.chain, survivors, message), lambda: self._signers(public, survivors, message)
        )
        count = len(signers) + (self._member not in signers)
        if count < plan.least_signers:
            raise InconsistentSurvivors(
                f"{count} signatures over the survivor set",
                f"{plan.least_signers} or more, this client's included",
            )

    def _signers(self, public: Trajectory, survivors: tuple[int, ...], message: SurvivorSignatures) -> Set[int]:
        """Whose valid signatures over just these survivors a message holds."""
        statement, members = survivor_statement(public.chain, message.step, survivors), set(public.members)
        for item in message.items:
            if item.member not in members:
                raise InconsistentSurvivors(f"a signature of member {item.member}", "the epoch's members' signatures")
            verify(self._roster.members[item.member].identity_key, item.signature, "survivors", *statement)
        return {item.member for item in message.items}

    def _rule_true_sum(self, plan: Plan, tag_key: TagKey, message: Published, frame: bytes) -> Unpacked | None:
        """A sum counts only with the tag that the survivors' own tags add up to, and within what they can add up to."""
        found, total = Unpacked.of(plan, message.step, frame), tag_number(message.tag)
        check_range(plan, message.step, found.words, len(message.members))
        numbers = integers(plan, message.step, found.words)
        room = found.room if numbers is found.words and found.apart else None
        if not tag_key.check(numbers, total, message.members, room):
            raise WrongSum(f"a sum of step {message.step} that fails its check", "the sum of the survivors' inputs")
        return found if room is None else Unpacked(room, room)  # which hold the numbers now, as decoding wants them

    def _rule_known_epoch(self, public: Trajectory) -> None:
        """What this client has itself seen of an epoch, others cannot tell it otherwise.

        An epoch that it is in: the same start, the same sums so far, and of each further sum the right tag. One that it
        was in: the same history up to the last step it began. In lockstep, where a sum is everybody's, only an epoch of
        which it began the last step.
        """
        plan = public.plan
        epoch = self._epoch if self._epoch is not None and self._epoch.plan.digest == plan.digest else None
        if epoch is not None and epoch.advertised and tuple(epoch.advertised.values()) != public.advertised:
            raise CertificateRefused("a record with other members than this client was shown", "the same")
        if epoch is not None and epoch.public is not None:
            own = epoch.public
            if epoch.group_key is None or own.start != public.start:
                raise CertificateRefused("a record with another start than this client has", "the same start")
            if plan.aggregation.mode == "lockstep" and self.state is State.COMPUTING:
                raise CertificateRefused("a record of everybody's sums without this client's vector", "one with it")
            if own.steps != public.steps[: own.step] or own.frames != public.frames[: own.step]:
                raise CertificateRefused("a record with other sums than this client has", "the same sums")
            for step in range(own.step, plan.steps):
                secret = hybrid.tag_secret(epoch.group_key.reveal(), step, public.links[step])
                record = public.steps[step]
                message = Published(plan.digest, step, record.members, record.tag)
                self._rule_true_sum(plan, TagKey(secret, plan.spec(step).words), message, public.frames[step])
        begun = self._begun
        if begun is not None and begun.plan == plan.digest and public.links[begun.step] != begun.chain:
            raise CertificateRefused("a record of another history than this client saw in that epoch", "the same")
        last = begun is not None and begun.plan == plan.digest and begun.step == plan.steps - 1
        if plan.aggregation.mode == "lockstep" and not last:
            raise CertificateRefused("a record of an epoch whose last step this client did not begin", "one it did")

    def _rule_others_vote(self, voters: Set[int]) -> None:
        """Others' votes are followed only if they are more than all colluders have: one of them is an honest member's.

        A colluder knows the group key, so that tags which fit show nothing of sums that only a record tells. Who is in
        the epoch and has missed sums gets them from the server, and votes by its own checks.
        """
        least = self.charter.aggregation.colluders + 1
        if len(voters) < least:
            raise CertificateRefused(f"a record that {len(voters)} members of its epoch voted for", f"{least} or more")

    def _rule_certificate(self, valid: Mapping[int, SignedBy]) -> None:
        """Nothing is learnt without the votes of enough members for the very same history."""
        check_certificate(self.charter, valid)

    # -- context ---------------------------------------------

    def _current(self, plan: bytes) -> _Epoch:
        if self._epoch is None or plan != self._epoch.plan.digest:
            raise WrongContext(f"a message of plan {plan.hex()[:16]}…", "the plan in force")
        return self._epoch

    def _current_step(self, plan: bytes, step: int) -> tuple[_Epoch, _Step, Trajectory]:
        epoch = self._current(plan)
        if epoch.step is None or epoch.public is None or epoch.step.number != step:
            raise WrongContext(f"a message of step {step}", f"step {epoch.step.number if epoch.step else 'none'}")
        return epoch, epoch.step, epoch.public


def _digest_of(message: SealDelivery) -> bytes:
    return keyschedule.digest("seal delivery", encode_message(message))


def _on_refusal(self: ClientProtocol, message: Refusal, frames: tuple[bytes, ...]) -> list[Effect]:
    return [Notice(f"the server refused ({message.code}): found {message.found}; allowed: {message.allowed}")]


Handler = Callable[[ClientProtocol, Any, tuple[bytes, ...]], list[Effect]]
_C = ClientProtocol
_IN_STEPS = (State.COMPUTING, State.MASKED, State.SIGNED, State.ANSWERED)

# State and message -> handler. What is not here is refused.
TRANSITIONS: dict[tuple[State, type], Handler] = {
    **{(state, Invitation): _C._on_invitation for state in State},
    **{(state, EpochRecord): _C._on_record for state in State},
    **{(state, Welcome): _C._on_welcome for state in State},
    **{(state, GivenUp): _C._on_given_up for state in State},
    **{(state, Farewell): _C._on_farewell for state in State},
    **{(state, Refusal): _on_refusal for state in State},
    (State.ADVERTISED, Advertisements): _C._on_advertisements,
    (State.SEALED, Advertisements): _C._on_advertisements,  # the same again
    (State.SEALED, SealDelivery): _C._on_seal_delivery,
    (State.OPENED, SealDelivery): _C._on_seal_delivery,  # the same again
    (State.OPENED, Starts): _C._on_starts,
    **{(state, Starts): _C._on_starts for state in _IN_STEPS},  # the same again
    **{(state, SealDelivery): _C._on_seal_delivery for state in _IN_STEPS},  # the same again
    (State.COMPUTING, Survivors): _C._on_survivors,  # resilient: this client's vector came too late
    (State.MASKED, Survivors): _C._on_survivors,
    (State.SIGNED, Survivors): _C._on_survivors,  # the same again; another is refused
    (State.ANSWERED, Survivors): _C._on_survivors,
    (State.SIGNED, SurvivorSignatures): _C._on_signatures,
    (State.ANSWERED, SurvivorSignatures): _C._on_signatures,  # the same again
    **{(state, Published): _C._on_published for state in _IN_STEPS},
    (State.VOTED, Certificate): _C._on_certificate,
    (State.VOTED, Published): _C._on_repeated,
    (State.VOTED, SealDelivery): _C._on_repeated,
    (State.VOTED, Starts): _C._on_repeated,
    **{(state, Certificate): _C._on_other_certificate for state in State if state is not State.VOTED},
}
