"""A toy federation: the real server on a loopback socket, and clients that are a few lines around `ClientProtocol`.

The toy course sums a short vector of reals; no torch is needed. A client can be killed, started again with what it had
written down, silenced, or held while it computes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks
from codream_protocols.client import Begun, Certified, ClientProtocol, Compute, Effect, Ended, Memory, Send
from codream_protocols.course import Arrays, Publication, State, Sums, Task
from codream_protocols.courses.metrics import METRICS
from codream_protocols.courses.rounds import Figures, Rounds
from codream_protocols.errors import HelloNeeded, RemoteProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Beat, Farewell, Refusal, ToServer, Waiting, decode_to_client, encode_message
from codream_protocols.record import Kept
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import Block, VectorSpec
from codream_server.record_folder import RecordFolder
from codream_server.runner import ServerRunner
from codream_server.settings import Timing

FAST = Timing(step=30.0, beat=0.1, lost_after=0.6)
RESILIENT = Aggregation(mode="resilient")


class ToyCourse(Rounds):
    """Each step adds a vector of reals to the state; the state is what is published."""

    def __init__(self, rounds: int = 2, steps: int = 2, *, length: int = 4, metrics: bool = False) -> None:
        super().__init__(rounds, ("numbers",) * steps, metrics=metrics)
        self.length = length

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        return {} if self._closes(certified) else {"total": np.zeros(self.length, np.float64)}

    def publication(self, state: State) -> Publication:
        return state

    def _spec(self, name: str, honest: int) -> VectorSpec:
        return VectorSpec(name, (Block("values", self.length, 1.0),))

    def _shown(self, state: State) -> Arrays:
        return state

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        return {"total": state["total"] + sums["values"]}

    def _figures(self, task: str, sums: Sums) -> Figures:
        return {"entropy": float(sums["values"][0])}


class ToyLearner:
    """Member k answers (k + 1) / 10 everywhere, and has k of 10 test images right."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.learnt: list[tuple[int, dict[str, Any]]] = []

    def compute(self, task: Task, spec: VectorSpec) -> dict[str, Any]:
        if task.name == METRICS:
            return {"correct": [self.member], "tested": [10], "train_correct": [0], "trained": [0]}
        return {"values": np.full(spec.length, (self.member + 1) / 10)}

    def learn(self, number: int, publication: Publication) -> None:
        self.learnt.append((number, {name: np.array(value) for name, value in publication.items()}))


class Diary:
    """A client's disk, in memory: what outlasts it."""

    def __init__(self) -> None:
        self.next_epoch = self.attempts = self.steps = 0
        self.wrong_sums: list[bytes] = []
        self.begun: Begun | None = None
        self.kept: list[Kept] = []
        self.vote: Kept | None = None

    def joined(self, epoch: int, plan: bytes) -> None:
        self.next_epoch, self.attempts = epoch + 1, self.attempts + 1

    def began(self, begun: Begun, rho: float) -> None:
        self.begun, self.steps = begun, self.steps + 1

    def voted(self, kept: Kept) -> None:
        self.vote = kept

    def certified(self, kept: Kept) -> None:
        self.kept.append(kept)
        self.vote, self.attempts = None, 0

    def saw_wrong_sum(self, plan: bytes) -> None:
        self.wrong_sums.append(plan)

    def recall(self, place: int) -> Kept:
        return self.kept[place]

    @property
    def memory(self) -> Memory:
        return Memory(
            next_epoch=self.next_epoch,
            attempts=self.attempts,
            steps=self.steps,
            wrong_sums=tuple(self.wrong_sums),
            begun=self.begun,
            certified=tuple(self.kept),
            vote=self.vote,
        )


class Federation:
    """Identities, charter and course of `members` toy clients."""

    def __init__(
        self,
        members: int = 3,
        *,
        course: ToyCourse | None = None,
        aggregation: Aggregation | None = None,
        timing: Timing = FAST,
        policy: Policy | None = None,
    ) -> None:
        aggregation = aggregation or Aggregation()
        self.course, self.timing, self.policy = course or ToyCourse(), timing, policy or Policy(losses=True)
        self.signers = [Signer(bytes([number + 1]) * 32) for number in range(members)]
        self.keys = [zmq.curve_keypair() for _ in range(members)]
        self.server_public, self.server_secret = zmq.curve_keypair()
        self.roster = Roster(
            "toy",
            1,
            ServerEntry("tcp://127.0.0.1:1", z85.decode(self.server_public)),
            tuple(
                Member(f"site-{number}", signer.public, z85.decode(public))
                for number, (signer, (public, _)) in enumerate(zip(self.signers, self.keys, strict=True))
            ),
        )
        self.charter = Charter(
            roster=self.roster.hash,
            members=members,
            settings=bytes(32),
            aggregation=aggregation,
            blocks=even_blocks(members, aggregation.colluders),
        )
        self.events: list[dict[str, Any]] = []
        self.published: list[tuple[int, Publication]] = []
        self.diaries = [Diary() for _ in range(members)]
        self.learners = [ToyLearner(number) for number in range(members)]
        self.clients: dict[int, ToyClient] = {}
        self.address = ""
        self.folder: RecordFolder | None = None
        self.server: ServerRunner

    # -- the server

    def make_server(self, record: Path | None = None, **options: Any) -> ServerRunner:
        if self.folder is not None:
            self.folder.close()  # as the end of the earlier process did
        folder = None if record is None else RecordFolder(record, roster=b"roster", charter=b"charter")
        self.folder = folder
        protocol = ServerProtocol(
            self.charter,
            self.roster,
            self.course,
            beat_seconds=self.timing.beat,
            certified=() if folder is None else folder.epochs(),
            running=() if folder is None else folder.unfinished(),
            journal=folder,
        )
        endpoint = self.address or "tcp://127.0.0.1:*"
        chosen = {
            "roster": self.roster,
            "transport_secret": z85.decode(self.server_secret),
            "endpoint": endpoint,
            "timing": self.timing,
            "emit": self.events.append,
            "certified": lambda number, publication: self.published.append((number, publication)),
        }
        self.server = ServerRunner(protocol, **{**chosen, **options})
        return self.server

    @contextlib.asynccontextmanager
    async def serving(self, record: Path | None = None, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
        """The running server; whatever is left of it and of the clients is ended on the way out."""
        server = self.make_server(record, **options)
        listening = asyncio.Event()

        def heard(endpoint: str) -> None:
            self.address = endpoint
            listening.set()

        task = asyncio.ensure_future(server.run(heard))
        waiting = asyncio.ensure_future(listening.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        try:
            yield task
        finally:
            waiting.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for client in list(self.clients.values()):
                await client.kill()
            if self.folder is not None:
                self.folder.close()

    # -- the clients

    def start(self, member: int, **options: Any) -> ToyClient:
        """Start a client, or start it again: it knows what it had written down, and nothing else."""
        client = ToyClient(self, member, **options)
        self.clients[member] = client
        client.begin()
        return client

    def start_all(self) -> list[ToyClient]:
        return [self.start(member) for member in range(len(self.roster.members))]

    # -- looking

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    async def until(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Wait for a condition; fails when it does not come true."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                await asyncio.sleep(0.01)
        return found

    async def until_event(self, kind: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            alike = [event for event in self.of(kind) if all(event[name] == fields[name] for name in fields)]
            return alike[count - 1 : count]

        events: list[dict[str, Any]] = await self.until(found)
        (event,) = events
        return event

    def total(self, members: Sequence[int]) -> float:
        """What a round publishes if these are in every sum."""
        steps = len(self.course.schedule(0)) - (1 if METRICS in self.course._kinds else 0)
        return steps * sum((member + 1) / 10 for member in members)


class ToyClient:
    """One client's connection and machine.

    Args:
        federation: whose client it is.
        member: its number.
        hold: it answers a step only once this says so; called with the `Compute` effect.
        machine: makes the protocol machine, to put a lying one in its place.
    """

    def __init__(
        self,
        federation: Federation,
        member: int,
        *,
        hold: Callable[[Compute], Any] | None = None,
        machine: type[ClientProtocol] = ClientProtocol,
        charter: Charter | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.federation, self.member, self.hold = federation, member, hold
        self.protocol = machine(
            charter=charter or federation.charter,
            roster=federation.roster,
            course=federation.course,
            member=member,
            signer=federation.signers[member],
            policy=policy or federation.policy,
            memory=federation.diaries[member].memory,
            journal=federation.diaries[member],
        )
        self.learner = federation.learners[member]
        self.received: list[Any] = []
        self.farewell: Farewell | None = None
        self.beating = self.reading = True
        self.over = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._context = zmq.asyncio.Context()

    def begin(self, *, hello: bool = True) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        public, secret = self.federation.keys[self.member]
        self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
        self._socket.curve_serverkey = self.federation.server_public
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.connect(self.federation.address)
        if hello:
            self.send(self.protocol.hello())
        self._tasks += [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._beat())]

    async def kill(self) -> None:
        """Gone, without a word."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._socket.close(linger=0)
        self._context.destroy(linger=0)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, zmq.ZMQError):
                raise result  # a client that broke makes its test fail, whatever the server made of it

    def send(self, message: ToServer, *frames: bytes) -> None:
        self.send_raw(encode_message(message), *frames)

    def send_raw(self, *parts: bytes) -> None:
        sending = self._socket.send_multipart(list(parts))
        self._tasks.append(asyncio.ensure_future(_finish(sending)))

    async def _listen(self) -> None:
        while True:
            while not self.reading:
                await asyncio.sleep(0.01)
            data, *frames = await self._socket.recv_multipart()
            message = decode_to_client(data)
            self.received.append(message)
            if isinstance(message, Waiting):
                continue  # for a screen
            try:
                await self._perform(self.protocol.receive(message, tuple(frames)))
            except RemoteProtocolError as error:
                self.send(Refusal(error.code, error.found[:512], error.allowed[:512]))
            if isinstance(message, Refusal) and message.code == HelloNeeded.code:
                self.send(self.protocol.hello())
            if isinstance(message, Farewell):
                self.farewell = message
                self.over.set()
                self._socket.close(linger=200)
                return

    async def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect.message, *effect.frames)
            elif isinstance(effect, Compute):
                self._tasks.append(asyncio.ensure_future(self._compute(effect)))
            elif isinstance(effect, Certified):
                self.learner.learn(effect.number, effect.publication)
            elif isinstance(effect, Ended):
                self.received.append(effect)

    async def _compute(self, effect: Compute) -> None:
        while self.hold is not None and self.hold(effect):
            await asyncio.sleep(0.01)
        values = self.learner.compute(effect.task, effect.spec)
        await self._perform(self.protocol.provide(effect.plan, effect.step, values))

    async def _beat(self) -> None:
        while not self.over.is_set():
            if self.beating:
                self.send(Beat(*self.protocol.progress))
            await asyncio.sleep(self.federation.timing.beat / 2)


async def _finish(sending: Any) -> None:
    with contextlib.suppress(zmq.ZMQError):
        await sending


async def computing(federation: Federation) -> ToyClient:
    """A federation in its first step, in which member 2 has not answered; returns member 2."""
    federation.start_all()
    federation.clients[2].hold = lambda compute: federation.clients[2].beating
    await federation.until_event("step_started", step=0)
    await federation.until(lambda: federation.clients[2].protocol.members)
    return federation.clients[2]


def go_on(client: ToyClient) -> None:
    client.beating = False  # for a moment: what it holds is answered
    client.hold = None


def run(scenario: Callable[[], Any], seconds: float = 300.0) -> None:
    """Run a scenario to its end, but not for ever."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await scenario()

    asyncio.run(bounded())
