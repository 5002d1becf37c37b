"""What tests of federations over real sockets have in common: modes, gates, waiting, and hostile bytes.

Nothing here waits for a time to pass where it can wait for something to happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from codream_server.settings import Timing

MODES = {"lockstep": 4, "resilient": 6}  # members: resilient, two blocks of three
NAMES = [f"client-{number}" for number in range(6)]
FAST = Timing(step=120.0, beat=0.2, lost_after=2.0)


class Gate:
    """Holds a client in its computation until it is opened."""

    def __init__(self, call: int) -> None:
        self.call, self.passed = call, threading.Event()

    def __call__(self, task: Any, call: int) -> None:
        if call == self.call:
            self.passed.wait(120)

    def open(self) -> None:
        self.passed.set()


@contextlib.contextmanager
def opened(*gates: Gate) -> Iterator[None]:
    """No gate stays shut, whatever happens: its thread would never end."""
    try:
        yield
    finally:
        for gate in gates:
            gate.open()


async def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


async def whole(net: Any, **options: Any) -> None:
    async with net.serving() as server:
        await asyncio.gather(server, *net.start_all(**options))


def everybody(net: Any) -> list[str]:
    return NAMES[: len(net.keys)]


def paths(net: Any) -> list[str]:
    return [event["path"] for event in net.of("step_finished")]


def assert_all_learnt(net: Any, rounds: int, members: Any = None) -> None:
    """Each of them has learnt each epoch once, in order, and all the same."""
    first = None
    for number in range(len(net.keys)) if members is None else members:
        learnt = net.learnt(number)
        assert [count for count, _ in learnt] == list(range(1, rounds + 1)), number
        shown = [publication["result"].tobytes() for _, publication in learnt]
        first = first or shown
        assert shown == first
    assert [publication["result"].tobytes() for _, publication in net.published] == first


def bad_messages(data: bytes, chance: random.Random) -> list[bytes]:
    """What a hostile party may make of a good message."""
    flipped = bytearray(data)
    flipped[0] ^= 0x40  # the array's header
    tag = bytearray(data)
    tag[3] ^= 0x01  # a letter of the tag
    return [
        b"",
        chance.randbytes(200),
        data[: len(data) // 2],
        data + b"\x00",
        bytes(flipped),
        bytes(tag),
        b"\xdd\xff\xff\xff\xff" + data,  # an array said to hold 2^32 - 1 elements
        b"\x91" * 5000,  # nested beyond every limit
        msgspec.msgpack.encode(["seals", bytes(32), [[0, bytes(1089), bytes(64), bytes(64)]]]),  # too long a ciphertext
    ]
