"""The real runners over ZeroMQ with CURVE: whole federations, losses and returns, lies, and attacks by name.

Each attack has its control: the same attempt with the one forbidden thing made legitimate, or with the one defence
taken out, succeeds. Nothing here waits for a time to pass where it could wait for something to happen.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_clients import runner as client_runner
from codream_clients.runner import ALLOWED, ClientRunner
from codream_protocols import hybrid
from codream_protocols.charter import Offer
from codream_protocols.client import MOST_SKIPPED_EPOCHS, ClientProtocol, Send
from codream_protocols.encoding import integers
from codream_protocols.errors import AddressRefused, AggregationFailed, CharterRefused, UnsupportedVersion
from codream_protocols.identity import Signer
from codream_protocols.messages import (
    Advertisement,
    Beat,
    Certificate,
    EpochRecord,
    Farewell,
    Hello,
    Invitation,
    MaskedInput,
    Published,
    Refusal,
    SealDelivery,
    StepRecord,
    Survivors,
    SurvivorSignature,
    UnmaskShares,
    Vote,
    Welcome,
    encode_message,
)
from codream_protocols.packing import pack, unpack
from codream_protocols.server import InMemory, Phase, SendTo, ServerProtocol
from codream_protocols.tag import TagKey, tag_bytes, tag_number
from codream_server import inbound
from codream_server import runner as server_runner
from codream_server.record_folder import RecordFolder
from codream_server.settings import Timing
from secure_codream.simulation.sockets import PERMISSIVE, Tap
from secure_codream.simulation.wire import LaboratoryCourse

MODES = {"lockstep": 4, "resilient": 6}  # members: resilient, two blocks of three
NAMES = [f"client-{number}" for number in range(6)]
FAST = Timing(step=120.0, beat=0.2, lost_after=2.0)


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


# -- federations ---------------------------------------------


def test_federation_finishes_all_rounds_and_every_sum_is_the_plain_sum(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, rounds=2)
    net.run(lambda: whole(net))
    assert len(net.sums) == 2 * 2
    net.assert_sums_are_right()
    assert_all_learnt(net, 2)
    assert set(paths(net)) == {"fast"}
    assert [event["round"] for event in net.of("round_finished")] == [0, 1]
    assert all(event["survivors"] == everybody(net) for event in net.of("step_finished"))
    assert net.events[-1]["event"] == "federation_finished"
    assert not net.of("refused") and not net.of("epoch_given_up") and not net.of("client_lost")
    # Whatever a last member had still to learn when the farewell came, it has learnt, and said so.
    assert all({"farewell", "learnt"} <= {line["event"] for line in net.logs[number]} for number in net.logs)


def test_traffic_is_at_most_a_tenth_more_than_the_payload(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, steps=12, length=16_384)
    net.run(lambda: whole(net))
    net.assert_sums_are_right()
    for traffic in net.server.traffic:
        assert traffic.payload >= 12 * 16_384 * 18 // 8
        assert 0 < traffic.setup < traffic.up
        assert traffic.up <= 1.10 * traffic.payload
        assert traffic.down <= 1.15 * traffic.payload  # a sum for a vector, and what others have said


def test_lockstep_waits_for_who_vanished_and_begins_anew_with_all_when_it_is_back(network: Any) -> None:
    net, gate = network(rounds=2, timing=FAST), Gate(1)

    async def scenario() -> None:
        async with net.serving() as server:
            first = net.happens("step_finished", step=0)
            lost, waiting = net.happens("client_lost"), net.happens("waiting", phase="collecting")
            clients = [net.start(number, before=gate if number == 3 else lambda *_: None) for number in range(4)]
            await first
            await net.stop_clients([3])
            gate.open()
            assert (await lost)["client"] == "client-3"
            said = await waiting
            assert said["clients"] == said["lost"] == ["client-3"] and said["seconds"] > 0
            assert not net.of("epoch_given_up") and not server.done()
            await asyncio.gather(server, *clients[:3], net.start(3))

    with opened(gate):
        net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 2)
    (given_up,) = net.of("epoch_given_up")
    assert "client-3 was started again" in given_up["reason"] and not given_up["wrong_sum"]
    started = net.of("epoch_started")
    assert [event["round"] for event in started] == [0, 0, 1]
    assert all(event["cohort"] == NAMES[:4] for event in started)
    # What was begun in the first attempt is counted: one step, or two if the sum had reached it before its end.
    assert net.diaries[3].memory.attempts == 0 and net.diaries[3].memory.steps in (1 + 4, 2 + 4)


def test_resilient_goes_on_without_the_block_of_who_vanished_which_catches_up(network: Any) -> None:
    net, gate, held = network(6, mode="resilient", rounds=2, timing=FAST), Gate(1), Gate(2)

    async def scenario() -> None:
        async with net.serving() as server:
            first, certified = net.happens("step_finished", step=0), net.happens("round_finished", round=0)
            # The second epoch waits for who was lost in the first.
            before = {4: gate, 0: held}
            clients = [net.start(number, before=before.get(number, lambda *_: None)) for number in range(6)]
            await first
            await net.stop_clients([4])
            gate.open()
            await certified
            back = net.happens("client_joined", client="client-4")
            clients[4] = net.start(4)
            await back
            held.open()
            await asyncio.gather(server, *clients)

    with opened(gate, held):
        net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 2)
    one, other = net.of("step_finished")[:2]
    assert one["survivors"] == NAMES and one["path"] == "fast"
    assert other["survivors"] == NAMES[:3] and other["dropped"] == NAMES[3:] and other["path"] == "dropout"
    assert not net.of("epoch_given_up")
    finished = net.of("round_finished")[0]
    assert "client-4" not in finished["votes"] and len(finished["votes"]) >= 4


def test_who_is_away_for_a_whole_epoch_in_resilient_mode_is_told_of_it(network: Any) -> None:
    """Its block is not invited; those of it that are there certify all the same, by the record that they are shown."""
    net = network(6, mode="resilient", rounds=3, timing=FAST)

    async def scenario() -> None:
        async with net.serving() as server:
            first, second = (net.happens("round_finished", round=number) for number in (0, 1))
            lost = net.happens("client_lost", client="client-5")
            gates[0].open()
            clients = [net.start(number, before=gates[number]) for number in range(6)]
            await first
            await net.stop_clients([5])
            await lost
            for gate in gates:  # whoever was invited with it answers only now
                gate.open()
            await second
            clients[5] = net.start(5)
            await asyncio.gather(server, *clients)

    gates = [Gate(2) for _ in range(6)]
    with opened(*gates):
        net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 3)


def test_client_that_falls_silent_and_comes_back_goes_on_in_the_same_epoch(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, steps=4, timing=FAST)
    silent, held = Gate(1), Gate(2)

    class Silent(ClientRunner):
        async def _send(self, effect: Send) -> None:
            if silent.passed.is_set() or self._progress[1] == 0 or not isinstance(effect.message, Beat):
                await super()._send(effect)

    async def scenario() -> None:
        async with net.serving() as server:
            lost, last = net.happens("client_lost"), len(net.keys) - 1
            before = {last: silent, 0: held}
            for number in range(last):
                net.start(number, before=before.get(number, lambda *_: None))
            net.start(last, kind=Silent, before=silent)
            assert (await lost)["client"] == NAMES[last]
            back = net.happens("client_joined", client=NAMES[last])
            if mode == "resilient":
                await until(lambda: len(net.of("step_finished")) == 2)  # its block has left the step
            silent.open()
            await back
            held.open()
            await asyncio.gather(server, *net.tasks.values())

    with opened(silent, held):
        net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 1)
    assert len(net.of("epoch_started")) == 1 and not net.of("epoch_given_up")
    if mode == "lockstep":
        assert paths(net) == 4 * ["fast"]
    else:  # back in the step that was held for it
        assert paths(net) == ["fast", "dropout", "fast", "fast"]
    assert all(net.refused_without_change)


def test_broken_lines_cost_no_keys(network: Any, mode: str) -> None:
    """Every connection is broken in the middle of a step; the very epoch goes on, with the same bytes said again."""
    net, tap, gate = network(MODES[mode], mode=mode, steps=3), Tap(), Gate(1)

    async def scenario() -> None:
        async with net.serving() as server, tap.listening(net.endpoint) as endpoint:
            first = net.happens("step_finished", step=0)
            for number in range(len(net.keys)):
                net.start(number, endpoint=endpoint, before=gate if number == 0 else lambda *_: None)
            await first
            before = len(tap.up)
            tap.cut()
            await until(lambda: len(tap.up) >= before + len(net.keys))
            gate.open()
            await asyncio.gather(server, *net.tasks.values())

    with opened(gate):
        net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 1)
    assert len(net.of("epoch_started")) == 1 and not net.of("epoch_given_up")
    assert set(paths(net)) == {"fast"}


@pytest.mark.parametrize("remembers", [True, False])
def test_server_that_starts_again_goes_on_from_its_record_or_is_given_it(
    network: Any, mode: str, remembers: bool, tmp_path: Path
) -> None:
    def folder(name: str) -> RecordFolder:
        return RecordFolder(tmp_path / name, roster=b"roster", charter=b"charter")

    first = folder("first")
    net, gate = network(MODES[mode], mode=mode, rounds=3, journal=first), Gate(3)

    async def scenario() -> None:
        async with net.serving() as server:
            begun = net.happens("step_finished", round=1, step=0)
            clients = [
                net.start(number, before=gate if number == 0 else lambda *_: None) for number in range(len(net.keys))
            ]
            await begun
        assert server.cancelled()
        first.close()
        second = folder("first" if remembers else "second")
        net.journal = second
        restarted = net.make_server(certified=second.epochs())
        assert restarted.protocol.certified == (1 if remembers else 0)
        async with net.serving(restarted) as server:
            gate.open()
            await asyncio.gather(server, *clients)
        second.close()

    with opened(gate):
        net.run(scenario)
    net.assert_sums_are_right()
    if remembers:
        assert_all_learnt(net, 3)
    assert [count for count, _ in net.learnt(1)] == [1, 2, 3]  # nothing twice
    assert [event["certified"] for event in net.of("federation_started")] == [0, 1 if remembers else 0]
    assert len(list((tmp_path / ("first" if remembers else "second")).glob("epoch-*.record"))) == 3
    assert [event["round"] for event in net.of("epoch_started")] == [0, 1, 1, 2]


def test_client_that_is_killed_after_its_vote_goes_on_with_what_it_voted_for(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, rounds=2, timing=FAST)
    heard = threading.Event()

    class Mute(ClientRunner):
        """Its vote is on its disk, and lost on the way."""

        async def _send(self, effect: Send) -> None:
            if isinstance(effect.message, Vote):
                heard.set()
            elif not heard.is_set():
                await super()._send(effect)

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [net.start(number, kind=Mute if number == 1 else ClientRunner) for number in range(len(net.keys))]
            await until(heard.is_set)
            await net.stop_clients([1])
            # In resilient mode the others' votes may be enough, and their certificate may have reached it.
            assert net.diaries[1].memory.vote is not None or mode == "resilient"
            clients[1] = net.start(1)
            await asyncio.gather(server, *clients)

    net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 2, [number for number in range(len(net.keys)) if number != 1])
    # Where the certificate had reached it, it was killed before its learner was told; here nothing recalls that epoch.
    assert [count for count, _ in net.learnt(1)] in ([1, 2], [2] if mode == "resilient" else [1, 2])
    assert [event["round"] for event in net.of("epoch_started") if event["round"] == 0] == [0]
    assert not net.of("epoch_given_up")


# -- patience ---------------------------------------------


def test_client_that_computes_longer_than_lost_after_while_it_beats_is_never_lost(network: Any, mode: str) -> None:
    step = 1.0 if mode == "lockstep" else 60.0  # which resilient mode has for a single one that all others wait for
    net = network(MODES[mode], mode=mode, timing=Timing(step=step, beat=0.2, lost_after=1.5))
    gate = Gate(1)

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [
                net.start(number, before=gate if number == 2 else lambda *_: None) for number in range(len(net.keys))
            ]
            # Said after `lost_after`, then after twice as long again: by then it has computed for three times that.
            await until(lambda: len(net.of("waiting", phase="collecting")) == 2)
            gate.open()
            await asyncio.gather(server, *clients)

    with opened(gate):
        net.run(scenario)
    net.assert_sums_are_right()
    assert not net.of("client_lost") and not net.of("epoch_given_up")
    assert all(event["clients"] == ["client-2"] and event["lost"] == [] for event in net.of("waiting"))
    assert set(paths(net)) == {"fast"}


def test_server_whose_loop_was_held_up_forgives_the_silence(network: Any, mode: str) -> None:
    net, gate = network(MODES[mode], mode=mode, timing=FAST), Gate(1)

    async def scenario() -> None:
        async with net.serving() as server:
            first = net.happens("step_finished", step=0)
            clients = [
                net.start(number, before=gate if number == 0 else lambda *_: None) for number in range(len(net.keys))
            ]
            await first
            for _ in range(2):
                time.sleep(2 * FAST.lost_after)  # the server's own loop: it hears nobody meanwhile
                await asyncio.sleep(0.3)
            gate.open()
            await asyncio.gather(server, *clients)

    with opened(gate):
        net.run(scenario)
    net.assert_sums_are_right()
    assert not net.of("client_lost") and not net.of("epoch_given_up")


def test_training_before_the_first_round_keeps_nobody_from_being_there(network: Any) -> None:
    net, trained = network(timing=FAST), threading.Event()

    async def scenario() -> None:
        async with net.serving() as server:
            begun = net.happens("step_started")
            clients = net.start_all(prepare=lambda: trained.wait(120))
            await begun  # the set-up needs no model
            trained.set()
            await asyncio.gather(server, *clients)

    try:
        net.run(scenario)
    finally:
        trained.set()
    net.assert_sums_are_right()
    assert not net.of("client_lost")


def test_federation_that_too_few_join_is_given_up_where_a_limit_is_set(network: Any) -> None:
    net = network(timing=Timing(join=1.0, beat=0.2, lost_after=30.0))

    async def scenario() -> None:
        async with net.serving() as server:
            clients = [net.start(number) for number in range(3)]
            with pytest.raises(AggregationFailed, match=r"[0-3] of 4 clients after 1 s"):
                await server
            for client in clients:
                with pytest.raises(AggregationFailed, match="given up"):
                    await client

    net.run(scenario)
    assert not net.sums


def test_address_that_is_taken_is_refused(network: Any) -> None:
    net, other = network(), network()

    async def scenario() -> None:
        async with net.serving():
            other.endpoint = net.endpoint
            with pytest.raises(AddressRefused, match="in use"):
                await other.make_server().run()

    net.run(scenario)


# -- clients that refuse ---------------------------------------------


def test_invitations_that_all_refuse_end_the_federation(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode)

    async def scenario() -> None:
        async with net.serving() as server:
            net.start_all(policy=msgspec.structs.replace(PERMISSIVE, most_steps=1))
            with pytest.raises(AggregationFailed, match=r"3 invitations in a row refused by everybody \(policy"):
                await server

    net.run(scenario)
    assert len(net.of("epoch_given_up")) == 3 and not net.sums
    assert set(net.refusals(by="client")) == {(name, "policy") for name in everybody(net)}
    found = next(line for line in net.logs[1] if line.get("code") == "policy")
    assert found["found"] == "steps: 2" and found["allowed"] == "1 or fewer" and found["level"] == "error"
    # The server's operator reads no more than the code says.
    assert {event["allowed"] for event in net.of("refused")} == {ALLOWED["policy"]}


def test_one_policy_that_refuses_costs_its_block_in_resilient_mode(network: Any) -> None:
    net = network(6, mode="resilient", rounds=2)

    async def scenario() -> None:
        strict = msgspec.structs.replace(PERMISSIVE, most_steps=1)
        async with net.serving() as server:
            await asyncio.gather(server, *(net.start(one, policy=strict if one == 2 else None) for one in range(6)))

    net.run(scenario)
    net.assert_sums_are_right()
    assert set(net.refusals(by="client")) == {("client-2", "policy")}
    assert {tuple(event["survivors"]) for event in net.of("step_finished")} == {tuple(NAMES[3:])}
    assert_all_learnt(net, 2)  # who takes no part sees the record all the same


def test_one_policy_that_refuses_stops_lockstep_which_says_who(network: Any) -> None:
    net = network(timing=FAST)

    async def scenario() -> None:
        async with net.serving() as server:
            said = net.happens("waiting", phase="idle")
            strict = msgspec.structs.replace(PERMISSIVE, most_steps=1)
            clients = [net.start(number, policy=strict if number == 2 else None) for number in range(4)]
            assert (await said)["refusing"] == {"client-2": "policy"}
            assert not server.done() and not net.sums
            await net.stop_clients([2])
            clients[2] = net.start(2)  # with its policy put right
            await asyncio.gather(server, *clients)

    net.run(scenario)
    net.assert_sums_are_right()
    assert_all_learnt(net, 1)


@pytest.mark.parametrize("what", ["settings", "roster"])
def test_client_with_another_charter_ends_with_a_typed_error(network: Any, what: str) -> None:
    net = network()
    roster = net.roster if what == "settings" else msgspec.structs.replace(net.roster, serial=2)
    charter = msgspec.structs.replace(net.charter, roster=roster.hash, settings=bytes([what == "settings"] * 32))

    async def scenario() -> None:
        async with net.serving():
            with pytest.raises(CharterRefused, match=r"compare roster\.json and config\.toml"):
                await asyncio.wait_for(net.start(0, roster=roster, charter=charter), 60)
            assert not net.of("client_joined")

    net.run(scenario)


def test_client_of_another_version_ends_with_a_typed_error(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    monkeypatch.setattr(client_runner, "PROTOCOL", "secure-codream/999")

    async def scenario() -> None:
        async with net.serving():
            with pytest.raises(UnsupportedVersion):
                await asyncio.wait_for(net.start(0), 60)

    net.run(scenario)


def test_exhibit_is_what_the_server_saw_of_a_step(network: Any, mode: str) -> None:
    net = network(MODES[mode], mode=mode, exhibit=(0, 1))
    net.run(lambda: whole(net))
    seen, made = net.server.exhibit, net.sums[1]
    assert (seen.round, seen.step) == (0, 1)
    assert (seen.total == made.finished.total).all()
    assert (seen.masked != net.plain[made.plan, 1, seen.member]).mean() > 0.9


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
        counted, before = sum(net.server.refusals), held()
        take(message)
        if sum(net.server.refusals) > counted:
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
    assert sent - 9 <= net.server.refusals[last] <= sent
    assert set(net.refusals()) == {(NAMES[last], "malformed")}
    assert len(unchanged) == sum(net.server.refusals) and all(unchanged)
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
                    await self._socket.send_multipart([words])
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
    assert net.refusals() == {("client-3", "vector"): 4 * 2, ("client-3", "wrong-context"): 2 * 2}
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
                net.start(
                    number, tamper=tamper if number == 3 else None, before=gate if number < 3 else lambda *_: None
                )
            await until(lambda: net.server._masked is not None)  # the first one's, before any other's
            gate.open()
            await asyncio.gather(server, *net.tasks.values())

    with opened(gate):
        net.run(scenario)
    assert net.server.exhibit.member == 3 and net.server.exhibit.masked.any()
    assert net.refusals() == {("client-3", "vector"): 2 * 2}


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
    assert net.server.refusals[last] >= 800  # all are counted; a flood does not fill the log
    assert net.refusals()[NAMES[last], "malformed"] <= 100 + math.log2(net.server.refusals[last])
    assert set(net.refusals()) == {(NAMES[last], "malformed")} and not net.of("client_lost")
    assert net.server.dropped[last] and len(net.of("rate_limited")) <= 20


# -- a server that lies about sums ---------------------------------------------


class AnySum(ClientProtocol):
    """A client that takes whatever sum it is told."""

    def _rule_true_sum(self, plan: Any, tag_key: Any, message: Any, frame: bytes) -> None:
        return None


def changed(net: Any, effect: SendTo, amount: int, group_key: bytes | None = None) -> SendTo:
    """A published sum with `amount` added to its first number, and where a colluder tells the key, a tag that fits."""
    plan, message = net.server.protocol.plan, effect.message
    words = unpack(effect.frames[0], plan.spec(message.step).words, plan.modulus_bits)
    forged = words.copy()
    forged[0] = int(words[0]) + amount
    if group_key is not None:
        public = net.server.protocol._epoch.public
        key = TagKey(hybrid.tag_secret(group_key, message.step, public.links[message.step]), len(words))
        before, after = (key.of(integers(plan, message.step, part)) for part in (words, forged))
        message = msgspec.structs.replace(
            message, tag=tag_bytes((tag_number(message.tag) + after - before) % (1 << 128))
        )
    return SendTo(effect.member, message, (pack(forged, plan.modulus_bits),))


def doubled(net: Any, effect: SendTo) -> SendTo:
    """Sum and tag, both halved where that goes: the tag is linear, the pads are not."""
    plan, message = net.server.protocol.plan, effect.message
    words = unpack(effect.frames[0], plan.spec(message.step).words, plan.modulus_bits) // 2
    tag = tag_bytes(tag_number(message.tag) // 2)
    return SendTo(effect.member, msgspec.structs.replace(message, tag=tag), (pack(words, plan.modulus_bits),))


LIES: dict[str, tuple[Any, Any]] = {
    "another sum to one": (lambda member: member == 1, lambda net, effect: changed(net, effect, 1)),
    "another sum to all": (lambda member: True, lambda net, effect: changed(net, effect, 1)),
    "a scaled sum": (lambda member: True, doubled),
}


@pytest.mark.parametrize("protocol", [ClientProtocol, AnySum])
@pytest.mark.parametrize("what", LIES)
def test_false_sum_is_said_loudly_and_nothing_is_learnt_from_it(
    network: Any, mode: str, what: str, protocol: type[ClientProtocol]
) -> None:
    told, change = LIES[what]

    def lie(effect: SendTo) -> list[SendTo]:
        message = effect.message
        false = isinstance(message, Published) and message.step == 1 and told(effect.member)
        return [change(net, effect) if false else effect]

    class Noted(protocol):  # type: ignore[misc, valid-type]
        def _cast_vote(self, public: Any) -> Any:
            voted[self._member] = list(public.frames)
            return super()._cast_vote(public)

    net, voted = network(MODES[mode], mode=mode, steps=2, lie=lie, timing=FAST), {}
    liars = [number for number in range(MODES[mode]) if told(number)]
    others_are_enough = mode == "resilient" and what == "another sum to one"

    async def scenario() -> None:
        async with net.serving():
            net.start_all(protocol=Noted)
            if protocol is ClientProtocol:
                await until(lambda: all(seen(number) for number in liars))
                if others_are_enough:
                    await until(lambda: net.published)
            else:  # control: without the rule a client takes the false sum, and votes for what follows from it
                await until(lambda: all(number in voted for number in liars))
            await net.stop_clients()

    def seen(number: int) -> list[Any]:
        return [line for line in net.logs[number] if line["event"] == "wrong-sum"]

    net.run(scenario)
    true = {item.plan: item.finished.total for item in net.sums if item.finished.step == 1}
    if protocol is AnySum:
        assert not any(seen(number) for number in range(MODES[mode]))
        shown = [pack(total, item.bits) for item in net.sums for total in [true[item.plan]]]
        assert all(voted[number][1] not in shown for number in liars)
        return
    for number in liars:
        assert seen(number)[0]["level"] == "error" and "step 1" in seen(number)[0]["found"]
        assert net.diaries[number].memory.wrong_sums
    if not others_are_enough:
        assert not any(net.learnt(number) for number in range(MODES[mode])) and not net.published
        assert not set(liars) & set(voted)
    else:  # resilient: they have the true sums, and show them to the one that was lied to
        (published,) = net.published
        for number in range(MODES[mode]):
            assert all((item["result"] == published[1]["result"]).all() for _, item in net.learnt(number))


def test_sum_over_other_survivors_is_refused_over_the_wire(network: Any) -> None:
    """The sum of all, said to be a block's."""

    def lie(effect: SendTo) -> list[SendTo]:
        message = effect.message
        if isinstance(message, Published) and message.step == 1 and effect.member == 0 and not lies:
            lies.append(effect)
            return [SendTo(0, msgspec.structs.replace(message, members=(0, 1, 2)), effect.frames)]
        return [effect]

    lies: list[SendTo] = []
    net = network(6, mode="resilient", lie=lie, timing=FAST)

    async def scenario() -> None:
        async with net.serving() as server:
            await asyncio.gather(server, *net.start_all())

    net.run(scenario)
    net.assert_sums_are_right()
    assert lies
    # Client 0 had answered for everybody: a sum over others is not its answer. Asked again, it takes the true one.
    assert [line["code"] for line in net.logs[0] if line["event"] == "refused"] == ["second-survivor-set"]
    assert_all_learnt(net, 1)


def test_sums_that_fail_their_check_twice_wait_for_a_person(network: Any) -> None:
    def lie(effect: SendTo) -> list[SendTo]:
        false = isinstance(effect.message, Published) and effect.message.step == 0 and effect.member == 1
        return [changed(net, effect, 1) if false else effect]

    net = network(lie=lie, timing=FAST)

    async def scenario() -> None:
        async with net.serving() as server:
            waiting = net.happens("waiting", phase="idle")
            net.start_all()
            assert (await waiting)["refusing"] == {"client-1": "wrong-sum"}
            assert not server.done()

    net.run(scenario)
    assert len(net.diaries[1].memory.wrong_sums) == 2
    assert [event["wrong_sum"] for event in net.of("epoch_given_up")][:2] == [True, True]
    assert not any(net.learnt(number) for number in range(4)) and not net.published


class AnyCertificate(ClientProtocol):
    """A client that takes as few votes as it is shown."""

    def _rule_certificate(self, valid: Any) -> None:
        return None


@pytest.mark.parametrize("protocol", [ClientProtocol, AnyCertificate])
def test_last_step_told_in_two_ways_gives_no_certificate(
    network: Any, mode: str, protocol: type[ClientProtocol]
) -> None:
    """A colluder tells the group key, so that both last sums pass their check; the votes then are for two histories."""

    def lie(effect: SendTo) -> list[SendTo]:
        message = effect.message
        if isinstance(message, Published) and message.step == 1 and effect.member in halves[0]:
            if not told:
                told.append(net.runners[colluder]._protocol._epoch.group_key.reveal())
            return [changed(net, effect, 1, told[0])]
        return [effect]

    members, told = MODES[mode], []
    halves, colluder = (range(members // 2), range(members // 2, members)), members - 1
    net = network(members, mode=mode, lie=lie, timing=FAST)

    def refused(number: int) -> list[Any]:
        return [line for line in net.logs[number] if line.get("code") == "certificate"]

    async def scenario() -> None:
        async with net.serving() as server:
            waiting = net.happens("waiting", phase="voting")
            net.start_all(protocol=protocol)
            assert len((await waiting)["clients"]) == len(halves[0])
            kept.extend(diary.memory.vote for diary in net.diaries)
            assert all(kept)  # each has checked all that it was told
            plan, taken = net.server.protocol.plan.digest, refused if protocol is ClientProtocol else net.learnt
            certificates = {
                number: Certificate(plan, tuple(kept[one][0].votes[0] for one in half))
                for half in halves
                for number in half
            }

            def shown() -> bool:
                missing = [number for number in certificates if not taken(number)]
                net.server._perform([SendTo(number, certificates[number]) for number in missing])
                return not missing

            await until(shown)
            assert not server.done()

    kept: list[Any] = []
    net.run(scenario)
    assert len({frames[1] for _, frames in kept}) == 2
    assert not net.published and not net.of("round_finished")
    learnt = {item["result"].tobytes() for number in range(members) for _, item in net.learnt(number)}
    assert len(learnt) == (0 if protocol is ClientProtocol else 2)  # control: without the rule, in two ways


def test_who_is_bound_to_another_history_is_not_shown_the_same_record_without_end(network: Any) -> None:
    def lie(effect: SendTo) -> list[SendTo]:
        message = effect.message
        if isinstance(message, Published) and message.step == 1 and effect.member == 0:
            return [changed(net, effect, 1, net.runners[3]._protocol._epoch.group_key.reveal())]
        return [effect]

    net = network(lie=lie, timing=Timing(step=60.0, beat=0.2, lost_after=1.5))

    async def scenario() -> None:
        async with net.serving():
            net.start_all()
            await until(lambda: len(net.of("waiting", phase="voting")) == 2)

    net.run(scenario)
    # Once when the others have voted, and again each time that it is asked where it stands.
    assert 1 <= net.refusals(by="client")["client-0", "bound"] <= 3


def test_withheld_certificate_stops_nothing_for_long_and_who_lacks_it_catches_up(network: Any, mode: str) -> None:
    def lie(effect: SendTo) -> list[SendTo]:
        withheld = effect.member == 1 and isinstance(effect.message, Certificate) and not dropped
        if withheld:
            dropped.append(effect)
        return [] if withheld else [effect]

    dropped: list[SendTo] = []
    net = network(MODES[mode], mode=mode, rounds=2, lie=lie)
    net.run(lambda: whole(net))
    net.assert_sums_are_right()
    assert dropped
    assert_all_learnt(net, 2)
    # It is bound by its vote, says so, and is told of what it voted for.
    assert net.refusals(by="client")["client-1", "bound"] >= 1
    assert {code for _, code in net.refusals(by="client")} == {"bound"}


def test_certificate_and_catch_up_withheld_for_good_stop_lockstep_and_nothing_false_is_learnt(network: Any) -> None:
    def lie(effect: SendTo) -> list[SendTo]:
        return [] if effect.member == 1 and isinstance(effect.message, Certificate | EpochRecord) else [effect]

    net = network(rounds=2, lie=lie, timing=FAST)

    async def scenario() -> None:
        async with net.serving() as server:
            said = net.happens("waiting", phase="idle")
            net.start_all()
            await said
            assert not server.done()

    net.run(scenario)
    assert net.diaries[1].memory.vote is not None and not net.learnt(1)
    assert [len(net.learnt(number)) for number in (0, 2, 3)] == [1, 1, 1]


# -- a malicious server ---------------------------------------------


async def set_up(net: Any, server: Any, **of_first: Any) -> ServerProtocol:
    """All clients with the keys of an epoch, and an honest machine that collects its first step's vectors."""
    protocol = net.server.protocol
    for number in range(len(net.keys)):
        net.start(number, **({} if number else of_first))
        hello = await server.greet()
        await server.perform(protocol, protocol.hello(number, hello), lambda: True)
    await epoch_of(net, server)
    return protocol


async def epoch_of(net: Any, server: Any) -> None:
    protocol = net.server.protocol
    await server.perform(protocol, protocol.open_epoch(protocol.cohort()), lambda: protocol.phase is Phase.COLLECTING)


async def rest_of_the_epoch(net: Any, server: Any) -> None:
    """As an honest server would do it; its sums are right, and it is certified."""
    protocol, before = net.server.protocol, net.server.protocol.certified
    await server.perform(protocol, (), lambda: protocol.certified > before)
    net.assert_sums_are_right()


@pytest.fixture
def malicious(network: Any) -> Callable[..., Any]:
    """Runs a scenario against real clients whose server says what it likes."""

    def play(scenario: Callable[..., Any], members: int = 4, **options: Any) -> Any:
        net = network(members, **options)

        async def everything() -> None:
            with net.scripted() as server:
                await scenario(net, server)

        net.run(everything)
        return net

    return play


def test_garbage_from_the_server_is_refused_and_the_client_goes_on(malicious: Any, mode: str) -> None:
    async def scenario(net: Any, server: Any) -> None:
        protocol = await set_up(net, server)
        good = encode_message(Invitation(protocol.plan.offer))
        for bad in bad_messages(good, random.Random(1)):
            await server.say(0, bad)
            assert (await server.answer(0, Refusal)).code == "malformed"
        await server.say(0, encode_message(Certificate(protocol.plan.digest, ())), (b"frame",))
        assert (await server.answer(0, Refusal)).code == "vector"
        await rest_of_the_epoch(net, server)  # control: what fits is answered

    net = malicious(scenario, MODES[mode], mode=mode)
    assert len(net.learnt(0)) <= 1


def test_offer_against_policy_or_charter_is_refused_over_the_wire(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        net.start(0, policy=msgspec.structs.replace(PERMISSIVE, least_cohort=4))
        await server.greet()
        head = net.charter.first_head
        offers = {
            Offer(0, (0, 1, 2), head): "policy",  # one block, but too few for this client
            Offer(0, (0, 1, 2, 3), head): "cohort",  # a part of a block
            Offer(0, (3, 4, 5), head): "cohort",  # without it
            Offer(2 * MOST_SKIPPED_EPOCHS, tuple(range(6)), head): "wrong-context",  # numbers are not used up
        }
        for offer, code in offers.items():
            await server.say(0, Invitation(offer))
            refusal = await server.answer(0, Refusal)
            assert (refusal.code, refusal.found, refusal.allowed) == (code, "Invitation", ALLOWED[code])
        await server.say(0, Invitation(Offer(0, tuple(range(6)), bytes(32))))  # a head that it does not know
        assert (await server.answer(0, Hello)).head == head
        await server.say(0, Invitation(Offer(7, tuple(range(6)), head)))  # control
        assert (await server.answer(0, Advertisement)).member == 0

    net = malicious(scenario, 6, mode="resilient")
    found = next(line for line in net.logs[0] if line.get("code") == "policy")
    assert found["found"] == "members: 3" and found["allowed"] == "4 or more"


class OneSetRuleOff(ClientProtocol):
    def _rule_one_survivor_set(self, current: Any, members: Any) -> None:
        return None


@pytest.mark.parametrize("protocol", [ClientProtocol, OneSetRuleOff])
def test_second_survivor_set_is_refused_over_the_wire(malicious: Any, protocol: type[ClientProtocol]) -> None:
    async def scenario(net: Any, server: Any) -> None:
        machine = await set_up(net, server, protocol=protocol)
        plan = machine.plan.digest
        await server.perform(machine, (), lambda: machine.phase is Phase.UNMASKING)
        first = await server.answer(0, UnmaskShares)
        await server.say(0, Survivors(plan, 0, (0, 1, 2)))
        if protocol is OneSetRuleOff:  # control: without the rule it signs the second set
            assert (await server.answer(0, SurvivorSignature)).step == 0
            return
        assert (await server.answer(0, Refusal)).code == "second-survivor-set"
        await server.say(0, Survivors(plan, 0, tuple(range(6))))  # the first, again: the same bytes, again
        assert await server.answer(0, UnmaskShares) == first
        await server.perform(machine, machine.receive(0, first), lambda: machine.step == 1)
        await rest_of_the_epoch(net, server)  # and it goes on

    malicious(scenario, 6, mode="resilient")


def test_what_is_asked_twice_is_answered_with_the_same_bytes(malicious: Any, mode: str) -> None:
    async def scenario(net: Any, server: Any) -> None:
        protocol = net.server.protocol
        delivered: list[Any] = []
        say = server.say

        async def noted(member: int, message: Any, frames: tuple[bytes, ...] = ()) -> None:
            if member == 0 and isinstance(message, SealDelivery):
                delivered.append(message)
            await say(member, message, frames)

        server.say = noted
        await set_up(net, server)
        first = await server.heard(0, MaskedInput)
        await say(0, delivered[0])
        second = await server.heard(0, MaskedInput)
        assert (second.message, second.frames) == (first.message, first.frames)
        other = msgspec.structs.replace(delivered[0], items=delivered[0].items[:-1])
        await say(0, other)  # another delivery for the same epoch
        assert (await server.answer(0, Refusal)).code == "cohort"
        await server.perform(protocol, protocol.receive(0, first.message, first.frames), lambda: True)
        await rest_of_the_epoch(net, server)

    malicious(scenario, MODES[mode], mode=mode)


def test_records_certificates_and_sums_of_nobody_are_refused(malicious: Any, mode: str) -> None:
    """A server that makes up the end of an epoch: nothing is voted for, certified or learnt."""

    async def scenario(net: Any, server: Any) -> None:
        protocol = await set_up(net, server)
        masked = await server.heard(0, MaskedInput)
        plan, epoch = protocol.plan, protocol._epoch
        frame = bytes(len(masked.frames[0]))
        shown = epoch.shown
        await server.say(0, Published(plan.digest, 0, plan.cohort, bytes(16)), (frame,))  # zeros, and a tag of zeros
        ended = await server.answer(0, Refusal)
        assert ended.code == "wrong-sum" and ended.plan == plan.digest
        steps = tuple(StepRecord(plan.cohort, bytes(16)) for _ in range(plan.steps))
        record = EpochRecord(plan.offer, shown, masked.message.start, steps, ())
        await server.say(1, record, (frame,) * plan.steps)  # of an epoch that it is in: its sums are checked first
        assert (await server.answer(1, Refusal)).code == "wrong-sum"
        await server.say(0, record, (frame,) * plan.steps)  # this one has left the epoch, and asks for votes
        assert (await server.answer(0, Refusal)).code == "certificate"
        await server.say(1, Certificate(plan.digest, ()))
        await server.say(1, record, (frame,))  # a record without its sums
        assert (await server.answer(1, Refusal)).code == "vector"
        assert net.runners[0]._protocol.certified == net.runners[1]._protocol.certified == 0

    net = malicious(scenario, MODES[mode], mode=mode)
    assert not any(net.learnt(number) for number in range(MODES[mode]))
    assert all(diary.memory.vote is None for diary in net.diaries)


def test_text_of_the_server_is_shown_without_what_a_terminal_obeys(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        client = net.start(0)
        await server.greet()
        await server.say(0, Farewell("\x1b[2Jdone\n\u202eeverything is fine", completed=False))
        with pytest.raises(AggregationFailed) as failed:
            await client
        assert str(failed.value).isprintable() and "\\x1b[2J" in str(failed.value)

    net = malicious(scenario)
    (line,) = [line for line in net.logs[0] if line["event"] == "farewell"]
    assert line["reason"].isprintable() and "\\u202e" in line["reason"]


def test_nothing_secret_is_in_logs_and_refusals(malicious: Any, mode: str) -> None:
    drawn: list[bytes] = []
    said: list[Any] = []

    def random_bytes(count: int) -> bytes:
        drawn.append(secrets.token_bytes(count))
        return drawn[-1]

    async def scenario(net: Any, server: Any) -> None:
        protocol = net.server.protocol
        for number in range(len(net.keys)):
            net.start(number, random_bytes=random_bytes)
            hello = await server.greet()
            await server.perform(protocol, protocol.hello(number, hello), lambda: True)
        await epoch_of(net, server)
        await server.perform(protocol, (), lambda: protocol.step == 1)
        plan = protocol.plan
        for member in range(2):
            for bad in (
                *bad_messages(encode_message(Invitation(plan.offer)), random.Random(0)),
                Invitation(Offer(1, plan.cohort[:2], plan.offer.head)),
                Certificate(plan.digest, ()),
                Survivors(plan.digest, 0, plan.cohort[:3]),
                Survivors(bytes(32), 0, plan.cohort),
                Published(plan.digest, 1, plan.cohort, bytes(16)),
            ):
                await server.say(member, bad)
                if not isinstance(bad, Certificate):
                    said.append(await server.answer(member, Refusal))

    net = malicious(scenario, MODES[mode], mode=mode, steps=3)
    assert len(said) == 2 * (9 + 4)
    # Each says its code, the kind of message and what is allowed: nothing of what was found.
    assert all(refusal.allowed == ALLOWED.get(refusal.code, refusal.allowed) for refusal in said)
    assert {refusal.found for refusal in said} <= {"a message", "Invitation", "Survivors", "Published"}
    text = repr(net.logs) + repr(said) + repr(net.events)
    shown = text.encode()
    needles = [*net.identities, *(secret for _, secret in net.keys), *(one for one in drawn if len(one) >= 16)]
    vectors = [vector.tobytes() for vector in net.plain.values()]
    assert len(needles) >= 2 * MODES[mode] + 3 * MODES[mode] and vectors
    for needle in [*needles, *vectors]:
        for piece in (needle[:16], needle[-16:]):
            assert piece.hex() not in text and piece not in shown
            assert base64.b64encode(piece)[:20] not in shown and repr(piece)[2:-1] not in text
    for vector in net.plain.values():
        assert str(list(vector[:4]))[1:-1] not in text and np.array2string(vector[:4])[1:-1] not in text


def test_floods_of_the_server_are_cut_short(malicious: Any) -> None:
    """Finding F12: a beat every nanosecond, and 5,000 refusals with a line each. The control: the suite's attack."""

    async def scenario(net: Any, server: Any) -> None:
        client = net.start(0)
        await server.greet()
        hurried = msgspec.msgpack.encode(["welcome", "secure-codream/2", 1e-9, net.charter.first_head])
        await server.say(0, hurried)
        for _ in range(5000):
            await server.say(0, Refusal("unexpected", "nothing", "nothing"))
        said = await server.everything(1.0)
        await server.say(0, Farewell("enough", completed=True))
        while not client.done():
            said += await server.everything(0.1)
        assert sum(isinstance(message, Beat) for message in said) < 200
        assert [message.code for message in said if isinstance(message, Refusal)] == ["malformed"]

    net = malicious(scenario)
    lines = [line for line in net.logs[0] if line["event"] == "refused-by-server"]
    assert 100 <= len(lines) <= 120 and lines[-1]["count"] == 4096


def test_record_of_the_server_alone_is_what_a_new_one_needs(network: Any, mode: str) -> None:
    """A server with nothing but the records goes on, and clients that know nothing of it notice nothing."""
    first = InMemory()
    net = network(MODES[mode], mode=mode, rounds=1, journal=first)
    net.run(lambda: whole(net))
    longer = network(MODES[mode], mode=mode, rounds=2)
    assert [len(kept[1]) for kept in first._certified] == [2]
    assert longer.charter != net.charter  # other transport keys: another roster, so another charter
    net.course = LaboratoryCourse(net.course.vectors, net.course.steps, 2)
    restarted = net.make_server(certified=first._certified)
    assert restarted.protocol.certified == 1 and not restarted.protocol.done
    net.server = restarted
    net.run(lambda: whole(net))
    assert [count for count, _ in net.learnt(0)] == [1, 2]
    assert server_runner.rounds_of(restarted.protocol) == 2
