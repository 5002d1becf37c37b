"""Any order, loss and repetition of messages: the right sum of the announced survivors, or a typed failure, or nothing.

A random schedule picks, again and again, a packet in flight (any of them, not the oldest), and delivers it, delivers it
and keeps it, or loses it; in between, members are reported lost and come back, phases expire, new steps begin, and old
packets are replayed. `Federation.deliver` lets only `RemoteProtocolError` pass, so an untyped exception fails the test.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.messages import MaskedInput, Survivors, UnmaskShares
from codream_protocols.server import Phase
from secure_codream.threats.federation import STATE, Federation
from tests.protocols.test_messages import TO_CLIENT, TO_SERVER

RUNNING = (Phase.ADVERTISING, Phase.SHARING, Phase.COLLECTING, Phase.AGREEING, Phase.UNMASKING)


class Schedules(RuleBasedStateMachine):
    """A federation under a hostile network."""

    @initialize(size=st.integers(3, 5), slack=st.integers(0, 2), seed=st.integers(0, 2**32), calm=st.booleans())
    def start(self, size: int, slack: int, seed: int, calm: bool) -> None:
        threshold = min(size, size // 2 + 1 + slack)
        self.size = size
        self.federation = Federation(size, seed=seed, threshold=threshold, steps=3)
        if calm:  # half of the schedules begin behind the set-up, in the middle of a step
            self.federation.set_up()
            self.federation.begin_step()
            lost: tuple[set, ...] = (set(), {(member, Survivors) for member in range(size)}, {(size - 1, MaskedInput)})
            self.federation.drain(lost[seed % 3])
        else:
            self.federation.emit(self.federation.server.start())

    def pick(self, position: int) -> int:
        return position % len(self.federation.wire)

    @precondition(lambda self: self.federation.wire)
    @rule(position=st.integers(0, 30))
    def deliver(self, position: int) -> None:
        self.federation.deliver(self.federation.wire.pop(self.pick(position)))

    @precondition(lambda self: self.federation.wire)
    @rule(count=st.integers(1, 12))
    def deliver_the_oldest(self, count: int) -> None:
        for _ in range(min(count, len(self.federation.wire))):
            self.federation.deliver(self.federation.wire.pop(0))

    @precondition(lambda self: self.federation.wire)
    @rule()
    def deliver_everything_in_order(self) -> None:
        self.federation.drain()

    @precondition(lambda self: self.federation.server.phase is Phase.READY)
    @rule()
    def everybody_returns(self) -> None:
        for member in range(self.size):
            self.federation.emit(self.federation.server.returned(member))

    @precondition(lambda self: self.federation.wire)
    @rule(position=st.integers(0, 30))
    def deliver_and_keep(self, position: int) -> None:
        self.federation.deliver(self.federation.wire[self.pick(position)])

    @precondition(lambda self: self.federation.wire)
    @rule(position=st.integers(0, 30))
    def lose(self, position: int) -> None:
        self.federation.wire.pop(self.pick(position))

    @precondition(lambda self: self.federation.sent)
    @rule(position=st.integers(0, 300))
    def replay(self, position: int) -> None:
        self.federation.deliver(self.federation.sent[position % len(self.federation.sent)])

    @precondition(lambda self: self.federation.sent)
    @rule(position=st.integers(0, 300), member=st.integers(0, 4))
    def misdirect(self, position: int, member: int) -> None:
        """A packet comes over another member's connection, or reaches another client."""
        item = self.federation.sent[position % len(self.federation.sent)]
        if item.kind not in (
            MaskedInput,
            UnmaskShares,
        ):  # a member's own wrong values only spoil availability or its input
            self.federation.deliver(type(item)(member % self.size, item.to_server, item.kind, item.data, item.frames))

    @precondition(lambda self: len(self.federation.server.absent) < self.size - self.federation.plan.threshold)
    @rule(member=st.integers(0, 4))
    def member_is_lost(self, member: int) -> None:
        self.federation.emit(self.federation.server.lost(member % self.size))

    @rule(member=st.integers(0, 4))
    def member_returns(self, member: int) -> None:
        self.federation.emit(self.federation.server.returned(member % self.size))

    @precondition(lambda self: self.federation.server.phase in RUNNING)
    @rule()
    def phase_expires(self) -> None:
        self.federation.emit(self.federation.server.expire())

    @precondition(lambda self: self.federation.server.phase is Phase.READY)
    @rule(scale=st.floats(0.1, 1.0))
    def next_step(self, scale: float) -> None:
        self.federation.begin_step([scale], STATE * scale)

    @invariant()
    def every_revealed_sum_is_right(self) -> None:
        if not hasattr(self, "federation"):
            return
        plan = self.federation.plan
        assert len({reveal.step for reveal in self.federation.reveals}) == len(self.federation.reveals)
        for reveal in self.federation.reveals:
            assert len(reveal.survivors) >= max(plan.threshold, plan.least_survivors)
            assert (reveal.total.astype(np.int64) == self.federation.plain_sum(reveal.step, reveal.survivors)).all()

    @invariant()
    def a_failed_epoch_says_so_once(self) -> None:
        if hasattr(self, "federation"):
            assert (self.federation.server.phase is Phase.FAILED) == (len(self.federation.failures) == 1)

    @invariant()
    def a_client_answers_a_step_with_one_set_of_bytes(self) -> None:
        if not hasattr(self, "federation"):
            return
        said: dict[tuple[int, type, int], set] = {}
        for item in self.federation.sent[-40:]:
            if item.kind in (MaskedInput, UnmaskShares):
                said.setdefault((item.member, item.kind, item.message.step), set()).add((item.data, item.frames))
        assert all(len(versions) == 1 for versions in said.values())


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=300, stateful_step_count=50)

ANY_TO_CLIENT, ANY_TO_SERVER = st.one_of(list(TO_CLIENT.values())), st.one_of(list(TO_SERVER.values()))


@given(data=st.data())
@settings(max_examples=80)
def test_well_formed_nonsense_never_raises_an_untyped_error(data: st.DataObject) -> None:
    """Any well-formed message, the right context written into it or not, in any state of either machine."""
    federation = Federation(3, threshold=2, steps=2)
    plan = federation.plan.digest
    states, phases = set(), set()

    def disturb() -> None:
        client = federation.clients[0]
        states.add(client.state)
        phases.add(federation.server.phase)
        for strategy, receive in (
            (ANY_TO_CLIENT, client.receive),
            (ANY_TO_SERVER, lambda message, frames: federation.server.receive(0, message, frames)),
        ):
            message = data.draw(strategy)
            changes = {"plan": plan} if isinstance(getattr(message, "plan", None), bytes) else {}
            if "step" in message.__struct_fields__:
                changes["step"] = 0
            message = type(message)(**{name: getattr(message, name) for name in message.__struct_fields__} | changes)
            if type(message).__name__ in ("Farewell", "Refusal", "MaskedInput", "UnmaskShares"):
                continue  # these do what they say
            before, phase = client.state, federation.server.phase
            try:
                receive(message, data.draw(st.sampled_from([(), (b"",), (STATE.tobytes(),)])))
            except RemoteProtocolError:
                assert (client.state, federation.server.phase) == (before, phase)

    disturb()
    federation.emit(federation.server.start())
    for _ in range(data.draw(st.integers(0, 12))):
        if federation.wire:
            federation.deliver(federation.wire.pop(0))
        elif federation.server.phase is Phase.READY:
            federation.begin_step()
        disturb()
    for reveal in federation.reveals:
        assert (reveal.total == federation.plain_sum(reveal.step, reveal.survivors)).all()


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("step", [-1, 0, 1, 5])
def test_provide_out_of_turn_is_local_misuse(ready: bool, step: int) -> None:
    federation = Federation(3)
    if ready:
        federation.set_up()
    with pytest.raises(LocalProtocolError):
        federation.clients[0].provide(step, np.zeros(20, dtype="<u4"))
