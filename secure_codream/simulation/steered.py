"""Ends of a connection that somebody steers by hand: `Peer`, a bare client, and `Scripted`, a server.

Either speaks CURVE with whatever keys it is given, and obeys no rule: it says what it is told and gives back what it
hears. `perform` has a scripted server say what an honest machine would, until a condition holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_protocols.messages import Beat, Hello, Waiting, decode_to_client, decode_to_server, encode_message
from codream_protocols.server import SendTo, ServerProtocol
from secure_codream.simulation.wire import Stuck

LOOPBACK = "tcp://127.0.0.1:*"
PATIENCE_SECONDS = 60.0


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

    async def hear(self, seconds: float = 20.0) -> Any:
        """The next message, but for what is for a screen; None when none comes in time."""
        while await self._socket.poll(int(seconds * 1000)):
            message = decode_to_client((await self._socket.recv_multipart())[0])
            if not isinstance(message, Waiting):
                return message
        return None

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self._socket.close(linger=0)


@dataclass(frozen=True)
class Heard:
    """A message that a scripted server took."""

    member: int
    message: Any
    frames: tuple[bytes, ...] = ()


class Scripted:
    """A server with any key, for somebody to steer: it admits every transport key and obeys no rule.

    Members are numbered in the order in which their connections are first heard of.
    """

    def __init__(self, context: Any, secret: bytes) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.curve_server, self._socket.curve_secretkey = True, z85.encode(secret)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a flood is not cut short on this side
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(LOOPBACK)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.routes: list[bytes] = []
        self._kept: list[Heard] = []  # what nobody has asked for yet

    async def greet(self) -> Hello:
        """Wait for the Hello of the next member."""
        known = len(self.routes)
        while True:
            heard = await self._take()
            if heard.member == known and isinstance(heard.message, Hello):
                return heard.message
            self._kept.append(heard)

    async def receive(self, seconds: float = PATIENCE_SECONDS) -> Heard:
        """The next message that is no Beat, in the order in which they came."""
        return self._kept.pop(0) if self._kept else await self._take(seconds)

    async def answer(self, member: int, kind: type, seconds: float = PATIENCE_SECONDS) -> Any:
        """This member's next message of a kind; see `heard`."""
        return (await self.heard(member, kind, seconds)).message

    async def heard(self, member: int, kind: type, seconds: float = PATIENCE_SECONDS) -> Heard:
        """This member's next message of a kind, with its frames; what is said besides is kept for later."""
        others: list[Heard] = []
        while True:
            heard = await self.receive(seconds)
            if heard.member == member and isinstance(heard.message, kind):
                self._kept = others + self._kept
                return heard
            others.append(heard)

    async def hears_anything(self, seconds: float) -> bool:
        """Whether a word comes in time."""
        return bool(await self._socket.poll(int(seconds * 1000)))

    async def everything(self, seconds: float) -> list[Any]:
        """All that comes within so many seconds, Beats too, and what had come before."""
        heard = [item.message for item in self._kept]
        self._kept.clear()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            if await self._socket.poll(int(left * 1000) + 1):
                heard.append(decode_to_server((await self._socket.recv_multipart())[1]))
        return heard

    async def say(self, member: int, message: Any, frames: tuple[bytes, ...] = ()) -> None:
        """Send a member a message, or bytes that are none."""
        data = message if isinstance(message, bytes) else encode_message(message)
        await self._socket.send_multipart([self.routes[member], data, *frames])

    async def perform(self, protocol: ServerProtocol, effects: Iterable[Any], until: Callable[[], bool]) -> list[Any]:
        """Drive an honest machine until a condition holds; returns its news (what is no `SendTo`)."""
        news: list[Any] = []
        while True:
            for effect in effects:
                if isinstance(effect, SendTo):
                    await self.say(effect.member, effect.message, effect.frames)
                else:
                    news.append(effect)
            if until():
                return news
            heard = await self.receive()
            effects = (
                protocol.hello(heard.member, heard.message)
                if isinstance(heard.message, Hello)
                else protocol.receive(heard.member, heard.message, heard.frames)
            )

    async def _take(self, seconds: float = PATIENCE_SECONDS) -> Heard:
        while True:
            if not await self._socket.poll(int(seconds * 1000)):
                raise Stuck("no client said anything")
            route, data, *frames = await self._socket.recv_multipart()
            if route not in self.routes:
                self.routes.append(route)
            message = decode_to_server(data)
            if not isinstance(message, Beat):
                return Heard(self.routes.index(route), message, tuple(frames))

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self._socket.close(linger=0)
