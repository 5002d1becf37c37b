"""The server on a loopback socket with toy clients: whole federations, losses and returns, restarts of either side."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_protocols.charter import Aggregation, Policy, Predecessor
from codream_protocols.client import ClientProtocol, Compute, Send
from codream_protocols.errors import AddressRefused, AggregationFailed, AttemptsUsed, PolicyViolation, WrongSum
from codream_protocols.messages import EpochRecord, Published, Seals, Vote
from codream_protocols.server import Phase
from codream_server.settings import Timing
from tests.server.toy import FAST, RESILIENT, Federation, ToyCourse, run

NAMES = [f"site-{number}" for number in range(6)]
MODES = [Aggregation(), RESILIENT]


def ids(aggregation: Aggregation) -> str:
    return aggregation.mode


def published(federation: Federation, place: int = -1) -> np.ndarray:
    return np.asarray(federation.published[place][1]["total"])


# -- whole federations ---------------------------------------------


@pytest.mark.parametrize("aggregation", MODES, ids=ids)
def test_federation_comes_to_its_end_and_everybody_has_learnt_the_sums(aggregation: Aggregation) -> None:
    federation = Federation(3, course=ToyCourse(2, 2), aggregation=aggregation)

    async def scenario() -> None:
        async with federation.serving() as server:
            clients = federation.start_all()
            await server
            await federation.until(lambda: all(client.farewell for client in clients))
            assert all(client.farewell and client.farewell.completed for client in clients)

    run(scenario)
    assert [number for number, _ in federation.published] == [1, 2]
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)
    for learner in federation.learners:
        assert [number for number, _ in learner.learnt] == [1, 2]
        assert (learner.learnt[-1][1]["total"] == published(federation)).all()
    assert [event["path"] for event in federation.of("step_finished")] == ["fast"] * 4
    assert federation.of("refused") == federation.of("epoch_given_up") == federation.of("client_lost") == []
    kinds = [event["event"] for event in federation.events]
    assert kinds[0] == "federation_started" and kinds[-1] == "federation_finished"
    assert federation.server.story.secure_steps == 4
    assert all(value > 0 for value in federation.server.story.seconds.values())


def test_metrics_tell_of_the_models_after_the_rounds_before() -> None:
    federation = Federation(3, course=ToyCourse(2, 1, metrics=True))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            await server

    run(scenario)
    (started,) = federation.of("federation_started")
    assert (started["rounds"], started["epochs"], started["steps_per_round"]) == (2, 3, 2)
    rounds = federation.of("round_finished")
    assert [(event["round"], event["metrics_round"], event["learnt"]) for event in rounds] == [
        (0, 0, True),
        (1, 1, True),
        (2, 2, False),  # the last metrics alone: how the models stand in the end
    ]
    assert all(event["metrics"]["accuracy"] == pytest.approx(0.1) for event in rounds)
    assert [event["number"] for event in rounds] == [1, 2, 3]
    assert (
        rounds[-1]["head"] == federation.server.protocol.head.hex() == federation.of("federation_finished")[0]["head"]
    )
    steps = federation.of("step_finished")
    assert [event["task"] for event in steps] == ["metrics", "numbers"] * 2 + ["metrics"]
    assert steps[1]["entropy"] == steps[1]["figures"]["entropy"] == pytest.approx(0.6, abs=1e-3)


def test_traffic_is_counted_and_most_of_it_is_payload() -> None:
    federation = Federation(3, course=ToyCourse(1, 3, length=20_000))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            await server

    run(scenario)
    traffic = federation.server.traffic  # of all members together
    assert traffic.payload == 3 * 3 * (20_000 * 18 // 8)
    assert 0 < traffic.setup < traffic.up <= 1.1 * traffic.payload
    assert traffic.down >= traffic.payload
    assert federation.events[-3]["bytes_up"] <= traffic.up


def test_exhibit_keeps_a_masked_vector_and_its_steps_sum_and_does_not_tell_who_was_first() -> None:
    federation = Federation(3, course=ToyCourse(2, 2, length=64))

    async def scenario() -> None:
        async with federation.serving(exhibit=(1, 1)) as server:
            federation.start_all()
            seen: list[int] = []
            first = federation.clients[0]  # in the roster's order, and the last to answer
            first.hold = lambda compute: (first.protocol.certified, compute.step) == (1, 1) and not seen
            seen.append((await federation.until(lambda: federation.server.exhibition.masked))[0])
            assert seen != [0]
            await server

    run(scenario)
    exhibit = federation.server.exhibition.exhibit
    assert exhibit is not None
    assert (exhibit.epoch, exhibit.round, exhibit.step, exhibit.task) == (1, 1, 1, "numbers")
    assert exhibit.survivors == (0, 1, 2) and exhibit.member == 0
    assert len(set(exhibit.total.tolist())) <= 4  # 64 times 0.6, but for stochastic rounding
    assert len(set(exhibit.masked.tolist())) > 60


def test_address_that_is_taken_is_refused() -> None:
    federation = Federation(3)

    async def scenario() -> None:
        async with federation.serving():
            other = Federation(3)
            other.address = federation.address
            with pytest.raises(AddressRefused, match="in use"):
                await other.make_server().run()

    run(scenario)


# -- losses and returns ---------------------------------------------


def test_lockstep_waits_for_a_lost_member_and_goes_on_when_it_comes_back() -> None:
    federation = Federation(3, course=ToyCourse(1, 3))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            silent = federation.clients[2]
            silent.hold = lambda compute: compute.step == 1 and not back
            back: list[bool] = []
            await federation.until_event("step_finished", step=0)
            silent.beating = silent.reading = False
            lost = await federation.until_event("client_lost", client="site-2")
            assert lost["seconds"] >= FAST.lost_after
            waiting = await federation.until_event("waiting", phase="collecting")
            assert waiting["clients"] == waiting["lost"] == ["site-2"] and waiting["seconds"] > 0
            assert not server.done()
            silent.beating = silent.reading = True
            back.append(True)
            await server

    run(scenario)
    assert federation.of("epoch_given_up") == []
    assert len(federation.of("epoch_started")) == 1
    joined = [event["client"] for event in federation.of("client_joined")]
    assert sorted(joined[:3]) == NAMES[:3] and joined[3:] == ["site-2"]
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_lockstep_gives_up_a_member_that_stays_away_too_long_and_starts_anew_when_it_is_there() -> None:
    federation = Federation(3, course=ToyCourse(1, 2), timing=Timing(step=1.0, beat=0.1, lost_after=0.4))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            federation.clients[2].hold = lambda compute: True
            federation.clients[1].hold = lambda compute: not federation.of("epoch_given_up")  # slow, but there
            await federation.until_event("step_started", step=0)
            await federation.clients[2].kill()
            given_up = await federation.until_event("epoch_given_up")
            assert "site-2" in given_up["reason"] and not given_up["wrong_sum"]
            await federation.until(lambda: federation.clients[1].protocol.plan is None)  # it was told as well
            waiting = await federation.until_event("waiting", phase="idle")
            assert waiting["clients"] == ["site-2"]
            federation.start(2)
            await server

    run(scenario)
    assert [event["epoch"] for event in federation.of("epoch_started")] == [0, 1]
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_member_that_beats_is_waited_for_however_long_it_computes() -> None:
    federation = Federation(3, course=ToyCourse(1, 1), timing=Timing(step=0.5, beat=0.1, lost_after=0.3))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            until = time.monotonic() + 2.0
            federation.clients[1].hold = lambda compute: time.monotonic() < until
            await server

    run(scenario)
    assert federation.of("client_lost") == federation.of("epoch_given_up") == []
    waiting = federation.of("waiting")
    assert waiting and all(event["clients"] == event["lost"] == [] for event in waiting)
    gaps = np.diff([event["seconds"] for event in waiting])
    assert (np.diff(gaps) > 0).all() and len(waiting) <= 4  # said at growing intervals


def test_resilient_goes_on_without_the_lost_members_block_and_has_it_back_in_the_next_epoch() -> None:
    federation = Federation(6, course=ToyCourse(2, 2), aggregation=RESILIENT)
    assert federation.charter.blocks == ((0, 1, 2), (3, 4, 5))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            for client in federation.clients.values():
                client.hold = lambda compute: len(federation.of("round_finished")) == 1 and not back
            federation.clients[4].hold = lambda compute: compute.step == 1
            back: list[bool] = []
            await federation.until_event("step_finished", step=0)
            await federation.clients[4].kill()
            finished = await federation.until_event("step_finished", step=1)
            assert finished["survivors"] == NAMES[:3] and finished["dropped"] == NAMES[3:]
            assert finished["path"] == "dropout"
            await federation.until_event("round_finished", round=0)
            federation.start(4)
            back.append(True)
            await server

    run(scenario)
    first = federation.published[0][1]["total"]
    assert first == pytest.approx((federation.total(range(6)) + federation.total([0, 1, 2])) / 2, abs=1e-3)
    cohorts = [event["cohort"] for event in federation.of("epoch_started")]
    assert cohorts[0] == NAMES and cohorts[1] in (NAMES, NAMES[:3])
    assert {number for number, _ in federation.learners[4].learnt} >= {1}  # by the record, when it was back


def test_resilient_successor_waits_for_the_whole_roster_at_its_first_start() -> None:
    """It took its predecessors' epochs for its own, so itself for started again, and went on without some."""
    federation = Federation(6, course=ToyCourse(2, 1), aggregation=RESILIENT, timing=Timing(beat=0.1, lost_after=0.3))
    earlier = Predecessor(bytes(32), bytes(32), 1)
    federation.charter = msgspec.structs.replace(federation.charter, predecessor=earlier)

    async def scenario() -> None:
        async with federation.serving() as server:
            for member in range(3):
                federation.start(member)
            await federation.until_event("client_joined", 3)
            await asyncio.sleep(1.0)
            assert not federation.of("epoch_started")
            for member in range(3, 6):
                federation.start(member)
            await server

    run(scenario)
    assert [event["cohort"] for event in federation.of("epoch_started")] == [NAMES]


def test_resilient_goes_on_without_one_that_beats_and_never_answers() -> None:
    """It stopped all others for good: who beats is there, and who is there was waited for."""
    timing = Timing(step=0.8, beat=0.1, lost_after=0.6)
    federation = Federation(6, course=ToyCourse(2, 2), aggregation=RESILIENT, timing=timing)

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            federation.clients[4].hold = lambda compute: True
            await server

    run(scenario)
    lost = federation.of("client_lost")
    assert {(event["client"], event["reason"]) for event in lost} == {("site-4", "it is there and does not answer")}
    assert all(event["seconds"] < 0.8 for event in lost)  # since it was last heard: how long it works is its own affair
    assert [event["survivors"] for event in federation.of("step_finished")] == [NAMES[:3]] * 4
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_resilient_leaves_out_who_does_not_seal_until_an_epoch_is_certified() -> None:
    timing = Timing(step=0.8, beat=0.1, lost_after=0.6)
    federation = Federation(6, course=ToyCourse(2, 1), aggregation=RESILIENT, timing=timing)

    class NeverSeals(ClientProtocol):
        def receive(self, message: Any, frames: tuple[bytes, ...] = ()) -> Any:
            effects = super().receive(message, frames)
            return [one for one in effects if not (isinstance(one, Send) and isinstance(one.message, Seals))]

    async def scenario() -> None:
        async with federation.serving() as server:
            for member in range(6):
                federation.start(member, machine=NeverSeals if member == 4 else ClientProtocol)
            await server

    run(scenario)
    cohorts = [event["cohort"] for event in federation.of("epoch_started")]
    assert cohorts[:2] == [NAMES, NAMES[:3]]
    assert len(federation.published) == 2 and not federation.server._invitations.passed_over


def test_resilient_gives_up_a_vote_that_no_more_give_than_may_collude() -> None:
    """Once it waited for ever; whoever has voted is named, and the others go on when they vote."""
    timing = Timing(step=0.8, beat=0.1, lost_after=0.6)
    federation = Federation(6, course=ToyCourse(2, 1), aggregation=RESILIENT, timing=timing)

    class Withholds(ClientProtocol):
        def receive(self, message: Any, frames: tuple[bytes, ...] = ()) -> Any:
            effects = super().receive(message, frames)
            return [
                one for one in effects if not (isinstance(one, Send) and isinstance(one.message, Vote | EpochRecord))
            ]

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0)
            for member in range(1, 6):
                federation.start(member, machine=Withholds)
            given_up = await federation.until_event("epoch_given_up")
            assert "too few are left" in given_up["reason"] and not server.done()

    run(scenario)


def test_resilient_waits_for_a_slow_one_ten_times_as_long_as_for_the_others() -> None:
    timing = Timing(step=0.4, beat=0.1, lost_after=0.3)
    federation = Federation(6, course=ToyCourse(1, 1), aggregation=RESILIENT, timing=timing)

    async def scenario() -> None:
        async with federation.serving() as server:
            clients = federation.start_all()
            await federation.until_event("step_started")
            begun = time.monotonic()
            for member, client in enumerate(clients):
                until = begun + (1.5 if member == 4 else 0.4)
                client.hold = lambda compute, until=until: time.monotonic() < until
            await server

    run(scenario)
    assert federation.of("client_lost") == []
    assert published(federation) == pytest.approx(federation.total(range(6)), abs=1e-3)


def test_resilient_is_given_up_when_too_few_are_left_and_starts_anew_with_all() -> None:
    federation = Federation(3, course=ToyCourse(1, 2), aggregation=RESILIENT)

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            federation.clients[0].hold = lambda compute: compute.step == 1
            await federation.until_event("step_finished", step=0)
            await federation.clients[0].kill()
            await federation.until_event("epoch_given_up")
            federation.start(0)
            await server

    run(scenario)
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_resilient_begins_with_those_there_when_the_rest_do_not_join() -> None:
    timing = Timing(join=0.5, step=30.0, beat=0.1, lost_after=0.6)
    federation = Federation(6, course=ToyCourse(1, 1), aggregation=RESILIENT, timing=timing)

    async def scenario() -> None:
        begun = time.monotonic()  # no later than the server's clock
        async with federation.serving() as server:
            for member in range(4):
                federation.start(member)
            await federation.until_event("epoch_started")
            assert time.monotonic() - begun >= 0.5
            await server

    run(scenario)
    (started,) = federation.of("epoch_started")
    assert started["cohort"] == NAMES[:3]  # the whole block; a part of the other is no use
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_too_few_that_join_end_the_federation_only_where_a_limit_is_set() -> None:
    async def scenario(join: float | None) -> None:
        timing = Timing(join=join, step=30.0, beat=0.1, lost_after=0.4)
        federation = Federation(3, timing=timing)
        async with federation.serving() as server:
            client = federation.start(0)
            if join is None:
                waiting = await federation.until_event("waiting", count=2)
                assert waiting["clients"] == NAMES[1:3] and not server.done()
                return
            with pytest.raises(AggregationFailed, match="1 of 3 clients"):
                await server
            await federation.until(lambda: client.farewell)
            assert client.farewell is not None and not client.farewell.completed

    run(lambda: scenario(0.5))
    run(lambda: scenario(None))


# -- restarts ---------------------------------------------


def test_client_restarted_in_lockstep_mid_epoch_ends_it_and_the_same_cohort_completes_the_next() -> None:
    federation = Federation(3, course=ToyCourse(1, 3))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            federation.clients[1].hold = lambda compute: compute.step == 1
            await federation.until_event("step_finished", step=0)
            await federation.clients[1].kill()
            federation.start(1)
            given_up = await federation.until_event("epoch_given_up")
            assert "site-1 was started again" in given_up["reason"]
            await server

    run(scenario)
    started = federation.of("epoch_started")
    assert [event["epoch"] for event in started] == [0, 1]
    assert all(event["cohort"] == NAMES[:3] for event in started)
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)
    assert federation.of("client_lost") == []  # it was back before anybody missed it


def test_client_restarted_after_its_vote_goes_on_with_what_it_voted_for() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    class Voteless(ClientProtocol):
        """Its vote is on its disk, and lost on the way."""

        def _cast_vote(self, public: Any, others: Any = None) -> Any:
            super()._cast_vote(public, others)
            return []

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0)
            federation.start(1)
            federation.start(2, machine=Voteless)
            await federation.until(lambda: federation.diaries[2].vote)
            assert federation.server.protocol.phase is Phase.VOTING
            await federation.clients[2].kill()
            assert not federation.of("round_finished")
            federation.start(2)
            await server

    run(scenario)
    assert len(federation.of("epoch_started")) == 1 and len(federation.of("round_finished")) == 1
    assert [number for number, _ in federation.learners[2].learnt] == [1]


@pytest.mark.parametrize("aggregation", MODES, ids=ids)
def test_server_restarted_from_its_record_goes_on(aggregation: Aggregation, tmp_path: Path) -> None:
    federation = Federation(3, course=ToyCourse(3, 2), aggregation=aggregation)

    async def scenario() -> None:
        async with federation.serving(tmp_path) as server:
            federation.start_all()
            for client in federation.clients.values():
                client.hold = lambda compute: len(federation.published) == 1 and compute.step == 1 and not again
            again: list[bool] = []
            await federation.until_event("step_finished", round=1, step=0)
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
            await asyncio.sleep(0.2)
            restarted = federation.make_server(tmp_path)
            assert restarted.protocol.certified == 1
            again.append(True)
            await restarted.run()

    run(scenario)
    assert [number for number, _ in federation.published] == [1, 2, 3]
    assert [event["certified"] for event in federation.of("federation_started")] == [0, 1]
    for learner in federation.learners:
        assert [number for number, _ in learner.learnt] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [f"epoch-0000{k}.record" for k in range(3)]


def test_server_that_lost_its_record_is_given_it_back(tmp_path: Path) -> None:
    rounds = 15  # more than a member may send of records that are of no use
    federation = Federation(3, course=ToyCourse(rounds, 1))

    async def scenario() -> None:
        async with federation.serving(tmp_path / "lost") as server:
            federation.start_all()
            for client in federation.clients.values():
                client.hold = lambda compute: len(federation.published) == rounds - 1 and not again
            again: list[bool] = []
            await federation.until(lambda: len(federation.published) == rounds - 1)
            head = federation.server.protocol.head
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
            restarted = federation.make_server(tmp_path / "new")
            assert restarted.protocol.certified == 0
            running = asyncio.ensure_future(restarted.run())
            await federation.until(lambda: restarted.protocol.certified == rounds - 1)
            assert restarted.protocol.head == head
            again.append(True)
            await running

    run(scenario)
    assert len(list((tmp_path / "new").glob("epoch-*.record"))) == rounds
    assert [number for number, _ in federation.learners[0].learnt] == list(range(1, rounds + 1))
    assert [event for event in federation.of("rate_limited") if event["kind"] == "EpochRecord"] == []


# -- clients that refuse ---------------------------------------------


@pytest.mark.parametrize("aggregation", MODES, ids=ids)
def test_invitations_that_everybody_refuses_end_the_federation_and_say_why(aggregation: Aggregation) -> None:
    policy = Policy(losses=True, most_steps=1)
    federation = Federation(3, course=ToyCourse(1, 2), policy=policy, aggregation=aggregation)

    async def scenario() -> None:
        async with federation.serving() as server:
            clients = federation.start_all()
            with pytest.raises(AggregationFailed, match=r"3 invitations in a row refused by everybody \(policy"):
                await server
            await federation.until(lambda: all(client.farewell for client in clients))

    run(scenario)
    assert len(federation.of("epoch_started")) == 3
    by_client = [event for event in federation.of("refused") if event["by"] == "client"]
    assert {event["code"] for event in by_client} == {PolicyViolation.code}
    assert sorted(event["count"] for event in by_client) == list(range(1, 10))  # of all clients together
    assert Counter(event["client"] for event in by_client) == dict.fromkeys(NAMES[:3], 3)
    waits = [event["again_in"] for event in federation.of("epoch_given_up")]
    assert waits == [0.2, 0.4, 0.8]


def test_one_that_always_refuses_does_not_use_up_the_others_attempts() -> None:
    federation = Federation(3, course=ToyCourse(1, 2), aggregation=Aggregation(attempts=8))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0)
            federation.start(1)
            federation.start(2, policy=Policy(most_steps=1))
            waiting = await federation.until_event("waiting", phase="idle")
            assert waiting["refusing"] == {"site-2": "policy"} and waiting["clients"] == ["site-2"]
            assert len(federation.of("epoch_started")) == 3 and not server.done()
            await federation.clients[2].kill()
            federation.start(2)  # with its policy put right
            await server

    run(scenario)
    assert len(federation.of("epoch_started")) == 4
    # What the others still sent for an epoch that was given up is late, and no misdeed.
    assert all(event["by"] == "client" for event in federation.of("refused"))
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


def test_attempts_that_are_used_up_are_named() -> None:
    federation = Federation(3, course=ToyCourse(1, 2), aggregation=Aggregation(attempts=1))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            federation.clients[1].hold = lambda compute: True
            await federation.until_event("step_started")
            await federation.clients[1].kill()
            federation.start(1)
            with pytest.raises(AggregationFailed, match=AttemptsUsed.code) as failed:
                await server
            assert "sign a charter" in failed.value.remedy

    run(scenario)


def test_sum_that_fails_its_check_is_said_and_ends_the_epoch() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    class Doubts(ClientProtocol):
        def _rule_true_sum(self, plan: Any, tag_key: Any, message: Published, frame: bytes) -> None:
            raise WrongSum("a sum that fails its check", "the sum of the survivors' inputs")

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start(0, machine=Doubts)
            federation.start(1)
            federation.start(2)
            given_up = await federation.until_event("epoch_given_up")
            assert given_up["wrong_sum"] and "site-0" in given_up["reason"]
            assert federation.of("refused")[0]["code"] == WrongSum.code
            # After the second one of its charter it takes part no more, until a person has looked.
            waiting = await federation.until_event("waiting", phase="idle")
            assert waiting["refusing"] == {"site-0": WrongSum.code} and waiting["clients"] == ["site-0"]
            assert federation.published == [] and not server.done()

    run(scenario)


# -- patience ---------------------------------------------


class Jumpy:
    """A clock whose owner sleeps now and then."""

    def __init__(self) -> None:
        self.slept = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.slept


def test_silence_while_the_server_itself_slept_is_forgiven() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))
    clock = Jumpy()

    def stumble(compute: Compute) -> bool:
        clock.slept += 1000.0  # a thousand times over what a silent member is allowed
        return False

    async def scenario() -> None:
        async with federation.serving(clock=clock) as server:
            for client in federation.start_all():
                client.hold = stumble
            await server

    run(scenario)
    assert clock.slept > 3000
    assert federation.of("client_lost") == federation.of("epoch_given_up") == []


@pytest.mark.parametrize("step", [0, 1])
def test_a_server_that_starts_again_goes_on_in_the_epoch_that_was_running(tmp_path: Path, step: int) -> None:
    """Once each kill of a server cost the epoch, and one of twenty attempts."""
    federation = Federation(3, course=ToyCourse(1, 2))

    async def scenario() -> None:
        held = [True]
        async with federation.serving(tmp_path) as server:
            for client in federation.start_all():
                client.hold = lambda compute: held and compute.step == step
            await federation.until_event("step_started", step=step)
            await federation.until(lambda: all(one.protocol.members for one in federation.clients.values()))
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
            again = federation.make_server(tmp_path)
            task = asyncio.ensure_future(again.run())
            held.clear()
            await task

    run(scenario)
    (resumed,) = federation.of("epoch_resumed")
    assert (resumed["epoch"], resumed["round"], resumed["step"], resumed["phase"]) == (0, 0, step, "collecting")
    assert len(federation.of("epoch_started")) == 1 and not federation.of("epoch_given_up")
    assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)
    assert [diary.attempts for diary in federation.diaries] == [0, 0, 0] and federation.diaries[0].steps == 2


@pytest.mark.parametrize("aggregation", [Aggregation(), RESILIENT], ids=["lockstep", "resilient"])
def test_a_server_that_starts_again_does_not_wait_for_ever_for_whom_it_never_hears(
    tmp_path: Path, aggregation: Aggregation
) -> None:
    timing = Timing(step=1.5, beat=0.1, lost_after=0.5)
    federation = Federation(6, course=ToyCourse(1, 2), aggregation=aggregation, timing=timing)

    async def scenario() -> None:
        held = [True]
        async with federation.serving(tmp_path) as server:
            for client in federation.start_all():
                client.hold = lambda compute: held
            await federation.until_event("step_started", step=0)
            await federation.until(lambda: all(one.protocol.members for one in federation.clients.values()))
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
            await federation.clients[5].kill()
            again = federation.make_server(tmp_path)
            task = asyncio.ensure_future(again.run())
            held.clear()
            if aggregation is RESILIENT:
                await task
            else:
                given_up = await federation.until_event("epoch_given_up")
                assert "site-5" in given_up["reason"]
                task.cancel()

    run(scenario)
    if aggregation is RESILIENT:
        assert published(federation) == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)
