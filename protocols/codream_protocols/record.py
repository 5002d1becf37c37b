"""What is public of an epoch, checked by whoever holds the charter.

That is a member that was away, one that starts again, the server, or a third party. No secret is needed.

The votes of enough members over (head, plan, chain_T) are the epoch's certificate. A chain is recomputed from the
record: plan from the offer, transcript from the advertisements, states from the course.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from codream_protocols import chain as links
from codream_protocols.advertisements import check_advertisement, check_distinct_keys, check_shown, check_start_shares
from codream_protocols.charter import Charter, Offer, Plan, derive_plan
from codream_protocols.course import Array, Course, Publication, State, canonical, is_over
from codream_protocols.encoding import check_range, decode
from codream_protocols.errors import (
    BadSignature,
    CertificateRefused,
    CohortRefused,
    LocalProtocolError,
    VectorRefused,
    WrongContext,
)
from codream_protocols.hybrid import start_seed
from codream_protocols.identity import Roster, verify
from codream_protocols.masks import word_type
from codream_protocols.messages import Advertisement, EpochRecord, SignedBy, StepRecord
from codream_protocols.packing import Packed

Frames = tuple[bytes, ...]
Kept = tuple[EpochRecord, Frames]
"""An epoch's record and its packed sums."""


@dataclass(frozen=True)
class Unpacked:
    """A packed sum's elements, in its frame or the end of the room that their doubles take: one vector less is held.

    Attributes:
        words: shape (N,), of `word_type(m)`, read-only in a frame; in the room decoding writes over them.
        room: shape (N,), float64.
    """

    words: Array
    room: Array

    @property
    def apart(self) -> bool:
        """Whether the words lie elsewhere than in the room."""
        return not np.may_share_memory(self.words, self.room)

    @classmethod
    def of(cls, plan: Plan, step: int, frame: bytes) -> Unpacked:
        """Unpack a step's sum; raises `VectorRefused`."""
        count, bits = plan.spec(step).words, plan.modulus_bits(step)
        room, packed = np.empty(count, dtype=np.float64), Packed(frame, count, bits)
        words = packed.elements
        if words is None:
            words = packed.unpack(room.view(word_type(bits))[-count:])
        return cls(words, room)


@dataclass
class Trajectory:
    """The public side of a running epoch: state and chain, moved by each sum. Client and server hold the same.

    Args:
        plan: the epoch's plan.
        course: the course.
        last: the publication of the newest certified epoch.
        advertised: the members' advertisements, ascending.
        start: their start shares, which were compared with the commitments before.
    """

    plan: Plan
    course: Course
    last: Publication | None
    advertised: tuple[Advertisement, ...]
    start: bytes
    members: tuple[int, ...] = field(init=False)
    transcript: bytes = field(init=False)
    state: State = field(init=False)
    links: list[bytes] = field(default_factory=list, init=False)  # chain_0, chain_1, ...
    steps: list[StepRecord] = field(default_factory=list, init=False)
    frames: list[bytes] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.members = tuple(item.member for item in self.advertised)
        self.transcript = links.transcript(self.plan.digest, [item.digest for item in self.advertised])
        seed = start_seed(self.transcript, self.members, self.start)
        self.state = canonical(self.course.start(seed, self.plan.certified, self.last))
        self.links.append(links.first_link(self.transcript, seed, self.members, self.state))

    @property
    def chain(self) -> bytes:
        """Digest of all that the next step rests on."""
        return self.links[-1]

    @property
    def step(self) -> int:
        """The step whose sum is next; T after the last."""
        return len(self.steps)

    @property
    def over(self) -> bool:
        """Whether all sums are there."""
        return self.step == self.plan.steps

    @property
    def next_head(self) -> bytes:
        """The head that the epoch makes once it is certified."""
        return links.next_head(self.plan.offer.head, self.plan.digest, self.chain)

    def absorb(
        self, members: tuple[int, ...], frame: bytes, tag: bytes, unpacked: Unpacked | None = None
    ) -> dict[str, Array]:
        """Take the next sum, which was checked before; returns what it says.

        Args:
            members: whose vectors it holds.
            frame: the packed sum.
            tag: the sum of their tags.
            unpacked: the sum as it was checked, used up by this; without it `frame` is unpacked and checked.

        Raises:
            VectorRefused, WrongSum: a frame of another size, or a sum that no inputs have; nothing has changed.
        """
        plan, step = self.plan, self.step
        found = unpacked
        if found is None:
            found = Unpacked.of(plan, step, frame)
            self.check_sum(members, found.words)
        sums = decode(plan, step, found.words, len(members), found.room)
        state = canonical(self.course.absorb(self.state, step, sums, len(members)))
        self.links.append(links.next_link(self.chain, members, frame, tag, state))
        self.state = state
        self.steps.append(StepRecord(members, tag))
        self.frames.append(frame)
        return sums

    def after(self, members: tuple[int, ...], frame: bytes, tag: bytes, unpacked: Unpacked | None = None) -> Trajectory:
        """The epoch with the next sum in it; this one stays as it is. Arguments and errors as for `absorb`."""
        following = copy(self)
        following.links, following.steps, following.frames = [*self.links], [*self.steps], [*self.frames]
        following.absorb(members, frame, tag, unpacked)
        return following

    def check_sum(self, members: tuple[int, ...], words: Array) -> None:
        """Refuse a sum of the present step, as ring elements, that no inputs have; raises `WrongSum`."""
        check_range(self.plan, self.step, words, len(members))

    def check_members(self, members: tuple[int, ...]) -> None:
        """Refuse a set that must not be summed in this epoch; raises `CohortRefused`."""
        self.plan.charter.check_summed(members)
        if not set(members) <= set(self.members):
            raise CohortRefused("survivors who are no members of the epoch", "the epoch's members")

    def counted(self, member: int) -> tuple[int, ...]:
        """The steps so far whose sums hold this member's vector."""
        return tuple(step for step, kept in enumerate(self.steps) if member in kept.members)

    def publication(self) -> Publication:
        """What is learnt from the epoch."""
        return canonical(self.course.publication(self.state))

    def record(self, votes: Iterable[SignedBy] = ()) -> Kept:
        """All that is public of the epoch so far."""
        record = EpochRecord(self.plan.offer, self.advertised, self.start, tuple(self.steps), tuple(votes))
        return record, tuple(self.frames)


def valid_votes(roster: Roster, trajectory: Trajectory, votes: Iterable[SignedBy]) -> dict[int, SignedBy]:
    """The votes for an epoch's end, by member.

    Args:
        roster: the roster.
        trajectory: the epoch, with all its sums.
        votes: what is said to be votes for it.

    Raises:
        CertificateRefused: a vote that does not verify, a stranger's, or two of one member.
    """
    statement = links.vote_statement(trajectory.plan.offer.head, trajectory.plan.digest, trajectory.chain)
    found: dict[int, SignedBy] = {}
    for vote in votes:
        if vote.member >= len(roster.members) or vote.member in found:
            raise CertificateRefused(f"a vote of a stranger, or a second one of member {vote.member}", "one each")
        try:
            verify(roster.members[vote.member].identity_key, vote.signature, "vote", *statement)
        except BadSignature:
            raise CertificateRefused(
                f"a vote of member {vote.member} for something else", "votes for the chain of these sums"
            ) from None
        found[vote.member] = vote
    return found


def check_certificate(charter: Charter, votes: Iterable[int]) -> None:
    """Refuse too few votes; raises `CertificateRefused`."""
    count = len(set(votes))
    if count < charter.quorum:
        raise CertificateRefused(f"{count} votes", f"{charter.quorum} or more")


class History:
    """All that is certified, as one party holds it: epoch after epoch is appended, and nothing is taken away.

    Args:
        charter: the charter.
        roster: its roster.
        course: its course.

    Attributes:
        heads: the charter's first head, and the one that each certified epoch has made.
        publication: what the newest of them published; None before the first.

    Raises:
        LocalProtocolError: the roster is not the charter's.
    """

    def __init__(self, charter: Charter, roster: Roster, course: Course) -> None:
        if roster.hash != charter.roster or len(roster.members) != charter.members:
            raise LocalProtocolError("a roster that is not the charter's", "the roster whose hash it names")
        self._charter, self._roster, self._course = charter, roster, course
        self.heads = [charter.first_head]
        self.publication: Publication | None = None

    @property
    def head(self) -> bytes:
        """Digest of all that is certified."""
        return self.heads[-1]

    @property
    def certified(self) -> int:
        """How many epochs are certified, those of predecessors counted."""
        return self._charter.earlier + len(self.heads) - 1

    @property
    def over(self) -> bool:
        """Whether nothing follows: all epochs of the course are certified, or it has ended early."""
        return is_over(self._course, self.certified, self.publication)

    def plan(self, offer: Offer) -> Plan:
        """The plan of an epoch after this history; raises as `derive_plan`, and `WrongContext` after the end."""
        if self.over and self.certified < self._course.epochs:
            raise WrongContext(f"an epoch after {self.certified} certified ones", "none: the course has ended early")
        return derive_plan(self._charter, self._course, offer, self.certified)

    def begin(self, plan: Plan, advertised: tuple[Advertisement, ...], start: bytes) -> Trajectory:
        """The public side of an epoch after this history; for the arguments see `Trajectory`."""
        return Trajectory(plan, self._course, self.publication, advertised, start)

    def replay(self, kept: Kept) -> Trajectory:
        """Recompute an epoch from its record; nothing changes.

        Raises:
            RemoteProtocolError: anything that an honest epoch of this charter after this history cannot have.
        """
        record, frames = kept
        if record.offer.head != self.head:
            found, due = record.offer.head.hex()[:16], self.head.hex()[:16]
            raise WrongContext(f"a record after head {found}…", f"one after {due}…")
        plan = self.plan(record.offer)
        check_shown(plan, record.advertisements)
        check_distinct_keys(record.advertisements)
        check_start_shares(plan, record.advertisements, record.start)
        for item in record.advertisements:
            check_advertisement(plan, item)
            identity = self._roster.members[item.member].identity_key
            verify(identity, item.signature, "advertisement", *item.signed_parts())
        if len(record.steps) != plan.steps or len(frames) != plan.steps:
            raise VectorRefused(f"{len(record.steps)} steps with {len(frames)} sums", f"{plan.steps} of each")
        trajectory = self.begin(plan, record.advertisements, record.start)
        for step, frame in zip(record.steps, frames, strict=True):
            trajectory.check_members(step.members)
            trajectory.absorb(step.members, frame, step.tag)
        return trajectory

    def append(self, trajectory: Trajectory) -> None:
        """Take an epoch that is certified, which was checked before."""
        self.publication = trajectory.publication()
        self.heads.append(trajectory.next_head)

    def take(self, kept: Kept) -> Trajectory:
        """Recompute the next certified epoch, see that it is, and append it.

        Raises:
            RemoteProtocolError: a record that does not fit, or that too few have voted for; nothing has changed.
        """
        trajectory = self.replay(kept)
        check_certificate(self._charter, valid_votes(self._roster, trajectory, kept[0].votes))
        self.append(trajectory)
        return trajectory


class HoldsHistory:
    """A party's machine: where it stands is where its history ends."""

    history: History

    @property
    def head(self) -> bytes:
        """Digest of all that is certified."""
        return self.history.head

    @property
    def certified(self) -> int:
        """How many epochs are certified, those of predecessors counted."""
        return self.history.certified

    @property
    def publication(self) -> Publication | None:
        """What the newest certified epoch published."""
        return self.history.publication


def certified_epochs(
    charter: Charter, roster: Roster, course: Course, records: Iterable[Kept]
) -> Iterator[tuple[int, bytes, Trajectory]]:
    """Recompute certified epochs from a charter's first head on.

    Yields:
        For each: how many are certified with it (those of predecessors counted), the new head, and the epoch.

    Raises:
        LocalProtocolError: the roster is not the charter's.
        RemoteProtocolError: a record that does not fit, or that too few have voted for.
    """
    history = History(charter, roster, course)
    for kept in records:
        trajectory = history.take(kept)
        yield history.certified, history.head, trajectory
