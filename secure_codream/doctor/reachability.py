"""Whether the server can be reached: a name, a port, and a CURVE handshake with the key that the roster has.

The handshake is ZeroMQ's own, with this client's key, so that the server's ZAP judges it as it will judge the client.
Nothing is said after it: the server never hears of a Hello, and nobody has joined.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import zmq
from zmq.utils.monitor import recv_monitor_message

from codream_clients.connection import secure, take_route
from secure_codream.doctor.findings import Finding, failed, ok, warning
from secure_codream.membership.keys import public_transport_key

REACHABILITY = "reachability"
SECONDS = 5.0
_ENDS = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_DISCONNECTED,
}


def of_server(
    address: str, *, secret: bytes, server_key: bytes, proxy: str | None = None, seconds: float = SECONDS
) -> Iterator[Finding]:
    """Whether a client reaches the roster's server.

    Args:
        address: tcp://HOST:PORT.
        proxy: HOST:PORT of a SOCKS5 proxy in between; who listens behind it, only the handshake tells.
        secret: the client's transport key, 32 bytes.
        server_key: the server's public key, 32 bytes, as the roster has it.
        seconds: how long the port, and then the handshake, may take.
    """
    unreachable = of_port(f"tcp://{proxy}" if proxy else address, seconds)
    if unreachable is not None:
        yield unreachable if proxy is None else through(proxy, unreachable)
    else:
        route = address.removeprefix("tcp://") + (f", by way of the proxy {proxy}," if proxy else "")
        yield _judged(_handshake(address, secret, server_key, proxy, seconds), route, seconds)


def through(proxy: str, finding: Finding) -> Finding:
    """What was found of a proxy's port."""
    return replace(
        finding,
        found=f"the proxy {proxy}: {finding.found}",
        allowed="a SOCKS5 proxy",
        do="compare proxy in client.toml with who runs the network, or leave it out",
    )


def of_port(address: str, seconds: float = SECONDS) -> Finding | None:
    """Why nobody can be reached at tcp://HOST:PORT within so many seconds; None if somebody listens there."""
    route = address.removeprefix("tcp://")
    host, port = _parts(address)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return failed(
            REACHABILITY,
            f"no machine of the name {host!r} ({getattr(error, 'strerror', None) or error})",
            "a name that this machine's resolver knows",
            "compare the address with the administrator's, ask who runs the network, or give --address",
        )
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except ConnectionRefusedError:
        return failed(REACHABILITY, f"nobody listens at {route}", "the server", "ask whether it has been started")
    except OSError as error:
        reason = f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return failed(
            REACHABILITY,
            f"{route} cannot be connected to ({reason})",
            f"an outbound TCP connection to {route}; it is the only one that is needed",
            "ask who runs the firewall to permit it, and whether the server's machine is up",
        )
    return None


def _judged(event: int | None, route: str, seconds: float) -> Finding:
    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        return ok(REACHABILITY, f"the server answers at {route}, with the roster's key, and lets this client in")
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return failed(
            REACHABILITY,
            f"the server at {route} refuses this client's transport key",
            "a client of the server's roster",
            "it is revoked, or has another roster than the server; ask the administrator for the newest",
        )
    how = f"no handshake within {seconds:g} s" if event is None else "it broke the handshake off"
    return failed(
        REACHABILITY,
        f"somebody listens at {route}, but is not the roster's server: another key or another program ({how})",
        "the server with the key that the roster has",
        "compare the server's fingerprint (roster show) with who runs it, and the address",
    )


def _handshake(address: str, secret: bytes, server_key: bytes, proxy: str | None, seconds: float) -> int | None:
    """The event that ended the handshake; None if none did in time."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    monitor = None
    try:
        dealer.setsockopt(zmq.LINGER, 0)
        secure(dealer, secret=secret, public=public_transport_key(secret), server_key=server_key)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        take_route(dealer, address, proxy)
        monitor = dealer.get_monitor_socket()
        dealer.connect(address)
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if monitor.poll(int(1000 * left) + 1):
                event = int(recv_monitor_message(monitor)["event"])
                if event in _ENDS:
                    return event
        return None
    finally:
        if monitor is not None:
            dealer.disable_monitor()
        dealer.close(linger=0)
        context.destroy(linger=0)


def of_own_port(address: str) -> Iterator[Finding]:
    """Whether a server that is not running could listen."""
    route = address.removeprefix("tcp://")
    host, port = _parts(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            None if host in ("*", "") else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        yield failed(
            REACHABILITY,
            f"no machine of the name {host!r} ({getattr(error, 'strerror', None) or error})",
            "an address of this machine",
            f"start the server with --listen tcp://0.0.0.0:{port}; clients need a name that they can resolve",
        )
        return
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                yield warning(
                    REACHABILITY,
                    f"{route} is no address of this machine",
                    "an address of this machine, or one that is handed on to it",
                    f"behind a router, start the server with --listen tcp://0.0.0.0:{port}",
                )
            else:
                yield failed(
                    REACHABILITY,
                    f"{route} cannot be listened at ({error.strerror})",
                    "a free port",
                    "see what listens there, or choose another port: roster change --server",
                )
            return
    yield ok(REACHABILITY, f"{route} is free to listen at; clients need one inbound TCP port, {port}")


def _parts(address: str) -> tuple[str, int]:
    """Host and port of tcp://HOST:PORT.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not (port == "*" or (port.isdecimal() and int(port) < 1 << 16)):
        raise ValueError(f"found the address {address!r}; tcp://HOST:PORT is allowed")
    return host.removeprefix("[").removesuffix("]"), 0 if port == "*" else int(port)
