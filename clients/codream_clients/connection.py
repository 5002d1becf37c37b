"""A client's connection: a ZeroMQ DEALER with CURVE that pins the server's key, direct or through a SOCKS5 proxy.

Two options of libzmq are not set, since with them it aborts the whole process. With ZMQ_HEARTBEAT_IVL a line on which
as many messages wait unread as it holds is given up, and a new one takes over what waits: to read that aborts (its
issue 3937). With ZMQ_IMMEDIATE what waits goes with its line, and where that is in the middle of a message, to read on
aborts (its issue 3485). So what a line has brought outlives it, and a line ends by TCP alone; whoever uses it has to
notice that the server is silent.
"""

from __future__ import annotations

import zmq
import zmq.asyncio
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from codream_protocols.errors import AddressRefused
from codream_protocols.identity import is_ipv6

REFUSED_KEY = zmq.EVENT_HANDSHAKE_FAILED_AUTH
SHAKEN = zmq.EVENT_HANDSHAKE_SUCCEEDED
BROKEN_OFF = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_DISCONNECTED)
_EVENTS = REFUSED_KEY | SHAKEN | BROKEN_OFF[0] | BROKEN_OFF[1] | BROKEN_OFF[2]


class Connection:
    """Connects, as often as it is asked to.

    Attributes:
        socket: the present one.
        address: tcp://HOST:PORT, where the server listens.

    Args:
        address: the same.
        secret: the client's CurveZMQ secret key, 32 bytes.
        public: its public key, 32 bytes.
        server_key: the server's public key, 32 bytes: whoever answers must hold it.
        most_bytes: of a part of a message; nothing larger is received.
        proxy: HOST:PORT of a SOCKS5 proxy by which the server is reached; None connects directly.
    """

    socket: zmq.asyncio.Socket

    def __init__(
        self, address: str, *, secret: bytes, public: bytes, server_key: bytes, most_bytes: int, proxy: str | None
    ) -> None:
        self.address, self._proxy, self._most_bytes = address, proxy, most_bytes
        self._secret, self._public, self._server_key = secret, public, server_key

    def open(self, context: zmq.asyncio.Context) -> None:
        """Connect.

        Raises:
            AddressRefused: the address is none that can be connected to.
        """
        socket = self.socket = context.socket(zmq.DEALER)
        secure(socket, secret=self._secret, public=self._public, server_key=self._server_key)
        socket.setsockopt(zmq.MAXMSGSIZE, self._most_bytes)
        socket.setsockopt(zmq.SNDHWM, 64)
        socket.setsockopt(zmq.RCVHWM, 64)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
        take_route(socket, self.address, self._proxy)
        self._monitor = socket.get_monitor_socket(_EVENTS)
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise AddressRefused(
                f"{self.address!r} ({zmq.strerror(error.errno or 0)})", "tcp://HOST:PORT, the server's"
            ) from error

    def close(self, linger: int) -> None:
        """Let go of it, so many milliseconds after which nothing more is sent."""
        self._monitor.close(linger=0)
        self.socket.disable_monitor()
        self.socket.close(linger=linger)

    async def events(self) -> list[int]:
        """What has happened to it since it was last asked: `REFUSED_KEY`, `SHAKEN` or one of `BROKEN_OFF`."""
        found = []
        while await self._monitor.poll(0):
            found.append(int(parse_monitor_message(await self._monitor.recv_multipart())["event"]))
        return found


def secure(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, *, secret: bytes, public: bytes, server_key: bytes) -> None:
    """Give a socket this client's keys and the server's, 32 bytes each."""
    socket.curve_secretkey, socket.curve_publickey = z85.encode(secret), z85.encode(public)
    socket.curve_serverkey = z85.encode(server_key)


def take_route(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, address: str, proxy: str | None) -> None:
    """Prepare a socket for an address: IPv6 where it has such a host, and a proxy where there is one."""
    socket.setsockopt(zmq.IPV6, is_ipv6(address))
    if proxy is not None:
        socket.setsockopt(zmq.SOCKS_PROXY, proxy.encode())
