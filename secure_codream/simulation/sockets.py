"""A federation over real sockets in one event loop: the runners of both sides, CURVE on, a toy course, no torch.

What an attack or a test does with a `Network` is an `async` function that the network runs, after which nothing may be
left: no task, no socket, no context. A `Network` may lie: `lie` turns what its server would send into whatever it
likes. `Tampering` is a client runner whose messages may be replaced. Transport keys come from ZeroMQ's own generator,
ML-KEM draws its own; all other randomness comes from the network's seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import msgspec
import numpy as np
import structlog
import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_clients.runner import ClientRunner
from codream_protocols.charter import Charter, Policy
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.course import Array, Course, Publication, Task
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Hello, encode_message
from codream_protocols.parcels import PIECE_BYTES
from codream_protocols.record import Kept
from codream_protocols.server import InMemory, SendTo, ServerJournal, ServerProtocol, StepFinished
from codream_protocols.specs import Block, VectorSpec
from codream_server.runner import ServerRunner
from codream_server.settings import Timing
from secure_codream.simulation.diary import Diary
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.steered import LOOPBACK, PATIENCE_SECONDS, Peer, Scripted
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Stuck, make_charter

TIMING = Timing(step=60.0, beat=0.2, lost_after=30.0)
"""Nobody is lost because the machine is busy."""
LINGER_MILLISECONDS = 50
PERMISSIVE = Policy(losses=True, cuts=True)


class _Brief(zmq.asyncio.Socket):
    """A socket that, as a client's, does not wait long for what it could not send.

    All clients share one thread here, and while one waits in closing its socket the others do nothing.
    """

    def close(self, linger: int | None = None) -> None:
        super().close(linger=min(linger or 0, LINGER_MILLISECONDS) if self.type == zmq.DEALER else linger)


def transport_keys() -> tuple[bytes, bytes]:
    """A CurveZMQ key pair: public, secret."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class RandomLearner:
    """Answers every task with random numbers within the clips, and keeps what was learnt.

    Args:
        seed: of the numbers.
        before: called first with the task and the number of the call, in the working thread.
    """

    def __init__(self, seed: int, before: Callable[[Task, int], None] = lambda task, call: None) -> None:
        self.learnt: list[tuple[int, dict[str, Array]]] = []
        self._random, self._before, self._call = np.random.default_rng(seed), before, -1

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`."""
        self._call += 1
        self._before(task, self._call)
        return {
            block.name: self._random.integers(0, int(block.clip) + 1, block.length).astype(np.float64)
            if block.kind == "count"
            else self._random.uniform(-block.clip, block.clip, block.length)
            for block in spec.blocks
        }

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self.learnt.append((number, {name: np.array(value) for name, value in publication.items()}))


class Tampering(ClientRunner):
    """A client whose messages `tamper` turns into whatever it likes: a list of multipart messages."""

    tamper: Callable[[Send], list[list[bytes]]] = staticmethod(lambda send: [honest(send)])

    async def _send(self, effect: Send) -> None:
        if isinstance(effect.message, Hello):
            self._welcomes_due += 1
        for parts in self.tamper(effect):
            await self._line.socket.send_multipart(parts)


def honest(send: Send) -> list[bytes]:
    """What an honest client puts on the wire."""
    return [encode_message(send.message), *send.frames]


Lie = Callable[[SendTo], Iterable[SendTo]]


class Lying(ServerRunner):
    """A server that says something else than it would: `lie` turns each message into whatever it likes."""

    lie: Lie = staticmethod(lambda effect: [effect])

    def _send(self, effect: SendTo) -> None:
        for said in self.lie(effect):
            super()._send(said)


@dataclass(frozen=True)
class Sum:
    """A sum that the server made: of which plan, and how many bits its elements have."""

    plan: bytes
    bits: int
    finished: StepFinished


class Network:
    """A roster, its keys, a charter, a server, and as many clients as somebody starts.

    Args:
        members: N.
        mode: how sums are made.
        rounds: epochs of the course.
        steps: steps of an epoch.
        length: coordinates of a vector.
        course: what they run, in the place of the toy that these describe.
        charter: replaces the charter that `aggregation` describes; its roster and members are filled in.
        timing: the server's patience.
        exhibit: (epoch, step) of which the server keeps one masked input.
        journal: where the server writes certified epochs, and what it starts with; in memory unless given.
        lie: what the server makes of each of its messages.
        seed: of all randomness but the transport's and the KEM's.
        aggregation: settings of the charter; see `make_charter`.
    """

    def __init__(
        self,
        members: int = 4,
        *,
        mode: Literal["lockstep", "resilient"] = "lockstep",
        rounds: int = 1,
        steps: int = 2,
        length: int = 20,
        course: Course | None = None,
        charter: Charter | None = None,
        timing: Timing = TIMING,
        exhibit: tuple[int, int] | None = None,
        journal: ServerJournal | None = None,
        lie: Lie | None = None,
        seed: int = 0,
        **aggregation: Any,
    ) -> None:
        self.server_keys = transport_keys()
        chance = random.Random(seed)  # noqa: S311 - a laboratory's randomness can be repeated
        self.identities = [chance.randbytes(32) for _ in range(members)]
        self.keys = [transport_keys() for _ in range(members)]
        self.roster = Roster(
            "network",
            1,
            ServerEntry("tcp://127.0.0.1:7447", self.server_keys[0]),
            tuple(
                Member(f"client-{number}", Signer(identity).public, keys[0])
                for number, (identity, keys) in enumerate(zip(self.identities, self.keys, strict=True))
            ),
        )
        self.course = course or LaboratoryCourse((VectorSpec("update", (Block("dream", length, 1.0),)),), steps, rounds)
        made = charter or make_charter(members, mode=mode, **aggregation)
        self.charter = _for(made, self.roster)
        self.timing, self.exhibit, self.journal, self.lie = timing, exhibit, journal or InMemory(), lie
        self.events: list[dict[str, Any]] = []
        self.published: list[tuple[int, Publication]] = []  # as the server's operator has them
        self.plain: dict[tuple[bytes, int, int], Array] = {}  # (plan, step, member) -> encoded vector
        self.sums: list[Sum] = []
        self.logs: dict[int, list[dict[str, Any]]] = {}
        self.diaries = [Diary() for _ in range(members)]  # clients' disks
        self.learners: dict[int, list[RandomLearner]] = {}  # each member's, one of each process
        self.runners: dict[int, ClientRunner] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.refused_without_change: list[bool] = []
        self.endpoint = LOOPBACK
        self._contexts: list[zmq.asyncio.Context] = []
        self._waiting: list[tuple[Callable[[dict[str, Any]], bool], asyncio.Future[dict[str, Any]]]] = []
        self.server = self.make_server()

    # -- running ---------------------------------------------

    def run(self, scenario: Callable[[], Awaitable[Any]], *, seconds: float = 150.0) -> Any:
        """Run a scenario; raises `Stuck` if a task or a ZeroMQ context is left."""

        async def guarded() -> Any:
            try:
                return await asyncio.wait_for(scenario(), seconds)
            finally:
                await self.stop_clients()
                await asyncio.sleep(0.05)
                if left := asyncio.all_tasks() - {asyncio.current_task()}:
                    raise Stuck(f"tasks are left: {left}")
                if any(not context.closed for context in self._contexts):
                    raise Stuck("a ZeroMQ context is left")

        contexts = self._contexts

        class Context(zmq.asyncio.Context):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                if not self._shadow:
                    contexts.append(self)

            def socket(self, socket_type: int, socket_class: Any = _Brief, **options: Any) -> Any:
                return super().socket(socket_type, socket_class, **options)

        with patch.object(zmq.asyncio, "Context", Context):
            return asyncio.run(guarded())

    def make_server(self, *, certified: Iterable[Kept] = (), **options: Any) -> ServerRunner:
        """A server, as a process that starts with these certified epochs; `options` as of `ServerRunner`."""
        protocol = _Watched(self, certified)
        chosen: dict[str, Any] = {
            "roster": self.roster,
            "transport_secret": self.server_keys[1],
            "endpoint": self.endpoint,
            "timing": self.timing,
            "emit": self._emit,
            "certified": lambda number, publication: self.published.append((number, publication)),
            "exhibit": self.exhibit,
        }
        server = Lying(protocol, **{**chosen, **options})
        if self.lie is not None:
            server.lie = self.lie
        return server

    @contextlib.asynccontextmanager
    async def serving(self, server: ServerRunner | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """The server, or another one in its place, listening; its task."""
        self.server = server or self.server
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self.server.run(listening.set_result))
        either: set[asyncio.Future[Any]] = {task, listening}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                listening.cancel()
                await task
            self.endpoint = listening.result()
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start(
        self,
        number: int,
        *,
        kind: type[ClientRunner] = ClientRunner,
        protocol: type[ClientProtocol] = ClientProtocol,
        policy: Policy | None = None,
        endpoint: str | None = None,
        roster: Roster | None = None,
        charter: Charter | None = None,
        course: Course | None = None,
        diary: Diary | None = None,
        patience: float = PATIENCE_SECONDS,
        before: Callable[[Task, int], None] = lambda task, call: None,
        prepare: Callable[[], object] = lambda: None,
        tamper: Callable[[Send], list[list[bytes]]] | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> asyncio.Task[None]:
        """Start a member's runner, or start it again with what it has written down; its task ends with the federation.

        `before` is called in the working thread with each task and the number of the call; `diary` replaces the
        member's own disk.
        """
        logged = self.logs.setdefault(number, [])

        def keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
            logged.append({"level": method, **event})
            raise structlog.DropEvent

        roster = roster or self.roster
        diary = diary or self.diaries[number]
        extra: dict[str, Any] = {} if random_bytes is None else {"random_bytes": random_bytes}
        learner = RandomLearner(1000 * len(self.learners.get(number, [])) + number, before)
        self.learners.setdefault(number, []).append(learner)
        runner = (Tampering if tamper is not None else kind)(
            protocol=_observed(protocol, self.plain)(
                charter=charter or self.charter,
                roster=roster,
                course=course or self.course,
                member=number,
                signer=Signer(self.identities[number]),
                policy=policy or PERMISSIVE,
                memory=diary.memory,
                journal=diary,
                **extra,
            ),
            learner=learner,
            roster=roster,
            transport_secret=self.keys[number][1],
            transport_public=self.keys[number][0],
            epochs=self.course.epochs,
            address=endpoint or self.endpoint,
            prepare=prepare,
            patience=patience,
            piece_bytes=piece_bytes,
            log=structlog.wrap_logger(None, processors=[keep]),
        )
        if isinstance(runner, Tampering) and tamper is not None:
            runner.tamper = tamper
        self.runners[number] = runner
        self.tasks[number] = asyncio.ensure_future(runner.run())
        return self.tasks[number]

    def start_all(self, **options: Any) -> list[asyncio.Task[None]]:
        """Start everybody."""
        return [self.start(number, **options) for number in range(len(self.keys))]

    async def stop_clients(self, members: Collection[int] | None = None) -> None:
        """Kill these clients (all); they have said nothing."""
        chosen = [task for number, task in self.tasks.items() if members is None or number in members]
        _cancel(chosen)
        await asyncio.gather(*chosen, return_exceptions=True)

    @contextlib.contextmanager
    def peer(
        self, keys: tuple[bytes, bytes] | None, *, server_key: bytes | None = None, claimed: bytes = b""
    ) -> Iterator[Peer]:
        """A bare connection to the server, with these transport keys or with none."""
        context = zmq.asyncio.Context()
        peer = Peer(context, self.endpoint, keys, server_key or self.server_keys[0], claimed)
        try:
            yield peer
        finally:
            peer.close()
            context.term()

    @contextlib.contextmanager
    def scripted(self, secret: bytes | None = None) -> Iterator[Scripted]:
        """A server to steer in the place of the real one, with its transport key or another."""
        context = zmq.asyncio.Context()
        server = Scripted(context, secret or self.server_keys[1])
        self.endpoint = server.endpoint
        try:
            yield server
        finally:
            _cancel(self.tasks.values())
            server.close()
            context.term()

    # -- what happened ---------------------------------------------

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of a kind, with these fields."""
        wanted = {"event": kind, **fields}
        return [event for event in self.events if wanted.items() <= event.items()]

    def refusals(self, by: str = "server") -> Counter[tuple[str, str]]:
        """(client, code) -> how many."""
        return Counter((event["client"], event["code"]) for event in self.of("refused") if event["by"] == by)

    def happens(self, kind: str, **fields: Any) -> asyncio.Future[dict[str, Any]]:
        """The next event of a kind with these fields."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        wanted = {"event": kind, **fields}
        self._waiting.append((lambda event: wanted.items() <= event.items(), future))
        return future

    def learnt(self, number: int) -> list[tuple[int, dict[str, Array]]]:
        """What a member's learners were given, in order, all its processes together."""
        return [item for learner in self.learners.get(number, []) for item in learner.learnt]

    def wrong_sums(self) -> list[tuple[bytes, int]]:
        """The (plan, step) whose sum is not the plain sum over its survivors, bit for bit."""
        wrong = []
        for item in self.sums:
            step = item.finished.step
            vectors = [self.plain[item.plan, step, member].astype(np.uint64) for member in item.finished.survivors]
            if not np.array_equal(item.finished.total, np.sum(vectors, axis=0) % (1 << item.bits)):
                wrong.append((item.plan, step))
        return wrong

    def _emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        for matches, future in self._waiting:
            if not future.done() and matches(event):
                future.get_loop().call_soon_threadsafe(_settle, future, event)


class _Watched(ServerProtocol):
    """The server's machine; its network sees its sums, and whether what it refuses changes nothing."""

    def __init__(self, net: Network, certified: Iterable[Kept]) -> None:
        super().__init__(
            net.charter,
            net.roster,
            net.course,
            beat_seconds=net.timing.beat,
            certified=tuple(certified),
            journal=net.journal,
        )
        self._net = net

    def receive(self, member: int, message: Any, frames: tuple[bytes, ...] = ()) -> list[Any]:
        before = self._held()
        try:
            return super().receive(member, message, frames)
        except RemoteProtocolError:
            self._net.refused_without_change.append(before == self._held())
            raise

    def _publish(self, epoch: Any, *sums: Any) -> list[Any]:
        effects = super()._publish(epoch, *sums)
        for effect in effects:
            if isinstance(effect, StepFinished):
                self._net.sums.append(Sum(epoch.plan.digest, epoch.plan.modulus_bits(effect.step), effect))
        return effects

    def _held(self) -> Any:
        return {name: value for name, value in snapshot(self).items() if name != "_net"}


def _observed(kind: type[ClientProtocol], plain: dict[tuple[bytes, int, int], Array]) -> type[ClientProtocol]:
    """The same client's machine, of which `plain` is given what it encodes, before it is masked."""

    class Observed(kind):  # type: ignore[misc, valid-type]
        def _encode(self, plan: Any, step: int, values: Any) -> tuple[Array, int]:
            vector, replaced = super()._encode(plan, step, values)
            plain[plan.digest, step, self._member] = vector.copy()
            return vector, replaced

    return Observed


def _for(charter: Charter, roster: Roster) -> Charter:
    return msgspec.structs.replace(charter, roster=roster.hash, members=len(roster.members))


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel each once: a second time would interrupt what it does to end."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()


def _settle(future: asyncio.Future[dict[str, Any]], event: dict[str, Any]) -> None:
    if not future.done():
        future.set_result(event)
