"""What goes out. Nothing here ever waits: a client that does not read must not hold up the others."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable

import zmq
import zmq.asyncio

from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import Ask, EpochRecord, Published, Refusal, ToClient, encode_message
from codream_protocols.parcels import PIECE_BYTES, Outgoing
from codream_protocols.server import SendTo
from codream_server.patience import PatientClock
from codream_server.peers import Peer, Traffic
from codream_server.turns import Turns


class Outbox:
    """Messages wait in the queues of the members that they are for; refusals go to whatever connection asked.

    Args:
        peers: who has said Hello, by number; the runner's own.
        traffic: bytes of all members together, counted up here.
        quorum: votes that make a record certified.
        patient: the server's time.
        failed: told what cannot be read, and why.
        piece_bytes: what is larger goes as a parcel, in pieces of so many bytes.

    Attributes:
        overflowed: members for whom too much waits.
    """

    def __init__(
        self,
        peers: dict[int, Peer],
        traffic: Traffic,
        quorum: int,
        patient: PatientClock,
        failed: Callable[[str, OSError], None],
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._peers, self._traffic, self._quorum, self._patient = peers, traffic, quorum, patient
        self._failed = failed
        self._answers: list[list[bytes]] = []  # refusals, also to members that have not said Hello
        self._encoded: tuple[ToClient | None, bytes | Outgoing] = None, b""
        self._piece_bytes, self._turns = piece_bytes, Turns[int]()
        self.overflowed: list[int] = []

    @property
    def is_waiting(self) -> bool:
        """Whether something has yet to go to a member."""
        return any(peer.queue for peer in self._peers.values())

    def put(self, effect: SendTo) -> None:
        """Queue a message for a member that can be told."""
        peer = self._peers.get(effect.member)
        if peer is None or peer.needs_hello:
            return  # it will be told all that it lacks when it says Hello
        try:
            message = effect.message
        except OSError as error:  # what was sealed for it cannot be read now: it will say Hello, and is told it then
            self._failed("seals", error)
            peer.leave()
            return
        if isinstance(message, Published):
            peer.told_sum(self._patient.now)
        if self._encoded[0] is not message:
            data, large = encode_message(message), sum(map(len, effect.frames)) > self._piece_bytes
            self._encoded = message, Outgoing(data, effect.frames, self._piece_bytes) if large else data
        encoded = self._encoded[1]
        item = encoded if isinstance(encoded, Outgoing) else [peer.route, encoded, *effect.frames]
        if not peer.put(item, shared=self._is_kept(message)):
            self.overflowed.append(effect.member)

    def _is_kept(self, message: ToClient) -> bool:
        """Whether its frames are there once for all members: a running epoch's, and those of certified ones.

        Those of candidates, of which each member may bring one, are not.
        """
        certified = isinstance(message, EpochRecord) and len(message.votes) >= self._quorum
        return certified or isinstance(message, Published)

    def answer(self, route: bytes, error: RemoteProtocolError) -> None:
        """Queue a refusal for a connection."""
        data = encode_message(Refusal(error.code, error.found[:512], error.allowed[:512]))
        self._answers.append([route, data])

    def ask(self, asks: Iterable[tuple[int, Ask]]) -> None:
        """Queue what is asked of members that send parcels: before all that waits for them."""
        self._answers += [[self._peers[member].route, encode_message(ask)] for member, ask in asks]

    async def flush(self, socket: zmq.asyncio.Socket) -> None:
        """Send what has been decided, as far as the connections take it."""
        answers, self._answers = self._answers, []
        for parts in answers:
            # A connection that is gone or full: the refusal is of no use there.
            with contextlib.suppress(zmq.ZMQError):
                await self._send(socket, parts)
        for peer in self._peers.values():
            if peer.queue:
                await self._to(peer, self._first(socket, peer))
        asking = [member for member, peer in self._peers.items() if peer.parcel]
        for member in self._turns.holders(asking, self._patient.now):
            if self._peers[member].asked:
                await self._to(self._peers[member], self._pieces(socket, member))

    async def _to(self, peer: Peer, sending: Awaitable[None]) -> None:
        try:
            await sending
        except zmq.Again:
            return  # full for now
        except zmq.ZMQError:
            peer.leave()  # the connection is gone; its silence will tell, or its Hello

    async def _first(self, socket: zmq.asyncio.Socket, peer: Peer) -> None:
        """What waits, up to a parcel: what comes behind it is told once the member has it."""
        while peer.queue and not peer.announced:
            _, item = peer.queue[0]
            if isinstance(item, Outgoing):
                await self._send(socket, [peer.route, *item.announcement()])
                peer.announced = True
            else:
                await self._send(socket, item)
                peer.sent()

    async def _pieces(self, socket: zmq.asyncio.Socket, member: int) -> None:
        peer = self._peers[member]
        while peer.asked and peer.parcel is not None:
            await self._send(socket, [peer.route, *peer.parcel.piece(peer.asked[0])])
            peer.asked.popleft()
            self._turns.moved(member, self._patient.now)

    async def _send(self, socket: zmq.asyncio.Socket, parts: list[bytes]) -> None:
        await socket.send_multipart(parts, zmq.NOBLOCK)
        self._traffic.down += sum(map(len, parts[1:]))
