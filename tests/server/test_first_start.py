"""Whom a server waits for before an epoch: everybody before a charter's first one, and whoever is back after that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from codream_protocols.client import ClientProtocol, Compute
from codream_protocols.errors import AggregationFailed
from codream_protocols.messages import Hello
from codream_server.settings import Timing
from tests.server.toy import RESILIENT, Federation, ToyCourse, run

NAMES = [f"site-{number}" for number in range(6)]
QUICK = Timing(beat=0.1, lost_after=0.4)


class Elsewhere(ClientProtocol):
    """A member that says that it stands where nobody stands."""

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), head=b"x" * 32)


class Boaster(ClientProtocol):
    """A member that says that it has joined epochs which never were."""

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), epoch=7)


def never(compute: Compute) -> bool:
    return True


def test_a_server_restarted_before_the_first_certificate_takes_who_stays_away_for_lost(tmp_path: Path) -> None:
    federation = Federation(6, course=ToyCourse(1, 1), aggregation=RESILIENT, timing=QUICK)

    async def scenario() -> None:
        async with federation.serving(tmp_path):
            federation.start_all()
            for client in federation.clients.values():
                client.hold = never
            await federation.until_event("step_started", step=0)
            for client in federation.clients.values():
                await client.kill()
        federation.events.clear()
        async with federation.serving(tmp_path) as server:
            for member in range(5):
                federation.start(member)
            await server

    run(scenario)
    assert federation.of("epoch_started")[0]["cohort"] == NAMES[:3]


def test_colluders_alone_cannot_say_that_a_federation_is_under_way() -> None:
    """Else the server would go on without others at the start, as soon as they are late."""
    federation = Federation(6, course=ToyCourse(1, 1), aggregation=RESILIENT, timing=QUICK)

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0, machine=Boaster)
            for member in range(1, 5):
                federation.start(member)
            await federation.until_event("waiting", count=2)
            assert not federation.of("epoch_started")
            federation.start(5)
            await server

    run(scenario)
    assert [event["cohort"] for event in federation.of("epoch_started")] == [NAMES]


def test_a_limit_for_joining_ends_no_federation_that_is_under_way(tmp_path: Path) -> None:
    timing = Timing(beat=0.1, lost_after=0.4, join=0.5)
    federation = Federation(6, course=ToyCourse(2, 1), aggregation=RESILIENT, timing=timing)

    async def scenario() -> None:
        async with federation.serving(tmp_path):
            federation.start_all()
            await federation.until_event("round_finished")
            for client in federation.clients.values():
                await client.kill()
        federation.events.clear()
        async with federation.serving(tmp_path) as server:
            for member in range(2):
                federation.start(member)
            waiting = await federation.until_event("waiting", count=2)  # the second one: after more than `join`
            assert waiting["lost"] == NAMES[2:] and not server.done()
            for member in range(2, 6):
                federation.start(member)
            await server

    run(scenario)
    assert federation.of("federation_finished")


def test_one_that_stands_at_another_head_is_named_while_all_wait_for_it() -> None:
    federation = Federation(6, course=ToyCourse(1, 1), aggregation=RESILIENT, timing=QUICK)

    async def scenario() -> None:
        async with federation.serving():
            for member in range(5):
                federation.start(member)
            federation.start(5, machine=Elsewhere)
            await federation.until_event("client_joined", count=6)
            while (waiting := await federation.until_event("waiting"))["lost"]:  # who came late
                federation.events.remove(waiting)
            assert waiting["clients"] == ["site-5"]

    run(scenario)


def test_a_start_that_fails_names_who_is_missing_and_why() -> None:
    federation = Federation(3, course=ToyCourse(1, 1), timing=Timing(beat=0.1, lost_after=0.4, join=1.5))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0)
            federation.start(2, machine=Elsewhere)
            with pytest.raises(
                AggregationFailed, match=r"2 of 3 clients .* not there: site-1; at another head: site-2"
            ):
                await asyncio.wait_for(asyncio.shield(server), 60)

    run(scenario)
