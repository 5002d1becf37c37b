"""A client in a process of its own, and all of that process's memory, as whoever seizes the machine reads it.

The others and the server stay in this process, so that what is found there is the client's alone. What to look for is
computed here, by a twin of the same seed: the client's process is never asked for a secret, which would copy it.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from secure_codream.threats.attack import Defences, Inapplicable
from secure_codream.threats.federation import Federation
from secure_codream.threats.laboratory import Cohort, Laboratory
from secure_codream.threats.switches import switched_off

_PATIENCE_SECONDS = 60.0


class DistantClient:
    """Stands for a client whose machine runs in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def receive(self, *arguments: Any) -> Any:
        """As `ClientProtocol.receive`."""
        return self._call("receive", *arguments)

    def provide(self, *arguments: Any) -> Any:
        """As `ClientProtocol.provide`."""
        return self._call("provide", *arguments)

    def _call(self, *call: Any) -> Any:
        self._connection.send(call)
        if not self._connection.poll(_PATIENCE_SECONDS):
            raise TimeoutError("the client's process does not answer")
        return self._connection.recv()


@contextmanager
def in_its_own_process(laboratory: Laboratory, defences: Defences, member: int) -> Iterator[tuple[Federation, int]]:
    """The laboratory's federation with one client elsewhere, and that process's number."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, laboratory.seed, laboratory.cohort, defences, member))
    process.start()
    there.close()
    try:
        federation = laboratory.federation(defences)
        federation.clients[member] = DistantClient(here)  # type: ignore[call-overload]
        yield federation, process.pid or 0
    finally:
        here.close()
        process.join(_PATIENCE_SECONDS)
        process.kill()


def _serve(connection: Connection, seed: int, cohort: Cohort, defences: Defences, member: int) -> None:
    with switched_off(defences):
        client = Laboratory(seed, cohort=cohort).federation(defences).clients[member]
        while True:
            try:
                method, *arguments = connection.recv()
            except EOFError:
                return
            connection.send(getattr(client, method)(*arguments))


def memory_of(process: int) -> Iterator[bytes]:
    """Every writable mapping of a process.

    Raises:
        Inapplicable: the system has no such view, or does not permit it.
    """
    folder = Path(f"/proc/{process}")
    try:
        maps = (folder / "maps").read_text()
        with (folder / "mem").open("rb", buffering=0) as memory:
            for first, last in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
                start, end = int(first, 16), int(last, 16)
                memory.seek(start)
                yield memory.read(end - start)
    except (FileNotFoundError, PermissionError) as error:
        raise Inapplicable(f"this system does not show another process's memory: {error}") from None
