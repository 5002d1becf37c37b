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

from secure_codream.simulation.wire import Federation, Tape
from secure_codream.threats.laboratory.defences import Defences, Inapplicable
from secure_codream.threats.laboratory.laboratory import Cohort, Laboratory
from secure_codream.threats.laboratory.switches import switched_off

_PATIENCE_SECONDS = 60.0


class DistantClient:
    """Stands for a client whose machine runs in another process.

    Args:
        connection: to that process.
        tape: gets what the machine there has drawn, so that the laboratory knows what it has encoded.
    """

    def __init__(self, connection: Connection, tape: Tape) -> None:
        self._connection, self._tape = connection, tape

    def hello(self) -> Any:
        """As `ClientProtocol.hello`."""
        return self._call("hello")

    def receive(self, *arguments: Any) -> Any:
        """As `ClientProtocol.receive`."""
        return self._call("receive", *arguments)

    def provide(self, *arguments: Any) -> Any:
        """As `ClientProtocol.provide`."""
        return self._call("provide", *arguments)

    @property
    def plan(self) -> Any:
        """As `ClientProtocol.plan`."""
        return self._call("plan")

    def _call(self, *call: Any) -> Any:
        self._connection.send(call)
        if not self._connection.poll(_PATIENCE_SECONDS):
            raise TimeoutError("the client's process does not answer")
        answer, drawn = self._connection.recv()
        if call[0] == "provide":
            self._tape.drawn = drawn
        return answer


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
        federation.clients[member] = DistantClient(here, federation.tapes[member])  # type: ignore[call-overload]
        yield federation, process.pid or 0
    finally:
        here.close()
        process.join(_PATIENCE_SECONDS)
        process.kill()


def _serve(connection: Connection, seed: int, cohort: Cohort, defences: Defences, member: int) -> None:
    with switched_off(defences):
        federation = Laboratory(seed, cohort=cohort).federation(defences)
        client, tape = federation.clients[member], federation.tapes[member]
        while True:
            try:
                method, *arguments = connection.recv()
            except EOFError:
                return
            if method == "provide":
                tape.record()  # what an encoding is rounded with; it is no secret
            found = getattr(client, method)
            answer = found(*arguments) if callable(found) else found
            connection.send((answer, tape.stop()))


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
