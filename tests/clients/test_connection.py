"""How a client reaches its server: by way of a proxy, and what it says of somebody else who answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from codream_clients import runner as module
from codream_protocols.errors import AggregationFailed
from secure_codream.doctor.reachability import of_server
from tests.clients.network import FakeLearner, Federation, Log, over_network, take_part


class Proxy:
    """SOCKS5 (RFC 1928) without authentication, for IPv4 addresses and names; it remembers where it led."""

    def __init__(self) -> None:
        self.led: list[tuple[str, int]] = []
        self._served: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._served.add(task)
        with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        _, command, _, kind = await reader.readexactly(4)
        assert command == 1
        if kind == 1:
            host = ".".join(map(str, await reader.readexactly(4)))
        else:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.led.append((host, port))
        inner, outer = await asyncio.open_connection(host, port)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await asyncio.gather(self._pass(reader, outer), self._pass(inner, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.close()
            for task in self._served:
                task.cancel()
            await asyncio.gather(*self._served, return_exceptions=True)


def test_a_federation_runs_by_way_of_a_socks_proxy() -> None:
    whole, proxy = Federation(), Proxy()
    learners = [FakeLearner(number) for number in range(3)]

    async def scenario(whole: Federation) -> None:
        async with proxy.listening() as place:
            runners = [whole.runner(number, learner, proxy=place) for number, learner in enumerate(learners)]
            await take_part(whole, runners)

    over_network(whole, scenario)
    assert len({port for _, port in proxy.led}) == 3  # a server's socket a member
    assert all(learner.calls[-1] == "learn 3" for learner in learners)


@contextmanager
def a_server(secret: bytes) -> Iterator[int]:
    """A CURVE server that lets everybody in; its port."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.curve_server, socket.curve_secretkey = True, z85.encode(secret)
    try:
        yield socket.bind_to_random_port("tcp://127.0.0.1")
    finally:
        context.destroy(linger=0)


@contextmanager
def in_a_thread(proxy: Proxy) -> Iterator[str]:
    """The proxy, on a loop of its own."""
    loop, places = asyncio.new_event_loop(), list[str]()
    ready, over = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with proxy.listening() as place:
            places.append(place)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    ready.wait(20)
    try:
        yield places[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        loop.close()


def test_doctor_goes_the_same_way_and_names_it() -> None:
    whole, proxy = Federation(), Proxy()
    secret, key = whole.transport[0][1], whole.server_public
    with a_server(whole.server_secret) as port, in_a_thread(proxy) as place:
        (found,) = of_server(f"tcp://127.0.0.1:{port}", secret=secret, server_key=key, proxy=place)
        assert found.state == "ok" and f"by way of the proxy {place}" in found.found and proxy.led
    (found,) = of_server(f"tcp://127.0.0.1:{port}", secret=secret, server_key=key, proxy=place)
    assert found.state == "failed" and f"the proxy {place}: nobody listens" in found.found


@pytest.mark.parametrize("who", ["another key", "another program"])
def test_a_stranger_at_the_servers_address_is_named_at_once_and_once(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its patience was over a client said nothing, and then asked whether the server was running."""
    monkeypatch.setattr(module, "ASK_SECONDS", 0.5)
    log = Log()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def scenario(whole: Federation) -> None:
        server = await asyncio.start_server(answers, "127.0.0.1", 0)
        try:
            with a_server(z85.decode(zmq.curve_keypair()[1])) as port:
                if who == "another program":
                    port = server.sockets[0].getsockname()[1]
                await whole.runner(0, address=f"tcp://127.0.0.1:{port}", patience=4.0, log=log).run()
        finally:
            server.close()

    with pytest.raises(AggregationFailed):
        over_network(Federation(), scenario)
    (line,) = log.of("stranger")
    assert line["address"].startswith("tcp://127.0.0.1:")


BROKEN = """
import asyncio, sys
import zmq, zmq.asyncio
from zmq.utils import z85
from codream_clients.connection import BROKEN_OFF, Connection

async def main(messages, parts):
    near, far = zmq.asyncio.Context(), zmq.asyncio.Context()
    public, secret = zmq.curve_keypair()
    own = [z85.decode(key) for key in zmq.curve_keypair()]
    server = far.socket(zmq.ROUTER)
    server.curve_server, server.curve_secretkey = True, secret
    server.setsockopt(zmq.HEARTBEAT_IVL, 20)  # it gives up a line on which nothing is answered
    server.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60)
    gone = server.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    place = f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}"
    line = Connection(place, public=own[0], secret=own[1], server_key=z85.decode(public), most_bytes=1000, proxy=None)
    line.open(near)
    await line.socket.send(b"")
    route, _ = await server.recv_multipart()
    for _ in range(messages):
        await server.send_multipart([route] + parts * [b"of the first line"])
    reading = zmq.Socket.shadow(line.socket.underlying)
    await line.socket.poll()
    reading.recv()
    read = 1
    if messages < 64:  # all of it is taken off the wire, so the server's end is noticed
        server.close(linger=-1)
        events = []
        while not set(events) & set(BROKEN_OFF):
            events += await line.events()
    else:
        await gone.poll()
        await asyncio.sleep(0.3)  # to come back, for whoever would
    while read < messages * parts:
        if not reading.getsockopt(zmq.EVENTS) & zmq.POLLIN and not reading.poll(2000):  # here it learns of its lines
            break
        reading.recv(zmq.NOBLOCK)
        read += 1
    print(read >= min(64, messages) * parts, flush=True)
    near.destroy(linger=0)
    far.destroy(linger=0)

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("messages", "parts"), [(200, 1), (20, 3)], ids=["with more unread than it holds", "in the middle of a message"]
)
def test_a_line_that_breaks_ends_no_process(messages: int, parts: int) -> None:
    """It aborted within libzmq, and a notebook's kernel with it; or of a message only the beginning was there."""
    command = [sys.executable, "-c", BROKEN, str(messages), str(parts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_a_server_that_is_not_there_yet_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.5)
    log = Log()

    async def scenario(whole: Federation) -> None:
        await whole.runner(0, address="tcp://127.0.0.1:9", patience=2.0, log=log).run()

    with pytest.raises(AggregationFailed):
        over_network(Federation(), scenario)
    assert log.of("stranger") == []
