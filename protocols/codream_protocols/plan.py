"""What an epoch is (`Plan`), and what a client lets itself be asked (`Policy`).

A plan fixes everything before the first key is drawn: who is invited, how many steps, which vectors, noise, ring,
mask suite and threshold. Its digest is the context of every signature and key of the epoch. `check_plan` refuses a plan
under which a promise of the protocol fails for anybody; `Policy.check` refuses what this client does not want. The
client has the last word.

Threshold rule (complete neighbour graph, n invited, c colluders with the server): 2 * threshold > n + c. Then no
party can collect `threshold` shares of both kinds for one member, since an honest client gives one kind only.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from codream_protocols.distributed_noise import Noise, make_noise, noise_multiplier, noise_rho, noised_modulus_bits
from codream_protocols.errors import PolicyViolation, UnsafePlan
from codream_protocols.identity import MAX_MEMBERS, Key, Name
from codream_protocols.keyschedule import PROTOCOL, digest
from codream_protocols.masks import SUITES
from codream_protocols.ring import modulus_bits_for
from codream_protocols.rotation import padded_length

MAX_STEPS = 4096
MAX_COORDINATES = 1 << 26
LEAST_CLIP = 1e-9  # far below it, fixed-point arithmetic in doubles would no longer be exact

MemberNumber = Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)]
Cohort = Annotated[tuple[MemberNumber, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]


class Block(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of coordinates with one clip: `length` values in [-clip, clip]."""

    name: Name
    length: Annotated[int, Meta(ge=1, le=MAX_COORDINATES)]
    clip: float


class VectorSpec(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One kind of vector that clients send: its task's name, its blocks, in order, and the noise each client adds."""

    task: Name
    blocks: Annotated[tuple[Block, ...], Meta(min_length=1, max_length=64)]
    noise: Noise | None = None

    @property
    def length(self) -> int:
        """Coordinates in all."""
        return sum(block.length for block in self.blocks)

    @property
    def words(self) -> int:
        """Ring elements on the wire: the coordinates, padded for the rotation where there is noise."""
        return self.length if self.noise is None else padded_length(self.length)

    def with_noise(self, norm: float, multiplier: float, honest: int) -> VectorSpec:
        """The same vector, bounded in norm, with shares of which `honest` are the whole noise; see `make_noise`."""
        return VectorSpec(self.task, self.blocks, make_noise(norm, self.length, multiplier, honest))

    def least_modulus_bits(self, value_bits: int, clients: int, steps: int) -> int:
        """The smallest m for which sums over `clients` do not wrap; with noise, but with a negligible probability."""
        if self.noise is None:
            return modulus_bits_for(value_bits, clients)
        return noised_modulus_bits(self.noise, self.length, clients, steps)


class Plan(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One epoch of secure aggregation.

    Attributes:
        protocol: the protocol's name and version.
        session: 16 random bytes for a server's run.
        epoch: counts up within a session.
        roster: the roster's hash.
        recipe: digest of the learning settings that all parties must share.
        cohort: the members invited, ascending.
        specs: the kinds of vector, each with its noise.
        schedule: for each step, the index of its kind in `specs`; its length is T.
        value_bits: v, bits of one value.
        modulus_bits: m, bits of a ring element.
        suite: the mask generator.
        threshold: how many shares rebuild a secret.
        least_survivors: a sum over fewer is never revealed.
        colluders: c, how many clients may collude with the server without any promise failing.
    """

    protocol: Annotated[str, Meta(max_length=32)]
    session: Annotated[bytes, Meta(min_length=16, max_length=16)]
    epoch: Annotated[int, Meta(ge=0, lt=1 << 32)]
    roster: Key
    recipe: Key
    cohort: Cohort
    specs: Annotated[tuple[VectorSpec, ...], Meta(min_length=1, max_length=16)]
    schedule: Annotated[tuple[Annotated[int, Meta(ge=0, lt=16)], ...], Meta(min_length=1, max_length=MAX_STEPS)]
    value_bits: Annotated[int, Meta(ge=1, le=31)]
    modulus_bits: Annotated[int, Meta(ge=1, le=32)]
    suite: Annotated[str, Meta(max_length=32)]
    threshold: Annotated[int, Meta(ge=1, le=MAX_MEMBERS)]
    least_survivors: Annotated[int, Meta(ge=1, le=MAX_MEMBERS)]
    colluders: Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)]

    @property
    def digest(self) -> bytes:
        """The epoch's context, 32 bytes."""
        return digest("plan", msgspec.msgpack.encode(self))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.schedule)

    def spec(self, step: int) -> VectorSpec:
        """The kind of vector of a step."""
        return self.specs[self.schedule[step]]

    @property
    def least_honest(self) -> int:
        """How many survivors of any sum are no colluders, at the least: their shares make up the whole noise."""
        return self.least_survivors - self.colluders

    def noise_multiplier(self, spec: VectorSpec) -> float:
        """Deviation of the noise of the fewest honest survivors over the sensitivity; 0 without noise."""
        return 0.0 if spec.noise is None else noise_multiplier(spec.noise, spec.length, self.least_honest)

    def rho(self, spec: VectorSpec) -> float:
        """What such a vector costs the client that sends it, in zCDP at client level; 0 without noise."""
        return 0.0 if spec.noise is None else noise_rho(spec.noise, spec.length, self.least_honest)

    @property
    def total_rho(self) -> float:
        """What all steps together cost a client."""
        return sum(self.schedule.count(kind) * self.rho(spec) for kind, spec in enumerate(self.specs))


def default_threshold(cohort: int, colluders: int = 0) -> int:
    """floor(2n/3) + 1, never more than n; or the least threshold that tolerates the colluders, if that is more."""
    return max(min(cohort, 2 * cohort // 3 + 1), (cohort + colluders) // 2 + 1)


def tolerated_colluders(cohort: int, threshold: int) -> int:
    """The largest c with 2 * threshold > cohort + c; negative when the threshold is unsafe even without colluders."""
    return 2 * threshold - cohort - 1


def check_plan(plan: Plan) -> None:
    """Refuse a plan under which the protocol's promises fail.

    Raises:
        UnsafePlan: the rule that is broken, what was found and what is allowed.
    """
    cohort = len(plan.cohort)
    if plan.protocol != PROTOCOL:
        raise UnsafePlan(f"protocol {plan.protocol!r}", repr(PROTOCOL))
    if list(plan.cohort) != sorted(set(plan.cohort)):
        raise UnsafePlan("a cohort that is not strictly ascending", "each member once, in ascending order")
    if cohort < 2:
        raise UnsafePlan("a cohort of one", "two members or more")
    if not plan.threshold <= cohort or 2 * plan.threshold <= cohort + plan.colluders:
        raise UnsafePlan(
            f"threshold {plan.threshold} with {cohort} members and {plan.colluders} colluders",
            f"{(cohort + plan.colluders) // 2 + 1} to {cohort}",
        )
    if not plan.colluders + 2 <= plan.least_survivors <= cohort:
        raise UnsafePlan(
            f"at least {plan.least_survivors} survivors with {plan.colluders} colluders",
            f"{plan.colluders + 2} to {cohort}, so that a sum hides each honest client behind another",
        )
    if plan.suite not in SUITES:
        raise UnsafePlan(f"mask suite {plan.suite!r}", " or ".join(SUITES))
    if max(plan.schedule) >= len(plan.specs):
        raise UnsafePlan(f"a schedule that names vector {max(plan.schedule)}", f"0 to {len(plan.specs) - 1}")
    if len({spec.task for spec in plan.specs}) != len(plan.specs):
        raise UnsafePlan("two vectors with one task name", "distinct task names")
    for spec in plan.specs:
        _check_spec(spec)
        needed = spec.least_modulus_bits(plan.value_bits, cohort, plan.steps)
        if plan.modulus_bits < needed:
            noise = f" and noise of variance {spec.noise.variance}" if spec.noise is not None else ""
            raise UnsafePlan(
                f"a modulus of {plan.modulus_bits} bits for {cohort} values of {plan.value_bits} bits{noise}",
                f"{needed} bits or more, or sums wrap (32 are the most there are)",
            )


def _check_spec(spec: VectorSpec) -> None:
    names = [block.name for block in spec.blocks]
    if len(set(names)) != len(names):
        raise UnsafePlan(f"repeated block names in {spec.task!r}", "distinct block names")
    if spec.words > MAX_COORDINATES:
        raise UnsafePlan(f"{spec.words} coordinates in {spec.task!r}", f"at most {MAX_COORDINATES}")
    if spec.noise is not None and not (math.isfinite(spec.noise.norm) and spec.noise.norm >= LEAST_CLIP):
        raise UnsafePlan(f"norm {spec.noise.norm} of {spec.task!r}", f"a finite number, {LEAST_CLIP:g} or more")
    for block in spec.blocks:
        if not (math.isfinite(block.clip) and block.clip >= LEAST_CLIP):
            raise UnsafePlan(
                f"clip {block.clip} of {spec.task}.{block.name}", f"a finite number, {LEAST_CLIP:g} or more"
            )


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one client permits, whatever the server asks; every field is a limit.

    Attributes:
        least_cohort: fewest members of an epoch, itself included.
        least_survivors: fewest inputs in any sum.
        least_threshold: fewest shares that may rebuild a secret.
        colluders: how many colluding clients the plan must tolerate at least.
        most_steps: most steps of one epoch.
        most_total_steps: most steps that this client answers in its life; an endless session stops here.
        most_coordinates: most coordinates of one vector.
        most_value_bits: finest resolution of a value.
        tasks: the tasks it takes part in, each with the largest clip of any block.
        suites: permitted mask generators.
        least_noise: for these tasks, the least noise multiplier (see `Plan.noise_multiplier`) of its vectors.
        most_rho: the most client-level zCDP that noised vectors may cost this client in its life; None sets no limit.
        recipe: digest of the learning settings it was started with; None permits any.
    """

    least_cohort: Annotated[int, Meta(ge=2, le=MAX_MEMBERS)] = 3
    least_survivors: Annotated[int, Meta(ge=2, le=MAX_MEMBERS)] = 3
    least_threshold: Annotated[int, Meta(ge=1, le=MAX_MEMBERS)] = 1
    colluders: Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)] = 1
    most_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = MAX_STEPS
    most_total_steps: Annotated[int, Meta(ge=1)] = 1_000_000
    most_coordinates: Annotated[int, Meta(ge=1, le=MAX_COORDINATES)] = MAX_COORDINATES
    most_value_bits: Annotated[int, Meta(ge=1, le=31)] = 24
    tasks: dict[str, float]
    suites: tuple[str, ...] = SUITES
    least_noise: dict[str, float] = {}
    most_rho: float | None = None
    recipe: Key | None = None

    def check(self, plan: Plan) -> None:
        """Refuse a plan that goes beyond this policy.

        Raises:
            PolicyViolation: what was asked, and what is permitted.
        """
        lower = [
            ("members", len(plan.cohort), self.least_cohort),
            ("survivors at least", plan.least_survivors, self.least_survivors),
            ("threshold", plan.threshold, self.least_threshold),
            ("tolerated colluders", plan.colluders, self.colluders),
        ]
        for what, found, least in lower:
            if found < least:
                raise PolicyViolation(f"{what}: {found}", f"{least} or more")
        upper = [
            ("steps", plan.steps, self.most_steps),
            ("coordinates", max(spec.words for spec in plan.specs), self.most_coordinates),
            ("bits of a value", plan.value_bits, self.most_value_bits),
        ]
        for what, found, most in upper:
            if found > most:
                raise PolicyViolation(f"{what}: {found}", f"{most} or fewer")
        if plan.suite not in self.suites:
            raise PolicyViolation(f"mask suite {plan.suite!r}", " or ".join(self.suites))
        if self.recipe is not None and plan.recipe != self.recipe:
            raise PolicyViolation(
                f"learning settings with digest {plan.recipe.hex()[:16]}…",
                f"this client's own, {self.recipe.hex()[:16]}…",
                "give all parties the same [learning] and [dreams] settings",
            )
        for spec in plan.specs:
            if spec.task not in self.tasks:
                raise PolicyViolation(f"task {spec.task!r}", ", ".join(sorted(self.tasks)) or "none")
            largest = max(block.clip for block in spec.blocks)
            if largest > self.tasks[spec.task]:
                raise PolicyViolation(f"clip {largest:g} for task {spec.task!r}", f"{self.tasks[spec.task]:g} or less")

    def check_noise(self, plan: Plan) -> None:
        """Refuse a plan under which a sum could carry less noise than this client demands.

        Raises:
            PolicyViolation: what was asked, and what is permitted.
        """
        for spec in plan.specs:
            found, least = plan.noise_multiplier(spec), self.least_noise.get(spec.task, 0.0)
            if found < least:
                raise PolicyViolation(
                    f"noise of {found:.4g} times the sensitivity for task {spec.task!r}", f"{least:.4g} times or more"
                )
