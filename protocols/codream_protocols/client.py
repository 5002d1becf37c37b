"""The client's machine. EVERYTHING THAT DECIDES WHAT A CLIENT REVEALS LIVES IN THIS FILE.

Theory of operation. One `ClientProtocol` serves a participant for its whole life. It takes messages (`receive`) and
the participant's own vectors (`provide`) and returns effects; it never waits and opens nothing. A server is not
believed: each message is checked against the plan, the roster, the policy and what was said before, and a refused
one changes nothing.

    IDLE --plan--> ADVERTISED --advertisements--> SHARED --share delivery--> READY
    READY --broadcast--> COMPUTING --provide--> MASKED --survivors: all--> ANSWERED
                                                MASKED --survivors: fewer--> SIGNED --signatures--> ANSWERED
    from READY on, the broadcast of a LATER step is always taken: what was kept for earlier steps is erased first.
    from every state, the plan of a LATER epoch, or of another session, is taken: everything kept is erased first.
    a message that repeats what was answered gets the very same bytes again; one that contradicts it is refused.

Each rule of the protocol is one method `_rule_...`; the model checker and the threat suite switch a rule off by
overriding it in a subclass, and find the leak that it prevents. Source: Bonawitz et al., CCS 2017, figure 4
(malicious model); deviations: docs/decisions/0002-protocol.md; the argument: docs/protocol.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import keyschedule, shamir
from codream_protocols.errors import (
    CohortRefused,
    ConflictingBroadcast,
    InconsistentSurvivors,
    LocalProtocolError,
    PolicyViolation,
    SecondSurvivorSet,
    ShareRefused,
    UnexpectedMessage,
    VectorRefused,
    WrongContext,
)
from codream_protocols.identity import Roster, Signer, verify
from codream_protocols.keyschedule import KEY_BYTES, StepKeys
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    SealedShare,
    ShareDelivery,
    Shares,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    ToServer,
    UnmaskShares,
    survivor_statement,
)
from codream_protocols.packing import pack
from codream_protocols.plan import Plan, Policy, check_plan
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.vectors import check_clips

MAX_SESSIONS = 4096
_ONE_USE_NONCE = bytes(12)  # each share transport key seals one message


class State(Enum):
    """Where a client stands."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    SHARED = "shared"
    READY = "ready"
    COMPUTING = "computing"
    MASKED = "masked"
    SIGNED = "signed"
    ANSWERED = "answered"


@dataclass(frozen=True)
class Send:
    """Send this message, and behind it these frames, to the server."""

    message: ToServer
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Compute:
    """Compute the vector of a step from the public state, and hand it to `provide`.

    Attributes:
        step: the step.
        task: the task's name, from the plan.
        clips: the bound of each block.
        arrays: the public state, float32, read-only.
    """

    step: int
    task: str
    clips: tuple[float, ...]
    arrays: tuple[np.ndarray[Any, np.dtype[np.float32]], ...]


Effect = Send | Compute


@dataclass
class _Step:
    """What is kept of the current step."""

    number: int
    broadcast: bytes
    masked: Send | None = None
    survivors: tuple[int, ...] | None = None
    signature: Send | None = None
    answer: Send | None = None


@dataclass
class _Epoch:
    """What is kept of the current epoch."""

    plan: Plan
    digest: bytes
    seed: Secret  # of step `seed_step`; earlier ones are gone
    share_private: Secret
    advertisement: Advertisement
    seed_step: int = 0
    advertised: dict[int, Advertisement] = field(default_factory=dict)
    own_shares: SecretArray | None = None
    shares: Send | None = None
    members: tuple[int, ...] = ()
    transcript: bytes = b""
    held: dict[int, SecretArray] = field(default_factory=dict)  # rows: T self-mask shares, then T mask-key shares
    held_from: int = 0  # shares of earlier steps are erased
    step: _Step | None = None

    def erase(self) -> None:
        self.seed.erase()
        self.share_private.erase()
        for shares in self.held.values():
            shares.erase()
        if self.own_shares is not None:
            self.own_shares.erase()

    def erase_shares_before(self, step: int) -> None:
        for number in range(self.held_from, step):
            for shares in self.held.values():
                shares.erase_row(number)
                shares.erase_row(self.plan.steps + number)
        self.held_from = max(self.held_from, step)


class ClientProtocol:
    """One participant's side of every epoch.

    Args:
        member: this client's number in the roster.
        signer: its identity key; must be the roster's.
        roster: the verified roster.
        policy: what it permits.
        random_bytes: a cryptographic generator, n -> n bytes; the operating system's unless a test pins it.
        answered_steps: steps that this client has begun to answer before, in earlier processes.
        count: called before each step is begun, to write that down for good; if it raises, the step is not begun.
        spent_rho: client-level zCDP that this client has spent before, in earlier processes.
        charge: called with the rho of a noised step before it is begun, to write it down for good; if it raises, the
            step is not begun.

    Raises:
        LocalProtocolError: the signer is not the roster's member.
    """

    def __init__(
        self,
        *,
        member: int,
        signer: Signer,
        roster: Roster,
        policy: Policy,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        answered_steps: int = 0,
        count: Callable[[], None] | None = None,
        spent_rho: float = 0.0,
        charge: Callable[[float], None] | None = None,
    ) -> None:
        if not 0 <= member < len(roster.members) or roster.members[member].identity_key != signer.public:
            raise LocalProtocolError(f"an identity key that is not member {member}'s", "the key of the roster's entry")
        self.state = State.IDLE
        self.answered_steps = answered_steps
        self.spent_rho = spent_rho
        self._count, self._charge = count, charge
        self._member, self._signer, self._roster, self._policy = member, signer, roster, policy
        self._random = random_bytes
        self._sessions: dict[bytes, int] = {}
        self._epoch: _Epoch | None = None

    def __repr__(self) -> str:
        return f"<ClientProtocol of member {self._member}, {self.state.value}>"

    @property
    def plan(self) -> Plan | None:
        """The current epoch's plan."""
        return self._epoch.plan if self._epoch else None

    @property
    def members(self) -> tuple[int, ...]:
        """The current epoch's members; empty before the shares are exchanged."""
        return self._epoch.members if self._epoch else ()

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
        if frames and not isinstance(message, Broadcast):
            raise VectorRefused(f"{len(frames)} frames behind {type(message).__name__}", "none")
        return handler(self, message, frames)

    def provide(self, step: int, vector: np.ndarray[Any, Any]) -> list[Effect]:
        """Mask and send this client's vector of a step, once.

        Args:
            step: the step of the `Compute` effect.
            vector: ring elements, shape (spec.words,), dtype `word_type(plan.modulus_bits)`; it is not changed.

        Returns:
            The message to send; nothing when the server has gone on to a later step meanwhile.

        Raises:
            LocalProtocolError: not asked for, of the wrong length or dtype, or outside the ring.
        """
        epoch, current = self._epoch, self._epoch.step if self._epoch else None
        if epoch is None or current is None or step > current.number:
            raise LocalProtocolError(f"a vector for step {step}", "one for the step that was asked for")
        if step < current.number:
            return []
        if self.state is not State.COMPUTING:
            raise LocalProtocolError(f"a second vector for step {step}", "one vector a step")
        plan = epoch.plan
        if vector.shape != (plan.spec(step).words,):
            raise LocalProtocolError(f"a vector of shape {vector.shape}", f"({plan.spec(step).words},)")
        if vector.dtype != word_type(plan.modulus_bits):
            raise LocalProtocolError(f"a vector of dtype {vector.dtype}", str(word_type(plan.modulus_bits)))
        if int(vector.max()) >> plan.modulus_bits or int(vector.min()) < 0:
            raise LocalProtocolError("an element outside the ring", f"0 to 2^{plan.modulus_bits} - 1")
        frame = self._mask(epoch, current, vector)
        current.masked = Send(MaskedInput(epoch.digest, step, current.broadcast), (frame,))
        self.state = State.MASKED
        return [current.masked]

    def abandon(self) -> None:
        """Leave the epoch: everything that is kept of it is erased."""
        if self._epoch is not None:
            self._epoch.erase()
        self._epoch = None
        self.state = State.IDLE

    # -- set-up ---------------------------------------------

    def _on_plan(self, message: PlanOffer, frames: tuple[bytes, ...]) -> list[Effect]:
        plan, digest = message.plan, message.plan.digest
        if self._epoch is not None and digest == self._epoch.digest:
            return [Send(self._epoch.advertisement)]
        check_plan(plan)
        if plan.roster != self._roster.hash:
            raise WrongContext(
                f"a plan for roster {plan.roster.hex()[:16]}…",
                f"this client's roster {self._roster.hash.hex()[:16]}…",
            )
        if plan.cohort[-1] >= len(self._roster.members) or self._member not in plan.cohort:
            raise CohortRefused(
                "a plan that invites strangers, or not this client", "members of the roster, this client too"
            )
        self._rule_policy(plan)
        self._rule_noise(plan)
        self._rule_privacy_budget(plan.total_rho)
        self._rule_fresh_epoch(plan)
        self.abandon()
        self._sessions[plan.session] = plan.epoch
        self._epoch = self._advertise(plan, digest)
        self.state = State.ADVERTISED
        return [Send(self._epoch.advertisement)]

    def _advertise(self, plan: Plan, digest: bytes) -> _Epoch:
        seed = self._random(KEY_BYTES)
        share_private = Secret(self._random(KEY_BYTES))
        mask_keys, commitments = bytearray(), bytearray()
        for step, keys in _walk(seed, digest, plan.steps):
            mask_keys += keyschedule.public_key(keys.mask_private.reveal())
            commitments += keyschedule.self_mask_commitment(keys.self_mask.reveal(), digest, step)
        unsigned = Advertisement(
            digest,
            self._member,
            keyschedule.public_key(share_private.reveal()),
            bytes(mask_keys),
            bytes(commitments),
            bytes(64),
        )
        signature = self._signer.sign("advertisement", *unsigned.signed_parts())
        advertisement = Advertisement(
            unsigned.plan,
            unsigned.member,
            unsigned.share_key,
            unsigned.mask_keys,
            unsigned.commitments,
            signature,
        )
        return _Epoch(plan, digest, Secret(seed), share_private, advertisement)

    def _on_advertisements(self, message: Advertisements, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        advertised = {item.member: item for item in message.items}
        if self.state is not State.ADVERTISED:
            if advertised == epoch.advertised and epoch.shares is not None:
                return [epoch.shares]
            raise CohortRefused("a second, different set of advertisements", "one set an epoch")
        self._check_cohort(epoch.plan, tuple(item.member for item in message.items))
        if advertised.get(self._member) != epoch.advertisement:
            raise CohortRefused(
                "advertisements without this client's own, or with another in its name", "its own, unchanged"
            )
        for item in message.items:
            check_advertisement(epoch.plan, epoch.digest, self._roster, item)
            self._rule_signed_advertisement(item)
        check_distinct_keys(message.items)
        own_private = epoch.share_private.reveal()
        for item in message.items:
            for step in range(epoch.plan.steps):
                keyschedule.agree(own_private, item.mask_key(step))  # a key of low order is refused here, not mid-epoch
        sealed, own = self._seal_shares(epoch, advertised)
        epoch.advertised, epoch.own_shares = advertised, own
        epoch.shares = Send(Shares(epoch.digest, tuple(sealed)))
        self.state = State.SHARED
        return [epoch.shares]

    def _seal_shares(
        self, epoch: _Epoch, advertised: dict[int, Advertisement]
    ) -> tuple[list[SealedShare], SecretArray]:
        plan = epoch.plan
        rows = np.zeros((2 * plan.steps, KEY_BYTES), dtype=np.uint8)
        for step, keys in _walk(epoch.seed.reveal(), epoch.digest, plan.steps):
            rows[step] = np.frombuffer(keys.self_mask.reveal(), dtype=np.uint8)
            rows[plan.steps + step] = np.frombuffer(keys.mask_private.reveal(), dtype=np.uint8)
        points = {member: member + 1 for member in advertised}
        split = shamir.split(rows, plan.threshold, list(points.values()), self._random)
        rows[:] = 0
        sealed = []
        for member, advertisement in advertised.items():
            if member != self._member:
                key = self._transport_key(epoch, advertisement, sender=self._member)
                additional = keyschedule.labelled("share", epoch.digest, bytes([self._member, member]))
                plaintext = split[points[member]].tobytes()
                sealed.append(SealedShare(member, ChaCha20Poly1305(key).encrypt(_ONE_USE_NONCE, plaintext, additional)))
        own = SecretArray(split[points[self._member]])
        for share in split.values():
            share[:] = 0
        return sealed, own

    def _transport_key(self, epoch: _Epoch, other: Advertisement, *, sender: int) -> bytes:
        mine = epoch.advertisement
        outgoing = sender == self._member
        first, second = (mine, other) if outgoing else (other, mine)
        return keyschedule.share_transport_key(
            epoch.share_private.reveal(),
            other.share_key,
            plan=epoch.digest,
            sender=first.member,
            receiver=second.member,
            advertisements=(first.digest, second.digest),
        )

    def _on_share_delivery(self, message: ShareDelivery, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        if self.state is not State.SHARED:
            if message.members == epoch.members:
                return []
            raise CohortRefused("a second, different set of members", "one set an epoch")
        self._check_cohort(epoch.plan, message.members)
        if not set(message.members) <= set(epoch.advertised):
            raise CohortRefused("members whose advertisements were not shown", "a part of the advertised members")
        senders = [item.member for item in message.items]
        if sorted(senders) != [member for member in message.members if member != self._member]:
            raise CohortRefused("shares of other members than announced", "one ciphertext of each other member")
        held = {item.member: self._open_shares(epoch, item) for item in message.items}
        assert epoch.own_shares is not None  # noqa: S101 - set in SHARED
        held[self._member] = epoch.own_shares
        epoch.held, epoch.members, epoch.shares = held, message.members, None
        parts = [epoch.advertised[member].digest for member in message.members]
        epoch.transcript = keyschedule.digest("transcript", epoch.digest, *parts)
        epoch.share_private.erase()
        self.state = State.READY
        return []

    def _open_shares(self, epoch: _Epoch, item: SealedShare) -> SecretArray:
        key = self._transport_key(epoch, epoch.advertised[item.member], sender=item.member)
        additional = keyschedule.labelled("share", epoch.digest, bytes([item.member, self._member]))
        try:
            plaintext = ChaCha20Poly1305(key).decrypt(_ONE_USE_NONCE, item.ciphertext, additional)
        except InvalidTag:
            raise ShareRefused(
                f"a ciphertext in member {item.member}'s name that does not open",
                "what that member sealed in this epoch",
            ) from None
        if len(plaintext) != 2 * epoch.plan.steps * KEY_BYTES:
            raise ShareRefused(f"{len(plaintext)} bytes of shares", f"{2 * epoch.plan.steps * KEY_BYTES}")
        return SecretArray(np.frombuffer(plaintext, dtype=np.uint8).reshape(-1, KEY_BYTES))

    # -- a step ---------------------------------------------

    def _on_broadcast(self, message: Broadcast, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch = self._current(message.plan)
        broadcast = message.digest(frames)
        current = epoch.step
        if current is not None and message.step <= current.number:
            self._rule_one_broadcast(current, message.step, broadcast)
            return [current.masked] if current.masked else []
        if message.step >= epoch.plan.steps:
            raise WrongContext(f"a broadcast for step {message.step}", f"0 to {epoch.plan.steps - 1}")
        spec = epoch.plan.spec(message.step)
        check_clips(spec, message.clips)
        arrays = read_arrays(message, frames)
        rho = epoch.plan.rho(spec)
        self._rule_budget(1)
        self._rule_privacy_budget(rho)
        if self._count is not None:
            self._count()
        if rho > 0 and self._charge is not None:
            self._charge(rho)
        epoch.erase_shares_before(message.step)
        while epoch.seed_step < message.step:
            self._ratchet(epoch)
        epoch.step = _Step(message.step, broadcast)
        self.answered_steps += 1
        self.spent_rho += rho
        self.state = State.COMPUTING
        return [Compute(message.step, spec.task, message.clips, arrays)]

    def _ratchet(self, epoch: _Epoch) -> None:
        epoch.seed = keyschedule.ratchet(epoch.seed, epoch.digest, epoch.seed_step)
        epoch.seed_step += 1

    def _mask(self, epoch: _Epoch, current: _Step, vector: np.ndarray[Any, Any]) -> bytes:
        plan, step = epoch.plan, current.number
        keys = StepKeys(epoch.seed, epoch.digest, step)
        masked = vector.copy()
        own = keyschedule.self_mask_key(keys.self_mask.reveal(), epoch.digest, step, current.broadcast)
        add_mask(masked, own, suite=plan.suite)
        private = keys.mask_private.reveal()
        for member in epoch.members:
            if member != self._member:
                key = keyschedule.pairwise_mask_key(
                    private,
                    epoch.advertised[member].mask_key(step),
                    plan=epoch.digest,
                    transcript=epoch.transcript,
                    step=step,
                    broadcast=current.broadcast,
                    pair=(self._member, member),
                )
                add_mask(masked, key, suite=plan.suite, negative=self._member > member)
        keys.erase()
        self._ratchet(epoch)  # from here on nobody, this client included, can make the step's masks again
        masked &= masked.dtype.type((1 << plan.modulus_bits) - 1)
        return pack(masked, plan.modulus_bits)

    def _on_survivors(self, message: Survivors, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch, current = self._current_step(message.plan, message.step)
        if current.survivors is not None:
            repeated = self._rule_one_survivor_set(current, message.members)
            if repeated is not None:
                return [repeated]
        if list(message.members) != sorted(set(message.members)) or not set(message.members) <= set(epoch.members):
            raise CohortRefused(
                "survivors with repeated or strange members", "members of the epoch, ascending, once each"
            )
        self._rule_is_survivor(message.members)
        self._rule_enough_survivors(epoch.plan, message.members)
        current.survivors, current.signature, current.answer = message.members, None, None
        if message.members == epoch.members:
            return self._answer(epoch, current)
        signature = self._signer.sign(
            "survivors", *survivor_statement(epoch.transcript, current.number, message.members)
        )
        current.signature = Send(SurvivorSignature(epoch.digest, current.number, signature))
        self.state = State.SIGNED
        return [current.signature]

    def _on_signatures(self, message: SurvivorSignatures, frames: tuple[bytes, ...]) -> list[Effect]:
        epoch, current = self._current_step(message.plan, message.step)
        if current.answer is not None:
            return [current.answer]
        assert current.survivors is not None  # noqa: S101 - set in SIGNED
        self._rule_signed_survivors(epoch, current, message)
        return self._answer(epoch, current)

    def _answer(self, epoch: _Epoch, current: _Step) -> list[Effect]:
        step = current.number
        survivors = set(current.survivors or ())
        rows = [
            epoch.held[member].row(step if member in survivors else epoch.plan.steps + step) for member in epoch.members
        ]
        current.answer = Send(UnmaskShares(epoch.digest, step, b"".join(rows)))
        self._rule_erase_answered(epoch, step)
        self.state = State.ANSWERED
        return [current.answer]

    # -- rules ---------------------------------------------

    def _rule_policy(self, plan: Plan) -> None:
        """The client's own policy has the last word, its life's budget of steps included."""
        self._policy.check(plan)
        self._rule_budget(plan.steps)

    def _rule_budget(self, steps: int) -> None:
        """An endless session stops at the policy's total."""
        if self.answered_steps + steps > self._policy.most_total_steps:
            raise PolicyViolation(
                f"{steps} more steps after {self.answered_steps}", f"{self._policy.most_total_steps} in all"
            )

    def _rule_noise(self, plan: Plan) -> None:
        """No sum with less noise than this client demands, whoever drops out and whoever colludes."""
        self._policy.check_noise(plan)

    def _rule_privacy_budget(self, rho: float) -> None:
        """Client-level privacy is spent as a step is begun, and never beyond the policy's total."""
        most = self._policy.most_rho
        if most is not None and self.spent_rho + rho > most * (1 + 1e-9):  # the sum of many steps is rounded
            raise PolicyViolation(
                f"a cost of rho {rho:.4g} after {self.spent_rho:.4g} spent",
                f"{most:.4g} in all",
                "the budget is used up",
            )

    def _rule_fresh_epoch(self, plan: Plan) -> None:
        """An epoch of a session is taken part in once, and in ascending order."""
        last = self._sessions.get(plan.session, -1)
        if plan.epoch <= last:
            raise WrongContext(f"epoch {plan.epoch} of a session", f"{last + 1} or later")
        if plan.session not in self._sessions and len(self._sessions) >= MAX_SESSIONS:
            raise PolicyViolation(f"more than {MAX_SESSIONS} sessions", "fewer", "restart the client")

    def _rule_signed_advertisement(self, item: Advertisement) -> None:
        """Keys count only with the signature of the roster's member: a server can neither swap nor invent members."""
        verify(
            self._roster.members[item.member].identity_key,
            item.signature,
            "advertisement",
            *item.signed_parts(),
        )

    def _rule_one_broadcast(self, current: _Step, step: int, broadcast: bytes) -> None:
        """One broadcast a step, and no way back."""
        if step < current.number:
            raise WrongContext(f"a broadcast for step {step}", f"step {current.number} or later")
        if broadcast != current.broadcast:
            raise ConflictingBroadcast(f"a second, different broadcast for step {step}", "one broadcast a step")

    def _rule_one_survivor_set(self, current: _Step, members: tuple[int, ...]) -> Send | None:
        """One survivor set a step: two would give both kinds of share, or two sums whose difference is one input."""
        if members != current.survivors:
            raise SecondSurvivorSet(f"a second survivor set for step {current.number}", "the first, again")
        return current.answer or current.signature

    def _rule_erase_answered(self, epoch: _Epoch, step: int) -> None:
        """What was answered is erased, so that even a client taken over later cannot give the other kind of share."""
        epoch.erase_shares_before(step + 1)

    def _rule_is_survivor(self, members: tuple[int, ...]) -> None:
        """A client helps to open only a sum that it is part of."""
        if self._member not in members:
            raise CohortRefused("survivors without this client", "a set that includes it")

    def _rule_enough_survivors(self, plan: Plan, members: tuple[int, ...]) -> None:
        """No sum over fewer than the plan's and the policy's minimum, or than can be opened."""
        least = max(plan.least_survivors, self._policy.least_survivors, plan.threshold)
        if len(members) < least:
            raise CohortRefused(f"{len(members)} survivors", f"{least} or more")

    def _rule_signed_survivors(self, epoch: _Epoch, current: _Step, message: SurvivorSignatures) -> None:
        """With a dropout, shares leave only after `threshold` members have signed the very same survivor set."""
        assert current.survivors is not None  # noqa: S101
        statement = survivor_statement(epoch.transcript, current.number, current.survivors)
        valid = {self._member}
        for item in message.items:
            if item.member not in current.survivors:
                raise InconsistentSurvivors(
                    f"a signature of member {item.member}, no survivor", "survivors' signatures"
                )
            verify(self._roster.members[item.member].identity_key, item.signature, "survivors", *statement)
            valid.add(item.member)
        if len(valid) < epoch.plan.threshold:
            raise InconsistentSurvivors(
                f"{len(valid)} signatures over the survivor set",
                f"{epoch.plan.threshold} or more, this client's included",
            )

    # -- context ---------------------------------------------

    def _current(self, plan: bytes) -> _Epoch:
        if self._epoch is None or plan != self._epoch.digest:
            raise WrongContext(f"a message of plan {plan.hex()[:16]}…", "the plan in force")
        return self._epoch

    def _current_step(self, plan: bytes, step: int) -> tuple[_Epoch, _Step]:
        epoch = self._current(plan)
        if epoch.step is None or epoch.step.number != step:
            raise WrongContext(f"a message of step {step}", f"step {epoch.step.number if epoch.step else 'none'}")
        return epoch, epoch.step

    def _check_cohort(self, plan: Plan, members: tuple[int, ...]) -> None:
        if list(members) != sorted(set(members)) or not set(members) <= set(plan.cohort):
            raise CohortRefused("repeated, unordered or uninvited members", "invited members, ascending, once each")
        if self._member not in members:
            raise CohortRefused("a set without this client", "a set that includes it")
        least = max(plan.threshold, plan.least_survivors, self._policy.least_cohort)
        if len(members) < least:
            raise CohortRefused(f"{len(members)} members", f"{least} or more")

    def _on_farewell(self, message: Farewell, frames: tuple[bytes, ...]) -> list[Effect]:
        if not message.plan or (self._epoch is not None and message.plan == self._epoch.digest):
            self.abandon()
        return []


def _walk(seed: bytes, plan: bytes, steps: int) -> Iterator[tuple[int, StepKeys]]:
    """Each step's keys, from a copy of the seed; each is erased when the next is asked for."""
    current = Secret(seed)
    for step in range(steps):
        keys = StepKeys(current, plan, step)
        yield step, keys
        keys.erase()
        current = keyschedule.ratchet(current, plan, step)
    current.erase()


def check_advertisement(plan: Plan, digest: bytes, roster: Roster, item: Advertisement) -> None:
    """Refuse an advertisement of another plan or of the wrong size (its signature is checked apart).

    Raises:
        WrongContext: another plan.
        CohortRefused: a stranger, or keys for another number of steps.
    """
    if item.plan != digest:
        raise WrongContext(f"an advertisement for plan {item.plan.hex()[:16]}…", "this epoch's plan")
    if item.member not in plan.cohort or item.member >= len(roster.members):
        raise CohortRefused(f"an advertisement of member {item.member}", "invited members")
    size = plan.steps * KEY_BYTES
    if len(item.mask_keys) != size or len(item.commitments) != size:
        raise CohortRefused(f"keys of {len(item.mask_keys)} bytes", f"{size} for {plan.steps} steps")


def check_distinct_keys(items: tuple[Advertisement, ...]) -> None:
    """Refuse public keys that occur twice: whoever repeats another's key would cancel, or share, that one's masks.

    Keys are compared as X25519 reads them, since several encodings are one key there (RFC 7748, section 5).

    Raises:
        CohortRefused: a repeated key.
    """
    keys = [item.share_key for item in items]
    for item in items:
        keys += [item.mask_keys[start : start + KEY_BYTES] for start in range(0, len(item.mask_keys), KEY_BYTES)]
    if len({keyschedule.coordinate(key) for key in keys}) != len(keys):
        raise CohortRefused("a public key that occurs twice", "fresh keys of each member")


def read_arrays(message: Broadcast, frames: tuple[bytes, ...]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], ...]:
    """The arrays behind a broadcast, read-only.

    Raises:
        VectorRefused: a frame is missing, has another size, or holds a number that is not finite.
    """
    if len(frames) != len(message.shapes):
        raise VectorRefused(f"{len(frames)} frames", f"{len(message.shapes)}, one for each shape")
    arrays = []
    for shape, frame in zip(message.shapes, frames, strict=True):
        count = 1
        for extent in shape:
            count *= extent
        if len(frame) != 4 * count:
            raise VectorRefused(f"a frame of {len(frame)} bytes", f"{4 * count} for shape {shape}")
        array = np.frombuffer(frame, dtype="<f4").reshape(shape)
        if not np.isfinite(array).all():
            raise VectorRefused("a broadcast with numbers that are not finite", "finite numbers")
        arrays.append(array)
    return tuple(arrays)


Handler = Callable[[ClientProtocol, Any, tuple[bytes, ...]], list[Effect]]
_C = ClientProtocol
_IN_STEPS = (State.READY, State.COMPUTING, State.MASKED, State.SIGNED, State.ANSWERED)

# State and message -> handler. What is not here is refused.
TRANSITIONS: dict[tuple[State, type], Handler] = {
    **{(state, PlanOffer): _C._on_plan for state in State},
    **{(state, Farewell): _C._on_farewell for state in State},
    (State.ADVERTISED, Advertisements): _C._on_advertisements,
    (State.SHARED, Advertisements): _C._on_advertisements,  # the same again
    (State.SHARED, ShareDelivery): _C._on_share_delivery,
    **{(state, ShareDelivery): _C._on_share_delivery for state in _IN_STEPS},  # the same again
    **{(state, Broadcast): _C._on_broadcast for state in _IN_STEPS},
    (State.MASKED, Survivors): _C._on_survivors,
    (State.SIGNED, Survivors): _C._on_survivors,  # the same again; another is refused
    (State.ANSWERED, Survivors): _C._on_survivors,
    (State.SIGNED, SurvivorSignatures): _C._on_signatures,
    (State.ANSWERED, SurvivorSignatures): _C._on_signatures,  # the same again
}
