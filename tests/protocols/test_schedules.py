"""Any order, loss and repetition of messages: the right sum of the members told, or a stated end, or nothing.

A random schedule picks, again and again, a packet in flight (any of them, not the oldest), and delivers it, delivers it
and keeps it, or loses it; in between, members are reported lost and come back, phases expire, epochs begin, parties
crash, and old packets are replayed. `Federation.deliver` lets only `RemoteProtocolError` pass, so an untyped exception
fails the test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.messages import Beat, MaskedInput, Published, Survivors, UnmaskShares
from codream_protocols.packing import pack
from codream_protocols.server import Phase
from secure_codream.simulation.packets import packet
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.wire import Federation
from tests.protocols.test_messages import TO_CLIENT, TO_SERVER

RUNNING = (Phase.ADVERTISING, Phase.SEALING, Phase.COLLECTING, Phase.AGREEING, Phase.UNMASKING)


class Schedules(RuleBasedStateMachine):
    """A federation under a hostile network."""

    @initialize(
        shape=st.sampled_from([("lockstep", 3), ("lockstep", 4), ("resilient", 3), ("resilient", 6)]),
        seed=st.integers(0, 2**32),
        calm=st.booleans(),
    )
    def start(self, shape: tuple[str, int], seed: int, calm: bool) -> None:
        mode, self.size = shape
        self.federation = Federation(self.size, mode=mode, seed=seed, steps=2, value_bits=8)
        self.federation.hello()
        if calm:  # half of the schedules begin behind the set-up, in the middle of a step
            self.federation.set_up()
            self.federation.compute()
            silent: set[tuple[int, type]] = {
                (member, kind) for member in range(self.size) for kind in (Survivors, Published)
            }
            lost: tuple[set[tuple[int, type]], ...] = (set(), silent, {(self.size - 1, MaskedInput)})
            self.federation.drain(lost[seed % 3])

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

    @precondition(lambda self: self.federation.computing)
    @rule(position=st.integers(0, 5))
    def compute(self, position: int) -> None:
        waiting = sorted(self.federation.computing)
        self.federation.compute([waiting[position % len(waiting)]])

    @precondition(lambda self: self.federation.computing)
    @rule()
    def everybody_computes(self) -> None:
        self.federation.compute()

    @precondition(lambda self: self.federation.server.phase is Phase.IDLE and self.federation.server.cohort())
    @rule()
    def an_epoch_begins(self) -> None:
        self.federation.emit(self.federation.server.open_epoch(self.federation.server.cohort()))

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
    @rule(position=st.integers(0, 300), member=st.integers(0, 5))
    def misdirect(self, position: int, member: int) -> None:
        """A packet comes over another member's connection, or reaches another client."""
        item = self.federation.sent[position % len(self.federation.sent)]
        if item.kind not in (MaskedInput, UnmaskShares):  # wrong values of a member's own only spoil availability
            self.federation.deliver(type(item)(member % self.size, item.to_server, item.kind, item.data, item.frames))

    @rule(member=st.integers(0, 5))
    def member_is_lost(self, member: int) -> None:
        self.federation.emit(self.federation.server.lost(member % self.size))

    @rule(member=st.integers(0, 5))
    def member_returns(self, member: int) -> None:
        self.federation.hello([member % self.size])

    @rule(member=st.integers(0, 5))
    def member_beats(self, member: int) -> None:
        number = member % self.size
        beat = Beat(*self.federation.clients[number].progress)
        self.federation.deliver(packet(number, beat, to_server=True))

    @rule(member=st.integers(0, 5))
    def client_crashes(self, member: int) -> None:
        self.federation.restart(member % self.size)

    @rule(remembers=st.booleans())
    def server_crashes(self, remembers: bool) -> None:
        self.federation.restart_server(remembers=remembers)
        self.federation.hello()

    @precondition(lambda self: self.federation.server.phase in (*RUNNING, Phase.VOTING))
    @rule()
    def phase_expires(self) -> None:
        self.federation.emit(self.federation.server.expire())

    @invariant()
    def every_sum_that_is_taken_is_true(self) -> None:
        if not hasattr(self, "federation"):
            return
        federation = self.federation
        for reveal in federation.reveals[-3:]:
            assert len(reveal.survivors) >= federation.charter.aggregation.least_survivors
            assert federation.charter.is_union(reveal.survivors)
        for client in federation.clients:
            running = client._epoch.public if client._epoch else None
            voted = client._vote[0] if client._vote else None
            for public in (running, voted):
                if public is None:
                    continue
                for number, (step, frame) in enumerate(zip(public.steps, public.frames, strict=True)):
                    item = federation.plain_sum(number, step.members, public.plan.digest)
                    expected = item.astype(federation.vectors[number, step.members[0]].dtype)
                    assert pack(expected, public.plan.modulus_bits(number)) == frame

    @invariant()
    def all_histories_are_one(self) -> None:
        if not hasattr(self, "federation"):
            return
        heads = [client.history.heads for client in self.federation.clients]
        longest = max(heads, key=len)
        assert all(one == longest[: len(one)] for one in heads)

    @invariant()
    def a_client_answers_a_step_with_one_set_of_bytes(self) -> None:
        if not hasattr(self, "federation"):
            return
        said: dict[tuple[int, type, bytes, int], set[Any]] = {}
        for item in self.federation.sent[-40:]:
            if item.kind in (MaskedInput, UnmaskShares):
                key = (item.member, item.kind, item.message.plan, item.message.step)
                said.setdefault(key, set()).add((item.data, item.frames))
        assert all(len(versions) == 1 for versions in said.values())


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=200, stateful_step_count=50)

ANY_TO_CLIENT, ANY_TO_SERVER = st.one_of(list(TO_CLIENT.values())), st.one_of(list(TO_SERVER.values()))


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@given(data=st.data())
@settings(max_examples=60)
def test_well_formed_nonsense_never_raises_an_untyped_error(mode: str, data: st.DataObject) -> None:
    """Any well-formed message, the right context written into it or not, in any state of either machine."""
    federation = Federation(3, mode=mode, steps=2)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    plan = federation.plan.digest

    def disturb() -> None:
        client = federation.clients[0]
        for strategy, receive in (
            (ANY_TO_CLIENT, client.receive),
            (ANY_TO_SERVER, lambda message, frames: federation.hear(0, message, frames)),
        ):
            message = data.draw(strategy)
            changes: dict[str, Any] = {"plan": plan} if isinstance(getattr(message, "plan", None), bytes) else {}
            if "step" in message.__struct_fields__:
                changes["step"] = 0
            message = type(message)(**{name: getattr(message, name) for name in message.__struct_fields__} | changes)
            if type(message).__name__ in (
                "Farewell", "Refusal", "MaskedInput", "UnmaskShares", "GivenUp", "Complaint", "Hello",
            ):  # fmt: skip
                continue  # these do what they say
            before = snapshot(client), snapshot(federation.server)
            try:
                receive(message, data.draw(st.sampled_from([(), (b"",), (bytes(45),)])))
            except RemoteProtocolError:
                assert (snapshot(client), snapshot(federation.server)) == before

    disturb()
    for _ in range(data.draw(st.integers(0, 14))):
        if federation.wire:
            federation.deliver(federation.wire.pop(0))
        else:
            federation.compute()
        disturb()
    for reveal in federation.reveals:
        assert (reveal.total == federation.plain_sum(reveal.step, reveal.survivors)).all()


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("step", [1, 5])
def test_provide_out_of_turn_is_local_misuse(ready: bool, step: int) -> None:
    federation = Federation(3)
    federation.set_up(lost=set() if ready else {(0, kind) for kind in TO_CLIENT if kind.__name__ == "SealDelivery"})
    with pytest.raises(LocalProtocolError):
        federation.clients[0].provide(federation.plan.digest, step, {"dream": np.zeros(20)})
