"""The server's machine for one epoch. It routes, adds and rebuilds; it is trusted with nothing.

Theory of operation. A `ServerEpoch` takes messages (`receive`), the next public state (`begin_step`), and two kinds
of news from whoever runs it: a member is gone (`lost`), or the present phase has waited long enough (`expire`). It
returns effects. Vectors are added as they arrive into one running sum: memory does not grow with the number of
clients.

    ADVERTISING -> SHARING -> READY -> COLLECTING -> (AGREEING, if one dropped) -> UNMASKING -> READY ... -> FINISHED
    from every phase FAILED, when fewer are left than the plan needs, or when a sum cannot be rebuilt.

A failed step is never rerun on the same inputs: the epoch is over, and a new one starts from fresh noise. Rebuilt
secrets are checked against what was advertised, so a wrong share is noticed, and left out while enough others are
there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations, islice
from typing import Any

import numpy as np

from codream_protocols import keyschedule, shamir
from codream_protocols.client import check_advertisement, check_distinct_keys
from codream_protocols.errors import (
    CohortRefused,
    LocalProtocolError,
    ShareRefused,
    UnexpectedMessage,
    VectorRefused,
    WrongContext,
)
from codream_protocols.identity import Roster, verify
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    Refusal,
    SealedShare,
    ShareDelivery,
    Shares,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    ToServer,
    UnmaskShares,
    survivor_statement,
)
from codream_protocols.packing import unpack
from codream_protocols.plan import Plan, check_plan
from codream_protocols.vectors import check_clips

MAX_SHARE_SUBSETS = 32


class Phase(Enum):
    """Where an epoch stands."""

    NEW = "new"
    ADVERTISING = "advertising"
    SHARING = "sharing"
    READY = "ready"
    COLLECTING = "collecting"
    AGREEING = "agreeing"
    UNMASKING = "unmasking"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class SendTo:
    """Send a message, and the frames behind it, to one member."""

    member: int
    message: ToClient
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Ready:
    """The epoch is set up: `begin_step` may be called."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class Reveal:
    """A step's sum.

    Attributes:
        step: the step.
        total: ring elements, reduced modulo 2^m.
        survivors: whose inputs it holds.
        agreed: whether a dropout made the consistency round necessary.
        clips: the bounds that the inputs were encoded with.
    """

    step: int
    total: np.ndarray[Any, Any]
    survivors: tuple[int, ...]
    agreed: bool
    clips: tuple[float, ...]


@dataclass(frozen=True)
class Failed:
    """The epoch is over without its remaining sums."""

    reason: str


Effect = SendTo | Ready | Reveal | Failed


@dataclass
class _Step:
    """The running step."""

    number: int
    broadcast: Broadcast
    frames: tuple[bytes, ...]
    digest: bytes
    total: np.ndarray[Any, Any]
    inputs: set[int] = field(default_factory=set)
    survivors: tuple[int, ...] = ()
    signatures: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)


class ServerEpoch:
    """One epoch, from the plan to the last sum.

    Args:
        plan: what is planned; checked here as clients check it.
        roster: the verified roster.

    Raises:
        UnsafePlan: a promise of the protocol would fail.
    """

    def __init__(self, plan: Plan, roster: Roster) -> None:
        check_plan(plan)
        self.plan, self.digest, self.phase = plan, plan.digest, Phase.NEW
        self.members: tuple[int, ...] = ()
        self.absent: set[int] = set()
        self._roster = roster
        self._advertised: dict[int, Advertisement] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._step: _Step | None = None
        self._next_step = 0

    # -- events ---------------------------------------------

    def start(self) -> list[Effect]:
        """Invite the cohort."""
        if self.phase is not Phase.NEW:
            raise LocalProtocolError(f"start while {self.phase.value}", "once, at the beginning")
        self.phase = Phase.ADVERTISING
        return [SendTo(member, PlanOffer(self.plan)) for member in self.plan.cohort]

    def begin_step(self, clips: Sequence[float], arrays: Sequence[np.ndarray[Any, Any]]) -> list[Effect]:
        """Broadcast the public state of the next step.

        Args:
            clips: the bound of each block of the step's vector.
            arrays: finite float32 arrays of 1 to 4 axes.

        Raises:
            LocalProtocolError: called in another phase than READY, or an array does not fit.
            VectorRefused: clips beyond the plan.
        """
        if self.phase is not Phase.READY:
            raise LocalProtocolError(f"begin_step while {self.phase.value}", "while ready")
        spec = self.plan.spec(self._next_step)
        check_clips(spec, clips)
        plain = [np.ascontiguousarray(array, dtype="<f4") for array in arrays]
        for array in plain:
            if not (1 <= array.ndim <= 4 and array.size and np.isfinite(array).all()):
                raise LocalProtocolError(f"an array of shape {array.shape}, or not finite", "finite, of 1 to 4 axes")
        message = Broadcast(
            self.digest,
            self._next_step,
            tuple(float(clip) for clip in clips),
            tuple(array.shape for array in plain),
        )
        frames = tuple(array.tobytes() for array in plain)
        total = np.zeros(spec.words, dtype=word_type(self.plan.modulus_bits))
        self._step = _Step(self._next_step, message, frames, message.digest(frames), total)
        self._next_step += 1
        self.phase = Phase.COLLECTING
        return [SendTo(member, message, frames) for member in self.members if member not in self.absent]

    def receive(self, member: int, message: ToServer, frames: tuple[bytes, ...] = ()) -> list[Effect]:
        """Take one message of a member; the caller vouches that it came over that member's transport key.

        Raises:
            RemoteProtocolError: the message was refused; nothing has changed, but that its sender counts as present.
        """
        if self.phase in (Phase.FINISHED, Phase.FAILED):
            return []
        if isinstance(message, Refusal):
            return self.lost(member)
        handler = _HANDLERS.get(type(message))
        if handler is None or member not in self.plan.cohort:
            raise UnexpectedMessage(f"{type(message).__name__} of member {member}", "messages of this epoch's members")
        self.absent.discard(member)  # whoever speaks is there, even if what it says is too late
        return handler(self, member, message, frames)

    def lost(self, member: int) -> list[Effect]:
        """A member is gone, or refused: do not wait for it any more."""
        self.absent.add(member)
        return self._advance()

    def returned(self, member: int) -> list[Effect]:
        """A member is connected again: tell it what it is waited for. Clients answer repeats with the same bytes."""
        self.absent.discard(member)
        if self.phase is Phase.ADVERTISING and member in self.plan.cohort:
            return [SendTo(member, PlanOffer(self.plan))]
        if self.phase is Phase.SHARING and member in self._advertised:
            return [SendTo(member, self._advertisements())]
        if member not in self.members:
            return []
        effects: list[Effect] = [self._delivery(member)]
        step = self._step
        if step is None:
            return effects
        if self.phase is Phase.COLLECTING:
            effects.append(SendTo(member, step.broadcast, step.frames))
        elif self.phase in (Phase.AGREEING, Phase.UNMASKING) and member in step.survivors:
            effects.append(SendTo(member, Survivors(self.digest, step.number, step.survivors)))
            if self.phase is Phase.UNMASKING and step.survivors != self.members:
                effects.append(SendTo(member, self._signatures(step)))
        return effects

    def expire(self) -> list[Effect]:
        """The present phase has waited long enough: go on with who is there, or fail."""
        waited_for = self._waited_for()
        self.absent |= waited_for
        effects = self._advance()
        if effects or self.phase in (Phase.READY, Phase.FINISHED, Phase.FAILED):
            return effects
        return self._fail(f"not enough answers while {self.phase.value}")

    def waiting_for(self) -> tuple[int, ...]:
        """Whose message the present phase waits for."""
        return tuple(sorted(self._waited_for()))

    # -- set-up ---------------------------------------------

    def _on_advertisement(self, member: int, message: Advertisement, frames: tuple[bytes, ...]) -> list[Effect]:
        if self.phase is not Phase.ADVERTISING:
            if message == self._advertised.get(member):
                return []
            raise UnexpectedMessage("a late or second advertisement", f"none while {self.phase.value}")
        if message.member != member:
            raise CohortRefused(f"member {message.member}'s advertisement from member {member}", "its own")
        check_advertisement(self.plan, self.digest, self._roster, message)
        identity = self._roster.members[member].identity_key
        verify(identity, message.signature, "advertisement", *message.signed_parts())
        others = [item for number, item in self._advertised.items() if number != member]
        check_distinct_keys((*others, message))
        throwaway = message.commitments[:KEY_BYTES]  # any scalar will do: only the peer's key is under test
        keyschedule.agree(throwaway, message.share_key)
        for step in range(self.plan.steps):
            keyschedule.agree(throwaway, message.mask_key(step))
        self._advertised[member] = message
        return self._advance()

    def _on_shares(self, member: int, message: Shares, frames: tuple[bytes, ...]) -> list[Effect]:
        self._check_plan(message.plan)
        if self.phase is not Phase.SHARING:
            if member in self._sealed:
                return []
            raise UnexpectedMessage("late shares", f"none while {self.phase.value}")
        receivers = sorted(item.member for item in message.items)
        expected = [number for number in sorted(self._advertised) if number != member]
        if member not in self._advertised or receivers != expected:
            raise ShareRefused(f"shares for members {receivers}", f"one for each of {expected}")
        size = 2 * self.plan.steps * KEY_BYTES + 16
        if any(len(item.ciphertext) != size for item in message.items):
            raise ShareRefused("a ciphertext of the wrong size", f"{size} bytes")
        self._sealed[member] = {item.member: item.ciphertext for item in message.items}
        return self._advance()

    def _advertisements(self) -> Advertisements:
        return Advertisements(self.digest, tuple(self._advertised[number] for number in sorted(self._advertised)))

    def _delivery(self, member: int) -> SendTo:
        items = [SealedShare(sender, self._sealed[sender][member]) for sender in self.members if sender != member]
        return SendTo(member, ShareDelivery(self.digest, self.members, tuple(items)))

    # -- a step ---------------------------------------------

    def _on_masked_input(self, member: int, message: MaskedInput, frames: tuple[bytes, ...]) -> list[Effect]:
        step = self._in_step(member, message.plan, message.step)
        if member in step.inputs:
            return []  # the same bytes again, after a reconnect
        if self.phase is not Phase.COLLECTING:
            raise WrongContext(f"a masked input for step {step.number} after its survivors were announced", "in time")
        if message.broadcast != step.digest:
            raise WrongContext("a masked input that answers another broadcast", "this step's broadcast")
        if len(frames) != 1:
            raise VectorRefused(f"{len(frames)} frames behind a masked input", "one")
        step.total += unpack(frames[0], len(step.total), self.plan.modulus_bits)
        step.inputs.add(member)
        return self._advance()

    def _on_signature(self, member: int, message: SurvivorSignature, frames: tuple[bytes, ...]) -> list[Effect]:
        if self._is_late(message.step):
            return []  # enough others have signed
        step = self._in_step(member, message.plan, message.step)
        if self.phase is not Phase.AGREEING or member not in step.survivors:
            return []
        statement = survivor_statement(self._transcript(), step.number, step.survivors)
        verify(self._roster.members[member].identity_key, message.signature, "survivors", *statement)
        step.signatures[member] = message.signature
        return self._advance()

    def _on_unmask(self, member: int, message: UnmaskShares, frames: tuple[bytes, ...]) -> list[Effect]:
        if self._is_late(message.step):
            return []  # enough others have answered
        step = self._in_step(member, message.plan, message.step)
        if self.phase is not Phase.UNMASKING or member not in step.survivors:
            raise UnexpectedMessage(f"unmasking shares of member {member}", "survivors' shares, when asked for")
        if len(message.shares) != KEY_BYTES * len(self.members):
            raise ShareRefused(f"{len(message.shares)} bytes of shares", f"{KEY_BYTES * len(self.members)}")
        step.answers[member] = message.shares
        return self._advance()

    def _signatures(self, step: _Step) -> SurvivorSignatures:
        items = tuple(SignedBy(member, signature) for member, signature in sorted(step.signatures.items()))
        return SurvivorSignatures(self.digest, step.number, items)

    # -- progress ---------------------------------------------

    def _waited_for(self) -> set[int]:
        step = self._step
        if self.phase is Phase.ADVERTISING:
            return set(self.plan.cohort) - set(self._advertised) - self.absent
        if self.phase is Phase.SHARING:
            return set(self._advertised) - set(self._sealed) - self.absent
        if step is None:
            return set()
        if self.phase is Phase.COLLECTING:
            return set(self.members) - step.inputs - self.absent
        if self.phase is Phase.AGREEING:
            return set(step.survivors) - set(step.signatures) - self.absent
        if self.phase is Phase.UNMASKING:
            return set(step.survivors) - set(step.answers) - self.absent
        return set()

    def _least(self) -> int:
        return max(self.plan.threshold, self.plan.least_survivors)

    def _advance(self) -> list[Effect]:
        step = self._step
        if self.phase is Phase.AGREEING and step is not None and len(step.signatures) >= self.plan.threshold:
            return self._ask_for_shares(step)
        if self.phase is Phase.UNMASKING and step is not None and len(step.answers) >= self.plan.threshold:
            return self._rebuild(step)
        if self._waited_for():
            return []
        if self.phase is Phase.ADVERTISING:
            if len(self._advertised) < self._least():
                return self._fail(f"{len(self._advertised)} of {len(self.plan.cohort)} members advertised")
            self.phase = Phase.SHARING
            return [SendTo(member, self._advertisements()) for member in sorted(self._advertised)]
        if self.phase is Phase.SHARING:
            return self._close_set_up()
        if self.phase is Phase.COLLECTING and step is not None:
            return self._announce(step)
        if self.phase in (Phase.AGREEING, Phase.UNMASKING):
            return self._fail(f"too few answers while {self.phase.value}")
        return []

    def _close_set_up(self) -> list[Effect]:
        if len(self._sealed) < self._least():
            return self._fail(f"{len(self._sealed)} of {len(self._advertised)} members shared")
        self.members = tuple(sorted(self._sealed))
        self.absent &= set(self.members)
        self.phase = Phase.READY
        return [*(self._delivery(member) for member in self.members), Ready(self.members)]

    def _announce(self, step: _Step) -> list[Effect]:
        step.survivors = tuple(sorted(step.inputs))
        if len(step.survivors) < self._least():
            return self._fail(f"{len(step.survivors)} survivors of step {step.number}, {self._least()} needed")
        self.phase = Phase.UNMASKING if step.survivors == self.members else Phase.AGREEING
        step.frames = ()
        return [SendTo(member, Survivors(self.digest, step.number, step.survivors)) for member in step.survivors]

    def _ask_for_shares(self, step: _Step) -> list[Effect]:
        self.phase = Phase.UNMASKING
        return [SendTo(member, self._signatures(step)) for member in sorted(step.survivors)]

    def _rebuild(self, step: _Step) -> list[Effect]:
        rebuilt = self._combine(step)
        if rebuilt is None:
            waiting = self._waited_for()
            return [] if waiting else self._fail(f"wrong shares in step {step.number}: its sum cannot be rebuilt")
        suite, survivors = self.plan.suite, set(step.survivors)
        for member, secret in zip(self.members, rebuilt, strict=True):
            if member in survivors:
                key = keyschedule.self_mask_key(secret, self.digest, step.number, step.digest)
                add_mask(step.total, key, suite=suite, negative=True)
            else:
                self._take_out_dropped(step, member, secret)
        self._step = None
        total = step.total & step.total.dtype.type((1 << self.plan.modulus_bits) - 1)
        self.phase = Phase.FINISHED if self._next_step == self.plan.steps else Phase.READY
        agreed = step.survivors != self.members
        return [Reveal(step.number, total, step.survivors, agreed, step.broadcast.clips)]

    def _combine(self, step: _Step) -> list[bytes] | None:
        """Each member's secret, self-mask seed or mask key, from a set of answers that fits what was advertised."""
        answers = {
            member: np.frombuffer(shares, dtype=np.uint8).reshape(-1, KEY_BYTES)
            for member, shares in step.answers.items()
        }
        for chosen in self._choices(answers):
            rebuilt = shamir.combine({member + 1: answers[member] for member in chosen})
            found = [row.tobytes() for row in rebuilt]
            if all(self._fits(step, member, secret) for member, secret in zip(self.members, found, strict=True)):
                return found
        return None

    def _choices(self, answers: dict[int, shamir.Bytes]) -> Iterator[tuple[int, ...]]:
        """Sets of `threshold` answers worth trying: the first, the first without decoded errors, a few others."""
        members, threshold = sorted(answers), self.plan.threshold
        yield tuple(members[:threshold])
        shares = {member + 1: answer for member, answer in answers.items()}
        wrong = shamir.wrong_points(shares, threshold, secrets.token_bytes)
        if wrong:
            yield tuple([member for member in members if member + 1 not in wrong][:threshold])
        yield from islice(combinations(members, threshold), MAX_SHARE_SUBSETS)

    def _fits(self, step: _Step, member: int, secret: bytes) -> bool:
        advertisement = self._advertised[member]
        if member in step.survivors:
            return keyschedule.self_mask_commitment(secret, self.digest, step.number) == advertisement.commitment(
                step.number
            )
        return keyschedule.public_key(secret) == advertisement.mask_key(step.number)

    def _take_out_dropped(self, step: _Step, dropped: int, private: bytes) -> None:
        transcript = self._transcript()
        for member in step.survivors:
            key = keyschedule.pairwise_mask_key(
                private,
                self._advertised[member].mask_key(step.number),
                plan=self.digest,
                transcript=transcript,
                step=step.number,
                broadcast=step.digest,
                pair=(member, dropped),
            )
            # The survivor added this mask if its number is the smaller one; take out what it put in.
            add_mask(step.total, key, suite=self.plan.suite, negative=member < dropped)

    def _transcript(self) -> bytes:
        parts = [self._advertised[member].digest for member in self.members]
        return keyschedule.digest("transcript", self.digest, *parts)

    def _fail(self, reason: str) -> list[Effect]:
        self.phase, self._step = Phase.FAILED, None
        farewell = Farewell(self.digest, reason)
        return [Failed(reason), *(SendTo(member, farewell) for member in self.plan.cohort)]

    # -- context ---------------------------------------------

    def _check_plan(self, plan: bytes) -> None:
        if plan != self.digest:
            raise WrongContext(f"a message of plan {plan.hex()[:16]}…", "the plan in force")

    def _is_late(self, step: int) -> bool:
        """Whether a step's sum is out already."""
        return step < (self._step.number if self._step is not None else self._next_step)

    def _in_step(self, member: int, plan: bytes, number: int) -> _Step:
        self._check_plan(plan)
        if self._step is None or number != self._step.number or member not in self.members:
            at = self._step.number if self._step else "none"
            raise WrongContext(f"a message of member {member} for step {number}", f"members, for step {at}")
        return self._step


_Handler = Callable[[ServerEpoch, int, Any, tuple[bytes, ...]], list[Effect]]
_HANDLERS: dict[type, _Handler] = {
    Advertisement: ServerEpoch._on_advertisement,
    Shares: ServerEpoch._on_shares,
    MaskedInput: ServerEpoch._on_masked_input,
    SurvivorSignature: ServerEpoch._on_signature,
    UnmaskShares: ServerEpoch._on_unmask,
}
