"""The sum that is published is, bit for bit, the sum of what the members in it encoded; or there is none."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols.charter import even_blocks
from codream_protocols.client import State
from codream_protocols.errors import LocalProtocolError, UnexpectedMessage, VectorRefused, WrongContext
from codream_protocols.masks import SUITES, word_type
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Complaint,
    GivenUp,
    Invitation,
    MaskedInput,
    Published,
    Refusal,
    SealDelivery,
    Seals,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    encode_message,
)
from codream_protocols.packing import packed_size
from codream_protocols.server import Phase, StepFinished
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.packets import of_kind
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation

SPECS = (
    VectorSpec("update", (Block("dream", 11, 0.5), Block("weight", 1, 4.0))),
    VectorSpec("labels", (Block("logits", 7, 20.0), Block("seen", 3, 1000, "count"))),
)
LOSSES = (MaskedInput, Survivors, SurvivorSignature, SurvivorSignatures, UnmaskShares, Published)
IN_SET_UP = (Invitation, Advertisement, Advertisements, Seals, SealDelivery)


def check(federation: Federation, reveal: StepFinished) -> None:
    """The plain sum of its survivors, in whole blocks, decoded to the sum of their values within the rounding."""
    plan = federation.plan
    plain = federation.plain_sum(reveal.step, reveal.survivors)
    assert reveal.total.dtype == word_type(plan.modulus_bits(reveal.step))
    assert (reveal.total.astype(np.int64) == plain).all()
    assert len(reveal.survivors) >= plan.aggregation.least_survivors
    assert set(reveal.survivors) <= set(reveal.members)
    assert federation.charter.is_union(reveal.survivors) or plan.aggregation.losses == "allow"
    start = 0
    for block in plan.spec(reveal.step).blocks:
        found, part = reveal.sums[block.name], plain[start : start + block.words]
        if block.kind == "count":
            digits = part.reshape(block.digits, block.length)
            expected = sum(digit << 8 * place for place, digit in enumerate(digits))
            assert (found == expected).all()
        else:
            grid = 2 * block.clip / plan.top(reveal.step)
            np.testing.assert_allclose(found, part * grid - len(reveal.survivors) * block.clip, atol=1e-9)
        start += block.words


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("value_bits", [2, 13, 16, 24])
def test_sum_is_exact_without_dropouts(mode: str, suite: str, value_bits: int) -> None:
    federation = Federation(5, mode=mode, steps=3, suite=suite, value_bits=value_bits, specs=SPECS)
    assert federation.set_up()
    for _ in range(3):
        reveal = federation.step()
        assert reveal is not None and reveal.survivors == (0, 1, 2, 3, 4) and not reveal.agreed
        check(federation, reveal)
    certified = federation.finish()
    assert certified is not None and certified.number == 1 and not federation.refusals
    assert {client.head for client in federation.clients} == {federation.server.head}


@given(data=st.data())
@settings(max_examples=60)
def test_every_sum_is_exact_under_any_dropouts(data: st.DataObject) -> None:
    colluders = data.draw(st.integers(1, 2), "colluders")
    size = data.draw(st.integers(colluders + 2, 9), "members")
    federation = Federation(
        size,
        mode=data.draw(st.sampled_from(["lockstep", "resilient"]), "mode"),
        seed=data.draw(st.integers(0, 2**32), "seed"),
        colluders=colluders,
        least_survivors=data.draw(st.integers(colluders + 2, size), "least survivors"),
        losses=data.draw(st.sampled_from(["blocks", "allow"]), "losses"),
        value_bits=data.draw(st.integers(2, 24), "value bits"),
        suite=data.draw(st.sampled_from(sorted(SUITES)), "suite"),
        steps=data.draw(st.integers(1, 3), "T"),
        specs=SPECS,
    )
    rare = st.sets(st.tuples(st.integers(0, size - 1), st.sampled_from(LOSSES)), max_size=3)
    gone = st.sets(st.tuples(st.integers(0, size - 1), st.sampled_from(IN_SET_UP)), max_size=1)
    if federation.set_up(data.draw(gone, "lost in set-up")):
        while federation.server.step is not None:
            lost = data.draw(rare, "lost")
            reveal = federation.step(lost)
            if reveal is None:
                break
            check(federation, reveal)
            assert not {member for member, kind in lost if kind is MaskedInput} & set(reveal.survivors)
            assert reveal.agreed == (reveal.survivors != reveal.members)
    federation.finish()
    assert federation.server.phase in (Phase.IDLE, Phase.VOTING)
    assert len(federation.given_up) + len(federation.certified) + (federation.server.phase is Phase.VOTING) == 1


def test_a_dropped_member_takes_part_again() -> None:
    federation = Federation(9, mode="resilient", steps=5)
    federation.set_up()
    everybody = tuple(range(9))
    for lost, survivors in [
        ({(2, MaskedInput)}, everybody[3:]),
        (set(), everybody),
        ({(0, MaskedInput), (8, MaskedInput)}, everybody[3:6]),
        ({(1, UnmaskShares)}, everybody),
        ({(3, SurvivorSignature), (0, MaskedInput), (4, UnmaskShares)}, everybody[3:]),
    ]:
        reveal = federation.step(lost)
        assert reveal is not None
        assert reveal.survivors == survivors
        check(federation, reveal)
    assert federation.finish() is not None and not federation.refusals


def test_whole_blocks_take_the_room_of_one_sum_and_only_the_others_have_theirs() -> None:
    federation = Federation(12, mode="resilient", steps=1)
    federation.set_up()
    most = 0
    for member in (0, 3, 6, 1, 4, 2, 5, 7, 8, 9):
        federation.compute([member])
        federation.drain()
        epoch = federation.server._epoch
        assert epoch is not None and epoch.step is not None
        most = max(most, len(epoch.step.totals))
    assert most == 3 and len(epoch.step.totals) == 2
    federation.emit(federation.server.expire())
    federation.drain()
    (reveal,) = federation.reveals
    assert reveal.survivors == tuple(range(9))
    check(federation, reveal)


def test_lockstep_waits_for_a_silent_member_and_gives_up_when_told_to() -> None:
    federation = Federation(4)
    federation.set_up()
    federation.compute()
    federation.drain({(1, MaskedInput)})
    assert federation.server.lost(1) == [] and federation.server.waiting_for() == (1,)
    federation.emit(federation.server.expire())
    assert federation.server.phase is Phase.IDLE and "client-1" in federation.failures[0]


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("kind", [Advertisement, Seals, MaskedInput])
def test_who_is_there_and_has_not_answered_is_named_by_no_reason_nor_counted(mode: str, kind: type) -> None:
    """Each reason, told to all and written down, would time a member's work."""

    def reasons(slow: Iterable[int], *, lost: bool = True) -> set[str]:
        federation = Federation(6, mode=mode, steps=1)
        federation.hello()
        federation.drain()
        federation.emit(federation.server.open_epoch(federation.server.cohort()))
        missing = {(member, kind) for member in (1, *slow)}
        federation.drain(missing)
        federation.compute()
        federation.drain(missing)
        if lost:
            federation.emit(federation.server.lost(1))
        federation.emit(federation.server.expire())
        told = {item.message.reason for item in federation.wire if isinstance(item.message, GivenUp)}
        assert told == set(federation.failures) and federation.server.phase is Phase.IDLE
        return told

    (reason,) = reasons([4])
    assert "client-1" in reason and "client-4" not in reason
    assert reasons([4, 5]) == reasons([3]) == {reason}
    assert "client" not in "".join(reasons([4], lost=False))  # nobody is gone


def test_lockstep_goes_on_when_a_connection_comes_back() -> None:
    federation = Federation(4)
    federation.set_up()
    federation.compute()
    federation.drain({(1, MaskedInput)})
    federation.emit(federation.server.lost(1))
    federation.hello([1])
    federation.drain()
    (first, second) = (item for item in federation.sent if item.kind is MaskedInput and item.member == 1)
    assert first == second
    assert federation.reveals[0].survivors == (0, 1, 2, 3)
    check(federation, federation.reveals[0])


def test_repeats_of_every_message_of_a_step_are_answered_with_the_same_bytes() -> None:
    federation = Federation(6, mode="resilient", steps=1)
    federation.set_up()
    federation.compute()
    federation.drain({(5, MaskedInput)}, hold=(Survivors,))
    federation.emit(federation.server.expire())
    pairs = [(SealDelivery, MaskedInput), (Survivors, SurvivorSignature), (SurvivorSignatures, UnmaskShares)]
    for kind_in, kind_out in pairs:
        question = next(item for item in federation.sent if item.kind is kind_in and item.member == 0)
        if kind_in is not SealDelivery:
            federation.drain(hold=(SurvivorSignatures, Published) if kind_in is Survivors else (Published,))
        answers = [item for item in federation.sent if item.kind is kind_out and item.member == 0]
        again = federation.tell(0, question.message, question.frames)
        assert [encode_message(effect.message) for effect in again] == [item.data for item in answers]
        assert [effect.frames for effect in again] == [item.frames for item in answers]


def test_bytes_sent_over_bytes_of_data_stay_close_to_one() -> None:
    length = 4096
    specs = (VectorSpec("update", (Block("dream", length, 1.0),)),)
    federation = Federation(5, mode="resilient", steps=20, specs=specs)
    federation.set_up()
    for _ in range(20):
        federation.step()
    sent = sum(len(item.data) + sum(map(len, item.frames)) for item in federation.sent if item.to_server)
    assert sent / (20 * 5 * packed_size(length, federation.plan.modulus_bits(0))) < 1.2


def test_a_refusing_member_is_not_waited_for() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    federation.compute()
    federation.drain({(2, MaskedInput)})
    assert federation.server.waiting_for() == (2,)
    federation.emit(federation.server.receive(2, Refusal("vector", "", "", federation.plan.digest)))
    federation.drain()
    assert federation.reveals[0].survivors == (3, 4, 5)


def test_late_inputs_and_late_answers_are_in_no_sum() -> None:
    """Those of a step whose sum is out: a member that connects again, and has not heard it yet, says them once more."""
    federation = Federation(6, mode="resilient", steps=2)
    federation.set_up()
    federation.step({(1, MaskedInput)})
    late = next(item for item in federation.sent if item.kind is MaskedInput and item.member == 1)
    before = snapshot(federation.server)
    assert federation.server.receive(1, late.message, late.frames) == []
    assert federation.server.receive(1, msgspec.structs.replace(late.message, plan=bytes(32)), late.frames) == []
    answer = next(item for item in federation.sent if item.kind is UnmaskShares)
    assert federation.server.receive(answer.member, answer.message) == []
    assert snapshot(federation.server) == before


def test_a_vector_that_comes_after_the_survivors_are_told_is_ignored_and_times_nobody() -> None:
    """A refusal would be written down, with its time, of a member that was only slow."""
    federation = Federation(6, mode="resilient", steps=1)
    federation.set_up()
    federation.compute()
    (late,) = [item for item in federation.wire if item.kind is MaskedInput and item.member == 5]
    federation.wire.remove(late)
    federation.drain(hold=(Survivors,))
    federation.emit(federation.server.expire())
    assert federation.server.phase is Phase.AGREEING
    before = snapshot(federation.server)
    assert federation.server.receive(5, late.message, late.frames) == [] and snapshot(federation.server) == before
    federation.drain()
    assert federation.reveals[0].survivors == (0, 1, 2) and not federation.refusals


def test_a_step_fails_rather_than_sum_over_too_few() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    assert federation.step({(1, MaskedInput), (4, MaskedInput)}) is None
    assert federation.failures and not federation.reveals
    assert federation.server.receive(0, Refusal("vector", "", "", federation.plan.digest)) == []


def test_who_is_not_in_a_sum_follows_all_the_same() -> None:
    """A slow member's vector comes too late; it helps to open the sum, checks it, and votes."""
    federation = Federation(6, mode="resilient", steps=1)
    federation.set_up()
    slow = federation.computing.pop(4)
    federation.compute()
    federation.drain()
    federation.emit(federation.server.expire())
    federation.drain()
    assert federation.reveals[0].survivors == (0, 1, 2)
    assert federation.provide(4, slow) == []  # too late: nothing is sent
    federation.finish()
    assert all(len(news.certified) == 1 for news in federation.news)


def test_numbers_are_provided_once_and_as_asked() -> None:
    federation = Federation(5)
    client = federation.clients[0]
    values = {"dream": np.zeros(20)}
    assert client.provide(bytes(32), 0, values) == []  # of an epoch that is over
    federation.set_up()
    plan = federation.plan.digest
    for bad in ({}, {"dream": np.zeros(19)}, {"dream": np.zeros(20), "more": np.zeros(1)}, {"other": np.zeros(20)}):
        with pytest.raises(LocalProtocolError):
            client.provide(plan, 0, bad)
    with pytest.raises(LocalProtocolError):
        client.provide(plan, 1, values)
    assert client.provide(bytes(32), 0, values) == [] and client.state is State.COMPUTING
    assert len(client.provide(plan, 0, values)) == 1
    with pytest.raises(LocalProtocolError):
        client.provide(plan, 0, values)


def test_a_vector_for_a_step_that_is_over_is_not_sent() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    late = federation.computing[5]
    federation.compute(range(5))
    federation.drain()
    federation.emit(federation.server.expire())
    federation.drain()
    assert federation.clients[5].progress[1] == 1
    assert federation.clients[5].provide(late.plan, 0, {"dream": np.zeros(20)}) == []


def test_a_failed_computation_sends_zeros_and_tells_its_own_operator_alone() -> None:
    federation = Federation(4)
    federation.input_of = lambda member, compute: None if member == 2 else {"dream": np.ones(20)}
    federation.set_up()
    reveal = federation.step()
    assert reveal is not None
    np.testing.assert_allclose(reveal.sums["dream"], 3.0, atol=1e-3)
    assert federation.news[2].notices and not federation.news[1].notices
    assert not any(federation.news[2].notices[0].encode() in item.data for item in federation.sent)


def test_numbers_that_are_not_finite_count_zero_and_are_told_to_the_operator() -> None:
    federation = Federation(4)
    federation.input_of = lambda member, compute: {"dream": np.full(20, np.nan if member == 1 else 0.5)}
    federation.set_up()
    reveal = federation.step()
    assert reveal is not None
    np.testing.assert_allclose(reveal.sums["dream"], 1.5, atol=1e-3)
    assert "20 numbers" in federation.news[1].notices[0]


def test_server_refuses_what_is_out_of_place() -> None:
    federation = Federation(3)
    with pytest.raises(WrongContext):
        federation.server.receive(0, UnmaskShares(bytes(32), 0, bytes(96)))
    federation.set_up()
    with pytest.raises(LocalProtocolError):
        federation.server.open_epoch((0, 1, 2))
    with pytest.raises(UnexpectedMessage):
        federation.server.receive(1, UnmaskShares(federation.plan.digest, 0, bytes(96)))
    with pytest.raises(WrongContext):
        federation.server.receive(7, UnmaskShares(federation.plan.digest, 0, bytes(96)))
    with pytest.raises(VectorRefused):
        federation.server.receive(0, Complaint(federation.plan.digest, 1), (b"frame",))


@pytest.mark.parametrize("frames", [(), (b"",), (bytes(51),), (bytes(52), bytes(52))])
def test_frames_that_do_not_fit_are_refused_by_the_server(frames: tuple[bytes, ...]) -> None:
    federation = Federation(4)
    federation.set_up()
    federation.compute()
    item = next(of_kind(federation.wire, MaskedInput))
    with pytest.raises(VectorRefused):
        federation.server.receive(item.member, item.message, frames)
    federation.drain()
    assert len(federation.reveals) == 1


def test_blocks_of_the_usual_sizes() -> None:
    assert even_blocks(5, 1) == ((0, 1, 2, 3, 4),)
    assert even_blocks(6, 1) == ((0, 1, 2), (3, 4, 5))
    federation = Federation(12, mode="resilient", course=LaboratoryCourse(steps=1))
    assert [len(block) for block in federation.charter.blocks] == [3, 3, 3, 3]
