"""A whole federation in memory: roster, keys, real client machines, a real server machine, and a wire between them.

Every message is encoded to bytes, carried as a `Packet`, and decoded again. Whoever drives the federation decides what
becomes of a packet: `deliver` it, now or later or twice, or leave it out. `set_up` and `step` drive whole phases in
order, with chosen losses. All randomness comes from one seed, so that a failing example can be repeated.

    federation = Federation(5, steps=3)
    federation.set_up()
    reveal = federation.step(lost={(2, MaskedInput)})       # member 2's masked input never arrives
    assert (reveal.total == federation.plain_sum(0, reveal.survivors)).all()
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codream_protocols.client import ClientProtocol, Compute, Send
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Survivors,
    ToClient,
    ToServer,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.plan import Block, Plan, Policy, VectorSpec, default_threshold
from codream_protocols.ring import modulus_bits_for
from codream_protocols.server import Effect as ServerEffect
from codream_protocols.server import Failed, Phase, Reveal, SendTo, ServerEpoch
from codream_protocols.vectors import encode_vector

STATE = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)  # a public state to broadcast
Losses = Collection[tuple[int, type]]


class Stuck(RuntimeError):
    """The honest part of a scenario did not come to its end."""


@dataclass(frozen=True)
class Packet:
    """A message in flight: bytes and frames, from or to one member."""

    member: int
    to_server: bool
    kind: type
    data: bytes
    frames: tuple[bytes, ...] = ()

    @property
    def message(self) -> ToClient | ToServer:
        """The message, decoded."""
        return decode_to_server(self.data) if self.to_server else decode_to_client(self.data)


def packet(member: int, message: ToClient | ToServer, frames: tuple[bytes, ...] = (), *, to_server: bool) -> Packet:
    """Encode a message for the wire."""
    return Packet(member, to_server, type(message), encode_message(message), frames)


def make_plan(
    roster: Roster,
    *,
    cohort: Sequence[int] | None = None,
    threshold: int | None = None,
    colluders: int = 0,
    least_survivors: int | None = None,
    value_bits: int = 16,
    modulus_bits: int | None = None,
    steps: int = 3,
    suite: str = "aes-256-ctr",
    specs: tuple[VectorSpec, ...] = (VectorSpec("update", (Block("dream", 20, 1.0),)),),
    session: bytes = bytes(16),
    epoch: int = 0,
    recipe: bytes = bytes(32),
) -> Plan:
    """A plan for the whole roster, with the package's defaults for what is not given."""
    members = tuple(range(len(roster.members))) if cohort is None else tuple(cohort)
    size = len(members)
    return Plan(
        protocol=PROTOCOL,
        session=session,
        epoch=epoch,
        roster=roster.hash,
        recipe=recipe,
        cohort=members,
        specs=specs,
        schedule=tuple(step % len(specs) for step in range(steps)),
        value_bits=value_bits,
        modulus_bits=modulus_bits_for(value_bits, size) if modulus_bits is None else modulus_bits,
        suite=suite,
        threshold=max(default_threshold(size), (size + colluders) // 2 + 1) if threshold is None else threshold,
        least_survivors=colluders + 2 if least_survivors is None else least_survivors,
        colluders=colluders,
    )


class Federation:
    """n clients and a server for one epoch.

    Args:
        members: n.
        seed: of all randomness: keys, shares, inputs, rounding, noise.
        client_class: the clients' machine; one class, or one for each member. Attacks take rules out here.
        policy: every client's; a permissive one unless given.
        plan: replaces the plan that the remaining arguments describe (see `make_plan`).
    """

    def __init__(
        self,
        members: int = 5,
        *,
        seed: int = 0,
        client_class: type[ClientProtocol] | Sequence[type[ClientProtocol]] = ClientProtocol,
        policy: Policy | None = None,
        plan: Plan | None = None,
        **planned: Any,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a laboratory's randomness can be repeated
        self.rounding = np.random.default_rng(seed)
        self.signers = [Signer(self.random.randbytes(32)) for _ in range(members)]
        self.roster = Roster(
            "laboratory",
            1,
            ServerEntry("tcp://127.0.0.1:5555", self.random.randbytes(32)),
            tuple(
                Member(f"client-{number}", signer.public, self.random.randbytes(32))
                for number, signer in enumerate(self.signers)
            ),
        )
        if plan is None:
            planned.setdefault("session", self.random.randbytes(16))
            plan = make_plan(self.roster, **planned)
        self.plan = plan
        self.policy = policy or permissive(plan)
        classes = [client_class] * members if isinstance(client_class, type) else list(client_class)
        self.clients = [
            classes[number](
                member=number,
                signer=signer,
                roster=self.roster,
                policy=self.policy,
                random_bytes=random.Random(self.random.getrandbits(64)).randbytes,  # noqa: S311
            )
            for number, signer in enumerate(self.signers)
        ]
        self.server = ServerEpoch(self.plan, self.roster)
        self.vectors: dict[tuple[int, int], np.ndarray[Any, Any]] = {}  # (step, member) -> what was encoded
        self.reveals: list[Reveal] = []
        self.failures: list[str] = []
        self.refusals: list[tuple[int | None, RemoteProtocolError]] = []  # refused by this member, or by the server
        self.wire: list[Packet] = []
        self.sent: list[Packet] = []  # everything that was ever put on the wire
        self.input_of: Callable[[int, Compute], Mapping[str, np.ndarray[Any, Any]]] = self._random_input

    # -- the wire ---------------------------------------------

    def emit(self, effects: Iterable[ServerEffect]) -> None:
        """Put the server's effects on the wire, and keep its news."""
        for effect in effects:
            if isinstance(effect, SendTo):
                self._put(packet(effect.member, effect.message, effect.frames, to_server=False))
            elif isinstance(effect, Reveal):
                self.reveals.append(effect)
            elif isinstance(effect, Failed):
                self.failures.append(effect.reason)

    def deliver(self, item: Packet) -> None:
        """Hand a packet over. A refusal (`RemoteProtocolError`) is kept; any other exception leaves."""
        try:
            if item.to_server:
                self.emit(self.server.receive(item.member, decode_to_server(item.data), item.frames))
            else:
                self._perform(item.member, self.clients[item.member].receive(decode_to_client(item.data), item.frames))
        except RemoteProtocolError as error:
            self.refusals.append((None if item.to_server else item.member, error))

    def tell(self, member: int, message: ToClient, frames: tuple[bytes, ...] = ()) -> list[Any]:
        """Say something to one client, as a malicious server would; its refusal leaves as an exception."""
        return self.clients[member].receive(decode_to_client(encode_message(message)), frames)

    def drain(self, lost: Losses = ()) -> None:
        """Deliver packet after packet, oldest first, until the wire is empty; (member, kind) in `lost` vanish."""
        while self.wire:
            item = self.wire.pop(0)
            if (item.member, item.kind) not in lost:
                self.deliver(item)

    # -- whole phases ---------------------------------------------

    def set_up(self, lost: Losses = ()) -> bool:
        """Run the epoch's set-up; returns whether it is ready."""
        self.emit(self.server.start())
        self.drain(lost)
        while self.server.phase in (Phase.ADVERTISING, Phase.SHARING):
            self.emit(self.server.expire())
            self.drain(lost)
        return self.server.phase is Phase.READY

    def step(
        self, lost: Losses = (), *, clips: Sequence[float] | None = None, state: np.ndarray[Any, Any] = STATE
    ) -> Reveal | None:
        """Run the next step, every connected and reconnected member included; None when it fails.

        Args:
            lost: packets that vanish in this step, as (member, message type).
            clips: of each block; the plan's unless given.
            state: the public state.
        """
        before = len(self.reveals)
        for member in sorted(self.server.absent & set(self.server.members)):
            self.emit(self.server.returned(member))
        self.begin_step(clips, state)
        self.drain(lost)
        while self.server.phase in (Phase.COLLECTING, Phase.AGREEING, Phase.UNMASKING):
            self.emit(self.server.expire())
            self.drain(lost)
        return self.reveals[-1] if len(self.reveals) > before else None

    def begin_step(self, clips: Sequence[float] | None = None, state: np.ndarray[Any, Any] = STATE) -> None:
        """Only the broadcast of the next step."""
        spec = self.plan.spec(self._next_step())
        self.emit(self.server.begin_step(clips or [block.clip for block in spec.blocks], [state]))

    def masked(self, step: int = 0) -> Federation:
        """Set up and run up to the moment at which every client has masked its input of `step`; returns itself."""
        if not self.set_up():
            raise Stuck(f"the set-up failed: {self.failures}")
        for _ in range(step):
            if self.step() is None:
                raise Stuck(f"a step failed: {self.failures}")
        self.begin_step()
        self.drain(lost={(member, Survivors) for member in range(len(self.clients))})
        return self

    def plain_sum(self, step: int, survivors: Iterable[int]) -> np.ndarray[Any, Any]:
        """The sum of what these members encoded, in 64-bit integers: what a reveal must equal."""
        total: np.ndarray[Any, Any] = np.sum([self.vectors[step, one].astype(np.int64) for one in survivors], axis=0)
        return total

    # -- inside ---------------------------------------------

    def _next_step(self) -> int:
        return self.server._next_step

    def _put(self, item: Packet) -> None:
        self.wire.append(item)
        self.sent.append(item)

    def _perform(self, member: int, effects: Iterable[Send | Compute]) -> None:
        for effect in effects:
            if isinstance(effect, Compute):
                self._perform(member, self.provide(member, effect))
            else:
                self._put(packet(member, effect.message, effect.frames, to_server=True))

    def provide(self, member: int, effect: Compute) -> list[Any]:
        """Compute a member's vector, note it, and hand it to its machine; returns the machine's effects."""
        values = self.input_of(member, effect)
        vector = encode_vector(
            self.plan, effect.step, effect.clips, values, self.rounding, random_bytes=self.random.randbytes
        )
        self.vectors[effect.step, member] = vector
        return self.clients[member].provide(effect.step, vector)

    def _random_input(self, member: int, effect: Compute) -> dict[str, np.ndarray[Any, Any]]:
        spec = self.plan.spec(effect.step)
        return {block.name: self.rounding.normal(scale=block.clip, size=block.length) for block in spec.blocks}


def permissive(plan: Plan) -> Policy:
    """A policy that leaves the limits to the plan."""
    tasks = {spec.task: max(block.clip for block in spec.blocks) for spec in plan.specs}
    return Policy(least_cohort=2, least_survivors=2, colluders=0, tasks=tasks, most_value_bits=31)


def snapshot(epoch: ServerEpoch) -> dict[str, Any]:
    """Everything that an epoch of the server holds, as a value."""
    held = {**vars(epoch), "absent": set(epoch.absent), "_advertised": dict(epoch._advertised)}
    held["_sealed"] = {member: dict(sealed) for member, sealed in epoch._sealed.items()}
    held["_step"] = None
    if (step := epoch._step) is not None:
        copies = {"total": step.total.tobytes(), "inputs": set(step.inputs), "answers": dict(step.answers)}
        held["_step"] = {**vars(step), **copies, "signatures": dict(step.signatures)}
    return held
