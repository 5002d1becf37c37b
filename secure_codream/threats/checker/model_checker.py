"""A model checker: a malicious server and its colluders against the real client machines.

**Setting.** n members, the last of whom collude with the server and are played by it: it makes their keys, in as many
versions as it likes, and signs whatever it wants. Each honest member is a `ClientProtocol` with a toy course. A
`Node` is such a client with all that it was told; telling it more gives another node, on a deep copy, so that every
choice of the server can be tried from the same point. What a client answers rests on what it was told alone, so nodes
are shared between strategies, and a strategy is one node for each honest client.

**Strategies.** `set_ups`: to each client a cohort, and a set of advertisements in any version.
`tellings`: in a step to each client a set of survivors, before or after its vector, then all signatures that this
strategy obtains. `sequences`: steps one after the other; between them each client is told a sum, true or forged, so
that histories part in every way. `histories`: epochs finished or given up one after the other, sums forged, records
and certificates shown to any of the clients. `lies`: sums that are not true, without a colluder.
Everything is tried on the machines; they decide what they take.

**What is seen.** Every masked vector carries the mask keys of its machine, so that a mask is the very key, however it
came about. A key is known if its other end is played by the server, or if a secret that it derives from is rebuilt: of
a member's secret, the colluders have the shares dealt to them, and each answered row counts that is the true share. A
combination of inputs can be read if every unknown key cancels in it. Promised is: at most one sum in a step, over the
honest members of a set that may be summed; over all steps and epochs, only combinations that are constant on blocks;
no two clients that learn different things; no sum taken that is not true. `confirm` reads a
leak for real: combines the shares, derives the keys, takes the masks off, and compares with the inputs.

**Who is left out.** Of strategies that differ only in the names of honest members, or of colluders, one is tried. A
client that could be told more is told more: what a server knows it still knows then.
"""

from __future__ import annotations

import copy
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, permutations, product
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import charter as charters
from codream_protocols import hybrid, keyschedule, shamir
from codream_protocols.charter import Aggregation, Charter, Offer, Plan, Policy, even_blocks
from codream_protocols.client import Begun, Certified, ClientProtocol, Compute, Effect, Ended, Memory, Send
from codream_protocols.course import Array, Publication, Sums, Task, fingerprint
from codream_protocols.course import State as CourseState
from codream_protocols.encoding import integers
from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Invitation,
    MaskedInput,
    Published,
    Seal,
    SealDelivery,
    Seals,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    UnmaskShares,
    decode_to_client,
    encode_message,
    survivor_statement,
)
from codream_protocols.packing import pack, unpack
from codream_protocols.record import Kept, Trajectory
from codream_protocols.resilient import ResilientKeys, make_keys
from codream_protocols.secret import Secret
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.tag import TagKey, tag_bytes
from secure_codream.threats.checker.enumerator import Set, cancelling, constant_on, reduced

SELF_MASK, MASK_KEY = "self mask", "mask key"
RULES = {
    name: (rule.__doc__ or "").splitlines()[0]
    for name, rule in vars(ClientProtocol).items()
    if name.startswith("_rule_")
}


def without(*rules: str) -> type[ClientProtocol]:
    """A client with these rules taken out.

    Raises:
        LookupError: there is no such rule.
    """
    if unknown := set(rules) - set(RULES):
        raise LookupError(f"found no rule {sorted(unknown)}; allowed: {', '.join(sorted(RULES))}")
    if not rules:
        return ClientProtocol
    methods = {rule: lambda self, *arguments: None for rule in rules}
    return type("Without" + "And".join(sorted(rules)), (ClientProtocol,), methods)


# -- the toy federation ---------------------------------------------


class Toy:
    """A course of counts: each client's number is 2 to the power of its own, so that a sum says whose it is of."""

    epochs = 1 << 19

    def __init__(self, steps: int, *, noised: bool = False) -> None:
        self._steps, self._noised = steps, noised

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """See `Course`."""
        if self._noised:
            return (VectorSpec("number", (Block("of", 2, 1.0),)).with_noise(1.0, 5.0, honest),)
        return (VectorSpec("number", (Block("of", 1, 65535, "count"),)),)

    def schedule(self, certified: int) -> tuple[int, ...]:
        """See `Course`."""
        return (0,) * self._steps

    def start(self, seed: bytes, certified: int, last: Publication | None) -> CourseState:
        """See `Course`."""
        return {"seed": np.frombuffer(seed, dtype=np.uint8), "sums": np.zeros(self._steps, dtype=np.int64)}

    def task(self, state: CourseState, step: int) -> Task:
        """See `Course`."""
        return Task("number", {})

    def absorb(self, state: CourseState, step: int, sums: Sums, count: int) -> CourseState:
        """See `Course`."""
        found = np.array(state["sums"])
        found[step] = sums["of"][0]
        return {**state, "sums": found}

    def publication(self, state: CourseState) -> Publication:
        """See `Course`."""
        return state


class Ledger:
    """A client's journal, in memory; what a crash leaves."""

    def __init__(self) -> None:
        self.memory = Memory()

    def joined(self, epoch: int, plan: bytes) -> None:
        """See `Journal`."""
        self.memory = replace(self.memory, next_epoch=epoch + 1, attempts=self.memory.attempts + 1)

    def began(self, begun: Begun, rho: float) -> None:
        """See `Journal`."""
        self.memory = replace(self.memory, steps=self.memory.steps + 1, rho=self.memory.rho + rho, begun=begun)

    def voted(self, kept: Kept) -> None:
        """See `Journal`."""
        self.memory = replace(self.memory, vote=kept)

    def certified(self, kept: Kept) -> None:
        """See `Journal`."""
        self.memory = replace(self.memory, vote=None, attempts=0, certified=(*self.memory.certified, kept))

    def saw_wrong_sum(self, plan: bytes) -> None:
        """See `Journal`."""
        self.memory = replace(self.memory, wrong_sums=(*self.memory.wrong_sums, plan))

    def recall(self, place: int) -> Kept:
        """See `Journal`."""
        return self.memory.certified[place]


@dataclass(frozen=True)
class Setting:
    """A federation under attack.

    Attributes:
        mode: lockstep or resilient.
        members: n.
        colluders: c of the charter.
        playing: how many members the server plays, the last ones; c unless given.
        least: the charter's least number of survivors; c + 2 unless given.
        losses: see `Aggregation`.
        blocks: of the charter; even ones unless given.
        steps: T.
        threshold: in place of the one that follows from n and c.
        policy: each client's.
        attempts: that the charter lets be given up.
        noised: whether numbers are noised; then what they are is not looked at.
    """

    mode: Literal["lockstep", "resilient"]
    members: int
    colluders: int = 1
    playing: int | None = None
    least: int | None = None
    losses: Literal["blocks", "allow"] = "blocks"
    blocks: tuple[Set, ...] | None = None
    steps: int = 1
    threshold: int | None = None
    policy: Policy = Policy(losses=True)  # noqa: RUF009 - frozen
    attempts: int = 20
    noised: bool = False


class World:
    """Identities, charter and course of a setting, and what its server can make up.

    Args:
        setting: which.
        client_class: the honest members' machine.
    """

    def __init__(self, setting: Setting, client_class: type[ClientProtocol] = ClientProtocol) -> None:
        self.setting, self.client_class = setting, client_class
        count, playing = setting.members, setting.colluders if setting.playing is None else setting.playing
        self.everybody = tuple(range(count))
        self.honest, self.played = self.everybody[: count - playing], self.everybody[count - playing :]
        self.signers = [Signer(secrets.token_bytes(32)) for _ in self.everybody]
        self.stranger = Signer(secrets.token_bytes(32))
        self.roster = Roster(
            "toy",
            1,
            ServerEntry("tcp://127.0.0.1:1", bytes(32)),
            tuple(Member(f"m{one}", self.signers[one].public, bytes([one + 1]) * 32) for one in self.everybody),
        )
        self.charter = Charter(
            roster=self.roster.hash,
            members=count,
            settings=bytes(32),
            aggregation=Aggregation(
                mode=setting.mode,
                colluders=setting.colluders,
                least_survivors=setting.least or setting.colluders + 2,
                losses=setting.losses,
                attempts=setting.attempts,
            ),
            blocks=setting.blocks or even_blocks(count, setting.colluders),
        )
        self.course = Toy(setting.steps, noised=setting.noised)
        self.honest_keys: dict[bytes, int] = {}  # digest of an honest client's advertisement -> the client
        self.thresholds: dict[bytes, int] = {}  # the same -> how many shares open its secrets
        self.seats: dict[tuple[bytes, int, int], Seat] = {}

    def context(self) -> AbstractContextManager[Any]:
        """Within it, plans have the setting's threshold."""
        if self.setting.threshold is None:
            return nullcontext()
        return patch.object(charters, "default_threshold", lambda members, colluders: self.setting.threshold)

    def start(self, member: int, memory: Memory | None = None) -> ClientProtocol:
        """An honest member's process."""
        ledger = Ledger()
        ledger.memory = memory or Memory()
        with self.context():
            return self.client_class(
                charter=self.charter,
                roster=self.roster,
                course=self.course,
                member=member,
                signer=self.signers[member],
                policy=self.setting.policy,
                memory=memory,
                journal=ledger,
            )

    def roots(self) -> dict[int, Node]:
        """Each honest client at its beginning."""
        return {member: Node(self, member, self.start(member)) for member in self.honest}

    def copy(self, machine: Any) -> Any:
        """A copy of a machine that shares what never changes."""
        fixed = (self.roster, self.charter, self.course, self.setting.policy, *self.signers)
        return copy.deepcopy(machine, {id(one): one for one in fixed})

    @cached_property
    def sets(self) -> list[Set]:
        """All sets of members, the largest first."""
        return [chosen for size in range(len(self.everybody), 0, -1) for chosen in combinations(self.everybody, size)]

    @cached_property
    def summable(self) -> list[Set]:
        """Sets that the charter lets be summed."""
        found = []
        for one in self.sets:
            try:
                self.charter.check_summed(one)
            except RemoteProtocolError:
                continue
            found.append(one)
        return found

    @cached_property
    def promised(self) -> frozenset[Set]:
        """The honest members of sets that may be summed: a step may show the sum of one of these."""
        least = self.setting.policy.least_survivors
        return frozenset(
            tuple(one for one in summed if one in self.honest) for summed in self.summable if len(summed) >= least
        )

    def names(self) -> list[dict[int, int]]:
        """All ways of renaming honest members, and played ones, that keep the blocks."""
        blocks = {frozenset(block) for block in self.charter.blocks}
        found = []
        for honest in permutations(self.honest):
            for played in permutations(self.played):
                named = dict(zip(self.everybody, (*honest, *played), strict=True))
                if {frozenset(named[one] for one in block) for block in blocks} == blocks:
                    found.append(named)
        return found

    # -- what a server makes up ---------------------------------------------

    def seat(self, plan: Plan, member: int, version: int) -> Seat:
        """Keys of a member that the server plays, in one of any number of versions."""
        place = (plan.digest, member, version)
        if place not in self.seats:
            self.seats[place] = Seat(self, plan, member)
        return self.seats[place]

    def input(self, member: int) -> int:
        """A member's number, the same in every step and epoch; a played one's is 0."""
        return 1 << member if member in self.honest else 0

    def plain(self, plan: Plan, members: Iterable[int], lie: int = 0) -> Array:
        """The sum of these members' vectors, and a lie added to it."""
        words = np.zeros(plan.spec(0).words, dtype=word_type(plan.modulus_bits))
        for member in members:
            number = self.input(member)
            words[0] += number & 255
            words[1] += number >> 8
        words[0] += lie
        return words

    def published(self, node: Node, members: Set, lie: int = 0) -> tuple[Published, tuple[bytes, ...]]:
        """A sum for the present step of a client, with the tag that fits it: who has the group key can make it."""
        epoch = node.machine._epoch
        assert epoch is not None and epoch.public is not None and epoch.group_key is not None  # noqa: S101 - in a step
        words = self.plain(epoch.plan, members, lie)
        tag = self.tag(node, words, members)
        message = Published(epoch.plan.digest, epoch.public.step, members, tag)
        return message, (pack(words, epoch.plan.modulus_bits),)

    def tag(self, node: Node, words: Array, members: Set) -> bytes:
        """The tag of a sum over members, in a client's present step."""
        epoch = node.machine._epoch
        assert epoch is not None and epoch.public is not None and epoch.group_key is not None  # noqa: S101 - in a step
        secret = hybrid.tag_secret(epoch.group_key.reveal(), epoch.public.step, epoch.public.chain)
        key = TagKey(secret, len(words))
        total = key.of(integers(epoch.plan, epoch.public.step, words)) + sum(key.pad(member) for member in members)
        return tag_bytes(total % (1 << 128))


class Seat:
    """Keys of a member in an epoch that the server has made: a colluder's, or those of one that it plays."""

    def __init__(self, world: World, plan: Plan, member: int) -> None:
        self._world, self._member = world, member
        self._signer = world.signers[member] if member in world.played else world.stranger
        self._keys = make_keys(plan, member, secrets.token_bytes)
        self.advertisement = self._keys.advertise(self._signer)
        self._sealed: dict[bytes, tuple[LockstepKeys, dict[int, Seal]]] = {}

    def seal(self, node: Node, value: bytes = b"") -> Seal:
        """What this member seals for a client, at that client's transcript; perhaps with another value of its own."""
        if value:
            twin = Seat.__new__(Seat)
            twin.__dict__.update(self.__dict__)
            twin._keys, twin._sealed = self._world.copy(self._keys), {}
            twin._keys._value = Secret(value)
            return twin.seal(node)
        sealed = self._at(node)[1][node.member]
        return Seal(self._member, sealed.kem, sealed.ciphertext, sealed.signature)

    def shares(self, node: Node) -> dict[tuple[int, str], bytes]:
        """What a client dealt this member: its shares of that client's secrets, by step and kind."""
        epoch = node.machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        keys, _ = self._at(node)
        seals = next(sent.message for sent in node.story.sent if isinstance(sent.message, Seals))
        seal = next(item for item in seals.items if item.member == self._member)
        assert keys._kem is not None  # noqa: S101 - until all is opened, which the server never does
        key = hybrid.seal_key(
            keys._agreed[node.member].reveal(),
            keys._kem.decapsulate(seal.kem),
            transcript=epoch.transcript,
            sender=node.member,
            receiver=self._member,
            ciphertext=seal.kem,
        )
        additional = keys._additional(node.member, self._member)
        rows = ChaCha20Poly1305(key).decrypt(bytes(12), seal.ciphertext, additional)[KEY_BYTES:]
        steps = epoch.plan.steps
        return {
            (step, kind): rows[KEY_BYTES * place : KEY_BYTES * (place + 1)]
            for step in range(steps)
            for kind, place in ((SELF_MASK, step), (MASK_KEY, steps + step))
        }

    def _at(self, node: Node) -> tuple[LockstepKeys, dict[int, Seal]]:
        epoch = node.machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        if epoch.transcript not in self._sealed:
            keys = self._world.copy(self._keys)
            items = keys.seal(self._signer, epoch.transcript, epoch.advertised)
            self._sealed[epoch.transcript] = keys, {item.member: item for item in items}
        return self._sealed[epoch.transcript]


# -- clients ---------------------------------------------

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
        return self.machine._epoch.plan.modulus_bits

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


# -- what is known ---------------------------------------------


@dataclass(frozen=True)
class Readable:
    """What can be read in one step: for each row, its coefficients of the honest members' inputs."""

    plan: bytes
    step: int
    members: Set
    rows: tuple[tuple[int, ...], ...]

    @property
    def sums(self) -> tuple[Set, ...]:
        """Those members whose inputs are in each row."""
        return tuple(tuple(one for one, factor in zip(self.members, row, strict=True) if factor) for row in self.rows)


@dataclass(frozen=True)
class Leak:
    """A broken promise, what broke it in words, and the clients that it was broken with."""

    promise: str
    told: str
    nodes: tuple[Node, ...] = field(default=(), repr=False, compare=False)
    readable: Readable | None = None


class Reader:
    """Says what a server can read of honest inputs, given what came out of the clients."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._rows: dict[tuple[frozenset[Owned], tuple[Masked, ...]], tuple[tuple[int, ...], ...]] = {}

    def secrets(self, nodes: Iterable[Node]) -> frozenset[Owned]:
        """Members' secrets of which `threshold` shares are known."""
        counts: Counter[Owned] = Counter()
        dealt: dict[bytes, int] = {}
        for node in nodes:
            counts.update(node.story.gave)
            dealt.update(node.story.dealt)
        thresholds = self.world.thresholds
        return frozenset(
            what
            for what, count in counts.items()
            if what[0] in thresholds and count + dealt.get(what[0], 0) >= thresholds[what[0]]
        )

    def read(self, nodes: Iterable[Node]) -> list[Readable]:
        """What can be read, by plan and step."""
        everything = list(nodes)
        known = self.secrets(everything)
        steps: dict[tuple[bytes, int], list[Masked]] = {}
        for node in everything:
            for masked in node.story.masked:
                steps.setdefault((masked.plan, masked.step), []).append(masked)
        found = []
        for (plan, step), vectors in steps.items():
            rows = self.rows(known, tuple(vectors))
            if rows:
                found.append(Readable(plan, step, tuple(masked.member for masked in vectors), rows))
        return found

    def rows(self, known: frozenset[Owned], vectors: tuple[Masked, ...]) -> tuple[tuple[int, ...], ...]:
        """The combinations of these vectors in which every unknown mask cancels."""
        place = (known, vectors)
        if place not in self._rows:
            unknown: dict[bytes, int] = {}
            for masked in vectors:
                for mask in masked.masks:
                    if not self.is_known(known, masked.step, mask):
                        unknown.setdefault(mask.key, len(unknown))
            matrix = [[0] * len(unknown) for _ in vectors]
            for line, masked in zip(matrix, vectors, strict=True):
                for mask in masked.masks:
                    if mask.key in unknown:
                        line[unknown[mask.key]] += -1 if mask.negative else 1
            self._rows[place] = tuple(map(tuple, cancelling(matrix)))
        return self._rows[place]

    def is_known(self, known: frozenset[Owned], step: int, mask: Mask) -> bool:
        """Whether the server knows a mask key."""
        if mask.own == mask.peer:
            return (mask.own, step, SELF_MASK) in known
        if mask.peer not in self.world.honest_keys:
            return True  # its other end is played
        return any((end, step, MASK_KEY) in known for end in (mask.own, mask.peer))

    def leak(self, nodes: Sequence[Node]) -> Leak | None:
        """The first promise about inputs that is broken."""
        everything = self.read(nodes)
        for found in everything:
            if len(found.rows) > 1:
                return Leak("Inputs", f"reads {_sums(found)} in step {found.step}", tuple(nodes), found)
            if not all(row in (0, 1) for row in found.rows[0]) or found.sums[0] not in self.world.promised:
                return Leak("Inputs", f"reads {_sums(found)} in step {found.step}", tuple(nodes), found)
        if self.world.setting.losses == "blocks":
            rows = reduced(
                [
                    sum(row for one, row in zip(found.members, found.rows[0], strict=True) if one == member)
                    for member in self.world.honest
                ]
                for found in everything
            )
            if not constant_on(rows, self.world.honest, self.world.charter.blocks):
                return Leak("Who", "reads a combination that is not constant on blocks", tuple(nodes))
        return None

    def confirm(self, leak: Leak) -> bool:
        """Read a leak for real: combine shares, derive keys, take the masks off, and compare with the inputs."""
        found = leak.readable
        if found is None:
            return False
        known = {what: self._rebuilt(what, leak.nodes) for what in self.secrets(leak.nodes) if what[1] == found.step}
        vectors = [
            masked
            for node in leak.nodes
            for masked in node.story.masked
            if (masked.plan, masked.step) == (found.plan, found.step)
        ]
        plan = next(node.public.plan for node in leak.nodes if node.public and node.public.plan.digest == found.plan)
        advertised: dict[bytes, Advertisement] = {}
        for node in leak.nodes:
            if node.machine._epoch is not None:
                advertised.update({item.digest: item for item in node.machine._epoch.advertised.values()})
        for row in found.rows:
            total = np.zeros(len(vectors[0].words), dtype=word_type(plan.modulus_bits))
            expected = np.zeros_like(total)
            for factor, masked in zip(row, vectors, strict=True):
                if not factor:
                    continue
                if factor != 1:
                    return False
                total += np.array(masked.words, dtype=total.dtype)
                expected += self.world.plain(plan, [masked.member])
                for mask in masked.masks:
                    key = self._derived(plan, masked, mask, known, advertised)
                    if key is None and mask.peer not in self.world.honest_keys:
                        key = mask.key  # its other end is played
                    if key is None:
                        continue  # nobody knows it: it has to cancel
                    if key != mask.key:
                        return False
                    add_mask(total, key, suite=plan.aggregation.suite, negative=not mask.negative)
            top = (1 << plan.modulus_bits) - 1
            if ((total & top) != (expected & top)).any():
                return False
        return True

    def _rebuilt(self, what: Owned, nodes: Iterable[Node]) -> bytes:
        """A secret from shares: those that clients gave away, and the server's own."""
        shares: dict[int, bytes] = {}
        for node in nodes:
            if what in node.story.gave:
                shares[node.member + 1] = node.story.held[what]
            epoch = node.machine._epoch
            if epoch is not None and epoch.advertisement.digest == what[0]:
                for (_, member, _), seat in self.world.seats.items():
                    if epoch.advertised.get(member) == seat.advertisement:
                        shares[member + 1] = seat.shares(node)[what[1:]]
        chosen = sorted(shares)[: self.world.thresholds[what[0]]]
        rows = {point: np.frombuffer(shares[point], dtype=np.uint8).reshape(1, -1) for point in chosen}
        return shamir.combine(rows).tobytes()

    def _derived(
        self,
        plan: Plan,
        masked: Masked,
        mask: Mask,
        known: Mapping[Owned, bytes],
        advertised: Mapping[bytes, Advertisement],
    ) -> bytes | None:
        if mask.own == mask.peer:
            secret = known.get((mask.own, masked.step, SELF_MASK))
            if secret is None:
                return None
            return keyschedule.self_mask_key(secret, plan.digest, masked.step, masked.chain)
        for mine, other in ((mask.own, mask.peer), (mask.peer, mask.own)):
            if (mine, masked.step, MASK_KEY) in known:
                return keyschedule.pairwise_mask_key(
                    known[mine, masked.step, MASK_KEY],
                    advertised[other].mask_key(masked.step),
                    plan=plan.digest,
                    transcript=masked.transcript,
                    step=masked.step,
                    broadcast=masked.chain,
                    pair=(advertised[mine].member, advertised[other].member),
                )
        return None


def _sums(found: Readable) -> str:
    return " and ".join("+".join(f"x{one}" for one in summed) for summed in found.sums)


# -- strategies ---------------------------------------------

Label = tuple[Any, ...]


@dataclass(frozen=True)
class SetUp:
    """A set-up that clients took, each in its own way: what each was shown, and the clients after it."""

    shown: Mapping[int, Label]
    nodes: Mapping[int, Node]


class Explorer:
    """Every strategy against one world.

    Args:
        world: the world.
        versions: of each played member's keys.
        late: also let clients be so slow that they hear of survivors before they have a vector.
        uniform: tell all clients the same, where they take it: a short cut to leaks.
    """

    def __init__(self, world: World, *, versions: int = 1, late: bool = False, uniform: bool = False) -> None:
        self.world, self.versions, self.late, self.uniform = world, versions, late, uniform
        self.reader = Reader(world)
        self._names = [] if uniform else world.names()
        self._answers: dict[tuple[int, Set, Set, int], Node | None] = {}
        self._kept: list[Node] = []  # so that no other node gets the number of one in `_answers`

    # -- the set-up ---------------------------------------------

    def set_ups(self, nodes: Mapping[int, Node], epoch: int = 0, *, cohorts: Sequence[Set] = ()) -> Iterator[SetUp]:
        """Every way to set an epoch up with these clients.

        Args:
            nodes: the clients, idle.
            epoch: its number.
            cohorts: that are tried; every set unless given.
        """
        invited = self._each(nodes, lambda node: self._invitations(node, epoch, cohorts or self.world.sets))
        for first in self._joint(nodes, invited):
            shown = self._each(first.nodes, lambda node, first=first: self._advertisements(node, first.nodes))
            for second in self._joint(first.nodes, shown, first.shown):
                opened = self._each(second.nodes, lambda node, second=second: self._deliveries(node, second.nodes))
                yield from self._joint(second.nodes, opened, second.shown)

    def _each(self, nodes: Mapping[int, Node], menu: Any) -> dict[int, list[tuple[Label, Node]]]:
        return {member: menu(node) for member, node in nodes.items()}

    def _joint(
        self,
        nodes: Mapping[int, Node],
        menus: Mapping[int, list[tuple[Label, Node]]],
        before: Mapping[int, Label] | None = None,
    ) -> Iterator[SetUp]:
        """One entry of each client's menu, whoever has one; names that make no difference once."""
        members = list(nodes)
        if self.uniform:
            labels = dict.fromkeys(label for menu in menus.values() for label, _ in menu)
            chosen_menus = [
                [[one for one in menus[member] if one[0] == label][:1] or menus[member][:1] for member in members]
                for label in labels
            ] or [[[] for _ in members]]
        else:
            chosen_menus = [[menus[member] for member in members]]
        for lists in chosen_menus:
            entries: list[list[tuple[Label, Node] | None]] = [[*menu] or [None] for menu in lists]
            for chosen in product(*entries):
                shown = {
                    member: (*(before[member] if before else ()), *([] if entry is None else [entry[0]]))
                    for member, entry in zip(members, chosen, strict=True)
                }
                if self._is_first(shown):
                    yield SetUp(
                        shown,
                        {
                            member: nodes[member] if entry is None else entry[1]
                            for member, entry in zip(members, chosen, strict=True)
                        },
                    )

    def _is_first(self, shown: Mapping[int, Label]) -> bool:
        """Whether no renaming of members gives a smaller description of the same."""
        own = self._by_stage(shown)
        for named in self._names:
            other = {named[member]: tuple(_renamed(part, named) for part in label) for member, label in shown.items()}
            if self._by_stage(other) < own:
                return False
        return True

    def _by_stage(self, shown: Mapping[int, Label]) -> list[tuple[Any, ...]]:
        """One entry a stage, so that what comes first among whole descriptions comes first up to every stage."""
        stages = max(map(len, shown.values()))
        return [
            tuple(shown[member][stage : stage + 1] for member in self.world.honest if member in shown)
            for stage in range(stages)
        ]

    def _invitations(self, node: Node, epoch: int, cohorts: Sequence[Set]) -> list[tuple[Label, Node]]:
        found = []
        for cohort in cohorts:
            after = node.tell(Invitation(Offer(epoch, cohort, node.machine.head)))
            if after is not None and after.machine.plan is not None:
                found.append((cohort, after))
        return found

    def _advertisements(
        self, node: Node, nodes: Mapping[int, Node], sets: Sequence[Set] = ()
    ) -> list[tuple[Label, Node]]:
        plan = node.machine.plan
        if plan is None:
            return []
        there = {
            member: [other.advertisement]
            for member, other in nodes.items()
            if other.machine.plan is not None and other.machine.plan.digest == plan.digest
        }
        for member in self.world.played:
            if member in plan.cohort:
                there[member] = [
                    self.world.seat(plan, member, version).advertisement for version in range(self.versions)
                ]
        found = []
        for chosen in sets or self.world.sets:
            if not set(chosen) <= set(there):
                continue
            for items in product(*(list(enumerate(there[member])) for member in chosen)):
                after = node.tell(Advertisements(plan.digest, tuple(item for _, item in items)))
                if after is not None:
                    version = {member: number for member, (number, _) in zip(chosen, items, strict=True)}
                    found.append((tuple(sorted(version.items())), after))
        return found

    def _deliveries(self, node: Node, nodes: Mapping[int, Node]) -> list[tuple[Label, Node]]:
        epoch = node.machine._epoch
        if epoch is None or epoch.seals is None:
            return []
        seals: dict[int, Seal] = {}
        for member, other in nodes.items():
            for sent in other.story.sent if member != node.member else ():
                if isinstance(sent.message, Seals) and sent.message.plan == epoch.plan.digest:
                    for item in sent.message.items:
                        if item.member == node.member:
                            seals[member] = Seal(member, item.kem, item.ciphertext, item.signature)
        for (plan, member, _), seat in self.world.seats.items():
            if plan == epoch.plan.digest and epoch.advertised.get(member) == seat.advertisement:
                seals[member] = seat.seal(node)
        others = [member for member in epoch.advertised if member != node.member]
        if not set(others) <= set(seals):
            return []
        message, found = SealDelivery(epoch.plan.digest, tuple(seals[member] for member in others)), []
        for slow in (False, True) if self.late else (False,):
            after = node.tell(message, late=slow)
            if after is not None and after.chain:
                found.append((("late" if slow else "prompt",), after))
        return found

    # -- a step ---------------------------------------------

    def tellings(self, nodes: Mapping[int, Node], *, claims: int = 1) -> Iterator[tuple[Label, dict[int, Node]]]:
        """Every way to tell clients who survived the present step; all signatures obtained are handed on.

        Args:
            nodes: the clients; those that are in no step are left alone.
            claims: how many sets are told to one client, one after the other.
        """
        there = {member: node for member, node in nodes.items() if node.chain}
        menus = {member: self._claims(node, claims) for member, node in there.items()}
        choices: Iterable[tuple[tuple[Set, ...], ...]]
        if self.uniform:
            common = dict.fromkeys(claim for menu in menus.values() for claim in menu)
            choices = [tuple(claim for _ in there) for claim in common]
        else:
            choices = product(*menus.values())
        for chosen in choices:
            strategy = dict(zip(there, chosen, strict=True))
            yield tuple(sorted(strategy.items())), self.told(nodes, strategy)

    def told(self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]) -> dict[int, Node]:
        """The clients after these sets were told to them, and all signatures obtained were handed on."""
        signed = self._signatures(nodes, strategy)
        after = dict(nodes)
        for member, sets in strategy.items():
            after[member] = self._answer(nodes[member], sets, signed)
            if after[member].pending is not None:
                after[member] = self._computed(after[member])
        return after

    def signed(self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]) -> dict[int, Node]:
        """The clients after these sets were told to them, and all signatures of each one's last set handed on."""
        signed = self._signatures(nodes, strategy)
        after = dict(nodes)
        for member, sets in strategy.items():
            for survivors in sets[:-1]:
                after[member] = self._hear(after[member], survivors) or after[member]
            after[member] = self._answer(after[member], sets[-1:], signed)
        return after

    def _computed(self, node: Node) -> Node:
        place = (id(node), (), (), -1)
        if place not in self._answers:
            self._kept.append(node)
            self._answers[place] = node.compute()
        return self._answers[place] or node

    def _claims(self, node: Node, claims: int) -> list[tuple[Set, ...]]:
        useful = [one for one in self.world.sets if self._hear(node, one) is not None]
        found: list[tuple[Set, ...]] = []
        for count in range(1, claims + 1):
            found += [chosen for chosen in product(useful, repeat=count) if len(set(chosen)) == count]
        return found or [()]

    def _hear(self, node: Node, survivors: Set) -> Node | None:
        assert node.public is not None  # noqa: S101 - in a step
        return node.tell(Survivors(node.public.plan.digest, node.public.step, survivors))

    def _signatures(
        self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]
    ) -> dict[tuple[bytes, Set], dict[int, bytes]]:
        """The signatures over each set at each chain that this strategy obtains of honest clients."""
        found: dict[tuple[bytes, Set], dict[int, bytes]] = {}
        for member, told in strategy.items():
            node: Node | None = nodes[member]
            for survivors in told:
                after = self._hear(node, survivors) if node is not None else None
                if after is None:
                    continue
                node = after
                if isinstance(after.last, SurvivorSignature):
                    found.setdefault((after.chain, survivors), {})[member] = after.last.signature
        return found

    def _answer(
        self, node: Node, told: tuple[Set, ...], signed: Mapping[tuple[bytes, Set], Mapping[int, bytes]]
    ) -> Node:
        """A client after it was told these sets, each with all signatures of it."""
        for survivors in told:
            signers = tuple(sorted(signed.get((node.chain, survivors), {})))
            place = (id(node), survivors, signers, 0)
            if place not in self._answers:
                self._kept.append(node)
                self._answers[place] = self._answered(node, survivors, signed.get((node.chain, survivors), {}))
            after = self._answers[place]
            node = node if after is None else after
        return node

    def _answered(self, node: Node, survivors: Set, signed: Mapping[int, bytes]) -> Node | None:
        after = self._hear(node, survivors)
        if after is None or after.public is None or not isinstance(after.last, SurvivorSignature):
            return after
        statement = survivor_statement(after.chain, after.public.step, survivors)
        items = {member: SignedBy(member, signature) for member, signature in signed.items()}
        for member in self.world.played:
            if member in after.public.members:
                items[member] = SignedBy(member, self.world.signers[member].sign("survivors", *statement))
        message = SurvivorSignatures(
            after.public.plan.digest, after.public.step, tuple(items[member] for member in sorted(items))
        )
        return after.tell(message) or after

    # -- steps one after the other ---------------------------------------------

    def sequences(self, nodes: Mapping[int, Node], steps: int) -> Iterator[list[Node]]:
        """Every way through the steps that are left: after each step's last answer, the clients so far.

        Between steps each client is told a sum. With a colluder sums can be forged, and so histories part: into as many
        as there are clients, in every way. Without one all are told the true sum.
        """
        for _, after in self.tellings(nodes):
            clients = [after[member] for member in self.world.honest]
            yield clients
            if steps > 1:
                for lies in _parts(len(clients)) if self.world.played else [(0,) * len(clients)]:
                    onward = dict(after)
                    for node, lie in zip(clients, lies, strict=True):
                        onward[node.member] = self._published(node, lie)
                    yield from self.sequences(onward, steps - 1)

    def _published(self, node: Node, lie: int) -> Node:
        place = (id(node), (), (), lie)
        if place not in self._answers:
            self._kept.append(node)
            epoch = node.machine._epoch
            if epoch is None or epoch.step is None or epoch.public is None:
                return node
            members = epoch.step.survivors or epoch.public.members
            self._answers[place] = node.tell(*self.world.published(node, members, lie))
        return self._answers[place] or node


def _parts(count: int) -> Iterator[tuple[int, ...]]:
    """All ways to part so many clients, each as a number for each client, the first numbers first."""
    if count == 0:
        yield ()
        return
    for head in _parts(count - 1):
        for number in range(max(head, default=-1) + 2):
            yield (*head, number)


def _renamed(part: Any, named: Mapping[int, int]) -> Any:
    """A label with other names: tuples of members, of (member, version), or of words."""
    if part and isinstance(part[0], str):
        return part
    if part and isinstance(part[0], tuple):
        return tuple(sorted((named[member], version) for member, version in part))
    return tuple(sorted(named[member] for member in part))
