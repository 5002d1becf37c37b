"""A federation over real sockets in one event loop: the runners of both sides, CURVE on, learners without torch.

What an attack or a test does with a `Network` is an `async` function that the network runs, after which nothing may be
left: no task, and no socket. `Scripted` plays a server that holds the roster's key and says what it likes; `Tampering`
is a client runner whose messages may be replaced; `Peer` is a bare connection; `Tap` sits on the wire in between.
Transport keys come from ZeroMQ's own generator; all other randomness from the network's seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import structlog
import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_clients.runner import ClientRunner
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Beat, Hello, UnmaskShares, decode_to_client, decode_to_server, encode_message
from codream_protocols.plan import Policy
from codream_protocols.server import ServerEpoch
from codream_protocols.tasks import LOGITS, METRIC_NAMES, METRICS, UPDATE
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from codream_server.runner import ServerRunner
from codream_server.settings import AggregationSettings, DreamSettings, Timing
from secure_codream.threats.federation import Stuck, snapshot

TIMING = Timing(join=10.0, step=10.0, beat=0.2, lost_after=1.2, attempts=3)
TASKS = {UPDATE: 3.0, LOGITS: 30.0, METRICS: 1.0}
LOOPBACK = "tcp://127.0.0.1:*"
LINGER_MILLISECONDS = 50


class _Brief(zmq.asyncio.Socket):
    """A socket that, as a client's, does not wait long for what it could not send.

    All clients share one thread here, and while one waits in closing its socket the others do nothing.
    """

    def close(self, linger: int | None = None) -> None:
        super().close(linger=min(linger or 0, LINGER_MILLISECONDS) if self.type == zmq.DEALER else linger)


class _BriefContext(zmq.asyncio.Context):
    def socket(self, socket_type: int, socket_class: Any = _Brief, **options: Any) -> Any:
        return super().socket(socket_type, socket_class, **options)


def transport_keys() -> tuple[bytes, bytes]:
    """A CurveZMQ key pair: public, secret."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class RandomLearner:
    """Answers every task with random values of the right form. `before(task, call)` runs first, in the thread."""

    def __init__(self, seed: int, classes: int, before: Callable[[str, int], None] = lambda task, call: None) -> None:
        self._random, self._classes, self._before, self._call = np.random.default_rng(seed), classes, before, -1

    def compute(self, task: str, arrays: Any, clips: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Random values within the clips; every weight is 1."""
        self._call += 1
        self._before(task, self._call)
        lengths = {
            UPDATE: {"dreams": arrays[0].size, "weight": 1, "entropy": 1, "clipped": 1},
            LOGITS: {"numerators": len(arrays[0]) * self._classes, "denominators": self._classes},
            METRICS: {"metrics": len(METRIC_NAMES)},
        }[task]
        values = {
            name: self._random.uniform(-clip, clip, length)
            for (name, length), clip in zip(lengths.items(), clips, strict=True)
        }
        return {**values, "weight": np.ones(1)} if task == UPDATE else values


class Tampering(ClientRunner):
    """A client whose messages `tamper` turns into whatever it likes: a list of multipart messages."""

    tamper: Callable[[Send], list[list[bytes]]] = staticmethod(lambda send: [honest(send)])

    async def _send(self, effect: Send) -> None:
        for parts in self.tamper(effect):
            await self._socket.send_multipart(parts)


def honest(send: Send) -> list[bytes]:
    """What an honest client puts on the wire."""
    return [encode_message(send.message), *send.frames]


class Peer:
    """A bare DEALER that speaks CURVE with the keys given, or not at all, and claims a routing id if it has one."""

    def __init__(
        self, context: Any, endpoint: str, keys: tuple[bytes, bytes] | None, server_key: bytes, claimed: bytes = b""
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        if claimed:
            self._socket.setsockopt(zmq.ROUTING_ID, claimed)
        if keys is not None:
            self._socket.curve_publickey, self._socket.curve_secretkey = map(z85.encode, keys)
            self._socket.curve_serverkey = z85.encode(server_key)
        self._socket.connect(endpoint)

    async def say(self, *parts: Any) -> None:
        """Send messages or bytes, as one multipart message."""
        await self._socket.send_multipart([part if isinstance(part, bytes) else encode_message(part) for part in parts])

    async def hear(self, seconds: float = 5.0) -> Any:
        """The next message; None when none comes in time."""
        if not await self._socket.poll(int(seconds * 1000)):
            return None
        return decode_to_client((await self._socket.recv_multipart())[0])

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self._socket.close(linger=0)


class Scripted:
    """A server with any key, for somebody to steer: it admits every transport key and obeys no rule."""

    def __init__(self, context: Any, secret: bytes) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.curve_server, self._socket.curve_secretkey = True, z85.encode(secret)
        self._socket.bind(LOOPBACK)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.routes: list[bytes] = []  # of members, in the order of their Hello

    async def greet(self) -> int:
        """Wait for the next Hello; its member's number is the order of arrival."""
        while True:
            route, message, _ = await self.receive()
            if isinstance(message, Hello):
                self.routes.append(route)
                return len(self.routes) - 1

    async def receive(self, seconds: float = 5.0) -> tuple[bytes, Any, tuple[bytes, ...]]:
        """The next message that is no Beat."""
        while True:
            if not await self._socket.poll(int(seconds * 1000)):
                raise Stuck("no client said anything")
            route, data, *frames = await self._socket.recv_multipart()
            message = decode_to_server(data)
            if not isinstance(message, Beat):
                return route, message, tuple(frames)

    async def hears_anything(self, seconds: float) -> bool:
        """Whether a word comes in time."""
        return bool(await self._socket.poll(int(seconds * 1000)))

    async def say(self, member: int, message: Any, frames: tuple[bytes, ...] = ()) -> None:
        """Send a member a message, or bytes that are none."""
        data = message if isinstance(message, bytes) else encode_message(message)
        await self._socket.send_multipart([self.routes[member], data, *frames])

    async def answer(self, member: int, kind: type) -> Any:
        """This member's next message, which must be of this kind; shares that nobody needs any more are passed over."""
        while True:
            route, message, _ = await self.receive()
            if kind is UnmaskShares or not isinstance(message, UnmaskShares):
                if route != self.routes[member] or not isinstance(message, kind):
                    raise Stuck(f"{message}, where {kind.__name__} of member {member} was waited for")
                return message

    async def perform(self, epoch: ServerEpoch, effects: list[Any], until: Callable[[], bool]) -> list[Any]:
        """Drive an honest epoch until a condition holds; returns its news (what is no `SendTo`)."""
        news = []
        while True:
            for effect in effects:
                if hasattr(effect, "message"):
                    await self.say(effect.member, effect.message, effect.frames)
                else:
                    news.append(effect)
            if until():
                return news
            route, message, frames = await self.receive()
            effects = epoch.receive(self.routes.index(route), message, frames)

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self._socket.close(linger=0)


class Tap:
    """A relay on the wire: it keeps all that passes, and may alter what clients send, segment by segment."""

    def __init__(self, alter: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.up: list[list[bytes]] = []  # of each connection, what the client sent, as it came
        self.down: list[list[bytes]] = []
        self._alter, self._pumps = alter, set[asyncio.Task[None]]()

    @contextlib.asynccontextmanager
    async def listening(self, endpoint: str) -> AsyncIterator[str]:
        """Relay to this endpoint; yields the one to connect to."""
        self._target = endpoint.removeprefix("tcp://").split(":")
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pumps.add(cast("asyncio.Task[None]", asyncio.current_task()))
        up, down = list[bytes](), list[bytes]()
        self.up.append(up)
        self.down.append(down)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection(self._target[0], int(self._target[1]))
            try:
                await asyncio.gather(
                    self._pump(reader, far_writer, up, self._alter),
                    self._pump(far_reader, writer, down, lambda data: data),
                )
            finally:
                far_writer.close()
        writer.close()

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: list[bytes], alter: Callable[[bytes], bytes]
    ) -> None:
        while data := await source.read(1 << 16):
            kept.append(data)
            sink.write(alter(data))
            await sink.drain()
        sink.close()


class Network:
    """A roster, its keys, a coordinator, a `ServerRunner`, and as many `ClientRunner`s as somebody starts."""

    def __init__(
        self,
        members: int = 4,
        *,
        rounds: int = 1,
        steps: int = 2,
        shape: tuple[int, int, int] = (1, 4, 4),
        batch: int = 2,
        classes: int = 3,
        timing: Timing = TIMING,
        aggregation: AggregationSettings | None = None,
        exhibit: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        aggregation = aggregation or AggregationSettings()
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
        self.classes = classes
        self.dreams = DreamSettings(rounds=rounds, steps=steps, batch=batch, shape=shape, classes=classes)
        self.coordinator = Coordinator(
            dreams=self.dreams,
            aggregation=aggregation,
            roster=self.roster,
            recipe=bytes(32),
            session=chance.randbytes(16),
            seed=0,
            dataset=FedDreamDataset(10),
        )
        self.events: list[dict[str, Any]] = []
        self.plain: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}  # (epoch, step, member) -> encoded vector
        self.sums: list[tuple[int, Any, int]] = []  # (epoch, Reveal, modulus bits)
        self.logs: dict[int, list[dict[str, Any]]] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.refused_without_change: list[bool] = []
        self.server = ServerRunner(
            coordinator=self.coordinator,
            roster=self.roster,
            transport_secret=self.server_keys[1],
            endpoint=LOOPBACK,
            timing=timing,
            emit=self._emit,
            exhibit=exhibit,
        )
        self._waiting: list[tuple[Callable[[dict[str, Any]], bool], asyncio.Future[dict[str, Any]]]] = []
        self._watch_sums()
        self._watch_refusals()

    # -- running ---------------------------------------------

    def run(self, scenario: Callable[[], Awaitable[Any]], *, seconds: float = 40.0) -> Any:
        """Run a scenario; afterwards no task may be pending."""

        async def guarded() -> Any:
            try:
                return await asyncio.wait_for(scenario(), seconds)
            finally:
                for task in self.tasks.values():
                    task.cancel()
                await asyncio.gather(*self.tasks.values(), return_exceptions=True)
                await asyncio.sleep(0.05)
                if left := asyncio.all_tasks() - {asyncio.current_task()}:
                    raise Stuck(f"tasks are left: {left}")

        with patch.object(zmq.asyncio, "Context", _BriefContext):
            return asyncio.run(guarded())

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Task[None]]:
        """The server, listening; its task."""
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self.server.run(listening.set_result))
        try:
            self.endpoint = await listening
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
        patience: float = 30.0,
        before: Callable[[str, int], None] = lambda task, call: None,
        tamper: Callable[[Send], list[list[bytes]]] | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> asyncio.Task[None]:
        """Start a member's runner; its task ends with the federation."""
        logged = self.logs.setdefault(number, [])

        def keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
            logged.append({"level": method, **event})
            raise structlog.DropEvent

        roster = roster or self.roster
        extra: dict[str, Any] = {} if random_bytes is None else {"random_bytes": random_bytes}
        runner = (Tampering if tamper is not None else kind)(
            protocol=protocol(
                member=number,
                signer=Signer(self.identities[number]),
                roster=roster,
                policy=policy or self.policy(),
                **extra,
            ),
            learner=RandomLearner(number, self.classes, before),
            roster=roster,
            transport_secret=self.keys[number][1],
            transport_public=self.keys[number][0],
            address=endpoint or self.endpoint,
            patience=patience,
            log=structlog.wrap_logger(None, processors=[keep]),
            on_encoded=lambda plan, step, vector: self.plain.__setitem__((plan.epoch, step, number), vector.copy()),
        )
        if isinstance(runner, Tampering) and tamper is not None:
            runner.tamper = tamper
        self.tasks[number] = asyncio.ensure_future(runner.run())
        return self.tasks[number]

    def policy(self, **limits: Any) -> Policy:
        """A policy that permits the network's tasks, with other limits as given."""
        return Policy(**{"tasks": TASKS, **limits})

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
            for task in self.tasks.values():
                task.cancel()
            server.close()
            context.term()

    # -- what happened ---------------------------------------------

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def refusals(self, by: str = "server") -> Counter[tuple[str, str]]:
        """(client, code) -> how many."""
        return Counter((event["client"], event["code"]) for event in self.of("refused") if event["by"] == by)

    def happens(self, kind: str, **fields: Any) -> asyncio.Future[dict[str, Any]]:
        """The next event of a kind with these fields."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        wanted = {"event": kind, **fields}
        self._waiting.append((lambda event: wanted.items() <= event.items(), future))
        return future

    def wrong_sums(self) -> list[tuple[int, int]]:
        """The (epoch, step) whose revealed sum is not the plain sum over its survivors, bit for bit."""
        wrong = []
        for epoch, reveal, bits in self.sums:
            vectors = [self.plain[epoch, reveal.step, member].astype(np.uint64) for member in reveal.survivors]
            if not np.array_equal(reveal.total, np.sum(vectors, axis=0) % (1 << bits)):
                wrong.append((epoch, reveal.step))
        return wrong

    def _emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        for matches, future in self._waiting:
            if not future.done() and matches(event):
                future.set_result(event)

    def _watch_sums(self) -> None:
        absorb = self.coordinator.absorb

        def watched(reveal: Any) -> Any:
            if self.server._epoch is not None:
                plan = self.server._epoch.plan
                self.sums.append((plan.epoch, reveal, plan.modulus_bits))
            return absorb(reveal)

        self.coordinator.absorb = watched  # type: ignore[method-assign]

    def _watch_refusals(self) -> None:
        receive = ServerEpoch.receive

        def checked(epoch: ServerEpoch, *arguments: Any) -> Any:
            before = snapshot(epoch)
            try:
                return receive(epoch, *arguments)
            except RemoteProtocolError:
                self.refused_without_change.append(before == snapshot(epoch))
                raise

        self.checked_receive = checked
