"""Hours without a word, on a clock that the test moves: whom the server takes for lost, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from codream_protocols.charter import Aggregation
from codream_protocols.client import Certified, ClientProtocol, Compute, Send
from codream_protocols.messages import Beat, Hello, Refusal, Waiting, decode_to_client
from codream_protocols.server import Phase, SendTo
from codream_server.runner import ServerRunner
from codream_server.settings import Timing
from tests.server.toy import RESILIENT, Federation, ToyCourse

MINUTE, HOUR = 60.0, 3600.0


class Site:
    """A client's machine and what is on its line, in memory."""

    def __init__(self, federation: Federation, member: int) -> None:
        self.diary, self.member = federation.diaries[member], member
        self.machine = ClientProtocol(
            charter=federation.charter,
            roster=federation.roster,
            course=federation.course,
            member=member,
            signer=federation.signers[member],
            policy=federation.policy,
            journal=self.diary,
        )
        self.learner = federation.learners[member]
        self.linked, self.slow, self.asked = True, 0.0, 0.0
        self.work: list[tuple[float, Compute]] = []


class LongNight:
    """The server's own loop, look by look, one a second, with its sites in memory."""

    def __init__(
        self, members: int, aggregation: Aggregation, rounds: int = 2, *, there: Sequence[int] | None = None
    ) -> None:
        self.toy = Federation(members, course=ToyCourse(rounds, 3), aggregation=aggregation, timing=Timing())
        self.now = 0.0
        self.told: list[tuple[float, int, Waiting]] = []
        self.server: ServerRunner = self.toy.make_server(clock=lambda: self.now)
        self.server._tick = 1.0
        self.sites = [Site(self.toy, member) for member in range(members)]
        present = range(members) if there is None else there
        for member in set(range(members)).difference(present):
            self.sites[member].linked = False
        self.say_hello(present)

    def say_hello(self, members: Any) -> None:
        for member in members:
            self.server._on_hello(member, b"route" + bytes([member]), self.sites[member].machine.hello())

    def pass_time(self, seconds: float, look: float = 1.0) -> None:
        """Time passes; who is linked beats, computes at its own speed, and answers."""
        end = self.now + seconds
        while self.now < end and not self.server.protocol.done:
            self.now += look
            self.server._patient.now += look  # it listened all the while
            self.server._open_if_ready()
            for site in self.sites:
                if site.linked:
                    self.server._peers[site.member].hears(Beat(*site.machine.progress), self.server._patient.now)
                    self._on(site, self.server.protocol.beat(site.member, *site.machine.progress))
                    self._work(site)
            self._deliver()
            self.server._watch_silence()
            self.server._watch_progress()
            self._deliver()

    def _deliver(self) -> None:
        while True:
            waiting = [(member, peer) for member, peer in self.server._peers.items() if peer.queue]
            if not waiting:
                return
            for member, peer in waiting:
                _, parts = peer.queue[0]
                assert isinstance(parts, list)
                _, data, *frames = parts
                peer.sent()
                site, message = self.sites[member], decode_to_client(data)
                if isinstance(message, Waiting):
                    self.told.append((self.now, member, message))
                elif site.linked:
                    self._perform(site, site.machine.receive(message, tuple(frames)))

    def _on(self, site: Site, effects: Any) -> None:
        self.server._perform([effect for effect in effects if not isinstance(effect, SendTo)])

    def _work(self, site: Site) -> None:
        due = [job for at, job in site.work if at <= self.now]
        site.work = [(at, job) for at, job in site.work if at > self.now]
        for job in due:
            values = site.learner.compute(job.task, job.spec)
            self._perform(site, site.machine.provide(job.plan, job.step, values))

    def _perform(self, site: Site, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, Compute):
                site.work.append((self.now + site.slow, effect))
            elif isinstance(effect, Certified):
                site.learner.learn(effect.number, effect.publication)
            elif isinstance(effect, Send) and isinstance(effect.message, Hello):
                self.server._on_hello(site.member, b"route" + bytes([site.member]), effect.message)
            elif isinstance(effect, Send) and not isinstance(effect.message, Beat):
                self.server._dispatch(site.member, effect.message, effect.frames)

    def back(self, member: int) -> None:
        self.sites[member].linked = True
        self.say_hello([member])


@pytest.mark.parametrize("aggregation", [Aggregation(), RESILIENT], ids=["lockstep", "resilient"])
def test_four_times_as_slow_or_still_for_half_a_minute_loses_nobody(aggregation: Aggregation) -> None:
    night = LongNight(6, aggregation)
    for site in night.sites:
        site.slow = 60.0
    night.sites[4].slow = 240.0
    night.pass_time(100.0)
    night.sites[2].linked = False
    night.pass_time(31.0)  # its last beat was a moment before
    night.back(2)
    night.pass_time(2 * HOUR)
    assert night.server.protocol.done
    assert night.toy.of("client_lost") == night.toy.of("epoch_given_up") == []
    assert all(event["dropped"] == [] for event in night.toy.of("step_finished"))


def night_of(slow: Sequence[float], aggregation: Aggregation, *, lost: int | None) -> tuple[list[Any], list[Any], Any]:
    """All that members and whoever reads the server's status are told while each computes for so long."""
    night = LongNight(len(slow), aggregation, rounds=1)
    for site, seconds in zip(night.sites, slow, strict=True):
        site.slow = seconds
    if lost is not None:
        night.pass_time(1.0)
        night.sites[lost].linked = False
    shown = []
    for _ in range(240):
        night.pass_time(1.0)
        shown.append(night.server.standing())
    return night.told, shown, night.toy.of("waiting")


@pytest.mark.parametrize("lost", [None, 5], ids=["all there", "one away"])
@pytest.mark.parametrize("aggregation", [Aggregation(), RESILIENT], ids=["lockstep", "resilient"])
def test_how_long_a_member_computes_is_told_to_nobody(aggregation: Aggregation, lost: int | None) -> None:
    """Names of all that have not answered, told every ten seconds, timed each member's work to ten seconds."""
    found = night_of([14.0, 37.0, 52.0, 61.0, 25.0, 61.0], aggregation, lost=lost)
    assert found == night_of([61.0, 61.0, 61.0, 61.0, 61.0, 61.0], aggregation, lost=lost)
    told, shown, waiting = found
    assert waiting and any(message.unnamed for _, _, message in told)
    assert any(one.seconds and not one.waiting for one in shown)
    away = set() if lost is None else {f"site-{lost}"}
    assert {name for one in shown for name in one.waiting} == away
    assert {item.member for _, _, message in told for item in message.items} <= {lost}
    assert {name for event in waiting for name in event["clients"]} <= away


def test_when_a_member_was_last_heard_does_not_show_when_it_answered() -> None:
    """Between two beats an answer came at its own time, by the member's name."""
    server = LongNight(3, Aggregation()).server
    server._patient.now = 4.0
    server._peer_of(2, b"route\x02", Beat(b"", 0))
    server._patient.now = 9.0
    server._peer_of(2, b"route\x02", Refusal("made-up", "x", "y"))  # or whatever else is no beat
    assert server._peers[2].heard == 9.0 and server.standing().members[2].heard == 5.0


def test_who_is_away_is_named_within_fifteen_seconds_of_the_loss() -> None:
    night = LongNight(3, Aggregation())
    for site in night.sites:
        site.slow = 600.0
    night.pass_time(30.0)
    night.sites[1].linked = False
    night.pass_time(Timing().lost_after + 15.0)
    assert night.server.standing().waiting == ("site-1",)
    _, member, message = night.told[-1]
    assert member != 1 and [(item.member, item.present) for item in message.items] == [(1, False)]
    night.back(1)
    night.pass_time(15.0)
    assert night.server.standing().waiting == () and night.told[-1][2].items == ()


@pytest.mark.parametrize("away", [10 * MINUTE, 9 * HOUR], ids=["ten minutes", "overnight"])
def test_lockstep_loses_the_running_epoch_to_a_member_that_is_cut_off_and_nothing_else(away: float) -> None:
    night = LongNight(3, Aggregation())
    for site in night.sites:
        site.slow = 30.0
    night.pass_time(40.0)
    night.sites[1].linked = False
    night.pass_time(away)
    assert len(night.toy.of("client_lost")) == 1
    waiting = night.toy.of("waiting")
    assert (
        waiting[-1]["clients"] == waiting[-1]["lost"] == ["site-1"] and len(waiting) < 100
    )  # said at growing intervals
    night.back(1)
    night.pass_time(HOUR)
    assert night.server.protocol.done and len(night.toy.of("round_finished")) == 2
    assert len(night.toy.of("epoch_given_up")) == (away > Timing().step)
    assert [number for number, _ in night.sites[1].learner.learnt] == [1, 2]


def test_resilient_goes_on_overnight_and_has_the_member_back_with_all_that_it_missed() -> None:
    night = LongNight(6, RESILIENT, rounds=8)
    for site in night.sites:
        site.slow = 600.0
    night.pass_time(20.0)
    night.sites[4].linked = False
    night.pass_time(2 * HOUR)
    done = len(night.toy.of("round_finished"))
    assert done >= 2 and not night.server.protocol.done and len(night.toy.of("epoch_given_up")) <= 1
    night.back(4)
    night.pass_time(9 * HOUR)
    assert night.server.protocol.done and len(night.toy.of("round_finished")) == 8
    assert [number for number, _ in night.sites[4].learner.learnt] == list(range(1, 9))
    assert night.toy.of("step_finished")[-1]["dropped"] == []


def test_nobody_is_hurried_to_join() -> None:
    night = LongNight(3, Aggregation(), there=[0, 1])
    night.pass_time(9 * HOUR)
    assert night.server.protocol.phase is Phase.IDLE and night.toy.of("epoch_started") == []
    night.back(2)
    night.pass_time(MINUTE)
    assert night.server.protocol.done
