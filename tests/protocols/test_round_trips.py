"""How often a message must cross the distance between a client and the server before a step is over."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, Literal

import numpy as np
import pytest

from codream_protocols.charter import Aggregation
from codream_protocols.client import Compute, Effect, Send
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.sums import Sums
from codream_protocols.server import SendTo
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.in_process import Simulation

STEPS = 6


class Ones:
    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        return {block.name: np.ones(block.length) for block in spec.blocks}

    def learn(self, number: int, publication: Publication) -> None:
        pass


@pytest.mark.parametrize(("mode", "trips"), [("lockstep", 1), ("resilient", 2)])
def test_a_step_costs_its_round_trips_and_no_more(mode: Literal["lockstep", "resilient"], trips: int) -> None:
    """Each way takes one unit of time, and computing takes none."""
    course = Sums({f"vector-{number}": (Block("numbers", 4, 1.0),) for number in range(STEPS)})
    simulation = Simulation(course, [Ones() for _ in range(4)], aggregation=Aggregation(mode=mode))
    server, clients = simulation.server, simulation.clients
    under_way: list[tuple[int, int, Any, int | None]] = []  # when it arrives, in order, what, from whom
    order, asked = count(), dict[int, int]()

    def from_server(now: int, effects: Iterable[Any]) -> None:
        for effect in effects:
            if isinstance(effect, SendTo):
                heapq.heappush(under_way, (now + 1, next(order), effect, None))

    def from_client(now: int, member: int, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                heapq.heappush(under_way, (now + 1, next(order), effect, member))
            elif isinstance(effect, Compute):
                if member == 0:
                    asked[effect.step] = now
                values = Ones().compute(effect.task, effect.spec)
                from_client(now, member, clients[member].provide(effect.plan, effect.step, values))

    for member, client in enumerate(clients):
        from_server(-1, server.hello(member, client.hello()))
    from_server(-1, server.open_epoch(server.cohort()))
    while under_way:
        now, _, effect, sender = heapq.heappop(under_way)
        if sender is None:
            from_client(now, effect.member, clients[effect.member].receive(effect.message, effect.frames))
        else:
            from_server(now, server.receive(sender, effect.message, effect.frames))
    assert server.certified == 1 and sorted(asked) == list(range(STEPS))
    times = [asked[step] for step in range(STEPS)]
    assert set(np.diff(times)) == {2 * trips}
