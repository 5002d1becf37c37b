"""A relay on the wire between clients and a server: what the network sees, and what it may do.

It knows nothing of ZeroMQ: it passes segments of TCP streams on, keeps them, alters them, and breaks connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast


class Tap:
    """A relay on the wire: it keeps all that passes, and may alter what clients send, segment by segment."""

    def __init__(self, alter: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.up: list[list[bytes]] = []  # of each connection, what the client sent, as it came
        self.down: list[list[bytes]] = []
        self._alter, self._pumps, self._near = alter, set[asyncio.Task[None]](), list[asyncio.StreamWriter]()

    def cut(self) -> None:
        """Break every connection; who connects again is relayed again."""
        for writer in self._near:
            writer.transport.abort()
        self._near.clear()

    @contextlib.asynccontextmanager
    async def listening(self, endpoint: str) -> AsyncIterator[str]:
        """Relay to this endpoint; yields the one to connect to."""
        self._target = endpoint.removeprefix("tcp://").split(":")
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pumps.add(cast("asyncio.Task[None]", asyncio.current_task()))
        up, down = list[bytes](), list[bytes]()
        self.up.append(up)
        self.down.append(down)
        self._near.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection(self._target[0], int(self._target[1]))
            try:
                await asyncio.gather(
                    self._pump(reader, far_writer, up, self._alter),
                    self._pump(far_reader, writer, down, lambda data: data),
                )
            finally:
                far_writer.close()
        writer.close()

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: list[bytes], alter: Callable[[bytes], bytes]
    ) -> None:
        while data := await source.read(1 << 16):
            kept.append(data)
            sink.write(alter(data))
            await sink.drain()
        sink.close()
