"""What was agreed before anybody spoke (`Charter`), what the server may ask (`Offer`), and what follows (`Plan`).

Everything that decides what a client reveals is in the charter, whose digest every party knows from its own files. The
server offers an epoch, a cohort and a head, and nothing else: client and server derive the same plan from these with
`derive_plan`, and each client checks it against its own `Policy`, which can only be stricter.

Who may be summed. The charter divides the roster into fixed blocks of at least c + 2 members, and every cohort and
every set of survivors is a union of whole blocks. Whatever sums are ever given, each combination of them is
constant on every block, and each block has at least two honest members: no combination separates one of them (So et
al., AAAI 2023, for rounds of federated learning). With `losses = "allow"` any large enough set is summed; what that
exposes is said where a person decides.

Threshold rule of the resilient mode (complete graph, n in the cohort, c colluders): 2 * threshold > n + c. Then no
party can collect `threshold` shares of both kinds for one member, since an honest client gives one kind only. Of a
roster of more than 200, each member has but some neighbours; see `neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from codream_protocols.distributed_noise import Noise, noise_multiplier, noise_rho
from codream_protocols.errors import CohortRefused, PolicyViolation, UnsafePlan, WrongContext
from codream_protocols.identity import MAX_MEMBERS, Key, Roster
from codream_protocols.keyschedule import PROTOCOL, digest
from codream_protocols.masks import SUITES, Suite
from codream_protocols.neighbours import MAX_COMPLETE, Degree, Ring, least_degree, ring, silent
from codream_protocols.packing import packed_size
from codream_protocols.record_noise import RecordNoise
from codream_protocols.specs import MAX_COORDINATES, VectorSpec, check_spec

MAX_STEPS = 4096
MAX_LOCKSTEP = 64  # set-up grows with the square of the members; about 30 is what it is meant for
MAX_EPOCHS = 1 << 53
MAX_BLOCKS = 4096  # of a charter's predecessors: 62 that each divide 200 members anew, or 4,096 of three hospitals
MAX_SUMS_BYTES = 3 << 30  # of an epoch, packed; with its advertisements they must go into one record's file

_M = TypeVar("_M", int, str)
MemberNumber = Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)]
Members = Annotated[tuple[MemberNumber, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
EpochNumber = Annotated[int, Meta(ge=0, lt=MAX_EPOCHS)]


class Aggregation(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """How sums are made.

    Attributes:
        mode: "lockstep" (everybody or nobody) or "resilient" (whole blocks may drop out of a step).
        colluders: c, how many members may collude with the server; at least 1, since members see exact sums.
        least_survivors: a sum over fewer is never opened.
        value_bits: v, bits of one real value, where its kind of vector has none of its own.
        suite: the mask generator; a client with a CUDA device can make chacha20's there.
        losses: "blocks" (sums over whole blocks only) or "allow" (over any `least_survivors`).
        attempts: set-ups and epochs that may be given up between two certificates.
    """

    mode: Literal["lockstep", "resilient"] = "lockstep"
    colluders: Annotated[int, Meta(ge=1, lt=MAX_MEMBERS)] = 1
    least_survivors: Annotated[int, Meta(ge=3, le=MAX_MEMBERS)] = 3
    value_bits: Annotated[int, Meta(ge=2, le=24)] = 16
    suite: Suite = "aes-256-ctr"
    losses: Literal["blocks", "allow"] = "blocks"
    attempts: Annotated[int, Meta(ge=1, le=1000)] = 20


Blocks = Annotated[tuple[Annotated[tuple[Key, ...], Meta(max_length=MAX_MEMBERS)], ...], Meta(max_length=MAX_BLOCKS)]


class Predecessor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The charter that this one follows.

    Attributes:
        charter: its digest.
        head: its last head.
        certified: how many epochs were certified when it ended, those of its own predecessors counted.
        blocks: its blocks and those of its own predecessors, as identity keys: who is new sees by these, too, what sums
            before and after it tell apart.
        colluders: the most that it or a predecessor of its own was to bear.
    """

    charter: Key
    head: Key
    certified: Annotated[int, Meta(ge=0, lt=MAX_EPOCHS)]
    blocks: Blocks = ()
    colluders: Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)] = 0


class Charter(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """What all parties agreed on.

    Attributes:
        roster: the roster's hash.
        members: N, how many members the roster has.
        settings: digest of every setting that all share: task, course, dreams, learning, privacy.
        aggregation: how sums are made.
        blocks: who is only ever summed together; a partition of 0 .. N - 1.
        predecessor: the charter that this one follows; None for a first one.
    """

    roster: Key
    members: Annotated[int, Meta(ge=2, le=MAX_MEMBERS)]
    settings: Key
    aggregation: Aggregation
    blocks: Annotated[tuple[Members, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    predecessor: Predecessor | None = None

    @cached_property
    def digest(self) -> bytes:
        """What every plan, head and vote of the charter names, 32 bytes."""
        return digest("charter", msgspec.msgpack.encode(self))

    @property
    def first_head(self) -> bytes:
        """The head before anything is certified, 32 bytes."""
        last = b"" if self.predecessor is None else self.predecessor.head
        return digest("first head", self.digest, last)

    @property
    def earlier(self) -> int:
        """How many epochs the predecessors had certified."""
        return 0 if self.predecessor is None else self.predecessor.certified

    @cached_property
    def everybody(self) -> tuple[int, ...]:
        """All members of the roster."""
        return tuple(range(self.members))

    @property
    def least_honest(self) -> int:
        """How many members of any sum are surely honest: their shares of noise make up the whole."""
        aggregation = self.aggregation
        if aggregation.mode == "lockstep":
            return self.members - aggregation.colluders
        smallest = min(map(len, self.blocks)) if aggregation.losses == "blocks" else 0
        return max(smallest, aggregation.least_survivors) - aggregation.colluders

    @property
    def quorum(self) -> int:
        """How many votes certify an epoch: all in lockstep, else more than half of the roster and the colluders."""
        if self.aggregation.mode == "lockstep":
            return self.members
        return (self.members + self.aggregation.colluders) // 2 + 1

    def is_union(self, members: Iterable[int]) -> bool:
        """Whether a set is made of whole blocks."""
        chosen = set(members)
        return all(chosen.issuperset(block) or chosen.isdisjoint(block) for block in self.blocks)

    def whole_blocks(self, members: Iterable[int]) -> tuple[int, ...]:
        """Those of `members` whose whole block is among them, ascending; all of them with `losses = "allow"`."""
        chosen = set(members)
        if self.aggregation.losses == "allow":
            return tuple(sorted(chosen))
        return tuple(sorted(one for block in self.blocks if chosen.issuperset(block) for one in block))

    def check_summed(self, members: tuple[int, ...]) -> None:
        """Refuse a set that must not be summed.

        Raises:
            CohortRefused: strangers or repeats, too few, not everybody in lockstep, or a part of a block.
        """
        if list(members) != sorted(set(members)) or (members and members[-1] >= self.members):
            raise CohortRefused("repeated, unordered or strange members", "members, ascending, once each")
        aggregation = self.aggregation
        if len(members) < aggregation.least_survivors:
            raise CohortRefused(f"{len(members)} members", f"{aggregation.least_survivors} or more")
        if aggregation.mode == "lockstep" and members != self.everybody:
            raise CohortRefused(f"{len(members)} of {self.members} members in lockstep", "everybody")
        if aggregation.losses == "blocks" and not self.is_union(members):
            raise CohortRefused("a part of a block", "whole blocks of the charter")


def even_blocks(members: int, colluders: int) -> tuple[tuple[int, ...], ...]:
    """The public rule of blocks: as many as there can be of at least c + 2 members, even, in the roster's order."""
    count = max(1, members // (colluders + 2))
    bounds = [members * number // count for number in range(count + 1)]
    return tuple(tuple(range(low, high)) for low, high in pairwise(bounds))


def cuts(answered: Iterable[Iterable[_M]], blocks: Iterable[Iterable[_M]], least: int) -> list[tuple[_M, ...]]:
    """Parts that sums of old and new blocks together separate, and that are smaller than `least`.

    Args:
        answered: the blocks that were ever answered for, as sets of whatever names a member for good.
        blocks: the new ones, in the same names.
        least: c + 2, of the largest c that any of these charters was to bear.

    Returns:
        The parts of the common refinement with fewer than `least` members, each sorted; empty when nothing is cut. A
        whole old block, and a whole new one of new members alone, are no cuts, however small: one charter had them.
    """
    old = [set(block) for block in answered]
    new = [set(block) for block in blocks]
    parts: dict[tuple[bool, ...], list[_M]] = {}
    for member in sorted({member for block in old + new for member in block}):
        parts.setdefault(tuple(member in block for block in old + new), []).append(member)
    whole = old + [block for block in new if all(block.isdisjoint(one) for one in old)]
    return [tuple(part) for part in parts.values() if len(part) < least and set(part) not in whole]


def blocks_by_key(charter: Charter, roster: Roster) -> tuple[tuple[Key, ...], ...]:
    """A charter's blocks as identity keys, which outlast a change of the roster."""
    return tuple(tuple(roster.members[member].identity_key for member in block) for block in charter.blocks)


def successor_of(charter: Charter, roster: Roster, head: bytes, certified: int) -> Predecessor:
    """What a charter that follows this one names.

    Args:
        charter: the one that ends.
        roster: its roster.
        head: its last head.
        certified: epochs certified in all.
    """
    earlier = charter.predecessor
    known = () if earlier is None else earlier.blocks
    blocks = dict.fromkeys((*known, *(tuple(sorted(block)) for block in blocks_by_key(charter, roster))))
    colluders = max(charter.aggregation.colluders, 0 if earlier is None else earlier.colluders)
    return Predecessor(charter.digest, head, certified, tuple(blocks), colluders)


def check_charter(charter: Charter) -> None:
    """Refuse a charter under which a promise of the protocol fails, whatever a policy says.

    Raises:
        UnsafePlan: the rule that is broken, what was found and what is allowed.
    """
    aggregation, colluders = charter.aggregation, charter.aggregation.colluders
    if sorted(one for block in charter.blocks for one in block) != list(charter.everybody):
        raise UnsafePlan("blocks that are no partition of the roster", "each member in one block")
    smallest = min(map(len, charter.blocks))
    if aggregation.losses == "blocks" and smallest < colluders + 2:
        raise UnsafePlan(f"a block of {smallest} with {colluders} colluders", f"{colluders + 2} or more")
    if not colluders + 2 <= aggregation.least_survivors <= charter.members:
        raise UnsafePlan(
            f"at least {aggregation.least_survivors} survivors of {charter.members} with {colluders} colluders",
            f"{colluders + 2} to {charter.members}, so that a sum hides each honest client behind another",
        )
    if aggregation.mode == "lockstep" and charter.members > MAX_LOCKSTEP:
        raise UnsafePlan(f"{charter.members} members in lockstep", f"at most {MAX_LOCKSTEP}; resilient takes more")


class Offer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that a server decides of an epoch: its number, who is invited, and after which head it comes."""

    epoch: EpochNumber
    cohort: Members
    head: Key


class PlannedCourse(Protocol):
    """What a plan needs to know of a course; see `course.Course`."""

    @property
    def epochs(self) -> int:
        """How many epochs there are to certify."""

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """The kinds of vector; where there is noise, `honest` shares of it are the whole."""

    def schedule(self, certified: int) -> tuple[int, ...]:
        """For each step of the epoch after `certified` ones, the index of its kind of vector."""


class Plan(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, dict=True):
    """One epoch, as every party derives it.

    Attributes:
        protocol: the protocol's name and version.
        charter: the charter.
        offer: the server's offer.
        certified: epochs that were certified before, those of predecessors counted.
        specs: the kinds of vector, each with its noise.
        schedule: for each step, the index of its kind in `specs`; its length is T.
        moduli: for each of `specs` m, bits of a ring element.
        threshold: how many shares rebuild a secret (resilient); everybody in lockstep.
    """

    protocol: str
    charter: Charter
    offer: Offer
    certified: int
    specs: tuple[VectorSpec, ...]
    schedule: tuple[int, ...]
    moduli: tuple[int, ...]
    threshold: int

    @cached_property
    def digest(self) -> bytes:
        """The epoch's context, 32 bytes."""
        return digest("plan", msgspec.msgpack.encode(self))

    @cached_property
    def degree(self) -> Degree | None:
        """How many neighbours each member has; None on a complete graph."""
        return _degree(self.charter, self.offer)

    def ring(self, transcript: bytes, members: tuple[int, ...]) -> Ring | None:
        """Whose neighbour is whose, of an epoch of these members; None on a complete graph."""
        return None if self.degree is None else ring(transcript, members, self.degree)

    @property
    def least_members(self) -> int:
        """How many of the cohort must be shown: so many that the threshold holds among them."""
        return self.threshold if self.degree is None else len(self.cohort) - silent(len(self.cohort))

    @property
    def least_signers(self) -> int:
        """How many must have signed a set of survivors before anybody gives a share for it."""
        if self.degree is None:
            return self.threshold
        return (len(self.cohort) + self.aggregation.colluders) // 2 + 1  # two such sets share an honest signer

    @property
    def steps(self) -> int:
        """T."""
        return len(self.schedule)

    @property
    def cohort(self) -> tuple[int, ...]:
        """Who is invited."""
        return self.offer.cohort

    @cached_property
    def invited(self) -> frozenset[int]:
        """The same, to look one up among many."""
        return frozenset(self.cohort)

    @property
    def aggregation(self) -> Aggregation:
        """How sums are made."""
        return self.charter.aggregation

    def spec(self, step: int) -> VectorSpec:
        """The kind of vector of a step."""
        return self.specs[self.schedule[step]]

    def modulus_bits(self, step: int) -> int:
        """M of a step's vector."""
        return self.moduli[self.schedule[step]]

    def top(self, step: int) -> int:
        """What the bound of a real becomes in a step; without noise N times as much is below 2^m."""
        return self.spec(step).top(self.aggregation.value_bits, self.modulus_bits(step), self.charter.members)

    def noise_multiplier(self, spec: VectorSpec) -> float:
        """Deviation of the noise of the fewest honest members over what one client moves; 0 where none hides it."""
        if not isinstance(spec.noise, Noise):
            return 0.0
        return noise_multiplier(spec.noise, spec.length, self.charter.least_honest)

    def rho(self, spec: VectorSpec) -> float:
        """What such a vector costs the client that sends it, in zCDP at client level; 0 where no noise hides it."""
        if not isinstance(spec.noise, Noise):
            return 0.0
        return noise_rho(spec.noise, spec.length, self.charter.least_honest)

    @property
    def finest_bits(self) -> int:
        """Bits of a real in the finest vector; the charter's, at least."""
        own = (step for step in range(self.steps) if self.spec(step).value_bits and self.spec(step).has_reals)
        return max((self.aggregation.value_bits, *(self.top(step).bit_length() for step in own)))

    @property
    def total_rho(self) -> float:
        """What all steps together cost a client."""
        return sum(self.schedule.count(kind) * self.rho(spec) for kind, spec in enumerate(self.specs))


def _degree(charter: Charter, offer: Offer) -> Degree | None:
    if charter.aggregation.mode == "lockstep" or charter.members <= MAX_COMPLETE:
        return None
    size, colluders = len(offer.cohort), charter.aggregation.colluders
    degree = least_degree(size, colluders)
    if degree is None:
        raise UnsafePlan(
            f"{size} members with {colluders} colluders",
            "so many fewer colluders that some number of neighbours keeps their secrets, and lives with a tenth of "
            f"them silent; or a roster of at most {MAX_COMPLETE}, where all are neighbours",
        )
    return degree


def default_threshold(cohort: int, colluders: int) -> int:
    """floor(2n/3) + 1, never more than n; or the least threshold that tolerates the colluders, if that is more."""
    return max(min(cohort, 2 * cohort // 3 + 1), (cohort + colluders) // 2 + 1)


def first_plan(charter: Charter, course: PlannedCourse) -> Plan:
    """The plan of a charter's first epoch, of everybody; raises as `derive_plan`: what fails here could never run."""
    return derive_plan(charter, course, Offer(0, charter.everybody, charter.first_head), charter.earlier)


def derive_plan(charter: Charter, course: PlannedCourse, offer: Offer, certified: int) -> Plan:
    """The plan of an offer: one function for client and server.

    Raises:
        CohortRefused: a cohort that must not be summed.
        WrongContext: an epoch after the course's last.
        UnsafePlan: a promise of the protocol would fail.
    """
    check_charter(charter)
    if certified >= course.epochs:
        raise WrongContext(f"an epoch after {certified} certified ones", f"{course.epochs} in the whole course")
    charter.check_summed(offer.cohort)
    aggregation, size = charter.aggregation, len(offer.cohort)
    specs, schedule = course.specs(charter.least_honest), course.schedule(certified)
    if not 1 <= len(schedule) <= MAX_STEPS or not 0 <= min(schedule) <= max(schedule) < len(specs):
        raise UnsafePlan(f"a schedule of {len(schedule)} steps over {len(specs)} kinds", f"1 to {MAX_STEPS}, of these")
    if len({spec.task for spec in specs}) != len(specs):
        raise UnsafePlan("two vectors with one task name", "distinct task names")
    for spec in specs:
        check_spec(spec)
        if isinstance(spec.noise, RecordNoise) and spec.noise.honest > charter.least_honest:
            raise UnsafePlan(
                f"noise of {spec.task!r} that counts on {spec.noise.honest} shares",
                f"at most {charter.least_honest}, the smallest set that may be summed less the colluders",
            )
    # Of the roster, not of the cohort: how large a ring is must not hang on who happens to be there.
    moduli = tuple(spec.least_modulus_bits(aggregation.value_bits, charter.members, len(schedule)) for spec in specs)
    if max(moduli) > 32:
        raise UnsafePlan(f"a modulus of {max(moduli)} bits", "at most 32; fewer value bits, or less noise a client")
    sums = sum(packed_size(specs[kind].words, moduli[kind]) for kind in schedule)
    if sums > MAX_SUMS_BYTES:
        raise UnsafePlan(
            f"an epoch whose {len(schedule)} sums have {sums} bytes",
            f"at most {MAX_SUMS_BYTES}, which a record's file holds; take fewer steps, or smaller vectors",
        )
    degree = _degree(charter, offer)
    threshold = size if aggregation.mode == "lockstep" else default_threshold(size, aggregation.colluders)
    if degree is not None:
        threshold = degree.threshold
    if threshold > size:
        raise UnsafePlan(
            f"threshold {threshold} for {size} members", f"more members or fewer than {aggregation.colluders} colluders"
        )
    return Plan(PROTOCOL, charter, offer, certified, specs, schedule, moduli, threshold)


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one client permits, whatever the charter says; every field is a limit, and can only be stricter.

    Attributes:
        least_cohort: fewest members of an epoch, itself included.
        least_survivors: fewest inputs in any sum.
        colluders: how many colluding members the charter must bear at least.
        modes: permitted modes.
        suites: permitted mask generators.
        most_steps: most steps of one epoch.
        most_total_steps: most steps that this client answers in its life.
        most_coordinates: most coordinates of one vector.
        most_value_bits: finest resolution of a value.
        losses: whether sums over parts of blocks are permitted.
        cuts: whether a charter is permitted that cuts a block which this client has answered for.
        least_noise: the least noise multiplier of every vector that depends on data; 0 permits none, and above 0 a
            client takes part only where there is client-level noise.
        most_rho: the most client-level zCDP that noised vectors may cost in its life; None sets no limit.
        most_wrong_sums: sums of a charter that may fail their check before a person must look.
        shared_noise: whether this client's records may count on noise that other members add.
    """

    least_cohort: Annotated[int, Meta(ge=3, le=MAX_MEMBERS)] = 3
    least_survivors: Annotated[int, Meta(ge=3, le=MAX_MEMBERS)] = 3
    colluders: Annotated[int, Meta(ge=1, lt=MAX_MEMBERS)] = 1
    modes: tuple[Literal["lockstep", "resilient"], ...] = ("lockstep", "resilient")
    suites: tuple[Suite, ...] = tuple(SUITES)
    most_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = MAX_STEPS
    most_total_steps: Annotated[int, Meta(ge=1)] = 1_000_000
    most_coordinates: Annotated[int, Meta(ge=1, le=MAX_COORDINATES)] = MAX_COORDINATES
    most_value_bits: Annotated[int, Meta(ge=1, le=31)] = 24
    losses: bool = False
    cuts: bool = False
    least_noise: Annotated[float, Meta(ge=0)] = 0.0
    most_rho: float | None = None
    most_wrong_sums: Annotated[int, Meta(ge=0)] = 1
    shared_noise: bool = False

    def check(self, plan: Plan) -> None:
        """Refuse a plan that goes beyond this policy.

        Raises:
            PolicyViolation: what was asked, and what is permitted.
        """
        aggregation = plan.aggregation
        lower = [
            ("members", len(plan.cohort), self.least_cohort),
            ("survivors at least", aggregation.least_survivors, self.least_survivors),
            ("tolerated colluders", aggregation.colluders, self.colluders),
        ]
        for what, found, least in lower:
            if found < least:
                raise PolicyViolation(f"{what}: {found}", f"{least} or more")
        upper = [
            ("steps", plan.steps, self.most_steps),
            ("coordinates", max(spec.words for spec in plan.specs), self.most_coordinates),
            ("bits of a value", plan.finest_bits, self.most_value_bits),
        ]
        for what, found, most in upper:
            if found > most:
                raise PolicyViolation(f"{what}: {found}", f"{most} or fewer")
        for what, name, allowed in (
            ("mode", aggregation.mode, self.modes),
            ("mask suite", aggregation.suite, self.suites),
        ):
            if name not in allowed:
                raise PolicyViolation(f"{what} {name!r}", " or ".join(allowed))
        if aggregation.losses == "allow" and not self.losses and not all(spec.hides_clients for spec in plan.specs):
            raise PolicyViolation(
                "losses = 'allow': sums whose difference is one client's input",
                "'blocks'",
                "or permit it with losses = true in [policy] of client.toml",
            )
        if not self.shared_noise and any(isinstance(spec.noise, RecordNoise) for spec in plan.specs):
            raise PolicyViolation(
                "noise for this client's records that other members add, none of whom shows it",
                "noise of its own alone",
                "or permit it with shared_noise = true in [policy] of client.toml",
            )
        for spec in plan.specs:
            multiplier = plan.noise_multiplier(spec)
            if multiplier < self.least_noise:
                raise PolicyViolation(
                    f"noise of {multiplier:.4g} times the sensitivity for task {spec.task!r}",
                    f"{self.least_noise:.4g} times or more",
                )
