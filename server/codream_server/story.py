"""The story of a federation: what happens, told event by event with the members' names, and what it has cost so far.

docs/events.md lists the events. Of many alike, ever fewer are written: a flood must not fill the disk. Of one member
they tell its name, whether it is there, when it was last heard, and what it refuses or is refused, by code: how long it
computes, what it sends and how often it errs stay uncounted here, or are told of all members together.
"""

from __future__ import annotations

from collections.abc import Iterable

from codream_protocols.errors import AggregationFailed, RemoteProtocolError
from codream_protocols.identity import Roster
from codream_protocols.messages import Refusal, ToServer
from codream_protocols.server import (
    EpochBegan,
    EpochCertified,
    EpochGivenUp,
    Phase,
    ServerProtocol,
    StepBegan,
    StepFinished,
)
from codream_server.events import (
    Events,
    metrics_of,
    printable,
    rho_of_records,
    rounds_of,
    step_figures,
    worth_a_line,
)
from codream_server.patience import Clock, is_power_of_two
from codream_server.peers import Traffic

_MOST_NAMED = 12


class Story:
    """Tells the events of one server process, and counts.

    Args:
        protocol: the server's machine, which is only looked at.
        roster: has the names.
        traffic: bytes of all members together.
        events: where all of it is said.
        clock: seconds.

    Attributes:
        seconds: time spent waiting for members to compute, and for all else of the epochs.
        secure_steps: sums made.
        spent_rho: what all steps begun cost a client, in zCDP.
        refusals: of each member, how many of its messages were refused; for this process alone.
        refused_by: of each member, how many messages it refused; likewise.
        dropped: of each member, how many of its messages were over a rate; likewise.
        given_up: epochs.
    """

    def __init__(
        self, protocol: ServerProtocol, roster: Roster, traffic: Traffic, events: Events, clock: Clock
    ) -> None:
        size = len(roster.members)
        self.seconds = {"compute": 0.0, "aggregation": 0.0}
        self.secure_steps = 0
        self.spent_rho = rho_of_records(protocol)
        self.given_up = 0
        self.refusals, self.refused_by, self.dropped = [0] * size, [0] * size, [0] * size
        self._protocol, self._roster, self._traffic, self._events = protocol, roster, traffic, events
        self._clock = clock
        self._phase, self._phase_since, self._step_since = Phase.IDLE, clock(), clock()

    # -- from the first to the last epoch ---------------------------------------------

    def federation_started(self) -> None:
        """What lies ahead."""
        protocol = self._protocol
        self._events.say(
            "federation_started",
            clients=self._names(range(len(self._roster.members))),
            rounds=rounds_of(protocol),
            epochs=protocol.course.epochs,
            certified=protocol.certified,
            steps_per_round=len(protocol.course.schedule(protocol.charter.earlier)),
            mode=protocol.charter.aggregation.mode,
            charter=protocol.charter.digest.hex(),
            head=protocol.head.hex(),
        )

    def federation_finished(self) -> None:
        """All epochs are certified."""
        protocol = self._protocol
        self._events.say(
            "federation_finished",
            rounds=min(rounds_of(protocol), protocol.certified),
            epochs=protocol.certified,
            head=protocol.head.hex(),
        )

    def epoch_began(self, began: EpochBegan) -> None:
        """An effect of the machine."""
        plan = began.plan
        self._events.say(
            "epoch_started",
            epoch=plan.offer.epoch,
            round=plan.certified,
            cohort=self._names(plan.cohort),
            modulus_bits={spec.task: bits for spec, bits in zip(plan.specs, plan.moduli, strict=True)},
            mode=plan.aggregation.mode,
            threshold=plan.threshold,
        )

    def epoch_resumed(self) -> None:
        """An earlier process began the epoch, and this one goes on in it."""
        self._events.say("epoch_resumed", **self._place(), step=self._protocol.step, phase=self._protocol.phase.value)

    def step_began(self, began: StepBegan) -> None:
        """An effect of the machine."""
        plan = self._protocol.plan
        self._step_since = self._clock()
        # Effects may tell of a step whose epoch is over by now; its cost counts all the same.
        if plan is not None and plan.spec(began.step).noise is not None:
            self.spent_rho += plan.rho(plan.spec(began.step))
        self._events.say("step_started", **self._place(), step=began.step, task=began.task)

    def step_finished(self, finished: StepFinished) -> None:
        """An effect of the machine."""
        self.secure_steps += 1
        figures = step_figures(self._protocol.course, finished.task, finished.sums, len(finished.survivors))
        self._events.say(
            "step_finished",
            **self._place(),
            step=finished.step,
            task=finished.task,
            survivors=self._names(finished.survivors),
            dropped=self._names(one for one in finished.members if one not in finished.survivors),
            path="dropout" if finished.agreed else "fast",
            seconds=round(self._clock() - self._step_since, 4),
            figures=figures,
            entropy=figures.get("entropy"),
            clipped=figures.get("clipped"),
            bytes_up=self._traffic.up,
            bytes_down=self._traffic.down,
        )

    def _place(self) -> dict[str, int]:
        plan = self._protocol.plan
        return {
            "epoch": -1 if plan is None else plan.offer.epoch,
            "round": self._protocol.certified if plan is None else plan.certified,
        }

    def epoch_certified(self, done: EpochCertified) -> None:
        """An effect of the machine."""
        record, round_number = done.kept[0], done.number - 1
        metrics = metrics_of(self._protocol, done.kept, round_number)
        self._events.say(
            "round_finished",
            epoch=record.offer.epoch,
            round=round_number,
            number=done.number,
            head=self._protocol.head.hex(),
            members=self._names(item.member for item in record.advertisements),
            votes=self._names(vote.member for vote in record.votes),
            learnt=round_number < rounds_of(self._protocol),
            metrics=metrics,
            metrics_round=round_number - self._protocol.charter.earlier
            if metrics
            else None,  # a successor's models begin anew
        )

    def epoch_given_up(self, given_up: EpochGivenUp, again_in: float) -> None:
        """An effect of the machine; the next try is in so many seconds."""
        self.given_up += 1
        self._events.say(
            "epoch_given_up",
            epoch=given_up.epoch,
            round=self._protocol.certified,
            reason=given_up.reason,
            wrong_sum=given_up.wrong_sum,
            again_in=again_in,
        )

    def book_time(self) -> None:
        """Book the time of a phase that ended, and start the next one's."""
        if self._protocol.phase is self._phase:
            return
        now = self._clock()
        if self._phase is not Phase.IDLE:
            kind = "compute" if self._phase is Phase.COLLECTING else "aggregation"
            self.seconds[kind] += now - self._phase_since
        self._phase, self._phase_since = self._protocol.phase, now

    # -- members ---------------------------------------------

    def joined(self, member: int) -> None:
        """It is there, for the first time or again."""
        self._events.say("client_joined", client=self._name(member))

    def lost(self, member: int, reason: str, seconds: float) -> None:
        """It counts as gone after so many seconds."""
        self._events.say("client_lost", client=self._name(member), reason=reason, seconds=round(seconds, 3))

    def waiting(
        self,
        named: Iterable[int],
        lost: Iterable[int],
        heard: dict[int, float],
        refusing: dict[int, str],
        seconds: float,
    ) -> None:
        """For whom it waits that may be named, who is not there, since when nothing was heard, and who refuses what."""
        self._events.say(
            "waiting",
            clients=self._names(sorted(named)),
            lost=self._names(sorted(lost)),
            heard={self._name(member): round(ago, 1) for member, ago in sorted(heard.items())},
            refusing={self._name(member): code for member, code in refusing.items()},
            bound=self._names(self._protocol.bound_elsewhere()),
            phase=self._protocol.phase.value,
            seconds=round(seconds, 1),
        )

    def too_few(self, there: set[int], held: set[int], seconds: float) -> AggregationFailed:
        """Why there is no first epoch: who is not there, stands at another head, or refuses."""
        everybody = set(self._protocol.charter.everybody)
        elsewhere = there.intersection(self._protocol.behind())
        causes = {
            "not there": everybody - there,
            "at another head": elsewhere,
            "refusing": (there & held) - elsewhere,
        }
        said = [f"{cause}: {_few(self._names(sorted(members)))}" for cause, members in causes.items() if members]
        return AggregationFailed(
            "; ".join([f"{len(there)} of {len(everybody)} clients after {seconds:.3g} s", *said]),
            "enough for an epoch",
            "start the missing clients, or allow more time with join in [timing]",
        )

    def waiting_for_late(self, seconds: float) -> None:
        """After the end: who lacks its last certificates."""
        late, seconds = self._names(self._protocol.behind()), round(seconds, 1)
        self._events.say(
            "waiting", clients=late, lost=late, heard={}, refusing={}, bound=[], phase="finished", seconds=seconds
        )

    def server_refused(self, member: int, error: RemoteProtocolError) -> None:
        """The server refused a member's message."""
        self.refusals[member] += 1
        self._refused("server", member, error, self.refusals)

    def client_refused(self, member: int, message: Refusal) -> None:
        """A member refused the server's."""
        self.refused_by[member] += 1
        self._refused("client", member, message, self.refused_by)

    def _refused(self, by: str, member: int, what: RemoteProtocolError | Refusal, counts: list[int]) -> None:
        if worth_a_line(counts[member]):  # each member's own, so that one's flood hides no other's
            self._events.say(
                "refused",
                client=self._name(member),
                code=what.code,
                by=by,
                found=printable(what.found),
                allowed=printable(what.allowed),
                count=sum(counts),
            )

    def over_limit(self, member: int, kind: type[ToServer], over: int) -> None:
        """A message was dropped, the so-manieth of its kind."""
        self.dropped[member] += 1
        if is_power_of_two(over):
            name = self._name(member)
            self._events.say("rate_limited", client=name, kind=kind.__name__, count=sum(self.dropped))

    def _name(self, member: int) -> str:
        return self._roster.members[member].name

    def _names(self, members: Iterable[int]) -> list[str]:
        return [self._name(member) for member in members]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
