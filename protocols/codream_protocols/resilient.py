"""Dropouts tolerated within a step: double masking with shared keys (Bonawitz et al., CCS 2017, malicious model).

    y_i = x_i + PRG(self mask of i) + sum over j of +-PRG(pairwise mask of i and j)

Each member Shamir-shares, for each step, its self-mask seed and its private mask key. Of a survivor the members give
shares of the first, of one that dropped shares of the second, never both kinds of one member. A live member of a block
that has lost one counts as dropped and still answers: its pair keys open, its self mask never.

Values and shares travel under hybrid keys. The masks themselves rest on X25519 alone here, since what is shared must be
small: recorded traffic of this mode opens to who breaks X25519 later, that of lockstep does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np

from codream_protocols import keyschedule, shamir
from codream_protocols.charter import Plan
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import LocalProtocolError
from codream_protocols.keyschedule import KEY_BYTES, StepKeys
from codream_protocols.lockstep import LockstepKeys, Opened, SealDoesNotOpen
from codream_protocols.messages import Advertisement
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.spans import part_of_sum


class ResilientKeys(LockstepKeys):
    """One member's secrets of one epoch: a ratchet of step seeds, and the others' shares. See `LockstepKeys`."""

    def __init__(
        self, plan: Plan, member: int, random_bytes: RandomBytes, agree: keyschedule.Agree | None = None
    ) -> None:
        super().__init__(plan, member, random_bytes, agree)
        self._seed = Secret(random_bytes(KEY_BYTES))
        self._seed_step = 0
        self._own_shares: SecretArray | None = None
        self._held: dict[int, SecretArray] = {}  # rows: T self-mask shares, then T mask-key shares
        self._held_from = 0
        self._members: tuple[int, ...] = ()
        self._advertised: Mapping[int, Advertisement] = {}
        self._transcript = b""

    @part_of_sum("masking")
    def stream_keys(self, step: int, chain: bytes) -> list[tuple[bytes, bool]]:
        """See `LockstepKeys`; the self mask is among them."""
        if step < self._seed_step:
            raise LocalProtocolError(f"masks of step {step}", f"step {self._seed_step} or later: they are made once")
        self.pass_over(step)
        plan = self._plan.digest
        own = StepKeys(self._seed, plan, step)
        private = keyschedule.prepared(own.mask_private.reveal())
        keys = [(keyschedule.self_mask_key(own.self_mask.reveal(), plan, step, chain), False)]
        for other in self._members:
            if other != self._member:
                key = keyschedule.pairwise_mask_key(
                    private,
                    self._advertised[other].mask_key(step),
                    plan=plan,
                    transcript=self._transcript,
                    step=step,
                    broadcast=chain,
                    pair=(self._member, other),
                    by=self._agree,
                )
                keys.append((key, self._member > other))
        own.erase()
        self._ratchet()
        return keys

    def pass_over(self, step: int) -> None:
        """Erase what belongs to earlier steps: seeds, and the others' shares."""
        while self._seed_step < step:
            self._ratchet()
        self.erase_shares_before(step)

    def erase_shares_before(self, step: int) -> None:
        """Erase the others' shares of earlier steps, both kinds."""
        for number in range(self._held_from, step):
            for shares in self._held.values():
                shares.erase_row(number)
                shares.erase_row(self._plan.steps + number)
        self._held_from = max(self._held_from, step)

    def answer(self, step: int, survivors: tuple[int, ...]) -> bytes:
        """One share of each member held, ascending: of the self mask for survivors, of the mask key for the others."""
        chosen = set(survivors)
        return b"".join(
            held.row(step if member in chosen else self._plan.steps + step) for member, held in self._held.items()
        )

    def erase(self) -> None:
        """Erase everything."""
        super().erase()
        self._seed.erase()
        for shares in (*self._held.values(), *([self._own_shares] if self._own_shares else [])):
            shares.erase()

    def _step_keys(self) -> tuple[bytes, bytes]:
        mask_keys, commitments = bytearray(), bytearray()
        for step, keys in self._walk():
            mask_keys += keyschedule.public_key(keys.mask_private.reveal())
            commitments += keyschedule.self_mask_commitment(keys.self_mask.reveal(), self._plan.digest, step)
        return bytes(mask_keys), bytes(commitments)

    def _plaintexts(self, receivers: tuple[int, ...]) -> dict[int, bytes]:
        plan = self._plan
        rows = np.zeros((2 * plan.steps, KEY_BYTES), dtype=np.uint8)
        for step, keys in self._walk():
            rows[step] = np.frombuffer(keys.self_mask.reveal(), dtype=np.uint8)
            rows[plan.steps + step] = np.frombuffer(keys.mask_private.reveal(), dtype=np.uint8)
        if self._ring is None:
            points = {member: member + 1 for member in receivers}
        else:
            points = dict(zip(self._ring.of(self._member), count(1), strict=False))
        split = shamir.split(rows, plan.threshold, list(points.values()), self._random)
        rows[:] = 0
        if self._ring is None:  # on a ring its neighbours alone have shares
            self._own_shares = SecretArray(split[points[self._member]])
        others = [member for member in receivers if member != self._member]  # its own would lie about, and open itself
        value = self._value.reveal()
        plaintexts = {
            member: value + (split[points[member]].tobytes() if member in points else b"") for member in others
        }
        for share in split.values():
            share[:] = 0
        return plaintexts

    def _keep(self, opened: Opened) -> None:
        size = 2 * self._plan.steps * KEY_BYTES
        near = opened.members if self._ring is None else self._ring.of(self._member)
        held = {}
        for other, rest in opened.rests.items():
            if len(rest) != (size if other in near else 0):
                raise SealDoesNotOpen(other)
            held[other] = SecretArray(np.frombuffer(rest, dtype=np.uint8).reshape(-1, KEY_BYTES))
        if self._own_shares is not None:
            held[self._member] = self._own_shares
        self._held, self._members = {member: held[member] for member in near}, near
        self._advertised, self._transcript = {member: opened.advertised[member] for member in near}, opened.transcript

    def _ratchet(self) -> None:
        self._seed = keyschedule.ratchet(self._seed, self._plan.digest, self._seed_step)
        self._seed_step += 1

    def _walk(self) -> Iterator[tuple[int, StepKeys]]:
        """Each step's keys, from a copy of the seed; each is erased when the next is asked for."""
        current = Secret(self._seed.reveal())
        for step in range(self._plan.steps):
            keys = StepKeys(current, self._plan.digest, step)
            yield step, keys
            keys.erase()
            current = keyschedule.ratchet(current, self._plan.digest, step)
        current.erase()


def make_keys(
    plan: Plan, member: int, random_bytes: RandomBytes, agree: keyschedule.Agree | None = None
) -> LockstepKeys:
    """The keys that the plan's mode asks for."""
    kind = LockstepKeys if plan.aggregation.mode == "lockstep" else ResilientKeys
    return kind(plan, member, random_bytes, agree)
