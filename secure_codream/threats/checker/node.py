"""An honest client with all that it was told, and the story of what came out of it.

Telling a `Node` more gives another node, on a deep copy, so that every choice of the server can be tried from the same
point. What a client answers rests on what it was told alone, so nodes are shared between strategies, and a strategy is
one node for each honest client. Every masked vector carries the mask keys of its machine, so that a mask is the very
key, however it came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from codream_protocols.client import Certified, ClientProtocol, Compute, Effect, Ended, Send
from codream_protocols.course import fingerprint
from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.messages import (
    Advertisement,
    MaskedInput,
    Published,
    Seals,
    ToClient,
    UnmaskShares,
    decode_to_client,
    encode_message,
)
from codream_protocols.packing import unpack
from codream_protocols.record import Trajectory
from codream_protocols.resilient import ResilientKeys
from secure_codream.threats.checker.enumerator import Set
from secure_codream.threats.checker.world import MASK_KEY, SELF_MASK, Ledger, World

Owned = tuple[bytes, int, str]  # a secret: whose (by advertisement), of which step, of which kind


@dataclass(frozen=True)
class Mask:
    """A mask key in a masked vector; `peer` is the advertisement at its other end, the own one for a self mask."""

    key: bytes
    negative: bool
    own: bytes
    peer: bytes


@dataclass(frozen=True)
class Masked:
    """A masked vector as it left its client, with what only the checker sees."""

    member: int
    plan: bytes
    step: int
    chain: bytes
    transcript: bytes
    words: tuple[int, ...]
    masks: tuple[Mask, ...]


@dataclass(frozen=True)
class Took:
    """A sum that a client took."""

    plan: bytes
    step: int
    members: Set
    words: tuple[int, ...]


@dataclass(frozen=True)
class Story:
    """All that came out of a client, and what the checker knows of it besides."""

    sent: tuple[Send, ...] = ()
    joined: tuple[tuple[int, bytes], ...] = ()
    starts: tuple[tuple[bytes, bytes], ...] = ()  # head, start seed: what its owner computed at
    dealt: Mapping[bytes, int] = field(default_factory=dict)  # own advertisement -> shares that the server was dealt
    held: Mapping[Owned, bytes] = field(default_factory=dict)  # true shares of others' secrets
    gave: frozenset[Owned] = frozenset()  # those that it gave away
    masked: tuple[Masked, ...] = ()
    took: tuple[Took, ...] = ()
    learnt: tuple[tuple[int, bytes, bytes], ...] = ()  # number, head, fingerprint of the publication
    ended: tuple[str, ...] = ()
    wrong_sums: int = 0


class Node:
    """An honest client after all that it was told."""

    def __init__(self, world: World, member: int, machine: ClientProtocol, story: Story | None = None) -> None:
        self.world, self.member, self.machine, self.story = world, member, machine, story or Story()
        self.pending: Compute | None = None
        self.heard: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
        self._after: dict[tuple[bytes, tuple[bytes, ...], bool], Node | None] = {}

    @property
    def ledger(self) -> Ledger:
        """Its journal."""
        ledger = self.machine._journal
        assert isinstance(ledger, Ledger)  # noqa: S101 - given by `World.start`
        return ledger

    @property
    def advertisement(self) -> Advertisement:
        """Its own in the present epoch."""
        assert self.machine._epoch is not None  # noqa: S101 - invited
        return self.machine._epoch.advertisement

    @property
    def transcript(self) -> bytes:
        """The present epoch's, empty before the advertisements."""
        return self.machine._epoch.transcript if self.machine._epoch else b""

    @property
    def public(self) -> Trajectory | None:
        """The public state of its present epoch."""
        return self.machine._epoch.public if self.machine._epoch else None

    @property
    def chain(self) -> bytes:
        """chain_t, empty outside of steps."""
        return self.public.chain if self.public else b""

    @property
    def last(self) -> Any:
        """The message that it sent last."""
        return self.story.sent[-1].message

    def tell(self, message: ToClient, frames: tuple[bytes, ...] = (), *, late: bool = False) -> Node | None:
        """This client after one message more; None if it refuses.

        Args:
            message: what it is told.
            frames: behind it.
            late: whether it is slow: what it must compute waits for `compute`.
        """
        data = encode_message(message)
        place = (data, frames, late)
        if place not in self._after:
            self._after[place] = self._told(data, frames, late)
        return self._after[place]

    def compute(self) -> Node:
        """This client after it has computed what it was asked."""
        twin = self._twin()
        if twin.pending is not None:
            twin._provide(twin.pending)
        return twin

    def restart(self) -> Node:
        """This member after a crash, with what its journal holds."""
        twin = Node(self.world, self.member, self.world.start(self.member, self.ledger.memory), self.story)
        twin.heard = self.heard
        return twin

    def forget(self) -> None:
        """Drop what it would answer, which holds much memory."""
        self._after.clear()

    @property
    def seals(self) -> Seals:
        """Those that it sent."""
        return next(sent.message for sent in self.story.sent if isinstance(sent.message, Seals))

    # -- inside ---------------------------------------------

    def _twin(self) -> Node:
        twin = Node(self.world, self.member, self.world.copy(self.machine), self.story)
        twin.pending, twin.heard = self.pending, self.heard
        return twin

    def _told(self, data: bytes, frames: tuple[bytes, ...], late: bool) -> Node | None:
        twin = self._twin()
        twin.heard = (*self.heard, (data, frames))
        before, keys = twin.machine.progress, twin._keys()
        message = decode_to_client(data)
        try:
            with self.world.context():
                effects = twin.machine.receive(message, frames)
        except (RemoteProtocolError, LocalProtocolError):  # refused, or a secret that was erased
            return None
        ended = any(isinstance(effect, Ended) for effect in effects)
        if isinstance(message, Published) and not ended and twin.machine.progress != before:
            words = unpack(frames[0], twin._spec_words(), self._bits())
            twin._note(took=(*twin.story.took, Took(*before, message.members, tuple(map(int, words)))))
        twin._look(keys)
        twin._perform(effects, late)
        return twin

    def _spec_words(self) -> int:
        return self.world.course.specs(1)[0].words

    def _bits(self) -> int:
        assert self.machine._epoch is not None  # noqa: S101 - in a step
        return self.machine._epoch.plan.modulus_bits(0)

    def _keys(self) -> LockstepKeys | None:
        return self.machine._epoch.keys if self.machine._epoch else None

    def _note(self, **more: Any) -> None:
        self.story = replace(self.story, **more)

    def _look(self, keys: LockstepKeys | None) -> None:
        """Note what the machine holds now and did not hold before."""
        epoch = self.machine._epoch
        if epoch is None:
            return
        own = epoch.advertisement.digest
        if epoch.keys is not keys:
            self.world.honest_keys[own], self.world.thresholds[own] = self.member, epoch.plan.threshold
            self._note(joined=(*self.story.joined, (epoch.plan.offer.epoch, epoch.plan.digest)))
        if epoch.advertised and own not in self.story.dealt:
            played = sum(item.digest not in self.world.honest_keys for item in epoch.advertised.values())
            self._note(dealt={**self.story.dealt, own: played})
        if epoch.public is not None and isinstance(epoch.keys, ResilientKeys):
            held = dict(self.story.held)
            for owner, shares in epoch.keys._held.items():
                digest = epoch.advertised[owner].digest
                if (digest, 0, SELF_MASK) in held:
                    continue
                for step in range(epoch.plan.steps):
                    held[digest, step, SELF_MASK] = shares.row(step)
                    held[digest, step, MASK_KEY] = shares.row(epoch.plan.steps + step)
            self._note(held=held)

    def _perform(self, effects: Sequence[Effect], late: bool) -> None:
        for effect in effects:
            if isinstance(effect, Compute):
                self.pending = effect
                assert self.public is not None  # noqa: S101 - in a step
                start = (self.public.plan.offer.head, self.public.start)
                if start not in self.story.starts:
                    self._note(starts=(*self.story.starts, start))
                if not late:
                    self._provide(effect)
            elif isinstance(effect, Send):
                if effect not in self.story.sent:
                    self._note(sent=(*self.story.sent, effect))
                if isinstance(effect.message, UnmaskShares):
                    self._gave(effect.message)
            elif isinstance(effect, Certified):
                entry = (effect.number, effect.head, fingerprint(effect.publication))
                self._note(learnt=(*self.story.learnt, entry))
            elif isinstance(effect, Ended):
                wrong = self.story.wrong_sums + effect.wrong_sum
                self._note(ended=(*self.story.ended, effect.reason), wrong_sums=wrong)

    def _gave(self, message: UnmaskShares) -> None:
        """Note which of the shares given away are true ones: of what, of whom."""
        epoch = self.machine._epoch
        assert epoch is not None and epoch.public is not None  # noqa: S101 - in a step
        found = set(self.story.gave)
        for place, owner in enumerate(epoch.public.members):
            row = message.shares[KEY_BYTES * place : KEY_BYTES * (place + 1)]
            for kind in (SELF_MASK, MASK_KEY):
                what = (epoch.advertised[owner].digest, message.step, kind)
                if self.story.held.get(what) == row:
                    found.add(what)
        self._note(gave=frozenset(found))

    def _provide(self, effect: Compute) -> None:
        epoch = self.machine._epoch
        self.pending = None
        if epoch is None or epoch.public is None:
            return
        own, keys, chain = epoch.advertisement.digest, epoch.keys, epoch.public.chain
        used: list[tuple[bytes, bool]] = []

        def stream_keys(step: int, chain: bytes) -> list[tuple[bytes, bool]]:
            used.extend(type(keys).stream_keys(keys, step, chain))
            return used

        keys.stream_keys = stream_keys  # type: ignore[method-assign]
        try:
            values = {"of": np.full(effect.spec.blocks[0].length, float(self.world.input(self.member)))}
            effects = self.machine.provide(effect.plan, effect.step, values)
        finally:
            del keys.stream_keys
        for sent in effects:
            if isinstance(sent, Send) and isinstance(sent.message, MaskedInput):
                others = [member for member in epoch.public.members if member != self.member]
                ends = [self.member, *others] if isinstance(keys, ResilientKeys) else others
                masks = tuple(
                    Mask(key, negative, own, epoch.advertised[end].digest)
                    for (key, negative), end in zip(used, ends, strict=True)
                )
                words = unpack(sent.frames[0], self._spec_words(), self._bits())
                masked = Masked(
                    self.member,
                    epoch.plan.digest,
                    effect.step,
                    chain,
                    epoch.transcript,
                    tuple(map(int, words)),
                    masks,
                )
                self._note(masked=(*self.story.masked, masked))
        self._perform(effects, late=False)


def roots(world: World) -> dict[int, Node]:
    """Each honest client of a world at its beginning."""
    return {member: Node(world, member, world.start(member)) for member in world.honest}
