"""Mutated messages and frames, to the machines of both sides, at every point of an epoch.

Each is refused with a typed error and changes nothing, or is a message that might have been sent; no other exception
leaves a machine, and what a message makes a decoder allocate is bounded by its own size.
"""

from __future__ import annotations

import copy
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import msgpack
import pytest

from codream_protocols.client import ClientProtocol
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import Beat, Hello, decode_to_client, decode_to_server
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.wire import Federation

SPECS = (VectorSpec("update", (Block("dream", 5, 1.0), Block("seen", 2, 300, "count"))),)
NORMAL, EXHAUSTIVE, SEEDS = 300, 25_000, 20
INTERESTING = (0, 1, -1, 127, 128, 255, 256, 65_535, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63))

Machine = ClientProtocol | ServerProtocol
Said = tuple[bytes, tuple[bytes, ...]]


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """A few bits, bytes, cuts, repeats and insertions."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = chance.choice([0, 1, 0x7F, 0x80, 0x90, 0x91, 0xC0, 0xC4, 0xC6, 0xDC, 0xDD, 0xDF, 0xFF])
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = chance.randbytes(chance.choice([1, 4, 32]))
        elif kind == 4:
            changed[place:place] = changed[place : place + chance.choice([1, 8, 64])]
        else:
            del changed[place : place + chance.choice([1, 2, 33])]
    return bytes(changed)


def value_changed(value: Any, chance: random.Random) -> Any:
    """Another value of about this kind, or of none."""
    kind = chance.randrange(8)
    if isinstance(value, list) and value and kind < 6:
        place = chance.randrange(len(value))
        if kind < 4:
            return [*value[:place], value_changed(value[place], chance), *value[place + 1 :]]
        return value[:place] + value[place + 1 :] if kind == 4 else value[:place] + value[place:][:1] + value[place:]
    if isinstance(value, bytes) and kind < 4:
        return bytes_changed(value, chance)
    if isinstance(value, int) and kind < 4:
        return value + chance.choice([-1, 1, 2, 256])
    return chance.choice([None, True, "", "x" * 600, b"", bytes(32), [], [[]], {}, 0.5, *INTERESTING])


def mutated(said: Said, others: list[Said], chance: random.Random) -> Said:
    """A message that nobody sent, by its bytes, its fields or its frames; sometimes another one in its place."""
    data, frames = said
    kind = chance.randrange(10)
    if kind < 3:
        return bytes_changed(data, chance), frames
    if kind < 7:
        return msgpack.packb(value_changed(msgpack.unpackb(data), chance)), frames
    if kind == 7:
        return data, tuple(bytes_changed(frame, chance) for frame in frames)
    if kind == 8:
        return data, chance.choice([(), (b"",), (*frames, b"\0"), (bytes(1 << 10),)])
    return chance.choice(others)[0], chance.choice(others)[1]


class Fuzz:
    """An epoch, in which each genuine packet is preceded by mutants of it and of earlier ones."""

    def __init__(self, mode: Literal["lockstep", "resilient"], seed: int) -> None:
        self.chance = random.Random(seed)
        self.federation = Federation(6 if mode == "resilient" else 3, mode=mode, specs=SPECS, steps=2, seed=seed)
        self.heard: dict[bool, list[Said]] = {False: [], True: []}
        self.counts: Counter[str] = Counter()

    def points(self) -> Iterator[Packet]:
        """Each genuine packet, just before it is delivered; one is dropped, so that the resilient mode rebuilds."""
        federation = self.federation
        federation.hello()
        yield from self._drained()
        federation.emit(federation.server.open_epoch(federation.everybody))
        while federation.server.phase.value != "idle":
            yield from self._drained()
            federation.compute()
            if not federation.wire:
                federation.emit(federation.server.expire())
                if not federation.wire:
                    return

    def _drained(self) -> Iterator[Packet]:
        federation = self.federation
        while federation.wire:
            item = federation.wire.pop(0)
            yield item
            self.heard[item.to_server].append((item.data, item.frames))
            lost = item.to_server and item.kind.__name__ == "MaskedInput" and item.member == 5
            if not (lost and federation.server.step == 1):
                federation.deliver(item)

    def throw(self, item: Packet, count: int) -> None:
        """So many mutants at whom this packet is for."""
        said = (item.data, item.frames)
        others = [*self.heard[item.to_server], said]
        machine = self.federation.server if item.to_server else self.federation.clients[item.member]
        victim, before = self._twin(machine)
        for _ in range(count):
            data, frames = mutated(self.chance.choice([said, said, self.chance.choice(others)]), others, self.chance)
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            try:
                message = decode_to_server(data) if item.to_server else decode_to_client(data)
            except RemoteProtocolError:
                self.counts["no message"] += 1
                continue
            finally:
                if tracemalloc.is_tracing():
                    assert tracemalloc.get_traced_memory()[1] - held < 50 * len(data) + 100_000, data.hex()
            try:
                if isinstance(victim, ClientProtocol):
                    victim.receive(message, frames)
                elif isinstance(message, Hello):
                    victim.hello(item.member, message)
                elif isinstance(message, Beat):
                    victim.beat(item.member, message.plan, message.sums)
                else:
                    victim.receive(item.member, message, frames)
            except RemoteProtocolError as error:
                self.counts["refused"] += 1
                if error.code != "wrong-sum":  # it ends the client's epoch, and is remembered
                    assert snapshot(victim) == before, (data.hex(), error)
                    continue
            else:
                self.counts["taken"] += 1
            victim, before = self._twin(machine)

    @staticmethod
    def _twin(machine: Machine) -> tuple[Machine, Any]:
        twin = copy.deepcopy(machine)
        return twin, snapshot(twin)


def fuzz(mode: Literal["lockstep", "resilient"], seed: int, count: int) -> Counter[str]:
    """About `count` mutants over an epoch."""
    points = sum(1 for _ in Fuzz(mode, seed).points())
    state = Fuzz(mode, seed)
    for item in state.points():
        state.throw(item, max(1, count // points))
    return state.counts


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_what_is_refused_changes_nothing_and_nothing_else_leaves_a_machine(
    mode: Literal["lockstep", "resilient"],
) -> None:
    counts = fuzz(mode, 0, NORMAL * 10)
    assert min(counts["no message"], counts["refused"], counts["taken"]) > 50, counts


def test_what_a_message_allocates_is_bounded_by_its_size() -> None:
    tracemalloc.start()
    try:
        fuzz("resilient", 1, NORMAL)
    finally:
        tracemalloc.stop()


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_a_million_mutants(mode: Literal["lockstep", "resilient"], seed: int) -> None:
    counts = fuzz(mode, 1000 + seed, EXHAUSTIVE)
    assert sum(counts.values()) > 0.9 * EXHAUSTIVE
