"""A server for clients' runners to talk to: the real `ServerProtocol` behind one CURVE ROUTER a member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_clients.runner import ClientRunner
from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks
from codream_protocols.client import ClientProtocol
from codream_protocols.course import Array, Course, Publication, Task
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.errors import ProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import (
    Beat,
    Farewell,
    Hello,
    Refusal,
    ToClient,
    ToServer,
    decode_to_server,
    encode_message,
)
from codream_protocols.server import Phase, SendTo, ServerProtocol
from codream_protocols.specs import VectorSpec
from codream_protocols.starts import start_rule

SHAPE, CLASSES = (1, 4, 4), 3
SETTINGS = DreamSettings(rounds=2, steps=2, batch=2, shape=SHAPE, classes=CLASSES)


class FakeLearner:
    """Random numbers within the bounds, and a list of what was asked and learnt."""

    def __init__(self, seed: int = 0) -> None:
        self.calls: list[str] = []
        self._random = np.random.default_rng(seed)

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        self.calls.append(task.name)
        return {block.name: self._random.uniform(0, min(block.clip, 9), block.length) for block in spec.blocks}

    def learn(self, number: int, publication: Publication) -> None:
        self.calls.append(f"learn {number}")


class Log:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **words: self.lines.append((level, event, words))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [words for _, found, words in self.lines if found == event]


class Federation:
    """Identities and a charter for `members` clients, their machines, and a server on the network."""

    def __init__(self, members: int = 3, course: Course | None = None, policy: Policy | None = None) -> None:
        self.course = course or CoDream(SETTINGS, start_rule("noise"))
        self.policy = policy or Policy()
        self.server_public, self.server_secret = (z85.decode(key) for key in zmq.curve_keypair())
        self.signers = [Signer(bytes([number + 1]) * 32) for number in range(members)]
        self.transport = [[z85.decode(key) for key in zmq.curve_keypair()] for _ in range(members)]
        entries = tuple(
            Member(f"client-{number}", signer.public, keys[0])
            for number, (signer, keys) in enumerate(zip(self.signers, self.transport, strict=True), start=1)
        )
        self.roster = Roster("test", 1, ServerEntry("tcp://127.0.0.1:1", self.server_public), entries)
        self.charter = Charter(
            roster=self.roster.hash,
            members=members,
            settings=bytes(32),
            aggregation=Aggregation(),
            blocks=even_blocks(members, 1),
        )
        self.server = ServerProtocol(self.charter, self.roster, self.course, beat_seconds=0.2)
        self.heard: list[tuple[int, ToServer]] = []
        self.reason = "all rounds are over"
        self._sockets: list[zmq.asyncio.Socket] = []
        self._routes: dict[int, bytes] = {}

    def protocol(self, member: int, **options: Any) -> ClientProtocol:
        return ClientProtocol(
            charter=options.pop("charter", self.charter),
            roster=self.roster,
            course=self.course,
            member=member,
            signer=self.signers[member],
            policy=self.policy,
            **options,
        )

    def runner(self, member: int, learner: Any = None, **options: Any) -> ClientRunner:
        public, secret = self.transport[member]
        return ClientRunner(
            protocol=options.pop("protocol", None) or self.protocol(member),
            learner=learner or FakeLearner(member),
            roster=self.roster,
            transport_secret=secret,
            transport_public=public,
            epochs=self.course.epochs,
            address=options.pop("address", None) or self.address(member),
            patience=options.pop("patience", 20.0),
            log=options.pop("log", None) or Log(),
            **options,
        )

    # -- the server ---------------------------------------------

    def listen(self, context: zmq.asyncio.Context) -> None:
        for _ in self.signers:
            socket = context.socket(zmq.ROUTER)
            socket.curve_server, socket.curve_secretkey = True, z85.encode(self.server_secret)
            socket.bind("tcp://127.0.0.1:*")
            self._sockets.append(socket)

    def address(self, member: int) -> str:
        return self._sockets[member].getsockopt_string(zmq.LAST_ENDPOINT)

    async def serve(self) -> None:
        """Until the course is over."""
        receiving = [asyncio.ensure_future(self._hear(member)) for member in range(len(self._sockets))]
        try:
            while not self.server.done:
                await asyncio.sleep(0.01)
                for task in receiving:
                    if task.done():
                        task.result()
                idle = self.server.phase is Phase.IDLE and not self.server.done
                if idle and len(self.server.cohort()) == len(self.signers):
                    await self.perform(self.server.open_epoch(self.server.cohort()))
            for member in self._routes:
                await self.send(member, Farewell(self.reason, True))
        finally:
            for task in receiving:
                task.cancel()
            await asyncio.gather(*receiving, return_exceptions=True)

    async def _hear(self, member: int) -> None:
        while True:
            route, data, *frames = await self._sockets[member].recv_multipart()
            self._routes[member] = route
            message = decode_to_server(data)
            self.heard.append((member, message))
            try:
                if isinstance(message, Hello):
                    await self.perform(self.server.hello(member, message))
                elif isinstance(message, Beat):
                    await self.perform(self.server.beat(member, message.plan, message.sums))
                else:
                    await self.perform(self.server.receive(member, message, tuple(frames)))
            except ProtocolError as error:
                await self.send(member, Refusal(error.code, error.found, error.allowed))

    async def perform(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, SendTo):
                await self.send(effect.member, effect.message, effect.frames)

    async def send(self, member: int, message: ToClient, frames: tuple[bytes, ...] = ()) -> None:
        await self._sockets[member].send_multipart([self._routes[member], encode_message(message), *frames])

    async def receive_from(self, member: int) -> ToServer:
        """For tests in which the server is a script."""
        route, data, *_ = await asyncio.wait_for(self._sockets[member].recv_multipart(), 10)
        self._routes[member] = route
        return decode_to_server(data)


def over_network(federation: Federation, scenario: Callable[[Federation], Any], *, timeout: float = 60.0) -> Any:
    """Run a scenario with the federation's sockets open."""

    async def run() -> Any:
        context = zmq.asyncio.Context()
        try:
            federation.listen(context)
            return await asyncio.wait_for(scenario(federation), timeout)
        finally:
            context.destroy(linger=0)

    return asyncio.run(run())


async def take_part(whole: Federation, runners: list[ClientRunner]) -> None:
    parts = [asyncio.ensure_future(part) for part in (whole.serve(), *(runner.run() for runner in runners))]
    try:
        await asyncio.gather(*parts)
    finally:  # where one fails, the others must not be at work when their sockets are closed
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
