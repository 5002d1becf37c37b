"""What goes out. Nothing here ever waits: a client that does not read must not hold up the others."""

from __future__ import annotations

import contextlib

import zmq
import zmq.asyncio

from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import EpochRecord, Published, Refusal, ToClient, encode_message
from codream_protocols.server import SendTo
from codream_server.patience import PatientClock
from codream_server.peers import Peer, Traffic


class Outbox:
    """Messages wait in the queues of the members that they are for; refusals go to whatever connection asked.

    Args:
        peers: who has said Hello, by number; the runner's own.
        traffic: bytes of all members together, counted up here.
        quorum: votes that make a record certified.
        patient: the server's time.

    Attributes:
        overflowed: members for whom too much waits.
    """

    def __init__(self, peers: dict[int, Peer], traffic: Traffic, quorum: int, patient: PatientClock) -> None:
        self._peers, self._traffic, self._quorum, self._patient = peers, traffic, quorum, patient
        self._answers: list[list[bytes]] = []  # refusals, also to members that have not said Hello
        self._encoded: tuple[ToClient | None, bytes] = None, b""
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
        if self._encoded[0] is not effect.message:
            self._encoded = effect.message, encode_message(effect.message)
        if isinstance(effect.message, Published):
            peer.told_sum(self._patient.now)
        parts = [peer.route, self._encoded[1], *effect.frames]
        if not peer.put(parts, shared=self._is_kept(effect.message)):
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

    async def flush(self, socket: zmq.asyncio.Socket) -> None:
        """Send what has been decided, as far as the connections take it."""
        answers, self._answers = self._answers, []
        for parts in answers:
            # A connection that is gone or full: the refusal is of no use there.
            with contextlib.suppress(zmq.ZMQError):
                await socket.send_multipart(parts, zmq.NOBLOCK)
                self._traffic.down += len(parts[1])
        for peer in self._peers.values():
            try:
                while peer.queue:
                    _, parts = peer.queue[0]
                    await socket.send_multipart(parts, zmq.NOBLOCK)
                    peer.sent()
                    self._traffic.down += sum(map(len, parts[1:]))
            except zmq.Again:
                continue  # full for now
            except zmq.ZMQError:
                peer.leave()  # the connection is gone; its silence will tell, or its Hello
