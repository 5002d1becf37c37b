"""Sums that are not true, at every place where one could be told, and what a client then does."""

from __future__ import annotations

import msgspec
import pytest

from codream_protocols.charter import Policy
from codream_protocols.client import Ended, Send, State
from codream_protocols.errors import (
    CohortRefused,
    PolicyViolation,
    SecondSurvivorSet,
    UnexpectedMessage,
    VectorRefused,
    WrongContext,
    WrongSum,
)
from codream_protocols.messages import Invitation, MaskedInput, Published, Refusal, SealDelivery, Survivors, Vote
from codream_protocols.packing import pack, unpack
from codream_protocols.server import Phase
from secure_codream.simulation.packets import packet
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation
from secure_codream.threats.attacks.broadcasts import SUMS, takes
from secure_codream.threats.laboratory.adversary import (
    agree_and_answer,
    altered,
    masked_input,
    told_group_key,
    without_block,
)
from secure_codream.threats.laboratory.switches import without


def told(federation: Federation, step: int = 0) -> tuple[Published, tuple[bytes, ...]]:
    item = federation.published(step)
    assert isinstance(item.message, Published)
    return item.message, item.frames


# -- what a client does with a sum that fails ---------------------------------------------


@pytest.mark.parametrize("how", SUMS)
def test_a_sum_that_fails_ends_the_epoch_and_is_said_everywhere(how: str) -> None:
    federation = Federation(4).masked()
    message, frame = SUMS[how](federation, federation.published(0))
    effects = federation.tell(0, message, (frame,))
    refusal, ended = effects
    assert isinstance(refusal, Send) and isinstance(refusal.message, Refusal) and refusal.message.code == WrongSum.code
    assert isinstance(ended, Ended) and ended.wrong_sum and "step 0" in ended.reason
    client = federation.clients[0]
    assert client.state is State.IDLE and client.plan is None
    assert federation.diaries[0].memory.wrong_sums == (federation.plan.digest,)
    with pytest.raises(UnexpectedMessage):  # not even the true one after it
        federation.tell(0, *told(federation))
    assert not federation.diaries[0].memory.certified and federation.diaries[0].memory.vote is None


@pytest.mark.parametrize("how", SUMS)
def test_without_the_rule_the_same_sum_is_taken(how: str) -> None:
    federation = Federation(4, client_class=without("_rule_true_sum")).masked()
    message, frame = SUMS[how](federation, federation.published(0))
    assert takes(federation, 0, message, frame)


def test_all_secrets_of_the_epoch_are_gone_with_a_wrong_sum() -> None:
    federation = Federation(4).masked()
    epoch = federation.clients[0]._epoch
    assert epoch is not None and epoch.group_key is not None and epoch.step is not None
    message, frame = altered(federation, federation.published(0), {3: 5})
    federation.tell(0, message, (frame,))
    assert epoch.group_key.erased and all(root.erased for root in epoch.keys._roots.values())
    assert "erased" in repr(epoch.step.tag_key)


def test_a_second_wrong_sum_waits_for_a_person() -> None:
    federation = Federation(4, policy=Policy())
    for _ in range(2):
        federation.masked()
        message, frame = altered(federation, federation.published(0), {0: 1})
        for member in federation.everybody:
            federation.tell(member, message, (frame,))
        federation.emit(federation.server._give_up("a sum failed its check"))
        federation.drain()
    assert not federation.set_up()
    assert isinstance(federation.refusals[-1][1], WrongSum)
    federation.restart(0)
    with pytest.raises(WrongSum):
        federation.tell(0, *invitation(federation))


def invitation(federation: Federation) -> tuple[Invitation]:
    return (Invitation(federation.offer(epoch=9)),)


def test_one_liar_cannot_end_an_epoch_by_saying_that_a_sum_failed() -> None:
    """In the resilient mode a sum ends the epoch when more than c members say so; lockstep needs everybody."""
    federation = Federation(6, mode="resilient", steps=2)
    federation.set_up()
    assert federation.step() is not None
    plan = federation.plan.digest
    federation.emit(federation.server.receive(5, Refusal(WrongSum.code, "lies", "", plan)))
    federation.drain()
    assert federation.server.phase is not Phase.IDLE and not federation.given_up
    federation.step()
    certified = federation.finish()
    assert certified is not None


# -- where a sum cannot even be looked at ---------------------------------------------


@pytest.mark.parametrize("frames", [(), (b"",), (b"x", b"y")])
def test_sums_of_the_wrong_form_are_refused_and_change_nothing(frames: tuple[bytes, ...]) -> None:
    federation = Federation(4).masked()
    before = snapshot(federation.clients[0])
    message, honest = told(federation)
    with pytest.raises(VectorRefused):
        federation.tell(0, message, frames)
    assert snapshot(federation.clients[0]) == before
    assert takes(federation, 0, message, honest[0])


def test_bits_behind_the_last_element_are_refused() -> None:
    federation = Federation(4, value_bits=17).masked()
    message, (frame,) = told(federation)
    spare = 8 * len(frame) - 20 * federation.plan.modulus_bits(0)
    assert spare
    with pytest.raises(VectorRefused):
        federation.tell(0, message, (frame[:-1] + bytes([frame[-1] | 0x80]),))


def test_lockstep_takes_no_sum_of_everybody_without_its_own_vector() -> None:
    federation = Federation(4)
    federation.set_up()
    message = Published(federation.plan.digest, 0, federation.everybody, bytes(16))
    with pytest.raises(UnexpectedMessage):
        federation.tell(0, message, (bytes(52),))


@pytest.mark.parametrize("step", [1, 2, 9])
def test_sums_of_other_steps_are_refused(step: int) -> None:
    federation = Federation(4).masked()
    message, frames = told(federation)
    with pytest.raises(WrongContext):
        federation.tell(0, msgspec.structs.replace(message, step=step), frames)


def test_a_sum_again_changes_nothing_and_another_one_is_refused() -> None:
    federation = Federation(4)
    federation.set_up()
    federation.step()
    message, frames = told(federation)
    before = snapshot(federation.clients[0])
    assert federation.tell(0, message, frames) == []
    forged, frame = altered(federation, federation.published(0), {0: 1})
    with pytest.raises(WrongContext):
        federation.tell(0, forged, (frame,))
    assert snapshot(federation.clients[0]) == before


# -- whose sum it is ---------------------------------------------


def test_a_client_that_answered_for_one_set_takes_no_sum_over_another() -> None:
    federation = Federation(6, mode="resilient").masked()
    agree_and_answer(federation, federation.everybody)
    item = Published(federation.plan.digest, 0, (0, 1, 2), bytes(16))
    with pytest.raises(SecondSurvivorSet):
        federation.tell(0, item, (bytes(60),))


@pytest.mark.parametrize("members", [(0, 1, 2, 3), (0, 1), (1, 2, 3, 4, 5), (0, 1, 2, 9)])
def test_sums_over_parts_of_blocks_or_strangers_are_refused(members: tuple[int, ...]) -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    with pytest.raises(CohortRefused):
        federation.tell(0, Published(federation.plan.digest, 0, members, bytes(16)), (bytes(60),))


def test_the_tag_of_a_sum_names_who_is_in_it() -> None:
    """The same numbers and the same tag with another block's names do not pass."""
    for rule, taken in ((), False), (("_rule_true_sum",), True):
        federation = Federation(9, mode="resilient", client_class=without(*rule))
        federation.set_up()
        federation.compute([member for member in federation.everybody if member != 0])
        federation.drain(lost={(0, kind) for kind in (Survivors, Published)})
        federation.emit(federation.server.lost(0))
        federation.drain(lost={(0, kind) for kind in (Survivors, Published)})
        message, frames = told(federation)
        assert message.members == without_block(federation, 0)
        other = msgspec.structs.replace(message, members=(0, 1, 2, 3, 4, 5))
        assert takes(federation, 0, other, frames[0]) is taken


# -- what a colluder gains ---------------------------------------------


def test_a_colluder_moves_a_sum_by_no_more_than_an_input_of_its_own() -> None:
    """It knows the group key, so the tag fits: but beyond the range of inputs nothing passes."""
    federation = Federation(4).masked()
    key = told_group_key(federation, 1)
    most = (1 << federation.plan.modulus_bits(0)) - 1
    words = unpack(federation.published(0).frames[0], 20, federation.plan.modulus_bits(0))
    message, frame = altered(federation, federation.published(0), {0: most - int(words[0])}, key)
    assert not takes(federation, 2, message, frame)
    message, frame = altered(federation, federation.published(0), {0: 1}, key)
    assert takes(federation, 3, message, frame)


def test_a_forged_state_ends_before_anything_is_summed_at_it() -> None:
    """Who was told another sum, tag and all, stands at another state: its next vector names it, and joins no sum."""
    federation = Federation(4).masked()
    key = told_group_key(federation, 1)
    message, frame = altered(federation, federation.published(0), {0: 1}, key)
    true, frames = told(federation)
    for member in (1, 2, 3):
        federation.perform(member, federation.tell(member, true, frames))
    assert takes(federation, 0, message, frame)
    federation.compute()
    reveals = len(federation.reveals)
    federation.drain()
    assert len(federation.reveals) == reveals and "client-0" in federation.failures[-1]
    total = sum(masked_input(federation, 1, member).astype("int64") for member in federation.everybody)
    assert not (total % (1 << federation.plan.modulus_bits(0)) == federation.plain_sum(1, federation.everybody)).all()


def test_a_member_whose_machine_computes_another_state_is_named() -> None:
    course = LaboratoryCourse()
    federation = Federation(4, course=course, courses=[course, course, LaboratoryCourse(bias=0.5), course])
    federation.set_up()
    assert federation.step() is not None  # the start is the same
    assert federation.step() is None
    assert "client-2" in federation.failures[0] and len(federation.reveals) == 1


def test_a_garbled_vector_is_no_true_sum() -> None:
    """The server adds what it is sent; the clients find out."""
    federation = Federation(4, steps=1)
    federation.set_up()
    federation.compute()
    place = next(place for place, item in enumerate(federation.wire) if item.kind is MaskedInput and item.member == 2)
    item = federation.wire[place]
    words = unpack(item.frames[0], 20, federation.plan.modulus_bits(0))
    words[0] ^= 1
    federation.wire[place] = packet(2, item.message, (pack(words, federation.plan.modulus_bits(0)),), to_server=True)
    federation.drain()
    assert not any(diary.memory.vote for diary in federation.diaries)
    assert all(news.ended and news.ended[0].wrong_sum for news in federation.news)
    assert federation.finish() is None


def test_votes_are_only_for_true_sums() -> None:
    federation = Federation(4, steps=1).masked()
    message, frame = altered(federation, federation.published(0), {0: 1})
    federation.tell(0, message, (frame,))
    assert not any(item.kind is Vote and item.member == 0 for item in federation.sent)
    assert federation.diaries[0].memory.vote is None


def test_an_epoch_is_paid_for_before_anything_is_sent() -> None:
    federation = Federation(4, policy=Policy(most_total_steps=3), steps=3)
    federation.run()
    assert [diary.memory.steps for diary in federation.diaries] == [3] * 4
    with pytest.raises(PolicyViolation):
        federation.tell(0, *invitation(federation))


def test_a_false_last_sum_does_not_keep_the_epoch_waiting() -> None:
    """More members than all colluders saw it fail: nobody can rightly have voted, though one has not seen it yet."""
    federation = Federation(6, mode="resilient", steps=1)
    federation.set_up(lost={(1, SealDelivery)})
    federation.compute()
    place = next(place for place, item in enumerate(federation.wire) if item.kind is MaskedInput and item.member == 5)
    item = federation.wire[place]
    garbled = bytes([item.frames[0][0] ^ 1]) + item.frames[0][1:]
    federation.wire[place] = packet(5, item.message, (garbled,), to_server=True)
    federation.drain()
    federation.emit(federation.server.expire())
    federation.drain()
    assert federation.reveals[0].survivors == (3, 4, 5)
    assert federation.server.phase is Phase.IDLE and federation.given_up[0].wrong_sum and not federation.certified
