"""The real runners over ZeroMQ with CURVE: whole federations, losses and returns, patience, clients that refuse.

Nothing here waits for a time to pass where it could wait for something to happen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from codream_clients import runner as client_runner
from codream_clients.refusals import ALLOWED
from codream_clients.runner import ClientRunner
from codream_protocols.client import Send
from codream_protocols.errors import AddressRefused, AggregationFailed, CharterRefused, UnsupportedVersion
from codream_protocols.messages import Beat, Vote
from codream_protocols.server import InMemory
from codream_server.events import rounds_of
from codream_server.record_folder import RecordFolder
from codream_server.settings import Timing
from secure_codream.simulation.sockets import PERMISSIVE
from secure_codream.simulation.taps import Tap
from secure_codream.simulation.toy_course import LaboratoryCourse
from tests.system.scenarios import FAST, MODES, NAMES, Gate, assert_all_learnt, everybody, opened, paths, until, whole

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
    traffic = net.server.traffic
    assert traffic.payload >= len(everybody(net)) * 12 * 16_384 * 18 // 8
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
    # There, too, it may have been invited to the next epoch when it was killed.
    assert not [event for event in net.of("epoch_given_up") if mode == "lockstep" or event["round"] == 0]


# -- patience ---------------------------------------------

ONE_MODE = pytest.mark.parametrize(
    "mode", ["lockstep", pytest.param("resilient", marks=pytest.mark.exhaustive)], indirect=True
)


@ONE_MODE
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
    assert all(event["clients"] == event["lost"] == [] for event in net.of("waiting"))
    assert set(paths(net)) == {"fast"}


@ONE_MODE
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
    seen, made = net.server.exhibition.exhibit, net.sums[1]
    assert (seen.round, seen.step) == (0, 1)
    assert (seen.total == made.finished.total).all()
    assert (seen.masked != net.plain[made.plan, 1, seen.member]).mean() > 0.9


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
    assert rounds_of(restarted.protocol) == 2
