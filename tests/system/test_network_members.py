"""Attacks over the network by strangers and by members, each with its control.

The same attempt with the one forbidden thing made legitimate, or with the one defence taken out, succeeds.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import msgspec
import pytest
from zmq.utils import z85

from codream_clients.connection import REFUSED_KEY
from codream_clients.runner import ClientRunner
from codream_protocols.client import Send
from codream_protocols.errors import AggregationFailed, UnknownIdentity
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Advertisement, Beat, Hello, MaskedInput, Refusal, Welcome, encode_message
from codream_server import inbound
from codream_server.admission import RosterKeys
from codream_server.events import Events
from codream_server.settings import Timing
from secure_codream.simulation.toy_course import LaboratoryCourse
from tests.system.scenarios import MODES, NAMES, Gate, assert_all_learnt, bad_messages, everybody, opened, until, whole

# -- attacks from outside ---------------------------------------------


def test_strangers_transport_key_is_not_let_in(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            refused = net.happens("refused")
            with net.peer(parts.transport_keys()) as stranger:
                await stranger.say(parts.hello(net))
                assert (await refused)["code"] == "unknown-identity"
                with net.peer(net.keys[0]) as member:  # control: the same words with a key of the roster
                    await member.say(parts.hello(net))
                    assert isinstance(await member.hear(), Welcome)
                assert await stranger.hear(0.2) is None
            assert [event["client"] for event in net.of("client_joined")] == ["client-0"]

    net.run(scenario)


def test_client_whose_key_is_refused_from_the_beginning_ends_and_says_why(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            joined = net.happens("client_joined")
            net.start(1)
            await joined  # control: a key of the roster
            monkeypatch.setattr(RosterKeys, "callback", lambda self, domain, key: False)
            with pytest.raises(UnknownIdentity, match="it is revoked, or has another roster"):
                await net.start(0)

    net.run(scenario)


def test_refused_key_stops_nobody_who_was_once_let_in(network: Any, parts: Any) -> None:
    class Line:
        """Whoever sits on the line says it three times."""

        async def events(self) -> list[int]:
            return 3 * [int(REFUSED_KEY)]

    def runner(*, admitted: bool) -> ClientRunner:
        found = ClientRunner.__new__(ClientRunner)
        vars(found).update(_line=Line(), _admitted=admitted)
        vars(found).update(_say=lambda *words, **more: said.append(words))
        return found

    said: list[Any] = []
    asyncio.run(runner(admitted=True)._see_who_answers())
    assert len(said) == 3 and said[0][1] == "not-admitted"
    with pytest.raises(UnknownIdentity):
        asyncio.run(runner(admitted=False)._see_who_answers())


def test_revoked_clients_key_is_refused_by_its_name() -> None:
    keys = [bytes([number]) * 32 for number in range(1, 9)]
    members = tuple(Member(name, keys[2 * at], keys[2 * at + 1]) for at, name in enumerate("abc"))
    roster = Roster("study", 2, ServerEntry("tcp://127.0.0.1:1", bytes(32)), members[:2], revoked=members[2:])
    told: list[Any] = []
    admission = RosterKeys(roster, Events(told.append))
    assert admission.callback("*", z85.encode(members[0].transport_key))
    assert not admission.callback("*", z85.encode(members[2].transport_key))
    assert told[0]["client"] == "c" and told[0]["code"] == "revoked"


def test_socket_without_curve_is_not_heard(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            with net.peer(None) as plain:
                await plain.say(parts.hello(net))
                with net.peer(net.keys[0]) as member:  # control
                    await member.say(parts.hello(net))
                    assert isinstance(await member.hear(), Welcome)
                assert await plain.hear(0.2) is None
            assert [event["client"] for event in net.of("client_joined")] == ["client-0"]

    net.run(scenario)


def test_false_server_gets_nothing_from_a_client(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        with net.scripted(parts.transport_keys()[1]) as false, net.scripted() as true:
            client = net.start(0, endpoint=false.endpoint, patience=2.0)
            net.start(1, endpoint=true.endpoint)
            assert isinstance(await true.greet(), Hello)  # control: the roster's key
            with pytest.raises(AggregationFailed, match="no word from the server"):
                await client
            assert not await false.hears_anything(0.1)

    net.run(scenario)


# -- attacks by a member ---------------------------------------------


def test_message_before_hello_is_no_misdeed_and_not_taken(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            with net.peer(net.keys[0]) as peer:
                await peer.say(Beat(b"", 0))
                refusal = await peer.hear()
                assert isinstance(refusal, Refusal) and refusal.code == "hello-needed"
                assert not net.of("client_joined") and not net.of("refused")
                await peer.say(parts.hello(net))  # control
                assert isinstance(await peer.hear(), Welcome)
                assert net.of("client_joined")

    net.run(scenario)


@pytest.mark.parametrize("what", ["version", "charter"])
def test_hello_of_another_version_or_charter_is_refused(network: Any, parts: Any, what: str) -> None:
    net = network()
    other = {"version": {"versions": ("secure-codream/999",)}, "charter": {"charter": bytes(32)}}[what]

    async def scenario() -> None:
        async with net.serving():
            with net.peer(net.keys[0]) as peer:
                await peer.say(parts.hello(net, **other))
                refusal = await peer.hear()
                assert isinstance(refusal, Refusal) and refusal.code == what
                assert not net.of("client_joined")
                await peer.say(parts.hello(net))  # control
                assert isinstance(await peer.hear(), Welcome)

    net.run(scenario)


def test_garbage_of_a_member_is_refused_and_changes_nothing(network: Any, parts: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode)
    sent = 0

    def tamper(send: Send) -> list[list[bytes]]:
        nonlocal sent
        if isinstance(send.message, Hello | Beat | Refusal):
            return [parts.honest(send)]
        bad = bad_messages(encode_message(send.message), random.Random(sent))
        sent += len(bad)
        return [*([data, *send.frames] for data in bad), parts.honest(send)]  # control: the last one is taken

    last = MODES[mode] - 1
    take, unchanged, held = net.server._take, [], net.server.protocol._held

    def watched(message: Any) -> None:
        counted, before = sum(net.server.story.refusals), held()
        take(message)
        if sum(net.server.story.refusals) > counted:
            unchanged.append(before == held())

    net.server._take = watched

    async def scenario() -> None:
        async with net.serving() as server:
            for number in range(last + 1):
                net.start(number, tamper=tamper if number == last else None)
            await asyncio.gather(server, *net.tasks.values())

    net.run(scenario)
    net.assert_sums_are_right()
    assert sent >= 9 * (2 + 2 + 1)
    # The last answer may still be on its way when the federation is over.
    assert sent - 9 <= net.server.story.refusals[last] <= sent
    assert set(net.refusals()) == {(NAMES[last], "malformed")}
    assert len(unchanged) == sum(net.server.story.refusals) and all(unchanged)
    assert all(event["survivors"] == everybody(net) for event in net.of("step_finished"))


@pytest.mark.parametrize("limited", [True, False])
def test_oversized_message_never_reaches_the_server(network: Any, parts: Any, monkeypatch: Any, limited: bool) -> None:
    """The control has no limit at the socket, and the same bytes are read."""
    net = network()
    large = bytes(net.server._bounds.socket + (1 << 20))
    if not limited:
        monkeypatch.setattr(inbound.Bounds, "socket", -1)

    async def scenario() -> None:
        async with net.serving() as server:
            with net.peer(net.keys[3]) as peer:
                await peer.say(parts.hello(net))
                assert isinstance(await peer.hear(), Welcome)
                await peer.say(large)
                if limited:
                    with net.peer(net.keys[2]) as other:  # by the time that another member is answered
                        await other.say(parts.hello(net))
                        assert isinstance(await other.hear(), Welcome)
                    assert await peer.hear(0.2) is None and not net.of("refused")
                else:
                    answer = await peer.hear()
                    assert isinstance(answer, Refusal) and answer.code == "malformed"
            await asyncio.gather(server, *net.start_all())

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.of("federation_finished")


def test_impersonation_by_a_member_is_refused(network: Any, parts: Any, mode: str) -> None:
    """Client 0 says client 1's very words, signature included; on client 1's own connection they are taken."""
    net, stolen = network(MODES[mode], mode=mode), []

    def victim(send: Send) -> list[list[bytes]]:
        if isinstance(send.message, Advertisement):
            stolen.append(encode_message(send.message))
        return [parts.honest(send)]

    class Thief(ClientRunner):
        async def _send(self, effect: Send) -> None:
            if isinstance(effect.message, Advertisement):
                await until(lambda: stolen)
                # And once with its own signature over client 1's number.
                message = msgspec.structs.replace(effect.message, member=1)
                signature = Signer(net.identities[0]).sign("advertisement", *message.signed_parts())
                own = encode_message(msgspec.structs.replace(message, signature=signature))
                for words in (stolen[0], own):
                    await self._line.socket.send_multipart([words])
            await super()._send(effect)

    async def scenario() -> None:
        async with net.serving() as server:
            net.start(1, tamper=victim)
            net.start(0, kind=Thief)
            await asyncio.gather(server, *(net.start(number) for number in range(2, MODES[mode])), *net.tasks.values())

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.refusals() == {("client-0", "cohort"): 2}
    assert net.refused_without_change == [True, True]
    assert all(event["survivors"] == everybody(net) for event in net.of("step_finished"))


def test_masked_input_of_another_size_or_step_is_refused(network: Any, parts: Any, mode: str) -> None:
    """One of another plan is of an epoch that is over, perhaps, and is ignored."""
    net = network(MODES[mode], mode=mode)

    def tamper(send: Send) -> list[list[bytes]]:
        if not isinstance(send.message, MaskedInput):
            return [parts.honest(send)]
        data, frame = parts.honest(send)
        later = encode_message(msgspec.structs.replace(send.message, step=4000))
        alien = encode_message(msgspec.structs.replace(send.message, plan=bytes(32)))
        bad = [[data, frame[:-1]], [data, frame + b"\0"], [data], [data, frame, frame], [later, frame], [alien, frame]]
        return [*bad, [data, frame]]  # control: the last one is in the sum

    async def scenario() -> None:
        async with net.serving() as server:
            for number in range(MODES[mode]):
                net.start(number, tamper=tamper if number == 3 else None)
            await asyncio.gather(server, *net.tasks.values())

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.refusals() == {("client-3", "vector"): 4 * 2, ("client-3", "wrong-context"): 2}
    assert net.refused_without_change and all(net.refused_without_change)
    assert all(event["survivors"] == everybody(net) for event in net.of("step_finished"))


def test_member_at_another_state_is_told_apart_before_it_spoils_a_sum(network: Any, mode: str) -> None:
    """Its course moves the state by a hair more; the control is every other test's federation."""
    # At the end the server waits `step` seconds for who is behind; this member cannot follow.
    net = network(MODES[mode], mode=mode, timing=Timing(step=3.0, beat=0.2, lost_after=2.0))
    crooked = LaboratoryCourse(net.course.vectors, net.course.steps, net.course.epochs, bias=1e-3)

    async def scenario() -> None:
        async with net.serving() as server:
            given_up = net.happens("epoch_given_up")
            clients = [net.start(number, course=crooked if number == 3 else None) for number in range(MODES[mode])]
            if mode == "lockstep":
                assert (await given_up)["reason"] == "client-3 stands at another state of the course"
                await until(told)
                await net.stop_clients()
                return
            await asyncio.gather(server, *(client for number, client in enumerate(clients) if number != 3))

    def told() -> list[Any]:
        return [line for line in net.logs[3] if line.get("code") == "diverged"]

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.of("step_finished")[0]["survivors"] == everybody(net)
    assert told()
    if mode == "resilient":
        assert [event["survivors"] for event in net.of("step_finished")][1:] == [NAMES[:3]]
        assert_all_learnt(net, 1, (0, 1, 2))


def test_exhibit_is_never_a_masked_input_that_was_refused(network: Any, parts: Any) -> None:
    net, gate = network(exhibit=(0, 0)), Gate(0)

    def tamper(send: Send) -> list[list[bytes]]:
        if not isinstance(send.message, MaskedInput):
            return [parts.honest(send)]
        data, frame = parts.honest(send)
        return [[data, bytes(len(frame)), frame], [data, bytes(len(frame) - 1)], [data, frame]]

    async def scenario() -> None:
        async with net.serving() as server:
            for number in range(4):
                net.start(number, tamper=None if number else tamper, before=gate if number else lambda *_: None)
            await until(lambda: net.server.exhibition.masked is not None)  # the first one's, before any other's
            gate.open()
            await asyncio.gather(server, *net.tasks.values())

    with opened(gate):
        net.run(scenario)
    assert net.server.exhibition.exhibit.member == 0 and net.server.exhibition.exhibit.masked.any()
    assert net.refusals() == {("client-0", "vector"): 2 * 2}


def test_what_a_member_says_twice_is_taken_once(network: Any, parts: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, rounds=2)

    def tamper(send: Send) -> list[list[bytes]]:
        again = 1 if isinstance(send.message, Hello | Beat) else 3
        return [parts.honest(send)] * again

    net.run(lambda: whole(net, tamper=tamper))
    net.assert_sums_are_right()
    assert_all_learnt(net, 2)
    assert not net.of("epoch_given_up")
    assert len(net.sums) == 4
    # What comes again after its step is over belongs to another one; nothing else is refused.
    assert {code for _, code in net.refusals()} <= {"wrong-context", "unexpected"}
    assert all(net.refused_without_change)


def test_words_of_an_earlier_epoch_are_not_taken_in_a_later_one(network: Any, parts: Any, mode: str) -> None:
    """A member that says all of its first epoch once more, in its second."""
    net, kept = network(MODES[mode], mode=mode, rounds=2), []

    def tamper(send: Send) -> list[list[bytes]]:
        if isinstance(send.message, Hello | Beat | Refusal):
            return [parts.honest(send)]
        if net.runners[2]._protocol.certified == 0:
            kept.append(parts.honest(send))
            return [parts.honest(send)]
        return [*kept, parts.honest(send)]  # control: the last one is taken

    async def scenario() -> None:
        async with net.serving() as server:
            for number in range(MODES[mode]):
                net.start(number, tamper=tamper if number == 2 else None)
            await asyncio.gather(server, *net.tasks.values())

    net.run(scenario)
    net.assert_sums_are_right()
    assert len(kept) >= 5
    assert_all_learnt(net, 2)
    assert [event["survivors"] for event in net.of("step_finished")] == [everybody(net)] * 4


def test_flood_of_small_messages_does_not_stop_the_others(network: Any, parts: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode)
    flood = [[encode_message(Beat(b"", 0))], [b"\xc0"]] * 200
    last = MODES[mode] - 1

    def tamper(send: Send) -> list[list[bytes]]:
        quiet = isinstance(send.message, Hello | Beat)
        return [parts.honest(send)] if quiet else [*flood, parts.honest(send)]

    async def scenario() -> None:
        async with net.serving() as server:
            net.start(last, tamper=tamper)
            await asyncio.gather(server, *(net.start(number) for number in range(last)))

    net.run(scenario)
    net.assert_sums_are_right()
    assert all(event["survivors"] == everybody(net) for event in net.of("step_finished"))
    assert net.server.story.refusals[last] >= 800  # all are counted; a flood does not fill the log
    assert net.refusals()[NAMES[last], "malformed"] <= 100 + math.log2(net.server.story.refusals[last])
    assert set(net.refusals()) == {(NAMES[last], "malformed")} and not net.of("client_lost")
    assert net.server.story.dropped[last] and len(net.of("rate_limited")) <= 20
