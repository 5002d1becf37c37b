"""The server's socket: a ZeroMQ ROUTER with CURVE, bounded in what it holds and in how long it waits for anybody."""

from __future__ import annotations

import zmq
import zmq.asyncio
from zmq.utils import z85

from codream_protocols.errors import AddressRefused
from codream_protocols.identity import is_ipv6


def configure(socket: zmq.asyncio.Socket, endpoint: str, *, secret: bytes, most_bytes: int) -> None:
    """Set its bounds and keys; ZAP must be answered in its context.

    Args:
        socket: a ROUTER.
        endpoint: where it is to listen.
        secret: the server's CurveZMQ secret key, 32 bytes.
        most_bytes: of one part of a message; whoever sends a larger one is cut off.
    """
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


def bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """Listen.

    Args:
        socket: configured.
        endpoint: such as "tcp://127.0.0.1:*".

    Raises:
        AddressRefused: the endpoint is taken, or none of this machine's.
    """
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise AddressRefused(
            f"{endpoint!r} ({zmq.strerror(error.errno or 0)})", "tcp://ADDRESS:PORT of this machine, with a free port"
        ) from error
