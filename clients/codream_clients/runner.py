"""A client on the network: a ZeroMQ DEALER with CURVE, driving `ClientProtocol` and a `Learner`.

Computing happens in a thread, so that the client is heard (`Beat`) and hears while it computes. It pins the server's
transport key from the roster; the address may be given apart, since whoever answers there must hold that key. A refused
message is answered with a typed refusal and changes nothing. Reconnects are ZeroMQ's, with back-off; the protocol's
answers to repeats are the same bytes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_clients.tasks import Learner
from codream_protocols.client import ClientProtocol, Compute, Effect, Send
from codream_protocols.errors import (
    AddressRefused,
    AggregationFailed,
    HelloNeeded,
    LocalProtocolError,
    MalformedMessage,
    ProtocolError,
    RemoteProtocolError,
    RosterRefused,
    UnsupportedVersion,
)
from codream_protocols.identity import Roster
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    MAX_MESSAGE_BYTES,
    Beat,
    Farewell,
    Hello,
    Refusal,
    ToServer,
    Welcome,
    decode_to_client,
    encode_message,
)
from codream_protocols.plan import Plan
from codream_protocols.vectors import encode_vector

MAX_FRAMES = 9
Encoded = np.ndarray[Any, Any]


class ClientRunner:
    """Takes part in a federation until the server says farewell.

    Args:
        protocol: this client's protocol machine.
        learner: computes the vectors.
        roster: the verified roster.
        transport_secret: the client's CurveZMQ secret key, 32 bytes.
        transport_public: its public key, 32 bytes.
        address: where the server listens; None takes the roster's.
        rounding: generator of the stochastic rounding.
        patience: seconds without a word from the server before the client gives up.
        log: where it says what happens; never a secret.
        on_encoded: called with (plan, step, encoded vector) before it is masked: for a person's own folder, in a
            demonstration on one machine; None, as in deployment, shows it to nobody.
    """

    def __init__(
        self,
        *,
        protocol: ClientProtocol,
        learner: Learner,
        roster: Roster,
        transport_secret: bytes,
        transport_public: bytes,
        address: str | None = None,
        rounding: np.random.Generator | None = None,
        patience: float = 600.0,
        log: Any = None,
        on_encoded: Callable[[Plan, int, Encoded], None] | None = None,
    ) -> None:
        self.compute_seconds = 0.0
        self._protocol, self._learner, self._roster = protocol, learner, roster
        self._secret, self._public = transport_secret, transport_public
        self._address = address or roster.server.address
        self._rounding = rounding or np.random.default_rng()
        self._patience, self._on_encoded = patience, on_encoded
        self._log = log or structlog.get_logger()
        self._beat_seconds = 1.0
        self._computing: asyncio.Task[list[Effect]] | None = None
        self._over = False

    async def run(self) -> None:
        """Take part until the server says farewell.

        Raises:
            AddressRefused: the address is none that can be connected to.
            AggregationFailed: the server gave up, or there was no word from it for longer than `patience`.
            UnsupportedVersion: the server speaks another version.
            RosterRefused: the server holds another roster.
        """
        context = zmq.asyncio.Context()
        self._socket = context.socket(zmq.DEALER)
        try:
            self._configure(self._socket)
            self._connect(self._socket)
            await self._send(Send(Hello((PROTOCOL,), self._roster.hash)))
            await self._listen()
        finally:
            if self._computing is not None:
                self._computing.cancel()
            self._protocol.abandon()
            self._socket.close(linger=1000)
            context.destroy(linger=1000)

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        socket.curve_secretkey = z85.encode(self._secret)
        socket.curve_publickey = z85.encode(self._public)
        socket.curve_serverkey = z85.encode(self._roster.server.transport_key)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.SNDHWM, 64)
        socket.setsockopt(zmq.RCVHWM, 64)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)

    def _connect(self, socket: zmq.asyncio.Socket) -> None:
        try:
            socket.connect(self._address)
        except zmq.ZMQError as error:
            raise AddressRefused(
                f"{self._address!r} ({zmq.strerror(error.errno or 0)})", "tcp://HOST:PORT, the server's"
            ) from error

    async def _listen(self) -> None:
        heard = beaten = time.monotonic()
        receiving = asyncio.ensure_future(self._socket.recv_multipart())
        try:
            while not self._over:
                waiting = {receiving, self._computing} - {None}
                done, _ = await asyncio.wait(
                    [task for task in waiting if task is not None],
                    timeout=self._beat_seconds / 2,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                now = time.monotonic()
                if receiving in done:
                    heard = now
                    await self._take([bytes(part) for part in receiving.result()])
                    receiving = asyncio.ensure_future(self._socket.recv_multipart())
                if self._computing is not None and self._computing.done():
                    task, self._computing = self._computing, None
                    await self._finish(task)
                if now - beaten >= self._beat_seconds / 2:
                    beaten = now
                    await self._send(Send(Beat()))
                if now - heard > self._patience:
                    raise AggregationFailed(
                        f"no word from the server for {self._patience:g} s", "a word now and then", "is it running?"
                    )
        finally:
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError, zmq.ZMQError):
                await receiving

    async def _take(self, parts: list[bytes]) -> None:
        try:
            if not 1 <= len(parts) <= MAX_FRAMES:
                raise MalformedMessage(f"{len(parts)} frames", f"1 to {MAX_FRAMES}")
            message = decode_to_client(parts[0])
            if isinstance(message, Welcome):
                self._welcome(message)
            elif isinstance(message, Refusal):
                await self._refused_by_server(message)
            else:
                await self._perform(self._protocol.receive(message, tuple(parts[1:])))
                if isinstance(message, Farewell):
                    self._farewell(message)
        except (UnsupportedVersion, RosterRefused, AggregationFailed):
            raise
        except RemoteProtocolError as error:
            await self._refuse(error)

    async def _refused_by_server(self, message: Refusal) -> None:
        self._log.warning("refused by the server", code=message.code, found=message.found)
        for kind in (UnsupportedVersion, RosterRefused):
            if message.code == kind.code:  # the Hello's; saying it again would change nothing
                raise kind(message.found, message.allowed)
        if message.code == HelloNeeded.code:
            await self._send(Send(Hello((PROTOCOL,), self._roster.hash)))  # the server has been restarted

    def _farewell(self, message: Farewell) -> None:
        self._log.info("farewell", reason=message.reason)
        if message.plan:
            return
        if not message.completed:
            raise AggregationFailed(f"a federation given up ({message.reason})", "one that comes to its end")
        self._over = True

    def _welcome(self, message: Welcome) -> None:
        if message.version != PROTOCOL:
            raise UnsupportedVersion(f"version {message.version!r}", PROTOCOL)
        self._beat_seconds = message.beat_seconds
        self._log.info("welcome", version=message.version)

    async def _refuse(self, error: ProtocolError) -> None:
        cause = {} if error.__cause__ is None else {"cause": str(error.__cause__)}
        self._log.warning("refused", code=error.code, found=error.found, allowed=error.allowed, **cause)
        await self._send(Send(Refusal(error.code, error.found[:512], error.allowed[:512])))

    async def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Compute):
                self._computing = asyncio.ensure_future(self._compute(effect, self._protocol.plan, self._computing))
            else:
                await self._send(effect)

    async def _compute(
        self, task: Compute, plan: Plan | None, earlier: asyncio.Task[list[Effect]] | None
    ) -> list[Effect]:
        if earlier is not None:  # the server went on without us; a thread cannot be stopped, so wait for it
            await asyncio.gather(earlier, return_exceptions=True)
        if plan is None or self._protocol.plan is not plan:  # the epoch that asked may be over by now
            return []
        started = time.perf_counter()
        values = await asyncio.to_thread(self._learner.compute, task.task, task.arrays, task.clips)
        self.compute_seconds += time.perf_counter() - started
        if self._protocol.plan is not plan:
            return []
        vector = encode_vector(plan, task.step, task.clips, values, self._rounding)
        if self._on_encoded is not None:
            self._on_encoded(plan, task.step, vector)
        return self._protocol.provide(task.step, vector)

    async def _finish(self, task: asyncio.Task[list[Effect]]) -> None:
        try:
            await self._perform(task.result())
        except (RemoteProtocolError, LocalProtocolError) as error:
            await self._refuse(error)

    async def _send(self, effect: Send) -> None:
        message: ToServer = effect.message
        with contextlib.suppress(zmq.Again):
            await self._socket.send_multipart([encode_message(message), *effect.frames], zmq.NOBLOCK)
