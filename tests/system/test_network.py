"""The real runners over ZeroMQ with CURVE: whole federations, losses and returns, and attacks by name.

Each attack has its control: the same attempt with the one forbidden thing made legitimate, or with the one defence
taken out, succeeds.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from codream_clients import runner as client_runner
from codream_clients.runner import ClientRunner
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import AggregationFailed, RosterRefused, UnsupportedVersion
from codream_protocols.identity import Signer, read_roster, sign_roster
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Advertisement,
    Beat,
    Farewell,
    Hello,
    MaskedInput,
    PlanOffer,
    Refusal,
    Survivors,
    SurvivorSignature,
    UnmaskShares,
    Welcome,
    encode_message,
)
from codream_protocols.server import Phase, ServerEpoch
from codream_server import runner as server_runner
from codream_server.settings import Timing

NAMES = [f"client-{number}" for number in range(4)]
FAST = Timing(join=10.0, step=10.0, beat=0.2, lost_after=0.8, attempts=3)


def paths(network: Any) -> list[str]:
    return [event["path"] for event in network.of("step_finished")]


# -- federations ---------------------------------------------


def test_four_clients_finish_all_rounds_and_every_sum_is_the_plain_sum(network: Any) -> None:
    net = network(rounds=2)

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [net.start(number) for number in range(4)]
            await asyncio.gather(server, *clients)

    net.run(scenario)
    assert len(net.sums) == 2 * (2 + 2)
    net.assert_sums_are_right()
    assert {event["path"] for event in net.of("step_finished")} == {"fast"}
    assert [event["round"] for event in net.of("round_finished")] == [0, 1]
    assert net.events[-1]["event"] == "federation_finished"
    # On a busy machine a heartbeat may be late; what is then said twice is refused as the last epoch's.
    assert {event["code"] for event in net.of("refused")} <= {"wrong-context"}
    assert all(log[-1]["event"] == "farewell" for log in net.logs.values())


def test_traffic_is_at_most_a_tenth_more_than_the_payload(network: Any) -> None:
    net = network(steps=10, shape=(1, 32, 32), batch=8)  # 8192 coordinates, 12 steps with soft labels and metrics

    async def scenario() -> None:
        async with net.serving() as server:
            await asyncio.gather(server, *(net.start(number) for number in range(4)))

    net.run(scenario)
    net.assert_sums_are_right()
    for traffic in net.server.traffic:
        assert traffic.payload >= 10 * 8192 * 18 // 8
        assert 0 < traffic.setup < traffic.up
        assert traffic.up <= 1.10 * traffic.payload


def test_client_that_vanishes_mid_epoch_is_dropped_and_the_rest_finish(network: Any) -> None:
    net = network(rounds=2, timing=FAST)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def vanish(task: str, call: int) -> None:
            if call == 1:
                loop.call_soon_threadsafe(net.tasks[3].cancel)
                time.sleep(0.2)

        async with net.serving() as server:
            clients = [net.start(number, before=vanish if number == 3 else lambda *_: None) for number in range(4)]
            await asyncio.gather(server, *clients[:3])

    net.run(scenario)
    net.assert_sums_are_right()
    steps = net.of("step_finished")
    # In the step of its loss and in each later one of that epoch its masks must be rebuilt; then nobody is missing.
    assert paths(net) == ["fast"] + 3 * ["dropout"] + 4 * ["fast"]
    assert steps[1]["dropped"] == ["client-3"] and steps[1]["survivors"] == NAMES[:3]
    assert [event["cohort"] for event in net.of("epoch_started")] == [NAMES, NAMES[:3]]
    assert [event["client"] for event in net.of("client_lost")] == ["client-3"]


def test_client_that_restarts_has_lost_its_secrets_and_joins_the_next_epoch(network: Any) -> None:
    net = network(rounds=2)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def vanish(task: str, call: int) -> None:
            if call == 1:
                loop.call_soon_threadsafe(net.tasks[3].cancel)
                time.sleep(0.2)

        async with net.serving() as server:
            clients = [net.start(number, before=vanish if number == 3 else lambda *_: None) for number in range(4)]
            await asyncio.gather(clients[3], return_exceptions=True)
            await asyncio.gather(server, *clients[:3], net.start(3))

    net.run(scenario)
    net.assert_sums_are_right()
    first, second = net.of("step_finished")[:4], net.of("step_finished")[4:]
    assert [event["path"] for event in first] == ["fast"] + 3 * ["dropout"]
    assert all(event["survivors"] == NAMES for event in second)
    # What it was told of the running epoch it refused: it has no keys for it any more.
    assert net.refusals(by="client")["client-3", "unexpected"] >= 1


def test_client_that_falls_silent_and_comes_back_answers_later_steps_of_the_same_epoch(network: Any) -> None:
    net = network(steps=4, timing=FAST)

    class Silent(ClientRunner):
        silent = False

        async def _send(self, effect: Send) -> None:
            if not (self.silent and isinstance(effect.message, Beat)):
                await super()._send(effect)

    async def scenario() -> None:
        returned = asyncio.Event()
        loop = asyncio.get_running_loop()

        def sleep(task: str, call: int) -> None:
            if call == 1:
                Silent.silent = True
                asyncio.run_coroutine_threadsafe(lost(), loop).result(10)
                Silent.silent = False

        async def lost() -> None:
            await gone
            while len(net.of("step_finished")) < 2:
                await asyncio.sleep(0.01)

        def hold(task: str, call: int) -> None:
            if call == 2:  # step 2 goes on only when the silent one is back
                asyncio.run_coroutine_threadsafe(returned.wait(), loop).result(10)

        async with net.serving() as server:
            gone = net.happens("client_lost", client="client-3")
            clients = [net.start(0, before=hold), net.start(1), net.start(2), net.start(3, kind=Silent, before=sleep)]
            await gone
            await net.happens("client_joined", client="client-3")
            await asyncio.sleep(0.1)
            returned.set()
            await asyncio.gather(server, *clients)

    net.run(scenario)
    net.assert_sums_are_right()
    assert len(net.of("epoch_started")) == 1
    assert paths(net) == ["fast", "dropout", "fast", "fast", "fast", "fast"]
    assert net.refusals() == {("client-3", "wrong-context"): 1}  # its answer to the step that went on without it
    assert all(net.refused_without_change)


def test_too_many_lost_fails_the_epoch_and_whoever_is_there_starts_another(network: Any) -> None:
    net = network(5, timing=FAST)  # threshold 4 of 5

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def vanish(task: str, call: int) -> None:
            if call == 1:
                loop.call_soon_threadsafe(lambda: [net.tasks[number].cancel() for number in (3, 4)])
                time.sleep(0.2)

        async with net.serving() as server:
            clients = [net.start(number, before=vanish if number == 4 else lambda *_: None) for number in range(5)]
            await asyncio.gather(server, *clients[:3])

    net.run(scenario)
    net.assert_sums_are_right()
    assert len(net.of("epoch_failed")) == 1
    assert [len(event["cohort"]) for event in net.of("epoch_started")] == [5, 3]
    assert all(event["survivors"] == NAMES[:3] for event in net.of("step_finished")[1:])
    assert net.of("round_finished")


def test_federation_that_nobody_is_left_of_is_given_up(network: Any) -> None:
    net = network(timing=Timing(join=2.0, step=10.0, beat=0.2, lost_after=0.6, attempts=3))

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [net.start(number) for number in range(3)]
            with pytest.raises(AggregationFailed, match=r"[12] clients after 2 s"):
                await net.happens("client_joined", client="client-2")
                for client in clients[:2]:
                    client.cancel()
                await server

    net.run(scenario)
    assert not net.sums


def test_epochs_that_all_refuse_end_the_federation_after_the_attempts(network: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving() as server:
            for number in range(4):
                net.start(number, policy=net.policy(most_steps=1))
            with pytest.raises(AggregationFailed, match="3 failed epochs in a row"):
                await asyncio.wait_for(server, 10)

    net.run(scenario)
    assert len(net.of("epoch_failed")) == 3 and not net.sums


def test_plan_against_one_policy_is_refused_by_it_and_goes_on_without_it(network: Any) -> None:
    net = network(rounds=2)

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [
                net.start(number, policy=net.policy(most_steps=3) if number == 2 else None) for number in range(4)
            ]
            await asyncio.gather(server, *clients)

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.refusals(by="client") == {("client-2", "policy"): 2}
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {("client-0", "client-1", "client-3")}
    assert {event["path"] for event in net.of("step_finished")} == {"fast"}  # it was never a member
    assert net.logs[2][-1]["event"] == "farewell"


def test_other_recipe_is_refused_by_the_client(network: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving() as server:
            policies = [net.policy(recipe=bytes([number == 1] * 32)) for number in range(4)]
            await asyncio.gather(server, *(net.start(number, policy=policies[number]) for number in range(4)))

    net.run(scenario)
    assert net.refusals(by="client") == {("client-1", "policy"): 1}
    found = next(line for line in net.logs[1] if line.get("code") == "policy")
    assert found["found"].startswith("learning settings with digest 0000") and "0101" in found["allowed"]


def test_exhibit_is_what_the_server_saw_of_a_step(network: Any) -> None:
    net = network(exhibit=(0, 1))

    async def scenario() -> None:
        async with net.serving() as server:
            await asyncio.gather(server, *(net.start(number) for number in range(4)))

    net.run(scenario)
    seen = net.server.exhibit
    assert (seen.round, seen.step) == (0, 1)
    assert (seen.total == net.sums[1][1].total).all()
    assert (seen.masked != net.plain[0, 1, seen.member]).mean() > 0.9


# -- attacks from outside ---------------------------------------------


def test_strangers_transport_key_is_not_let_in(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            with net.peer(parts.transport_keys()) as stranger:
                await stranger.say(parts.hello(net.roster))
                assert await stranger.hear(0.5) is None
            refused = net.of("refused")[0]
            assert refused["code"] == "unknown-identity" and refused["client"].startswith("key ")
            assert not net.of("client_joined")
            with net.peer(net.keys[0]) as member:  # control: the same words with a key of the roster
                await member.say(parts.hello(net.roster))
                assert isinstance(await member.hear(), Welcome)

    net.run(scenario)


def test_socket_without_curve_is_not_heard(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            with net.peer(None) as plain:
                await plain.say(parts.hello(net.roster))
                assert await plain.hear(0.5) is None
            assert not net.of("client_joined") and sum(traffic.up for traffic in net.server.traffic) == 0
            with net.peer(net.keys[0]) as member:  # control
                await member.say(parts.hello(net.roster))
                assert isinstance(await member.hear(), Welcome)

    net.run(scenario)


def test_false_server_gets_nothing_from_a_client(network: Any, parts: Any) -> None:
    net = network()

    async def scenario(secret: bytes, hears: bool) -> None:
        with net.scripted(secret) as server:
            client = net.start(0, patience=0.6)
            assert await server.hears_anything(0.8) is hears
            with pytest.raises(AggregationFailed, match="no word from the server"):
                await client

    net.run(lambda: scenario(parts.transport_keys()[1], False))
    net.run(lambda: scenario(net.server_keys[1], True))  # control: the roster's key


# -- attacks by a member ---------------------------------------------


def test_message_before_hello_is_refused(network: Any, parts: Any) -> None:
    net = network()

    async def scenario() -> None:
        async with net.serving():
            with net.peer(net.keys[0]) as peer:
                await peer.say(Beat())
                refusal = await peer.hear()
                assert isinstance(refusal, Refusal) and refusal.code == "hello-needed"
                assert not net.of("client_joined")
                await peer.say(parts.hello(net.roster))  # control
                assert isinstance(await peer.hear(), Welcome)
                await peer.say(Beat())
                assert await peer.hear(0.3) is None
        assert net.refusals() == {("client-0", "hello-needed"): 1}

    net.run(scenario)


@pytest.mark.parametrize("what", ["version", "roster"])
def test_hello_of_another_version_or_roster_is_refused(network: Any, parts: Any, what: str) -> None:
    net = network()
    hello = Hello(("codream/999",), net.roster.hash) if what == "version" else Hello((PROTOCOL,), bytes(32))

    async def scenario() -> None:
        async with net.serving():
            with net.peer(net.keys[0]) as peer:
                await peer.say(hello)
                refusal = await peer.hear()
                assert isinstance(refusal, Refusal) and refusal.code == what
                assert not net.of("client_joined")
                await peer.say(parts.hello(net.roster))  # control
                assert isinstance(await peer.hear(), Welcome)

    net.run(scenario)


def test_client_with_another_roster_ends_with_a_typed_error(network: Any) -> None:
    net = network()
    administrator = Signer(secrets.token_bytes(32))
    newer = read_roster(sign_roster(msgspec.structs.replace(net.roster, serial=2), administrator), administrator.public)

    async def scenario() -> None:
        async with net.serving():
            with pytest.raises(RosterRefused):
                await asyncio.wait_for(net.start(0, roster=newer), 5)

    net.run(scenario)


def test_client_of_another_version_ends_with_a_typed_error(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    monkeypatch.setattr(client_runner, "PROTOCOL", "codream/999")

    async def scenario() -> None:
        async with net.serving():
            with pytest.raises(UnsupportedVersion):
                await asyncio.wait_for(net.start(0), 5)

    net.run(scenario)


def bad_messages(data: bytes, chance: random.Random) -> list[bytes]:
    """What a hostile member may make of a good message."""
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
        msgspec.msgpack.encode(["shares", bytes(32), [[0, bytes(300_000)]]]),  # a ciphertext larger than any
    ]


def test_garbage_of_a_member_is_refused_and_changes_nothing(network: Any, parts: Any) -> None:
    net = network()
    sent = 0

    def tamper(send: Send) -> list[list[bytes]]:
        nonlocal sent
        if isinstance(send.message, Hello | Beat | Refusal):
            return [parts.honest(send)]
        bad = bad_messages(encode_message(send.message), random.Random(sent))
        sent += len(bad)
        return [*([data, *send.frames] for data in bad), parts.honest(send)]  # control: the last one is taken

    async def scenario() -> None:
        async with net.serving() as server:
            await asyncio.gather(server, *(net.start(number) for number in range(3)), net.start(3, tamper=tamper))

    taken, unchanged = net.server._take, []

    def watched(message: Any) -> None:
        epoch, counted = net.server._epoch, len(net.of("refused"))
        before = net.snapshot(epoch) if epoch else None
        taken(message)
        if len(net.of("refused")) > counted:
            unchanged.append(epoch is net.server._epoch and (epoch is None or before == net.snapshot(epoch)))

    net.server._take = watched
    net.run(scenario)
    net.assert_sums_are_right()
    assert sent >= 9 * (2 + 4 * 2) - 9
    # The last answer of a round may still be on its way when the federation is over.
    assert sent - 20 <= net.refusals()["client-3", "malformed"] <= sent
    assert set(net.refusals()) == {("client-3", "malformed")}
    assert len(unchanged) == sum(net.refusals().values()) and all(unchanged)
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {tuple(NAMES)}


@pytest.mark.parametrize("limit", [1 << 20, 64 << 20])
def test_oversized_message_never_reaches_the_server(network: Any, parts: Any, monkeypatch: Any, limit: int) -> None:
    """The socket's own limit, tried at 1 MiB; the control has the real one, and the same bytes are read."""
    monkeypatch.setattr(server_runner, "MAX_MESSAGE_BYTES", limit)
    net = network(timing=FAST)
    large = bytes(2 << 20)

    async def scenario() -> None:
        async with net.serving() as server:
            with net.peer(net.keys[3]) as peer:
                await peer.say(parts.hello(net.roster))
                assert isinstance(await peer.hear(), Welcome)
                await peer.say(large)
                answer = await peer.hear(0.7)
                if limit < len(large):
                    assert answer is None and not net.of("refused")
                else:
                    assert isinstance(answer, Refusal) and answer.code == "malformed"
            await asyncio.gather(server, *(net.start(number) for number in range(3)), net.start(3))

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.of("federation_finished")


def test_impersonation_by_a_member_is_refused(network: Any, parts: Any) -> None:
    """Client 0 says client 1's very words, signature included; on client 1's own connection they are taken."""
    net = network()
    stolen: list[bytes] = []

    def victim(send: Send) -> list[list[bytes]]:
        if isinstance(send.message, Advertisement):
            stolen.append(encode_message(send.message))
        return [parts.honest(send)]

    def thief(send: Send) -> list[list[bytes]]:
        if isinstance(send.message, Advertisement):
            # And once with its own signature over client 1's number.
            message = msgspec.structs.replace(send.message, member=1)
            signature = Signer(net.identities[0]).sign("advertisement", *message.signed_parts())
            own = encode_message(msgspec.structs.replace(message, signature=signature))
            return [[stolen[0]], [own], parts.honest(send)]
        return [parts.honest(send)]

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [net.start(1, tamper=victim), net.start(2), net.start(3)]

            class Late(ClientRunner):  # answers the plan after client 1 has
                tamper = staticmethod(thief)

                async def _send(self, effect: Send) -> None:
                    if isinstance(effect.message, Advertisement):
                        while not stolen:
                            await asyncio.sleep(0.01)
                    for message in self.tamper(effect):
                        await self._socket.send_multipart(message)

            await asyncio.gather(server, *clients, net.start(0, kind=Late))

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.refusals() == {("client-0", "cohort"): 2}
    assert net.refused_without_change == [True, True]
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {tuple(NAMES)}


def test_masked_input_of_another_size_or_broadcast_is_refused(network: Any, parts: Any) -> None:
    net = network(exhibit=(0, 0))

    def tamper(send: Send) -> list[list[bytes]]:
        if not isinstance(send.message, MaskedInput):
            return [parts.honest(send)]
        data, frame = parts.honest(send)
        other = encode_message(msgspec.structs.replace(send.message, broadcast=bytes(32)))
        later = encode_message(msgspec.structs.replace(send.message, step=4000))
        bad = [[data, frame[:-1]], [data, frame + b"\0"], [data], [data, frame, frame], [other, frame], [later, frame]]
        return [*bad, [data, frame]]  # control: the last one is in the sum

    async def scenario() -> None:
        async with net.serving() as server:
            await asyncio.gather(server, *(net.start(number) for number in range(3)), net.start(3, tamper=tamper))

    net.run(scenario)
    net.assert_sums_are_right()
    assert net.refusals() == {("client-3", "vector"): 4 * 4, ("client-3", "wrong-context"): 2 * 4}
    assert len(net.refused_without_change) >= 20 and all(net.refused_without_change)
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {tuple(NAMES)}


def test_exhibit_is_never_a_masked_input_that_was_refused(network: Any, parts: Any) -> None:
    net = network(exhibit=(0, 0))

    def tamper(send: Send) -> list[list[bytes]]:
        if not isinstance(send.message, MaskedInput):
            return [parts.honest(send)]
        data, frame = parts.honest(send)
        other = encode_message(msgspec.structs.replace(send.message, broadcast=bytes(32)))
        return [[other, bytes(len(frame))], [data, frame]]

    def slowly(task: str, call: int) -> None:
        time.sleep(0.3)

    async def scenario() -> None:
        async with net.serving() as server:
            others = [net.start(number, before=slowly) for number in range(3)]
            await asyncio.gather(server, *others, net.start(3, tamper=tamper))

    net.run(scenario)
    assert net.server.exhibit.member == 3 and net.server.exhibit.masked.any()


def test_flood_of_small_messages_does_not_stop_the_others(network: Any, parts: Any) -> None:
    net = network(timing=Timing(join=10.0, step=10.0, beat=0.2, lost_after=5.0))
    flood = [[encode_message(Beat())], [b"\xc0"]] * 200

    def tamper(send: Send) -> list[list[bytes]]:
        quiet = isinstance(send.message, Hello | Beat)
        return [parts.honest(send)] if quiet else [*flood, parts.honest(send)]

    async def scenario() -> None:
        async with net.serving() as server:
            net.start(3, tamper=tamper)
            await asyncio.gather(server, *(net.start(number) for number in range(3)))

    net.run(scenario)
    net.assert_sums_are_right()
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {tuple(NAMES)}
    assert net.server.refusals[3] >= 1000  # all are counted and answered; a flood does not fill the log
    assert net.refusals()["client-3", "malformed"] <= 100 + math.log2(net.server.refusals[3])
    assert set(net.refusals()) == {("client-3", "malformed")} and not net.of("client_lost")


# -- a malicious server ---------------------------------------------


def epoch_of(net: Any, **changes: Any) -> ServerEpoch:
    plan = net.coordinator.next_plan([0, 1, 2, 3])
    net.plan = msgspec.structs.replace(plan, **changes)
    return ServerEpoch(net.plan, net.roster)


async def set_up(net: Any, server: Any) -> ServerEpoch:
    """Four clients with the keys of an epoch, ready for its first step."""
    for number in range(4):
        net.start(number, before=net.before)
        assert await server.greet() == number
    epoch = epoch_of(net)
    await server.perform(epoch, epoch.start(), lambda: epoch.phase is Phase.READY)
    return epoch


async def honest_step(net: Any, server: Any, epoch: ServerEpoch) -> None:
    """A whole step, as an honest server would do it; its sum is right."""
    step, ready = epoch._next_step, (Phase.READY, Phase.FINISHED)
    clips, arrays = net.coordinator.broadcast(step)
    effects = epoch.begin_step(clips, arrays)
    (reveal,) = await server.perform(epoch, effects, lambda: epoch.phase in ready)
    net.sums.append((0, reveal, epoch.plan.modulus_bits))
    net.assert_sums_are_right()


@pytest.fixture
def malicious(network: Any) -> Callable[..., None]:
    """Runs a scenario against four real clients whose server says what it likes."""

    def play(scenario: Callable[..., Any], **options: Any) -> Any:
        net = network(**options)
        net.before = lambda task, call: None

        async def whole() -> None:
            with net.scripted() as server:
                await scenario(net, server)

        net.run(whole)
        return net

    return play


def test_garbage_from_the_server_is_refused_and_the_client_goes_on(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        epoch = await set_up(net, server)
        await honest_step(net, server, epoch)  # control: what fits is answered
        data = encode_message(PlanOffer(net.plan))
        for bad in bad_messages(data, random.Random(1)):
            await server.say(0, bad)
            assert (await server.answer(0, Refusal)).code == "malformed"
        await server.say(0, encode_message(Farewell(b"", "x")), (b"frame",))
        assert (await server.answer(0, Refusal)).code == "vector"
        await server.say(0, Survivors(epoch.digest, 0, (0, 1, 2, 3)), (b"x",) * 9)
        assert (await server.answer(0, Refusal)).code == "malformed"  # too many frames
        await honest_step(net, server, epoch)

    malicious(scenario)


def test_plan_against_the_policy_is_refused_over_the_wire(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        net.start(0, policy=net.policy(least_survivors=4))
        await server.greet()
        epoch = epoch_of(net)
        await server.say(0, PlanOffer(epoch.plan))
        refusal = await server.answer(0, Refusal)
        assert refusal.code == "policy" and refusal.found == "survivors at least: 3"
        unsafe = msgspec.structs.replace(epoch.plan, threshold=2)
        await server.say(0, PlanOffer(unsafe))
        assert (await server.answer(0, Refusal)).code == "unsafe-plan"
        allowed = msgspec.structs.replace(epoch.plan, epoch=7, least_survivors=4)  # control
        await server.say(0, PlanOffer(allowed))
        assert (await server.answer(0, Advertisement)).plan == allowed.digest

    malicious(scenario)


class OneSetRuleOff(ClientProtocol):
    def _rule_one_survivor_set(self, current: Any, members: Any) -> None:
        return None


@pytest.mark.parametrize("protocol", [ClientProtocol, OneSetRuleOff])
def test_second_survivor_set_is_refused_over_the_wire(malicious: Any, protocol: type[ClientProtocol]) -> None:
    async def scenario(net: Any, server: Any) -> None:
        for number in range(4):
            net.start(number, protocol=protocol if number == 0 else ClientProtocol)
            await server.greet()
        epoch = epoch_of(net)
        await server.perform(epoch, epoch.start(), lambda: epoch.phase is Phase.READY)
        effects = epoch.begin_step(*net.coordinator.broadcast(0))
        await server.perform(epoch, effects, lambda: epoch.phase is Phase.UNMASKING)
        answered = set()
        while len(answered) < 4:
            route, message, _ = await server.receive()
            assert isinstance(message, UnmaskShares)
            answered.add(route)
        await server.say(0, Survivors(epoch.digest, 0, (0, 1, 2)))
        if protocol is OneSetRuleOff:  # control: without the rule it signs the second set
            assert (await server.answer(0, SurvivorSignature)).step == 0
            return
        assert (await server.answer(0, Refusal)).code == "second-survivor-set"
        await server.say(0, Survivors(epoch.digest, 0, (0, 1, 2, 3)))  # the first, again: the same bytes, again
        repeated = await server.answer(0, UnmaskShares)
        epoch.receive(0, repeated)
        for member in (1, 2, 3):
            await server.say(member, Survivors(epoch.digest, 0, (0, 1, 2, 3)))
            epoch.receive(member, await server.answer(member, UnmaskShares))
        await honest_step(net, server, epoch)  # and it goes on

    malicious(scenario)


def test_conflicting_broadcast_is_refused_over_the_wire(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        epoch = await set_up(net, server)
        clips, (dreams,) = net.coordinator.broadcast(0)
        first = next(effect for effect in epoch.begin_step(clips, [dreams]) if effect.member == 0)
        await server.say(0, first.message, first.frames)
        masked = await server.answer(0, MaskedInput)
        assert masked.broadcast == first.message.digest(first.frames)
        zeros = (bytes(len(first.frames[0])),)  # a state whose update the server can foresee
        await server.say(0, first.message, zeros)
        assert (await server.answer(0, Refusal)).code == "conflicting-broadcast"
        await server.say(1, first.message, zeros)  # control: a client that has seen no other takes it
        assert (await server.answer(1, MaskedInput)).broadcast == first.message.digest(zeros)
        await server.say(0, first.message, first.frames)  # the same again: the same bytes again
        assert await server.answer(0, MaskedInput) == masked
        again = epoch_of(net, epoch=1)  # and it goes on, in a new epoch
        await server.perform(again, again.start(), lambda: again.phase is Phase.READY)
        assert again.members == (0, 1, 2, 3)

    malicious(scenario)


def test_nothing_secret_is_in_logs_and_refusals(network: Any, parts: Any) -> None:
    net = network()
    drawn: list[bytes] = []
    heard: list[Any] = []

    def random_bytes(count: int) -> bytes:
        drawn.append(secrets.token_bytes(count))
        return drawn[-1]

    async def scenario() -> None:
        with net.scripted() as server:
            for number in range(4):
                net.start(number, random_bytes=random_bytes)
                await server.greet()
            epoch = epoch_of(net)
            await server.perform(epoch, epoch.start(), lambda: epoch.phase is Phase.READY)
            effects = epoch.begin_step(*net.coordinator.broadcast(0))
            await server.perform(epoch, effects, lambda: epoch.phase is Phase.READY)
            for member in range(4):
                for bad in (
                    *bad_messages(encode_message(PlanOffer(net.plan)), random.Random(0)),
                    PlanOffer(msgspec.structs.replace(net.plan, epoch=1, threshold=2)),
                    PlanOffer(msgspec.structs.replace(net.plan, epoch=1, value_bits=31, modulus_bits=32)),
                    Survivors(epoch.digest, 0, (0, 1, 2)),
                    Survivors(bytes(32), 0, (0, 1, 2)),
                ):
                    await server.say(member, bad)
                    while True:
                        _, message, _ = await server.receive()
                        if isinstance(message, Refusal):
                            break
                    heard.append(message)

    net.run(scenario)
    assert len(heard) == 4 * 13
    text = repr(net.logs) + repr(heard)
    shown = text.encode()
    needles = [*net.identities, *(secret for _, secret in net.keys), *(one for one in drawn if len(one) >= 16)]
    assert len(needles) >= 8 + 4 * 3
    for needle in needles:
        for piece in (needle[:16], needle[-16:]):
            assert piece.hex() not in text and piece not in shown
            assert base64.b64encode(piece)[:20] not in shown and repr(piece)[2:-1] not in text
