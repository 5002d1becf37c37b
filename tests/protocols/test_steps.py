"""Within a step: what a client answers, once and to whom, and which of the answers a server believes.

Survivor sets and the agreement on them, vectors and their repetition, and wrong shares among right ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from codream_protocols import unmasking
from codream_protocols.client import Compute
from codream_protocols.errors import InconsistentSurvivors, SecondSurvivorSet, ShareRefused, UnexpectedMessage
from codream_protocols.messages import (
    MaskedInput,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    encode_message,
)
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import (
    agree_and_answer,
    announce,
    confession,
    delivered,
    masked_input,
    vector_sent,
    without_block,
)


def test_second_survivor_set_is_refused_between_signature_and_answer() -> None:
    federation = Federation(9, mode="resilient").masked()
    announce(federation, 0, range(6))
    for other in [(0, 1, 2, 6, 7, 8), tuple(range(9)), (0, 1, 2)]:
        with pytest.raises(SecondSurvivorSet):
            announce(federation, 0, other)
    assert isinstance(announce(federation, 0, range(6)), SurvivorSignature)


def test_skipped_or_forged_agreement_threshold_signatures_and_the_own_one_suffice() -> None:
    """The rule itself is not the obstacle: threshold signatures, this client's included, are enough."""
    federation = Federation(9, mode="resilient").masked()
    threshold = federation.plan.threshold
    survivors = tuple(range(6))
    signed = [SignedBy(member, announce(federation, member, survivors).signature) for member in range(threshold)]
    with pytest.raises(InconsistentSurvivors):
        federation.tell(0, SurvivorSignatures(federation.plan.digest, 0, tuple(signed[2:])))
    (effect,) = federation.tell(0, SurvivorSignatures(federation.plan.digest, 0, tuple(signed[1:])))
    assert isinstance(effect.message, UnmaskShares)


def test_a_live_member_of_a_fallen_block_helps_and_gives_its_mask_key_away_never_its_self_mask() -> None:
    federation = Federation(6, mode="resilient").masked()
    held = {member: confession(federation, member, 0) for member in federation.everybody}
    answers = agree_and_answer(federation, without_block(federation, 0))
    for member, answer in answers.items():
        for whose in federation.everybody:
            share = answer.shares[32 * whose : 32 * whose + 32]
            assert share == held[member][1 if whose < 3 else 0][whose]


@pytest.mark.parametrize("kind", [Survivors, SurvivorSignatures])
def test_lockstep_knows_no_survivors(kind: type) -> None:
    federation = Federation(4).masked()
    plan = federation.plan.digest
    message = Survivors(plan, 0, (0, 1, 2, 3)) if kind is Survivors else SurvivorSignatures(plan, 0, ())
    with pytest.raises(UnexpectedMessage):
        federation.tell(0, message)


def test_masked_input_is_repeated_byte_by_byte() -> None:
    federation = Federation(4).masked()
    sent = vector_sent(federation, 0, 0)
    (effect,) = federation.tell(0, delivered(federation, 0))
    assert encode_message(effect.message) == sent.data and effect.frames == sent.frames
    assert federation.clients[0].steps_begun == 1


def test_a_vector_is_computed_once_for_each_step() -> None:
    federation = Federation(4)
    federation.set_up()
    compute = federation.computing[0]
    assert isinstance(compute, Compute) and not compute.task.arrays["state"].flags.writeable
    assert federation.tell(0, delivered(federation, 0)) == []
    assert federation.clients[0].steps_begun == 1


def test_every_sum_of_masked_inputs_but_the_whole_is_noise() -> None:
    """Lockstep: what the server has of any part of the cohort does not even look like a sum."""
    specs = (VectorSpec("update", (Block("dream", 2000, 1.0),)),)  # masks are not seeded: so many never miss
    federation = Federation(6, specs=specs).masked()
    top = 6 * ((1 << 16) - 1)
    for count in range(1, 6):
        part = sum(masked_input(federation, 0, member).astype("int64") for member in range(count))
        assert ((part % (1 << federation.plan.modulus_bits(0))) > top).any()


def test_the_first_vector_alone_carries_the_start_shares() -> None:
    federation = Federation(4)
    federation.run()
    for item in federation.sent:
        if item.kind is MaskedInput:
            assert len(item.message.start) == (128 if item.message.step == 0 else 0)


# -- wrong shares ---------------------------------------------


def answered(federation: Federation, wrong: Mapping[int, bytes]) -> None:
    """A step in which these members answer so, and the others as they should; each once, and all at once."""
    federation.set_up()
    federation.compute()
    federation.drain(hold=(UnmaskShares,))
    answers = [item for item in federation.wire if item.kind is UnmaskShares]
    federation.wire.clear()
    for item in sorted(answers, key=lambda item: item.member not in wrong):
        shares = wrong.get(item.member, item.message.shares)
        if federation.server.step == 0:
            federation.emit(federation.server.receive(item.member, UnmaskShares(federation.plan.digest, 0, shares)))
    federation.drain()


def summed(federation: Federation, members: int) -> bool:
    return len(federation.reveals) == 1 and bool(
        (federation.reveals[0].total == federation.plain_sum(0, range(members))).all()
    )


@pytest.mark.parametrize("liars", [(0, 1, 2), (0, 9, 19)])
def test_wrong_answers_of_three_in_twenty_are_left_out(liars: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the server's random bytes miss every error."""
    monkeypatch.setattr(unmasking, "secrets", SimpleNamespace(token_bytes=bytes))
    federation = Federation(20, mode="resilient", steps=1)
    answered(federation, dict.fromkeys(liars, bytes(32 * 20)))
    assert summed(federation, 20) and not federation.failures


def test_wrong_answers_of_three_in_twenty_never_fail_a_step_by_chance() -> None:
    """Whatever the wrong shares are: forty times of forty."""
    federation = Federation(20, mode="resilient", steps=1)
    federation.set_up()
    federation.compute()
    federation.drain(hold=(UnmaskShares,))
    answers = {item.member: item.message.shares for item in federation.wire if item.kind is UnmaskShares}
    epoch = federation.server._epoch
    items = {item.member: item for item in epoch.shown}
    for seed in range(40):
        chance = random.Random(seed)
        wrong = {member: chance.randbytes(32 * 20) for member in chance.sample(range(20), 3)}
        given = {**answers, **wrong}
        rebuilt = unmasking.rebuild(federation.plan, items, federation.everybody, federation.everybody, 0, given)
        assert rebuilt is not None and len(rebuilt) == 20


@pytest.mark.parametrize("liars", [1, 2])
def test_just_enough_honest_answers_among_wrong_ones_are_found(liars: int) -> None:
    """Decoding cannot tell them from others, what was advertised can."""
    federation = Federation(9, mode="resilient", steps=1)
    assert federation.plan.threshold == 7
    answered(federation, {member: random.Random(member).randbytes(32 * 9) for member in range(liars)})
    assert summed(federation, 9) and not federation.failures


def test_too_few_honest_answers_fail_the_step() -> None:
    federation = Federation(9, mode="resilient", steps=1)
    answered(federation, {member: random.Random(member).randbytes(32 * 9) for member in range(4)})
    assert not federation.reveals and len(federation.failures) == 1


def test_where_the_choices_are_many_they_are_not_tried() -> None:
    """Six of twenty are wrong: one choice of 38,760 would fit. The step fails, and nothing is revealed."""
    federation = Federation(20, mode="resilient", steps=1)
    answered(federation, {member: random.Random(member).randbytes(32 * 20) for member in range(6)})
    assert not federation.reveals and len(federation.failures) == 1


@pytest.mark.parametrize("size", [32, 32 * 5, 32 * 7])
def test_answers_of_the_wrong_size_are_refused(size: int) -> None:
    federation = Federation(6, mode="resilient").masked()
    with pytest.raises(ShareRefused):
        federation.server.receive(0, UnmaskShares(federation.plan.digest, 0, bytes(size)))
