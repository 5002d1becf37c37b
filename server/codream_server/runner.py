"""The aggregator on the network: a ZeroMQ ROUTER with CURVE, driving `ServerEpoch` and `Coordinator`.

Who may connect is decided by ZAP before a byte of ours is read: only transport keys of the roster. Who sent a message
is the transport key of its connection, never what the message says. Messages are bounded by the socket and by the
schema; a refused one is answered with a typed refusal, counted, and changes nothing. A client that is silent for
`lost_after` seconds is not waited for; one that comes back is told what it missed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from codream_protocols.errors import (
    AddressRefused,
    AggregationFailed,
    HelloNeeded,
    RemoteProtocolError,
    RosterRefused,
    UnexpectedMessage,
    UnsupportedVersion,
)
from codream_protocols.identity import Roster
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    MAX_MESSAGE_BYTES,
    Advertisement,
    Beat,
    Farewell,
    Hello,
    MaskedInput,
    Refusal,
    Shares,
    ToServer,
    Welcome,
    decode_to_server,
    encode_message,
)
from codream_protocols.packing import unpack
from codream_protocols.server import Effect, Failed, Phase, Ready, Reveal, SendTo, ServerEpoch
from codream_server.coordinator import Coordinator
from codream_server.settings import Timing

Event = dict[str, Any]
SETUP_MESSAGES = (Advertisement, Shares, Hello)
MAX_FRAMES = 4


@dataclass
class Traffic:
    """Application bytes of one member, frames and messages, without ZeroMQ's and CURVE's own."""

    up: int = 0
    down: int = 0
    setup: int = 0
    payload: int = 0


@dataclass
class _Peer:
    """What is known of a connected member."""

    route: bytes
    heard: float
    present: bool = True


@dataclass(frozen=True)
class Exhibit:
    """For the report's "what the server saw": one member's masked vector of one step, and that step's sum."""

    member: int
    round: int
    step: int
    masked: np.ndarray[Any, Any]
    total: np.ndarray[Any, Any]
    survivors: tuple[int, ...]


class ServerRunner:
    """Runs a federation's rounds for whoever connects.

    Args:
        coordinator: the rounds.
        roster: the verified roster.
        transport_secret: the server's CurveZMQ secret key, 32 bytes.
        endpoint: where to listen, such as "tcp://127.0.0.1:*".
        timing: patience.
        emit: called with each event (a dict with `event` and its fields); see docs/events.md.
        exhibit: (epoch, step) whose first masked input is kept for the report; None keeps nothing.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        roster: Roster,
        transport_secret: bytes,
        endpoint: str,
        timing: Timing,
        emit: Callable[[Event], None],
        exhibit: tuple[int, int] | None = None,
    ) -> None:
        self.traffic = [Traffic() for _ in roster.members]
        self.seconds = {"compute": 0.0, "aggregation": 0.0}
        self.secure_steps = 0
        self.refusals = [0] * len(roster.members)
        self.exhibit: Exhibit | None = None
        self._coordinator, self._roster, self._secret = coordinator, roster, transport_secret
        self._endpoint, self._timing, self._emit, self._exhibit_at = endpoint, timing, emit, exhibit
        self._peers: dict[int, _Peer] = {}
        self._outbox: list[tuple[int, list[bytes]]] = []
        self._epoch: ServerEpoch | None = None
        self._phase_since = 0.0
        self._last_phase: Phase | None = None
        self._masked: tuple[int, np.ndarray[Any, Any]] | None = None
        self._failures = 0
        self._given_up: AggregationFailed | None = None
        self._step = -1
        self._step_since = 0.0

    # -- the loop ------------------------------------------------------------

    async def run(self, listening: Callable[[str], None] = lambda endpoint: None) -> None:
        """Serve until all rounds are over.

        Args:
            listening: called once with the actual endpoint.

        Raises:
            AddressRefused: the endpoint is taken, or none of this machine's.
            AggregationFailed: too few clients, or too many failed epochs in a row.
        """
        context = zmq.asyncio.Context()
        authenticator = AsyncioAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(domain="*", credentials_provider=_RosterKeys(self._roster, self._emit))
        self._socket = context.socket(zmq.ROUTER)
        try:
            self._configure(self._socket)
            self._bind(self._socket)
            listening(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
            try:
                await self._serve()
            except AggregationFailed as error:
                await self._say_farewell(str(error)[:512], completed=False)
                raise
            await self._say_farewell("all rounds are over", completed=True)
        finally:
            authenticator.stop()
            self._socket.close(linger=2000)
            context.destroy(linger=2000)

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        socket.curve_server = True
        socket.curve_secretkey = z85.encode(self._secret)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.SNDHWM, 256)
        socket.setsockopt(zmq.RCVHWM, 256)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def _bind(self, socket: zmq.asyncio.Socket) -> None:
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            raise AddressRefused(
                f"{self._endpoint!r} ({zmq.strerror(error.errno or 0)})",
                "tcp://ADDRESS:PORT of this machine, with a free port",
            ) from error

    async def _serve(self) -> None:
        coordinator = self._coordinator
        self._emit(
            {
                "event": "federation_started",
                "clients": [member.name for member in self._roster.members],
                "rounds": coordinator.rounds,
                "steps_per_round": coordinator.steps_per_round,
            }
        )
        started = time.monotonic()
        tick = min(0.2, self._timing.beat / 2)
        while not coordinator.done:
            if self._epoch is None:
                self._try_epoch(started)
            if await self._socket.poll(int(tick * 1000)):
                with contextlib.suppress(zmq.Again):
                    for _ in range(256):  # drain what has come, then look at the clock again
                        self._take(await self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
                        await self._flush()
            self._watch_silence()
            self._watch_phase()
            await self._flush()
            if self._given_up is not None:
                raise self._given_up
        self._emit({"event": "federation_finished", "rounds": coordinator.round})

    async def _say_farewell(self, reason: str, *, completed: bool) -> None:
        for member in self._peers:
            self._send(SendTo(member, Farewell(b"", reason, completed)))
        await self._flush()

    # -- clients -------------------------------------------------------------

    def _take(self, parts: list[zmq.Frame]) -> None:
        route = parts[0].bytes
        member = self._roster.by_transport_key(z85.decode(str(parts[1].get("User-Id"))))
        frames = tuple(part.bytes for part in parts[2:])
        try:
            if len(frames) > MAX_FRAMES:
                raise UnexpectedMessage(f"{len(frames)} frames", f"at most {MAX_FRAMES}")
            message = decode_to_server(parts[1].bytes)
            self._count_up(member, message, len(parts[1].bytes), frames)
            self._hear(member, route, message)
            if not isinstance(message, Hello | Beat):
                self._dispatch(member, message, frames)
        except RemoteProtocolError as error:
            self._refuse(member, route, error)

    def _hear(self, member: int, route: bytes, message: ToServer) -> None:
        now = time.monotonic()
        peer = self._peers.get(member)
        if isinstance(message, Hello):
            self._check_hello(message)
            self._peers[member] = _Peer(route, now)
            if peer is None or not peer.present:
                self._emit({"event": "client_joined", "client": self._name(member)})
            self._send(SendTo(member, Welcome(PROTOCOL, self._timing.beat)))
            if self._epoch is not None:
                self._perform(self._epoch.returned(member))
            return
        if peer is None:
            raise HelloNeeded(f"{type(message).__name__} before Hello", "Hello first")
        moved, was_gone = peer.route != route, not peer.present
        peer.route, peer.heard, peer.present = route, now, True
        if was_gone:
            self._emit({"event": "client_joined", "client": self._name(member)})
        if (moved or was_gone) and self._epoch is not None:
            self._perform(self._epoch.returned(member))

    def _check_hello(self, message: Hello) -> None:
        if PROTOCOL not in message.versions:
            raise UnsupportedVersion(f"versions {', '.join(message.versions)}", PROTOCOL)
        if message.roster != self._roster.hash:
            raise RosterRefused(
                f"a client with roster {message.roster.hex()[:16]}…",
                f"this federation's roster {self._roster.hash.hex()[:16]}…",
                "give both sides the administrator's newest roster",
            )

    def _dispatch(self, member: int, message: ToServer, frames: tuple[bytes, ...]) -> None:
        if isinstance(message, Refusal):
            self._emit({"event": "refused", "client": self._name(member), "code": message.code, "by": "client"})
        epoch = self._epoch
        if epoch is None:
            return
        effects = epoch.receive(member, message, frames)
        if isinstance(message, MaskedInput) and self._masked is None and self._wants_exhibit(epoch, message.step):
            words = unpack(frames[0], epoch.plan.spec(message.step).words, epoch.plan.modulus_bits)
            self._masked = (member, words)
        self._perform(effects)

    def _wants_exhibit(self, epoch: ServerEpoch, step: int) -> bool:
        return self._exhibit_at == (epoch.plan.epoch, step)

    def _refuse(self, member: int, route: bytes, error: RemoteProtocolError) -> None:
        self.refusals[member] += 1
        if _worth_a_line(self.refusals[member]):
            self._emit(
                {
                    "event": "refused",
                    "client": self._name(member),
                    "code": error.code,
                    "by": "server",
                    "found": error.found,
                    "allowed": error.allowed,
                    "count": self.refusals[member],
                }
            )
        data = encode_message(Refusal(error.code, error.found[:512], error.allowed[:512]))
        self._outbox.append((member, [route, data]))

    def _watch_silence(self) -> None:
        now = time.monotonic()
        for member, peer in self._peers.items():
            if peer.present and now - peer.heard > self._timing.lost_after:
                peer.present = False
                self._emit({"event": "client_lost", "client": self._name(member)})
                if self._epoch is not None:
                    self._perform(self._epoch.lost(member))

    # -- epochs --------------------------------------------------------------

    def _try_epoch(self, started: float) -> None:
        present = sorted(member for member, peer in self._peers.items() if peer.present)
        everybody = len(present) == len(self._roster.members)
        waited = time.monotonic() - max(started, self._phase_since)
        enough = len(present) >= self._coordinator.least_cohort()
        if everybody or (enough and (self._coordinator.epoch >= 0 or waited > self._timing.join)):
            self._open_epoch(present)
        elif waited > self._timing.join:
            raise AggregationFailed(
                f"{len(present)} clients after {self._timing.join:g} s",
                f"{self._coordinator.least_cohort()} or more",
                "start the missing clients, or allow a smaller cohort in [aggregation]",
            )

    def _open_epoch(self, present: list[int]) -> None:
        plan = self._coordinator.next_plan(present)
        self._epoch = ServerEpoch(plan, self._roster)
        self._emit(
            {
                "event": "epoch_started",
                "round": self._coordinator.round,
                "epoch": plan.epoch,
                "cohort": self._names(plan.cohort),
                "threshold": plan.threshold,
                "modulus_bits": plan.modulus_bits,
            }
        )
        self._clock()
        self._perform(self._epoch.start())

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Carry effects out; those that follow from them too."""
        for effect in effects:
            if isinstance(effect, SendTo):
                self._send(effect)
            elif isinstance(effect, Ready):
                self._begin_step()
            elif isinstance(effect, Reveal):
                self._revealed(effect)
            else:
                self._failed(effect)
        self._clock()

    def _begin_step(self) -> None:
        assert self._epoch is not None  # noqa: S101 - only called within an epoch
        self._step += 1
        self._step_since = time.monotonic()
        clips, arrays = self._coordinator.broadcast(self._step)
        task = self._coordinator.task(self._step)
        self._emit({"event": "step_started", "round": self._coordinator.round, "step": self._step, "task": task})
        self._perform(self._epoch.begin_step(clips, arrays))

    def _revealed(self, reveal: Reveal) -> None:
        epoch, coordinator = self._epoch, self._coordinator
        assert epoch is not None  # noqa: S101 - only called within an epoch
        self.secure_steps += 1
        if self._masked is not None and self.exhibit is None:
            member, masked = self._masked
            self.exhibit = Exhibit(
                member, coordinator.round, reveal.step, masked, reveal.total.copy(), reveal.survivors
            )
        round_number = coordinator.round
        result = coordinator.absorb(reveal)
        dropped = [member for member in epoch.members if member not in reveal.survivors]
        self._emit(
            {
                "event": "step_finished",
                "round": round_number,
                "step": reveal.step,
                "task": result.task,
                "survivors": self._names(reveal.survivors),
                "dropped": self._names(dropped),
                "path": "dropout" if reveal.agreed else "fast",
                "seconds": round(time.monotonic() - self._step_since, 4),
                "entropy": result.entropy,
                "clipped": result.clipped,
                "bytes_up": sum(traffic.up for traffic in self.traffic),
                "bytes_down": sum(traffic.down for traffic in self.traffic),
            }
        )
        if epoch.phase is Phase.READY:
            self._begin_step()
            return
        self._close_epoch()
        self._failures = 0
        self._emit({"event": "round_finished", "round": round_number, "metrics": result.metrics or {}})

    def _failed(self, failure: Failed) -> None:
        self._failures += 1
        self._emit(
            {
                "event": "epoch_failed",
                "round": self._coordinator.round,
                "epoch": self._coordinator.epoch,
                "reason": failure.reason,
            }
        )
        self._coordinator.give_up()
        self._close_epoch()
        if self._failures >= self._timing.attempts:
            # Kept for the loop to raise: whoever's message brought this about is not to be blamed for it.
            self._given_up = AggregationFailed(
                f"{self._failures} failed epochs in a row, the last because of {failure.reason}",
                f"at most {self._timing.attempts - 1}",
                "see the events for who was lost or refused",
            )

    def _close_epoch(self) -> None:
        self._clock()
        self._epoch, self._last_phase, self._step, self._masked = None, None, -1, None
        self._phase_since = time.monotonic()

    def _clock(self) -> None:
        """Book the time of the phase that ended, and start the next one's."""
        phase = self._epoch.phase if self._epoch is not None else None
        if phase is self._last_phase:
            return
        now = time.monotonic()
        if self._last_phase is not None:
            self.seconds["compute" if self._last_phase is Phase.COLLECTING else "aggregation"] += (
                now - self._phase_since
            )
        self._last_phase, self._phase_since = phase, now

    def _watch_phase(self) -> None:
        if self._epoch is not None and time.monotonic() - self._phase_since > self._timing.step:
            self._phase_since = time.monotonic()
            self._perform(self._epoch.expire())

    # -- sending and counting ------------------------------------------------

    def _send(self, effect: SendTo) -> None:
        peer = self._peers.get(effect.member)
        if peer is None:
            return
        self._outbox.append((effect.member, [peer.route, encode_message(effect.message), *effect.frames]))

    async def _flush(self) -> None:
        """Send what has been decided. Never waits: a client that does not read must not hold up the others."""
        outbox, self._outbox = self._outbox, []
        for member, parts in outbox:
            # An error means that the connection is gone or full; silence will tell, or the client's return.
            with contextlib.suppress(zmq.ZMQError):
                await self._socket.send_multipart(parts, zmq.NOBLOCK)
                self.traffic[member].down += sum(len(part) for part in parts[1:])

    def _count_up(self, member: int, message: ToServer, size: int, frames: tuple[bytes, ...]) -> None:
        traffic = self.traffic[member]
        payload = sum(len(frame) for frame in frames)
        traffic.up += size + payload
        traffic.payload += payload
        if isinstance(message, SETUP_MESSAGES):
            traffic.setup += size

    def _name(self, member: int) -> str:
        return self._roster.members[member].name

    def _names(self, members: Iterable[int]) -> list[str]:
        return [self._name(member) for member in members]


def _worth_a_line(count: int) -> bool:
    """Whether the count-th refusal of one party is written down: a flood must not fill the disk."""
    return count <= 100 or count & (count - 1) == 0


class _RosterKeys:
    """ZAP's question, which transport keys may connect, answered from the roster."""

    def __init__(self, roster: Roster, emit: Callable[[Event], None]) -> None:
        self._keys = {member.transport_key for member in roster.members}
        self._strangers = 0
        self._emit = emit

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this z85-encoded key is a member's."""
        raw = z85.decode(key)
        if raw in self._keys:
            return True
        self._strangers += 1
        if _worth_a_line(self._strangers):
            self._emit(
                {
                    "event": "refused",
                    "client": f"key {raw.hex()[:16]}…",
                    "code": "unknown-identity",
                    "by": "server",
                    "count": self._strangers,
                }
            )
        return False
