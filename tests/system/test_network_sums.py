"""A server that lies about sums, certificates and records over the network, and what its clients learn of it.

Where a rule is taken out of the clients, the lie is believed: that is each attack's control.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from codream_protocols import hybrid
from codream_protocols.client import ClientProtocol
from codream_protocols.encoding import integers
from codream_protocols.messages import Certificate, EpochRecord, Published
from codream_protocols.packing import pack, unpack
from codream_protocols.server import SendTo
from codream_protocols.tag import TagKey, tag_bytes, tag_number
from codream_server.settings import Timing
from tests.system.scenarios import FAST, MODES, assert_all_learnt, until, whole

# -- a server that lies about sums ---------------------------------------------


class AnySum(ClientProtocol):
    """A client that takes whatever sum it is told."""

    def _rule_true_sum(self, plan: Any, tag_key: Any, message: Any, frame: bytes) -> None:
        return None


def changed(net: Any, effect: SendTo, amount: int, group_key: bytes | None = None) -> SendTo:
    """A published sum with `amount` added to its first number, and where a colluder tells the key, a tag that fits."""
    plan, message = net.server.protocol.plan, effect.message
    words = unpack(effect.frames[0], plan.spec(message.step).words, plan.modulus_bits(message.step))
    forged = words.copy()
    forged[0] = int(words[0]) + amount
    if group_key is not None:
        public = net.server.protocol._epoch.public
        key = TagKey(hybrid.tag_secret(group_key, message.step, public.links[message.step]), len(words))
        before, after = (key.of(integers(plan, message.step, part)) for part in (words, forged))
        message = msgspec.structs.replace(
            message, tag=tag_bytes((tag_number(message.tag) + after - before) % (1 << 128))
        )
    return SendTo(effect.member, message, (pack(forged, plan.modulus_bits(message.step)),))


def doubled(net: Any, effect: SendTo) -> SendTo:
    """Sum and tag, both halved where that goes: the tag is linear, the pads are not."""
    plan, message = net.server.protocol.plan, effect.message
    words = unpack(effect.frames[0], plan.spec(message.step).words, plan.modulus_bits(message.step)) // 2
    tag = tag_bytes(tag_number(message.tag) // 2)
    return SendTo(
        effect.member, msgspec.structs.replace(message, tag=tag), (pack(words, plan.modulus_bits(message.step)),)
    )


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
        def _cast_vote(self, public: Any, others: Any = None) -> Any:
            voted[self._member] = list(public.frames)
            return super()._cast_vote(public, others)

    net = network(MODES[mode], mode=mode, steps=2, lie=lie, timing=FAST)
    voted: dict[int, list[Any]] = {}
    liars = [number for number in range(MODES[mode]) if told(number)]
    others_are_enough = what == "another sum to one"

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
    shown = [pack(total, item.bits) for item in net.sums for total in [true[item.plan]]]
    if protocol is AnySum:
        assert not any(seen(number) for number in range(MODES[mode]))
        assert all(voted[number][1] not in shown for number in liars)
        return
    for number in liars:
        assert seen(number)[0]["level"] == "error" and "step 1" in seen(number)[0]["found"]
        assert net.diaries[number].memory.wrong_sums
    if not others_are_enough:
        assert not any(net.learnt(number) for number in range(MODES[mode])) and not net.published
        assert not set(liars) & set(voted)
    else:  # they have the true sums, and their votes show them to the one that was lied to
        (published,) = net.published
        assert all(frames[1] in shown for frames in voted.values())
        assert mode == "resilient" or set(liars) <= set(voted)  # lockstep needs its vote, too
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

    members = MODES[mode]
    told: list[Any] = []
    halves, colluder = (range(members // 2), range(members // 2, members)), members - 1
    net = network(members, mode=mode, lie=lie, timing=FAST)

    def refused(number: int) -> list[Any]:
        return [line for line in net.logs[number] if line.get("code") == "certificate"]

    async def scenario() -> None:
        async with net.serving() as server:
            waiting = net.happens("waiting", phase="voting")
            net.start_all(protocol=protocol)
            assert (await waiting)["clients"] == []  # they are there
            assert len(net.server.protocol.waiting_for()) == len(halves[0])
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
