"""The sum that is revealed is, bit for bit, the sum of what the announced survivors encoded; or there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols.errors import LocalProtocolError, UnexpectedMessage, WrongContext
from codream_protocols.masks import SUITES, word_type
from codream_protocols.messages import (
    Advertisement,
    Broadcast,
    MaskedInput,
    PlanOffer,
    Refusal,
    Shares,
    Survivors,
    SurvivorSignature,
    UnmaskShares,
    encode_message,
)
from codream_protocols.packing import packed_size
from codream_protocols.plan import Block, VectorSpec, default_threshold
from codream_protocols.server import Phase, Reveal
from codream_protocols.vectors import decode_vector
from secure_codream.threats.federation import STATE, Federation

SPECS = (
    VectorSpec("update", (Block("dream", 11, 0.5), Block("weight", 1, 4.0))),
    VectorSpec("labels", (Block("logits", 7, 20.0),)),
)
LOSSES = (Broadcast, MaskedInput, Survivors, SurvivorSignature, UnmaskShares)


def check(federation: Federation, reveal: Reveal) -> None:
    """A reveal is the plain sum of its survivors, and decodes to the sum of their values within the rounding."""
    plan = federation.plan
    plain = federation.plain_sum(reveal.step, reveal.survivors)
    assert reveal.total.dtype == word_type(plan.modulus_bits)
    assert (reveal.total.astype(np.int64) == plain).all()
    assert len(reveal.survivors) >= max(plan.threshold, plan.least_survivors)
    assert set(reveal.survivors) <= set(federation.server.members)
    decoded = decode_vector(plan, reveal.step, reveal.clips, reveal.total, len(reveal.survivors))
    start = 0
    for block, clip in zip(plan.spec(reveal.step).blocks, reveal.clips, strict=True):
        grid = 2 * clip / (2**plan.value_bits - 1)
        expected = plain[start : start + block.length] * grid - len(reveal.survivors) * clip
        np.testing.assert_allclose(decoded[block.name], expected, atol=1e-9)
        start += block.length


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("value_bits", [1, 13, 16, 24])
def test_sum_is_exact_without_dropouts(suite: str, value_bits: int) -> None:
    federation = Federation(5, steps=4, suite=suite, value_bits=value_bits, specs=SPECS)
    assert federation.set_up()
    for _ in range(4):
        reveal = federation.step()
        assert reveal is not None and reveal.survivors == (0, 1, 2, 3, 4) and not reveal.agreed
        check(federation, reveal)
    assert federation.server.phase is Phase.FINISHED and not federation.refusals


@given(data=st.data())
@settings(max_examples=100)
def test_every_sum_is_exact_under_any_dropouts(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 8), "members")
    colluders = data.draw(st.integers(0, size - 2), "colluders")
    threshold = data.draw(st.integers((size + colluders) // 2 + 1, size), "threshold")
    federation = Federation(
        size,
        seed=data.draw(st.integers(0, 2**32), "seed"),
        threshold=threshold,
        colluders=colluders,
        least_survivors=data.draw(st.integers(colluders + 2, size), "least survivors"),
        value_bits=data.draw(st.integers(1, 24), "value bits"),
        suite=data.draw(st.sampled_from(SUITES), "suite"),
        steps=data.draw(st.integers(1, 4), "T"),
        specs=SPECS,
    )
    rare = st.sets(st.tuples(st.integers(0, size - 1), st.sampled_from(LOSSES)), max_size=3)
    gone = st.sets(st.tuples(st.integers(0, size - 1), st.sampled_from((PlanOffer, Advertisement, Shares))), max_size=1)
    unannounced: set[int] = set()  # a member that missed the announcement rightly refuses what follows it
    if federation.set_up(data.draw(gone, "lost in set-up")):
        while federation.server.phase is Phase.READY:
            lost = data.draw(rare, "lost")
            unannounced |= {member for member, kind in lost if kind is Survivors}
            reveal = federation.step(lost)
            if reveal is None:
                break
            check(federation, reveal)
            assert not {member for member, kind in lost if kind in (Broadcast, MaskedInput)} & set(reveal.survivors)
            assert reveal.agreed == (reveal.survivors != federation.server.members)
    assert federation.server.phase in (Phase.FINISHED, Phase.FAILED)
    assert (federation.server.phase is Phase.FAILED) == bool(federation.failures)
    assert all(who in unannounced and type(why) is UnexpectedMessage for who, why in federation.refusals)


def test_a_dropped_member_takes_part_again() -> None:
    federation = Federation(5, steps=5, threshold=3)
    federation.set_up()
    for lost, survivors in [
        ({(2, MaskedInput)}, (0, 1, 3, 4)),
        (set(), (0, 1, 2, 3, 4)),
        ({(0, Broadcast), (4, MaskedInput)}, (1, 2, 3)),
        ({(1, UnmaskShares)}, (0, 1, 2, 3, 4)),
        ({(3, SurvivorSignature), (0, MaskedInput), (2, UnmaskShares)}, (1, 2, 3, 4)),
    ]:
        reveal = federation.step(lost)
        assert reveal is not None
        assert reveal.survivors == survivors
        check(federation, reveal)
    assert not federation.refusals


def test_reconnect_in_the_middle_of_a_step_repeats_the_same_bytes() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    federation.begin_step()
    federation.drain({(1, MaskedInput)})  # masked and sent, but the connection broke
    federation.emit(federation.server.lost(3))  # had answered already
    assert federation.server.waiting_for() == (1,)
    federation.emit(federation.server.returned(1))  # the shares' delivery again, then the broadcast again
    federation.drain()
    first, second = (item for item in federation.sent if item.kind is MaskedInput and item.member == 1)
    assert first == second
    assert not federation.refusals
    assert federation.reveals[0].survivors == (0, 1, 2, 3)
    check(federation, federation.reveals[0])


def test_repeats_of_every_message_of_a_step_are_answered_with_the_same_bytes() -> None:
    federation = Federation(5, threshold=3, steps=1)
    federation.set_up()
    federation.step({(4, MaskedInput)})
    for kind_in, kind_out in [(Broadcast, MaskedInput), (Survivors, UnmaskShares)]:
        question = next(item for item in federation.sent if item.kind is kind_in and item.member == 0)
        answers = [item for item in federation.sent if item.kind is kind_out and item.member == 0]
        again = federation.tell(0, question.message, question.frames)
        assert [encode_message(effect.message) for effect in again] == [item.data for item in answers]
        assert [effect.frames for effect in again] == [item.frames for item in answers]


def test_bytes_sent_over_bytes_of_data_stay_close_to_one() -> None:
    length = 4096
    federation = Federation(5, steps=20, specs=(VectorSpec("update", (Block("dream", length, 1.0),)),))
    federation.set_up()
    for _ in range(20):
        federation.step()
    sent = sum(len(item.data) + sum(map(len, item.frames)) for item in federation.sent if item.to_server)
    assert sent / (20 * 5 * packed_size(length, federation.plan.modulus_bits)) < 1.15


def test_a_refusing_member_is_not_waited_for() -> None:
    federation = Federation(5, threshold=3)
    federation.set_up()
    federation.begin_step()
    federation.wire = [item for item in federation.wire if item.member != 2]
    federation.drain()
    assert federation.server.waiting_for() == (2,)
    federation.emit(federation.server.receive(2, Refusal("vector", "", "")))
    federation.drain()
    assert federation.reveals[0].survivors == (0, 1, 3, 4)


def test_late_inputs_are_refused_and_late_answers_ignored() -> None:
    federation = Federation(4, threshold=3, steps=2)
    federation.set_up()
    federation.step({(1, MaskedInput)})
    late = next(item for item in federation.sent if item.kind is MaskedInput and item.member == 1)
    with pytest.raises(WrongContext):
        federation.server.receive(1, late.message, late.frames)
    answer = next(item for item in federation.sent if item.kind is UnmaskShares)
    assert federation.server.receive(answer.member, answer.message) == []


def test_a_step_fails_rather_than_sum_over_too_few() -> None:
    federation = Federation(5, threshold=4)
    federation.set_up()
    assert federation.step({(1, MaskedInput), (2, MaskedInput)}) is None
    assert federation.failures and not federation.reveals
    with pytest.raises(LocalProtocolError):
        federation.server.begin_step([1.0], [STATE])
    assert federation.server.receive(0, Refusal("vector", "", "")) == []


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(19, dtype="<u4"),
        np.zeros((20, 1), dtype="<u4"),
        np.zeros(20, dtype="<u2"),
        np.zeros(20, dtype=np.int64),
        np.zeros(20),
        np.full(20, 1 << 19, dtype="<u4"),
    ],
    ids=["short", "two axes", "narrow words", "signed words", "floats", "outside the ring"],
)
def test_provide_refuses_what_is_no_ring_vector(vector: np.ndarray) -> None:
    federation = Federation(5)  # 16 + 3 bits: words of 32
    federation.set_up()
    client = federation.clients[0]
    with pytest.raises(LocalProtocolError):
        client.provide(0, np.zeros(20, dtype="<u4"))  # not asked for yet
    (item,) = (item for item in _broadcast(federation) if item.member == 0)
    federation.tell(0, item.message, item.frames)
    with pytest.raises(LocalProtocolError):
        client.provide(0, vector)
    with pytest.raises(LocalProtocolError):
        client.provide(1, np.zeros(20, dtype="<u4"))
    assert len(client.provide(0, np.zeros(20, dtype="<u4"))) == 1
    with pytest.raises(LocalProtocolError):
        client.provide(0, np.zeros(20, dtype="<u4"))


def test_a_vector_for_a_step_that_is_over_is_not_sent() -> None:
    federation = Federation(5)
    federation.set_up()
    (first,) = (item for item in _broadcast(federation) if item.member == 0)
    federation.tell(0, first.message, first.frames)
    federation.tell(0, Broadcast(federation.plan.digest, 1, (1.0,), (STATE.shape,)), (STATE.tobytes(),))
    assert federation.clients[0].provide(0, np.zeros(20, dtype="<u4")) == []


def _broadcast(federation: Federation) -> list:
    federation.begin_step()
    return list(federation.wire)


def test_server_refuses_what_is_out_of_place() -> None:
    federation = Federation(3)
    with pytest.raises(LocalProtocolError):
        federation.server.begin_step([1.0], [STATE])
    federation.set_up()
    with pytest.raises(LocalProtocolError):
        federation.server.start()
    with pytest.raises(UnexpectedMessage):
        federation.server.receive(7, UnmaskShares(federation.plan.digest, 0, bytes(96)))
    assert default_threshold(3) == federation.plan.threshold
