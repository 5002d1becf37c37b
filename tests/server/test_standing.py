"""How a server stands, for who looks: who is away by name and soon, and nothing else of one member."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from codream_protocols.messages import Awaited, Beat, MaskedInput, Refusal, Waiting
from codream_server.peers import Peer
from codream_server.settings import Timing
from codream_server.standing import NAMED_EVERY, Standing, Waits, waiting_message
from tests.server.toy import Federation, ToyClient, ToyCourse, computing, run

NAMES = {"site-0", "site-1", "site-2"}


def test_who_is_waited_for_is_named_by_name_and_whether_it_is_there() -> None:
    federation = Federation(3, course=ToyCourse(1, 1), timing=Timing(step=30.0, beat=0.1, lost_after=0.6))
    seen: list[Standing] = []

    async def scenario() -> None:
        async with federation.serving(stands=seen.append) as server:
            client = await computing(federation)
            client.hold = lambda compute: True
            await federation.until(lambda: seen and seen[-1].seconds)
            assert seen[-1].phase == "collecting" and seen[-1].step == 0 and seen[-1].waiting == ()  # it computes
            assert all(one.present and one.heard is not None for one in seen[-1].members)
            client.beating = False
            await federation.until_event("client_lost")
            await federation.until(lambda: seen[-1].waiting == ("site-2",))
            await federation.until(lambda: not seen[-1].members[2].present)
            await federation.until(lambda: any(said.items for said in told(federation.clients[0])))
            client.hold, client.beating = None, True
            await server

    run(scenario)
    assert [one.name for one in seen[0].members] == sorted(NAMES)
    assert federation.server.standing().phase == "finished" and federation.server.standing().waiting == ()
    heard = [event["heard"] for event in federation.of("waiting") if event["lost"]]
    assert all(set(ago) <= {"site-2"} for ago in heard)
    for client in list(federation.clients.values())[:2]:  # who is there is told the same, and when it is over
        assert {(one.member, one.present) for said in told(client) for one in said.items} == {(2, False)}
        assert told(client)[-1] == Waiting((), unnamed=False)


def test_bytes_do_not_show_when_an_answer_came() -> None:
    """The bytes of all together, looked at each second, jumped by a vector with each member that had computed."""
    federation = Federation(3, course=ToyCourse(1, 1, length=10_000))
    seen: list[Standing] = []
    after: list[int] = []

    async def scenario() -> None:
        async with federation.serving(stands=seen.append) as server:
            client = await computing(federation)
            client.hold = lambda compute: True
            await federation.until(lambda: federation.server.protocol.waiting_for() == (2,))
            shown = federation.server.standing()
            assert federation.server.traffic.up > shown.bytes_up + 2 * 10_000
            await federation.until(lambda: seen and seen[-1].phase == "collecting")
            assert (seen[-1].bytes_up, seen[-1].bytes_down) == (shown.bytes_up, shown.bytes_down)
            client.hold = None
            await server
            after.append(federation.server.standing().bytes_up)

    run(scenario)
    assert after == [federation.server.traffic.up] and after[0] > 3 * 10_000


def told(client: ToyClient) -> list[Waiting]:
    return [message for message in client.received if isinstance(message, Waiting)]


def test_who_is_waited_for_is_looked_up_only_now_and_then() -> None:
    """Looked up at each message, a status would time every member's work."""
    waits = Waits(lost_after=30.0)
    waits.start(100.0)
    waits.look(100.0 + NAMED_EVERY - 0.1, {0, 1, 2}, idle=False)
    named: list[tuple[int, ...] | None] = [waits.named]
    for later, awaited in ((NAMED_EVERY, {1, 2}), (NAMED_EVERY + 1, {2}), (2 * NAMED_EVERY, {2})):
        waits.look(100.0 + later, awaited, idle=False)
        named.append(waits.named)
    assert named == [None, (1, 2), (1, 2), (2,)]
    assert NAMED_EVERY + 1.0 <= 15  # a file a second after it
    assert waits.start(200.0) and waits.named is None
    assert not waits.start(201.0)
    waits.look(201.0 + NAMED_EVERY, set(), idle=False)  # some that are there
    assert waits.named == () and waiting_message(waits.named, {}, 0.0) == Waiting((), unnamed=True)
    waits.look(201.0 + 2 * NAMED_EVERY, None, idle=False)
    assert waits.named is None and waiting_message(None, {}, 0.0) == Waiting((), unnamed=False)


def test_between_epochs_who_has_come_is_waited_for_no_more_at_once() -> None:
    """A status said "waiting for a, it is there" for ten seconds after a had come: nobody computes there."""
    waits = Waits(lost_after=30.0)
    waits.start(100.0)
    assert not waits.look(101.0, {0, 1, 2}, idle=True) and waits.named is None
    assert waits.look(100.0 + NAMED_EVERY, {0, 1, 2}, idle=True)
    assert not waits.look(101.0 + NAMED_EVERY, {2}, idle=True) and waits.named == (2,)


def test_when_a_member_was_last_heard_is_told_by_its_beats_and_not_by_its_answers() -> None:
    """An answer comes when it has computed; a beat does not follow what it computes."""
    federation = Federation(3)
    server = federation.make_server()
    peer = server._peers[2] = Peer(b"route", 1.0)
    peer.hears(Beat(b"", 0), 2.0)
    peer.hears(MaskedInput(bytes(32), 0, bytes(32), bytes(16), b""), 7.0)
    server._patient.now = 10.0
    assert waiting_message((2,), server._peers, 10.0) == Waiting((Awaited(2, True, 8),), unnamed=False)
    server._lose(2, peer, "silence")
    assert federation.of("client_lost")[0]["seconds"] == 8.0
    for server._patient.now in (10.0, 12.0):
        server._watch_progress()
    assert federation.of("waiting")[0]["heard"] == {"site-2": 10.0}


PERMITTED = {
    ("client_lost", "seconds"),  # since it was last heard
    ("refused", "count"),  # of all members together
    ("rate_limited", "count"),
    ("waiting", "heard"),
}


def numbers_of_one(event: dict[str, Any], names: set[str]) -> Iterator[tuple[str, str]]:
    """Where an event tells a number of one member: beside its name, or in a table by name."""
    for key, value in event.items():
        if isinstance(value, dict) and names.intersection(value) and any(map(is_number, value.values())):
            yield event["event"], key
        if is_number(value) and event.get("client") in names:
            yield event["event"], key


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("canary", [3, 17])
def test_what_one_member_sends_and_how_often_it_errs_is_nowhere(canary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries: the bytes of each member, by its own count, and how many nonsensical messages one of them sends."""
    sent = dict.fromkeys(range(3), 0)
    send = ToyClient.send_raw

    def counted(client: ToyClient, *parts: bytes) -> None:
        sent[client.member] += sum(map(len, parts))
        send(client, *parts)

    monkeypatch.setattr(ToyClient, "send_raw", counted)
    federation = Federation(3, course=ToyCourse(1, 2, length=1000))
    seen: list[Standing] = []
    during: set[int] = set()

    async def scenario() -> None:
        async with federation.serving(stands=seen.append) as server:
            client = await computing(federation)
            for number in range(canary):
                client.send_raw(b"nonsense" * (number + 1))
                client.send(Refusal("made-up", "x", "y"))
            await federation.until(lambda: federation.server.story.refusals[2] >= canary)
            federation.clients[1].send_raw(b"nonsense")
            await federation.until(lambda: federation.server.story.refusals[1])
            during.update(sent.values())
            await asyncio.sleep(1.1)
            federation.clients[2] = client
            await client.kill()
            federation.start(2)
            await server

    run(scenario)
    found = {place for event in federation.events for place in numbers_of_one(event, NAMES)}
    assert found <= PERMITTED
    last = federation.of("refused")[-1]
    assert last["count"] > canary or last["by"] == "client"
    text = json.dumps([*federation.events, *map(asdict, seen), vars(federation.server.traffic)])
    for own in {*during, *sent.values()}:
        assert f" {own}," not in text and f" {own}}}" not in text
    for standing in seen:
        assert {key for one in standing.members for key in asdict(one)} == {"name", "present", "heard"}
