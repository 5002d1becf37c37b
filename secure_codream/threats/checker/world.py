"""The world that a malicious server attacks: a toy federation, and what its server can make up in it.

There are n members, the last of whom collude with the server and are played by it: it makes their keys, in as many
versions as it likes, and signs whatever it wants. Each honest member is a `ClientProtocol` with a toy course and a
journal in memory, perhaps with some of its rules taken out.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, permutations
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import charter as charters
from codream_protocols import hybrid
from codream_protocols.charter import Aggregation, Charter, Plan, Policy, even_blocks
from codream_protocols.client import Begun, ClientProtocol, Memory
from codream_protocols.course import Array, Publication, Sums, Task
from codream_protocols.course import State as CourseState
from codream_protocols.encoding import integers
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.masks import word_type
from codream_protocols.messages import Published, Seal, Seals
from codream_protocols.packing import pack
from codream_protocols.record import Kept
from codream_protocols.resilient import make_keys
from codream_protocols.secret import Secret
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.tag import TagKey, tag_bytes
from secure_codream.threats.checker.enumerator import Set

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
        words = np.zeros(plan.spec(0).words, dtype=word_type(plan.modulus_bits(0)))
        for member in members:
            number = self.input(member)
            words[0] += number & 255
            words[1] += number >> 8
        words[0] += lie
        return words

    def published(self, machine: ClientProtocol, members: Set, lie: int = 0) -> tuple[Published, tuple[bytes, ...]]:
        """A sum for the present step of a client, with the tag that fits it: who has the group key can make it."""
        epoch = machine._epoch
        assert epoch is not None and epoch.public is not None and epoch.group_key is not None  # noqa: S101 - in a step
        words = self.plain(epoch.plan, members, lie)
        tag = self.tag(machine, words, members)
        message = Published(epoch.plan.digest, epoch.public.step, members, tag)
        return message, (pack(words, epoch.plan.modulus_bits(0)),)

    def tag(self, machine: ClientProtocol, words: Array, members: Set) -> bytes:
        """The tag of a sum over members, in a client's present step."""
        epoch = machine._epoch
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

    def seal(self, machine: ClientProtocol, value: bytes = b"") -> Seal:
        """What this member seals for a client, at that client's transcript; perhaps with another value of its own."""
        if value:
            twin = Seat.__new__(Seat)
            twin.__dict__.update(self.__dict__)
            twin._keys, twin._sealed = self._world.copy(self._keys), {}
            twin._keys._value = Secret(value)
            return twin.seal(machine)
        epoch = machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        sealed = self._at(machine)[1][epoch.advertisement.member]
        return sealed.sent_by(self._member)

    def shares(self, machine: ClientProtocol, seals: Seals) -> dict[tuple[int, str], bytes]:
        """What a client's seals dealt this member: its shares of that client's secrets, by step and kind."""
        epoch = machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        keys, _ = self._at(machine)
        dealer = epoch.advertisement.member
        seal = next(item for item in seals.items if item.member == self._member)
        assert keys._kem is not None  # noqa: S101 - until all is opened, which the server never does
        key = hybrid.seal_key(
            keys._agreed[dealer].reveal(),
            keys._kem.decapsulate(seal.kem),
            transcript=epoch.transcript,
            sender=dealer,
            receiver=self._member,
            ciphertext=seal.kem,
        )
        additional = keys._additional(dealer, self._member)
        rows = ChaCha20Poly1305(key).decrypt(bytes(12), seal.ciphertext, additional)[KEY_BYTES:]
        steps = epoch.plan.steps
        return {
            (step, kind): rows[KEY_BYTES * place : KEY_BYTES * (place + 1)]
            for step in range(steps)
            for kind, place in ((SELF_MASK, step), (MASK_KEY, steps + step))
        }

    def _at(self, machine: ClientProtocol) -> tuple[LockstepKeys, dict[int, Seal]]:
        epoch = machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        if epoch.transcript not in self._sealed:
            keys = self._world.copy(self._keys)
            items = keys.seal(self._signer, epoch.transcript, epoch.advertised)
            self._sealed[epoch.transcript] = keys, {item.member: item for item in items}
        return self._sealed[epoch.transcript]
