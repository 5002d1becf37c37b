"""For whom the server says that it waits: bounded, named by the roster, and of no consequence but on the screen."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from codream_clients.awaited import LAPSES_AFTER, Other, ServersWord
from codream_protocols.errors import CohortRefused, MalformedMessage
from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.messages import Awaited, Refusal, Waiting, decode_to_client
from secure_codream.simulation.snapshots import snapshot
from tests.clients.network import Federation, Log, over_network
from tests.clients.test_runner import hello


class Watch:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def word_of(watch: Watch) -> ServersWord:
    return ServersWord(Federation(3).roster, watch)


def test_it_names_by_the_roster_counts_on_and_lapses() -> None:
    watch = Watch()
    word = word_of(watch)
    assert word.now() == ((), None)
    assert word.take(Waiting((Awaited(1, False, 14), Awaited(2, True, -1)), unnamed=False))
    watch.now += 5
    assert word.now() == ((Other("client-2", False, 19.0), Other("client-3", True, None)), 5.0)
    assert not word.take(Waiting((Awaited(1, False, 19), Awaited(2, True, 0)), unnamed=False))  # the same members
    assert word.take(Waiting((Awaited(1, False, 20),), unnamed=False))
    assert word.now()[1] == 5.0  # since it said so first
    watch.now += LAPSES_AFTER + 1
    assert word.now() == ((), None)
    assert word.take(Waiting((Awaited(1, False, 20),), unnamed=False))
    assert word.take(Waiting((), unnamed=False)) and word.now() == ((), None)


def test_that_it_waits_for_some_that_it_does_not_name_is_known_and_counts_on() -> None:
    watch = Watch()
    word = word_of(watch)
    assert not word.take(Waiting((), unnamed=True))  # nobody is named: nothing for the screen
    watch.now += 10
    assert word.now() == ((), 10.0)
    assert word.take(Waiting((Awaited(1, False, 60),), unnamed=False)) and word.now()[1] == 10.0
    assert word.take(Waiting((), unnamed=True)) and word.now() == ((), 10.0)
    watch.now += LAPSES_AFTER + 1
    assert word.now() == ((), None)


def test_names_that_change_are_said_also_after_years_but_never_often() -> None:
    """A guard that counted for the process's life hid the member that a night waited for."""
    watch = Watch()
    word = word_of(watch)
    here, gone = Waiting((), unnamed=False), Waiting((Awaited(1, False, 60),), unnamed=False)
    for _ in range(300):
        watch.now += 3600
        assert word.take(gone) and not word.take(gone) and word.take(here)
    said = 0
    for _ in range(6000):  # a server that changes its word ten times a second, for ten minutes
        watch.now += 0.1
        said += word.take(gone) + word.take(here)
    assert 30 < said < 40
    last = False
    for _ in range(61):  # what lasts is said
        watch.now += 10
        last |= word.take(gone)
    assert last and [one.name for one in word.now()[0]] == ["client-2"]


@pytest.mark.parametrize("numbers", [(3,), (199,), (1, 1), (1, 0)])
def test_strangers_and_members_out_of_order_are_refused_and_change_nothing(numbers: tuple[int, ...]) -> None:
    word = word_of(Watch())
    word.take(Waiting((Awaited(0, False, 1),), unnamed=False))
    before = word.now()
    with pytest.raises(CohortRefused):
        word.take(Waiting(tuple(Awaited(number, True, 0) for number in numbers), unnamed=False))
    assert word.now() == before


@pytest.mark.parametrize(
    "item",
    [
        [0, False, float("nan")],
        [0, False, 1 << 31],
        [0, False, -2],
        [0, "no", 1],
        [MAX_MEMBERS, True, 1],
        ["b", True, 1],
    ],
)
def test_nothing_but_numbers_in_their_ranges_is_decoded(item: list[Any]) -> None:
    assert decode_to_client(msgspec.msgpack.encode(["waiting", [[0, False, 7]], False])) == Waiting(
        (Awaited(0, False, 7),), unnamed=False
    )
    with pytest.raises(MalformedMessage):
        decode_to_client(msgspec.msgpack.encode(["waiting", [item], False]))
    with pytest.raises(MalformedMessage):
        decode_to_client(msgspec.msgpack.encode(["waiting", [[0, True, 1]] * (MAX_MEMBERS + 1), False]))


def test_it_is_for_the_screen_and_changes_nothing_else() -> None:
    """A server may say what it likes of others: the machine never hears it, and only nonsense is answered."""
    log = Log()
    answers: list[tuple[str, str]] = []

    async def scenario(whole: Federation) -> None:
        machine = whole.protocol(0)
        runner = whole.runner(0, protocol=machine, log=log)
        running = asyncio.ensure_future(runner.run())
        try:
            await hello(whole)
            before = snapshot(machine)
            await whole.send(0, Waiting((Awaited(1, False, 60), Awaited(2, True, 1)), unnamed=False))
            await whole.send(0, Waiting((Awaited(2, False, 60), Awaited(1, True, 1)), unnamed=False))
            await whole.send(0, Waiting((), unnamed=False), (b"frame",))
            while len(answers) < 2:
                message = await whole.receive_from(0)
                if isinstance(message, Refusal):
                    answers.append((message.code, message.found))
            assert snapshot(machine) == before
            assert [one.name for one in runner.word.now()[0]] == ["client-2", "client-3"]
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    over_network(Federation(), scenario)
    assert answers == [("cohort", "Waiting"), ("vector", "Waiting")]
    assert log.of("waiting") == [{"names": "client-2, client-3"}]
