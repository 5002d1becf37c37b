"""A client's connection: a ZeroMQ DEALER with CURVE that pins the server's key, direct or through a SOCKS5 proxy."""

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
HEARTBEAT_MILLISECONDS, HEARTBEAT_TIMEOUT = 5_000, 20_000
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
        """Connect. Until the line stands, which is when something can be sent, what is sent is lost.

        A line that came back with messages of the one before still unread would end this whole process: libzmq aborts
        (its issue 3937). So none is kept past its line.

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
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MILLISECONDS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT)
        take_route(socket, self.address, self._proxy)
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._poller = zmq.asyncio.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
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

    async def news(self, milliseconds: int) -> tuple[bool, list[int]]:
        """Wait for a message, or for something that happens to the line, so long at most.

        Returns:
            Whether a message is there, and what has happened: `REFUSED_KEY`, `SHAKEN` or one of `BROKEN_OFF`.
        """
        ready, events = dict(await self._poller.poll(milliseconds)), []
        if self._monitor in ready:
            while await self._monitor.poll(0):
                events.append(int(parse_monitor_message(await self._monitor.recv_multipart())["event"]))
            self.socket.getsockopt(zmq.EVENTS)  # now the socket, too, knows of the line that it tells of
        return self.socket in ready, events


def secure(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, *, secret: bytes, public: bytes, server_key: bytes) -> None:
    """Give a socket this client's keys and the server's, 32 bytes each."""
    socket.curve_secretkey, socket.curve_publickey = z85.encode(secret), z85.encode(public)
    socket.curve_serverkey = z85.encode(server_key)


def take_route(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, address: str, proxy: str | None) -> None:
    """Prepare a socket for an address: IPv6 where it has such a host, and a proxy where there is one."""
    socket.setsockopt(zmq.IPV6, is_ipv6(address))
    if proxy is not None:
        socket.setsockopt(zmq.SOCKS_PROXY, proxy.encode())
