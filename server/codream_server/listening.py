"""The server's socket: a ZeroMQ ROUTER with CURVE, bounded in what it holds and in how long it waits for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from codream_protocols.errors import AddressRefused
from codream_protocols.identity import is_ipv6


class Admits(Protocol):
    """Says whose transport keys may connect, as ZAP asks it."""

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this z85-encoded key may."""


@contextmanager
def opened(endpoint: str, *, secret: bytes, most_bytes: int, admits: Admits) -> Iterator[zmq.asyncio.Socket]:
    """The server's socket, which listens until the context is left.

    Args:
        endpoint: where, such as "tcp://127.0.0.1:*".
        secret: the server's CurveZMQ secret key, 32 bytes.
        most_bytes: of one part of a message; whoever sends a larger one is cut off.
        admits: whose keys may connect.

    Raises:
        AddressRefused: the endpoint is taken, or none of this machine's.
    """
    context = zmq.asyncio.Context()
    authenticator = AsyncioAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=admits)
    socket = context.socket(zmq.ROUTER)
    try:
        configure(socket, endpoint, secret=secret, most_bytes=most_bytes)
        _bind(socket, endpoint)
        yield socket
    finally:
        authenticator.stop()
        context.destroy(linger=2000)  # with its sockets


def configure(socket: zmq.asyncio.Socket, endpoint: str, *, secret: bytes, most_bytes: int) -> None:
    """Set its bounds and keys; for the arguments see `opened`."""
    socket.curve_server = True
    socket.curve_secretkey = z85.encode(secret)
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    socket.setsockopt(zmq.SNDHWM, 8)  # what does not fit waits in `Peer.queue`, counted in bytes
    socket.setsockopt(zmq.RCVHWM, 32)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))


def _bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise AddressRefused(
            f"{endpoint!r} ({zmq.strerror(error.errno or 0)})", "tcp://ADDRESS:PORT of this machine, with a free port"
        ) from error
