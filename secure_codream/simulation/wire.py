"""A whole federation in memory: roster, keys, real client machines, a real server machine, and a wire between them.

Whoever drives the federation decides what becomes of a packet: `deliver` it, now or later or twice, or leave it out.
`set_up`, `step` and `finish` drive whole phases in order, with chosen losses. What clients are asked to compute waits
in `computing` until the step is driven. All randomness comes from one seed, so that a failing example can be repeated;
only the KEM draws its own, which changes masks and never a sum.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from codream_clients.refusals import plan_of
from codream_protocols.charter import Aggregation, Charter, Offer, Plan, Policy, derive_plan, even_blocks
from codream_protocols.client import Certified, ClientProtocol, Compute, Ended, Memory, Notice, Send
from codream_protocols.course import Array, Course
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.encoding import encode
from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import (
    Beat,
    Hello,
    MaskedInput,
    Published,
    Refusal,
    Survivors,
    ToClient,
    ToServer,
    Vote,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.server import Effect as ServerEffect
from codream_protocols.server import (
    EpochBegan,
    EpochCertified,
    EpochGivenUp,
    InMemory,
    Phase,
    SendTo,
    ServerProtocol,
    StepFinished,
)
from codream_protocols.specs import VectorSpec
from secure_codream.simulation.diary import Diary
from secure_codream.simulation.packets import Packet, packet
from secure_codream.simulation.toy_course import UPDATE_SPEC, LaboratoryCourse

PERMISSIVE = Policy(losses=True, cuts=True, most_wrong_sums=1000)
"""Leaves the limits to the charter."""

Losses = Collection[tuple[int, type]]


class Stuck(RuntimeError):
    """The honest part of a scenario did not come to its end."""


class Tape:
    """A source of bytes that can keep what is drawn for a while, so that an encoding can be made once more.

    Args:
        draw: where the bytes come from.
    """

    def __init__(self, draw: RandomBytes) -> None:
        self.draw = draw
        self._keeps = False
        self.drawn: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        """The next `count` bytes."""
        piece = self.draw(count)
        if self._keeps:
            self.drawn.append(piece)
        return piece

    def record(self) -> None:
        """Keep what is drawn from now on, and nothing from before."""
        self.drawn, self._keeps = [], True

    def stop(self) -> list[bytes]:
        """Keep nothing any more; returns what was kept."""
        drawn, self.drawn, self._keeps = self.drawn, [], False
        return drawn


@dataclass
class News:
    """What became of one client's epochs."""

    certified: list[Certified] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Federation:
    """n clients and a server, for as many epochs as are driven.

        federation = Federation(6, mode="resilient", steps=2)
        federation.set_up()
        reveal = federation.step(lost={(2, MaskedInput)})       # member 2's masked input never arrives
        assert (reveal.total == federation.plain_sum(0, reveal.survivors)).all()
        federation.step()
        certified = federation.finish()                         # votes and certificate

    Args:
        members: N.
        mode: how sums are made.
        steps: steps of an epoch.
        seed: of all randomness: keys, shares, inputs, rounding, noise.
        client_class: the clients' machine; one class, or one for each member. Attacks take rules out here.
        policy: every client's; a permissive one unless given.
        course: what they run; a `LaboratoryCourse` of `specs`, `steps` and `epochs` unless given.
        courses: each client's own course, where one of them is to stand elsewhere.
        specs: the kinds of vector.
        epochs: epochs of the course.
        blocks: who is summed together; `even_blocks` unless given.
        charter: replaces the charter that the remaining arguments describe; its roster and members are filled in.
        aggregation: `colluders`, `least_survivors`, `value_bits`, `suite`, `losses`, `attempts`.
    """

    def __init__(
        self,
        members: int = 5,
        *,
        mode: Literal["lockstep", "resilient"] = "lockstep",
        steps: int = 3,
        seed: int = 0,
        client_class: type[ClientProtocol] | Sequence[type[ClientProtocol]] = ClientProtocol,
        policy: Policy | None = None,
        course: Course | None = None,
        courses: Sequence[Course] | None = None,
        specs: tuple[VectorSpec, ...] = (UPDATE_SPEC,),
        epochs: int = 1000,
        blocks: tuple[tuple[int, ...], ...] | None = None,
        charter: Charter | None = None,
        **aggregation: Any,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a laboratory's randomness can be repeated
        self.inputs = np.random.default_rng(seed)
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
        if charter is None:
            charter = make_charter(members, mode=mode, blocks=blocks, **aggregation)
        self.charter = msgspec.structs.replace(charter, roster=self.roster.hash, members=members)
        self.course = course or LaboratoryCourse(specs, steps, epochs)
        self.courses = list(courses or [self.course] * members)
        self.policy = policy or PERMISSIVE
        self.classes = [client_class] * members if isinstance(client_class, type) else list(client_class)
        self.tapes = [Tape(random.Random(self.random.getrandbits(64)).randbytes) for _ in range(members)]  # noqa: S311
        self.diaries = [Diary() for _ in range(members)]
        self.clients = [self._client(member, self.charter, Memory()) for member in range(members)]
        self.server_journal = InMemory()
        self.server = self._server()
        self.encoded: dict[tuple[bytes, int, int], Array] = {}  # (plan, step, member) -> what was encoded
        self.vectors: dict[tuple[int, int], Array] = {}  # (step, member) -> the same, of the newest plan
        self.reveals: list[StepFinished] = []
        self.certified: list[EpochCertified] = []
        self.given_up: list[EpochGivenUp] = []
        self.failures: list[str] = []
        self.news = [News() for _ in range(members)]
        self.refusals: list[tuple[int | None, RemoteProtocolError]] = []  # refused by this member, or by the server
        self.tells_refusals = False  # whether clients tell the server what they refuse, as deployed ones do
        self.computing: dict[int, Compute] = {}  # what each client was asked and has not computed
        self.wire: list[Packet] = []
        self.sent: list[Packet] = []  # everything that was ever put on the wire
        self.input_of: Callable[[int, Compute], Mapping[str, Array] | None] = self._random_input
        self._plan: Plan | None = None

    def _client(self, member: int, charter: Charter, memory: Memory) -> ClientProtocol:
        return self.classes[member](
            charter=charter,
            roster=self.roster,
            course=self.courses[member],
            member=member,
            signer=self.signers[member],
            policy=self.policy,
            memory=memory,
            journal=self.diaries[member],
            random_bytes=self.tapes[member],
        )

    def _server(self) -> ServerProtocol:
        certified = tuple(self.server_journal._certified)
        journal = self.server_journal
        return ServerProtocol(
            self.charter, self.roster, self.course, certified=certified, running=journal.entries, journal=journal
        )

    # -- what is agreed ---------------------------------------------

    @property
    def everybody(self) -> tuple[int, ...]:
        """All members of the roster."""
        return self.charter.everybody

    @property
    def plan(self) -> Plan:
        """The newest epoch's plan; before there is one, the plan of the first epoch with everybody."""
        return self._plan or self.plan_of(self.offer(epoch=0))

    def offer(self, epoch: int | None = None, cohort: Sequence[int] | None = None, head: bytes | None = None) -> Offer:
        """An offer: the next epoch, with everybody, after the server's head, unless told otherwise."""
        number = self.server._next_epoch if epoch is None else epoch
        chosen = self.everybody if cohort is None else tuple(cohort)
        return Offer(number, chosen, self.server.head if head is None else head)

    def plan_of(self, offer: Offer) -> Plan:
        """The plan that an honest party derives from an offer after what the server has certified."""
        return derive_plan(self.charter, self.course, offer, self.server.certified)

    # -- the wire ---------------------------------------------

    def emit(self, effects: Iterable[ServerEffect]) -> None:
        """Put the server's effects on the wire, and keep its news."""
        for effect in effects:
            if isinstance(effect, SendTo):
                self.put(packet(effect.member, effect.message, effect.frames, to_server=False))
            elif isinstance(effect, EpochBegan):
                self._plan = effect.plan
            elif isinstance(effect, StepFinished):
                self.reveals.append(effect)
            elif isinstance(effect, EpochCertified):
                self.certified.append(effect)
            elif isinstance(effect, EpochGivenUp):
                self.given_up.append(effect)
                self.failures.append(effect.reason)

    def put(self, item: Packet) -> None:
        """Put a packet on the wire."""
        self.wire.append(item)
        self.sent.append(item)

    def deliver(self, item: Packet) -> None:
        """Hand a packet over. A refusal (`RemoteProtocolError`) is kept; any other exception leaves."""
        plan = b""
        try:
            if item.to_server:
                self.emit(self.hear(item.member, decode_to_server(item.data), item.frames))
            else:
                message = decode_to_client(item.data)
                plan = plan_of(message)
                self.perform(item.member, self.clients[item.member].receive(message, item.frames))
        except RemoteProtocolError as error:
            self.refusals.append((None if item.to_server else item.member, error))
            if self.tells_refusals and not item.to_server and item.kind is not Refusal:
                self.put(packet(item.member, Refusal(error.code, error.found, error.allowed, plan), to_server=True))

    def hear(self, member: int, message: ToServer, frames: tuple[bytes, ...] = ()) -> list[ServerEffect]:
        """Say something to the server in a member's name; its refusal leaves as an exception."""
        if isinstance(message, Hello):
            return self.server.hello(member, message)
        if isinstance(message, Beat):
            return self.server.beat(member, message.plan, message.sums)
        return self.server.receive(member, message, frames)

    def tell(self, member: int, message: ToClient, frames: tuple[bytes, ...] = ()) -> list[Any]:
        """Say something to one client, as a malicious server would; its refusal leaves as an exception."""
        return self.clients[member].receive(decode_to_client(encode_message(message)), frames)

    def ask(self, member: int, message: ToClient, frames: tuple[bytes, ...] = ()) -> list[Any]:
        """As `tell`, and what the client is to compute it computes; all effects, those of computing in their place."""
        return self.compute_all(member, self.tell(member, message, frames))

    def compute_all(self, member: int, effects: Iterable[Any]) -> list[Any]:
        """Effects, with those of computing in the place of each `Compute`."""
        out: list[Any] = []
        for effect in effects:
            out += self.provide(member, effect) if isinstance(effect, Compute) else [effect]
        return out

    def drain(self, lost: Losses = (), *, hold: Collection[type] = ()) -> None:
        """Deliver packet after packet, oldest first; (member, kind) in `lost` vanish, kinds in `hold` stay."""
        while True:
            place = next((place for place, item in enumerate(self.wire) if item.kind not in hold), None)
            if place is None:
                return
            item = self.wire.pop(place)
            if (item.member, item.kind) not in lost:
                self.deliver(item)

    def perform(self, member: int, effects: Iterable[Any]) -> None:
        """Carry out a client's effects: what it sends goes on the wire, what it is to compute waits for the step."""
        for effect in effects:
            if isinstance(effect, Send):
                self.put(packet(member, effect.message, effect.frames, to_server=True))
            elif isinstance(effect, Compute):
                self.computing[member] = effect
            elif isinstance(effect, Certified):
                self.news[member].certified.append(effect)
            elif isinstance(effect, Ended):
                self.computing.pop(member, None)
                self.news[member].ended.append(effect)
            elif isinstance(effect, Notice):
                self.news[member].notices.append(effect.text)

    # -- whole phases ---------------------------------------------

    def hello(self, members: Iterable[int] | None = None) -> None:
        """Connect these members (all): each says Hello, and the answers go on the wire."""
        for member in self.everybody if members is None else members:
            try:
                self.emit(self.server.hello(member, self.clients[member].hello()))
            except RemoteProtocolError as error:
                self.refusals.append((None, error))

    def set_up(self, lost: Losses = (), *, cohort: Sequence[int] | None = None) -> bool:
        """Connect everybody and run an epoch's set-up; returns whether every member computes its first vector."""
        self.hello()
        self.drain()
        self.computing.clear()
        chosen = self.server.cohort() if cohort is None else tuple(cohort)
        if not chosen:
            return False
        self.emit(self.server.open_epoch(chosen))
        self.drain(lost)
        while self.server.phase in (Phase.ADVERTISING, Phase.SEALING, Phase.OPENING):
            self.emit(self.server.expire())
            self.drain(lost)
        return self.server.phase is Phase.COLLECTING

    def step(self, lost: Losses = ()) -> StepFinished | None:
        """Run the next step, connected again whoever had fallen silent; None when the epoch is given up.

        Args:
            lost: packets that vanish in this step, as (member, message type).
        """
        before, number = len(self.reveals), self.server.step
        away = sorted(self.server.absent & set(self.server.members))
        self.hello(away)
        self.drain(hold=(Vote,))
        self.compute()
        self.drain(lost, hold=(Vote,))
        while self.server.step == number and number is not None:
            self.emit(self.server.expire())
            self.drain(lost, hold=(Vote,))
        return self.reveals[-1] if len(self.reveals) > before else None

    def compute(self, members: Iterable[int] | None = None) -> None:
        """Let these members (all) compute what they were asked, and send it."""
        for member in sorted(self.computing) if members is None else members:
            if member in self.computing:
                self.perform(member, self.provide(member, self.computing.pop(member)))

    def finish(self, lost: Losses = ()) -> EpochCertified | None:
        """Deliver the votes and what follows; the certified epoch, or None while votes are missing."""
        before = len(self.certified)
        self.drain(lost)
        if self.server.phase is Phase.VOTING:
            self.emit(self.server.expire())
            self.drain(lost)
        return self.certified[-1] if len(self.certified) > before else None

    def epoch(self) -> EpochCertified:
        """A whole epoch without losses.

        Raises:
            Stuck: it was not certified.
        """
        if not self.set_up():
            raise Stuck(f"the set-up failed: {self.failures}, {self.refusals}")
        while self.server.step is not None:
            if self.step() is None:
                raise Stuck(f"a step failed: {self.failures}, {self.refusals}")
        certified = self.finish()
        if certified is None:
            raise Stuck(f"no certificate: {self.failures}, {self.refusals}")
        return certified

    def run(self, epochs: int = 1) -> list[EpochCertified]:
        """Whole epochs without losses; raises `Stuck` when one is not certified."""
        return [self.epoch() for _ in range(epochs)]

    def masked(self, step: int = 0) -> Federation:
        """Set up and run up to the moment at which every client has masked its input of `step`; returns itself.

        The inputs have reached the server; what it says then (survivors, or in lockstep the sum) is in `sent` alone.
        """
        if not self.set_up():
            raise Stuck(f"the set-up failed: {self.failures}")
        for _ in range(step):
            if self.step() is None:
                raise Stuck(f"a step failed: {self.failures}")
        self.compute()
        self.drain(lost={(member, kind) for member in self.everybody for kind in (Survivors, Published)})
        return self

    def voted(self) -> Federation:
        """Run an epoch up to where everybody has voted and no vote has reached the server; returns itself."""
        if not self.set_up():
            raise Stuck(f"the set-up failed: {self.failures}")
        while self.server.step is not None:
            if self.step() is None:
                raise Stuck(f"a step failed: {self.failures}")
        return self

    # -- what is true ---------------------------------------------

    def plain_sum(self, step: int, survivors: Iterable[int], plan: bytes | None = None) -> Array:
        """The sum of what these members encoded, in 64-bit integers and reduced: what a sum must equal."""
        plan = self.plan.digest if plan is None else plan
        vectors = [self.encoded[plan, step, one].astype(np.int64) for one in survivors]
        total: Array = np.sum(vectors, axis=0) % (1 << self.plan.modulus_bits(step))
        return total

    def published(self, step: int) -> Packet:
        """The server's newest `Published` of a step, off the wire."""
        for item in reversed(self.sent):
            message = item.message if item.kind is Published else None
            if isinstance(message, Published) and message.step == step and message.plan == self.plan.digest:
                return item
        raise LookupError(f"no sum of step {step} was published")

    # -- crashes ---------------------------------------------

    def restart(self, member: int, *, remembers: bool = True) -> None:
        """Kill a client and start it again, with what its journal holds or with nothing."""
        memory = self.diaries[member].memory if remembers else Memory()
        self.clients[member] = self._client(member, self.charter, memory)
        self.computing.pop(member, None)

    def restart_server(self, *, remembers: bool = True) -> None:
        """Kill the server and start it again, with its journal or with nothing; what was in flight is lost."""
        if not remembers:
            self.server_journal = InMemory()
        self.server = self._server()
        self.wire.clear()

    # -- inside ---------------------------------------------

    def provide(self, member: int, effect: Compute) -> list[Any]:
        """Compute a member's numbers, note what they are encoded to, and hand them to its machine; its effects."""
        values, tape = self.input_of(member, effect), self.tapes[member]
        tape.record()
        effects = self.clients[member].provide(effect.plan, effect.step, values)
        drawn = iter(tape.stop())
        if any(isinstance(item, Send) and isinstance(item.message, MaskedInput) for item in effects):
            plan = self.clients[member].plan
            if plan is None:
                raise LocalProtocolError("numbers provided outside an epoch", "within one")
            vector, _ = encode(plan, effect.step, values, lambda count: next(drawn))
            self.encoded[effect.plan, effect.step, member] = self.vectors[effect.step, member] = vector
        return effects

    def _random_input(self, member: int, effect: Compute) -> dict[str, Array]:
        values = {}
        for block in effect.spec.blocks:
            if block.kind == "count":
                values[block.name] = self.inputs.integers(0, int(block.clip) + 1, size=block.length).astype(np.float64)
            else:
                values[block.name] = self.inputs.normal(scale=block.clip, size=block.length)
        return values


def make_charter(
    members: int,
    *,
    mode: Literal["lockstep", "resilient"] = "lockstep",
    blocks: tuple[tuple[int, ...], ...] | None = None,
    colluders: int = 1,
    least_survivors: int | None = None,
    settings: bytes = bytes(32),
    roster: bytes = bytes(32),
    **aggregation: Any,
) -> Charter:
    """A charter for `members`, with the package's defaults for what is not given."""
    return Charter(
        roster=roster,
        members=members,
        settings=settings,
        aggregation=Aggregation(
            mode=mode,
            colluders=colluders,
            least_survivors=colluders + 2 if least_survivors is None else least_survivors,
            **aggregation,
        ),
        blocks=even_blocks(members, colluders) if blocks is None else blocks,
    )
