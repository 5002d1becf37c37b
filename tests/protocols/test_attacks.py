"""The suite's attacks on the machines in memory, each with its control; and single layers, forms and edges by hand.

Attacks over the network are tested with the whole suite: tests/secure_codream/test_threats.py.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import random
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from codream_protocols import hybrid, keyschedule, unmasking
from codream_protocols.charter import Policy
from codream_protocols.client import Compute, Ended, State
from codream_protocols.errors import (
    BadSignature,
    CohortRefused,
    InconsistentSurvivors,
    LocalProtocolError,
    PolicyViolation,
    SecondSurvivorSet,
    ShareRefused,
    UnexpectedMessage,
    WrongContext,
)
from codream_protocols.keyschedule import StepKeys
from codream_protocols.messages import (
    Advertisement,
    Complaint,
    Farewell,
    GivenUp,
    Invitation,
    MaskedInput,
    Published,
    Refusal,
    SealDelivery,
    Seals,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    encode_message,
)
from codream_protocols.resilient import ResilientKeys
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.server import Phase
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation
from secure_codream.threats.attacks.enrolment import LOW_ORDER, reseal, set_up_with_liar
from secure_codream.threats.laboratory.adversary import (
    advertised,
    agree_and_answer,
    announce,
    confession,
    delivered,
    invite,
    masked_input,
    resigned,
    shown,
    vector_sent,
    without_block,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence, Verdict, judge
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import RULES, SWITCHES
from secure_codream.threats.suite import Entry, prove

IN_MEMORY = ("dropouts", "enrolment", "broadcasts", "clients", "implementation", "leaks", "peers")
MODULES = {family: importlib.import_module(f"secure_codream.threats.attacks.{family}") for family in IN_MEMORY}
BY_NAME = {
    attack.name: Entry(attack, family, getattr(module, "SWITCHES", {}))
    for family, module in MODULES.items()
    for attack in module.ATTACKS
}
QUICK = [entry.attack for entry in BY_NAME.values() if entry.attack.quick]


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_attack_fails_and_its_control_works(attack: Attack) -> None:
    """Against a promise: defended. Against what is not promised: it works, and its control shows what stops it."""
    finding = prove(BY_NAME[attack.name], Laboratory)
    limit = any(key.startswith("L") for key in attack.promises)
    assert finding.verdict is (Verdict.LIMIT if limit else Verdict.DEFENDED), finding


def test_every_rule_of_the_client_stands_against_an_attack() -> None:
    """A rule that no attack needs is either superfluous or untested."""
    needed = {name for entry in BY_NAME.values() for name in entry.attack.defences}
    assert {name for name in needed if name.startswith("_rule_")} == set(RULES)


def test_each_way_of_an_attack_needs_a_control_of_its_own() -> None:
    """A control in which only one of several ways gets through shows nothing of the others."""
    attack = SimpleNamespace(promises=("P1",))
    fails = Evidence(measure="", value=0.0, success=0.0, learned="", tries={"first": False, "second": False})
    for through, verdict in ((True, Verdict.DEFENDED), (False, Verdict.UNPROVEN)):
        tries = {"first": True, "second": through}
        control = Evidence(measure="", value=2.0, success=0.0, learned="", tries=tries)
        assert judge(attack, fails, control) is verdict  # type: ignore[arg-type]


def test_a_limits_control_must_be_clearly_elsewhere() -> None:
    attack = SimpleNamespace(promises=("L1",))

    def evidence(value: float) -> Evidence:
        return Evidence(measure="", value=value, success=0.5, learned="")

    assert judge(attack, evidence(1.0), evidence(0.0)) is Verdict.LIMIT  # type: ignore[arg-type]
    assert judge(attack, evidence(1.0), evidence(4.0)) is Verdict.LIMIT  # type: ignore[arg-type]
    assert judge(attack, evidence(1.0), evidence(1.01)) is Verdict.UNPROVEN  # type: ignore[arg-type]


def test_a_try_is_made_without_its_own_defences_and_no_others() -> None:
    seen: dict[str, frozenset[str]] = {}

    def attempt(name: str) -> Try:
        def run(standing: Defences) -> bool:
            seen[name] = standing.off
            return True

        return Try(run, (name,))

    counted({"a": attempt("a"), "b": attempt("b")}, what="tries", defences=Defences().without("a", "b", "c"))
    assert seen == {"a": frozenset("a"), "b": frozenset("b")}


# -- what the server announces in a step ---------------------------------------------


@pytest.mark.parametrize(
    ("layer", "refusal"),
    [("_rule_one_survivor_set", "SecondSurvivorSet"), ("_rule_erase_answered", "LocalProtocolError")],
)
@pytest.mark.parametrize("name", ["both-kinds-of-share", "two-survivor-sets", "rerun-without-a-block"])
def test_second_survivor_set_one_layer_alone_suffices(name: str, layer: str, refusal: str) -> None:
    """Without the refusal the second answer has nothing to say: the shares are erased. And the other way round."""
    (other,) = {"_rule_one_survivor_set", "_rule_erase_answered"} - {layer}
    evidence = BY_NAME[name].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith(refusal)


@pytest.mark.parametrize("layer", ["_rule_true_sum", "chain-binding"])
def test_a_forked_state_one_layer_alone_suffices(layer: str) -> None:
    entry = BY_NAME["different-states"]
    (other,) = {"_rule_true_sum", "chain-binding"} - {layer}
    with SWITCHES[other].off() if other in SWITCHES else SWITCHES["memory"].off():
        evidence = entry.attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked


@pytest.mark.parametrize("layer", ["_rule_enough_survivors", "_rule_whole_blocks"])
def test_a_sum_below_the_minimum_one_layer_alone_suffices(layer: str) -> None:
    (other,) = {"_rule_enough_survivors", "_rule_whole_blocks"} - {layer}
    evidence = BY_NAME["survivors-below-minimum"].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith("CohortRefused")


@pytest.mark.parametrize("name", ["sybils-in-members-names", "substituted-keys"])
@pytest.mark.parametrize("other", ["_rule_signed_advertisement", "_rule_signed_seal"])
def test_strangers_keys_one_signature_alone_suffices(name: str, other: str) -> None:
    evidence = BY_NAME[name].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith("BadSignature")


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
        assert ((part % (1 << federation.plan.modulus_bits)) > top).any()


# -- what the server says before it ---------------------------------------------


@pytest.mark.parametrize("chosen", [(), (0,), (0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4, 5), (3, 4, 5)])
def test_advertisements_of_too_few_or_of_parts_or_without_the_client_are_refused(chosen: tuple[int, ...]) -> None:
    federation = Federation(6, mode="resilient")
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in chosen}))


def test_lockstep_shows_everybody() -> None:
    federation = Federation(6)
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in range(5)}))
    federation.tell(0, shown(federation, items))


def test_advertisements_with_another_in_the_clients_name_are_refused() -> None:
    federation, twin = Federation(4), Federation(4)
    items = advertised(federation)
    twin.clients[0]._random = lambda count: b"\x05" * count
    items[0] = advertised(twin)[0]  # rightly signed: by the same client, with other keys
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


@pytest.mark.parametrize("low", LOW_ORDER, ids=lambda key: key.hex()[:8])
@pytest.mark.parametrize("field", ["share_key", "mask_keys"])
def test_the_server_machine_refuses_low_order_keys(low: bytes, field: str) -> None:
    federation = opened()
    item = advertised(federation, federation.server.plan.offer)[1]
    changed = low if field == "share_key" else item.mask_keys[:32] + low + item.mask_keys[64:]
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, item, **{field: changed}))
    federation.server.receive(1, item)


@pytest.mark.parametrize("field", ["share_key", "kem_key", "commitment", "start_commitment"])
def test_the_server_machine_refuses_repeated_keys(field: str) -> None:
    federation = opened()
    items = advertised(federation, federation.server.plan.offer)
    federation.server.receive(2, items[2])
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, items[1], **{field: getattr(items[2], field)}))
    federation.server.receive(1, items[1])


def opened() -> Federation:
    """A resilient federation whose server has opened an epoch; nothing is delivered."""
    federation = Federation(6, mode="resilient")
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    federation.wire.clear()
    return federation


def test_keys_for_another_number_of_steps_are_refused() -> None:
    federation = Federation(6, mode="resilient")
    items = advertised(federation)
    items[1] = resigned(federation, items[1], mask_keys=items[1].mask_keys[:64])
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


def test_lockstep_takes_no_mask_keys() -> None:
    federation = Federation(4)
    items = advertised(federation)
    items[1] = resigned(federation, items[1], mask_keys=bytes(range(96)))
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


# -- seals on their way ---------------------------------------------


@pytest.mark.parametrize("how", ["a sender missing", "a sender twice", "a stranger", "unordered", "its own"])
def test_deliveries_with_other_senders_than_the_members_are_refused(how: str) -> None:
    federation = Federation(5)
    federation.set_up(lost={(0, SealDelivery)})
    items = delivered(federation, 0).items
    before = snapshot(federation.clients[0])
    changed = {
        "a sender missing": items[1:],
        "a sender twice": (items[0], *items),
        "a stranger": (*items, msgspec.structs.replace(items[0], member=9)),
        "unordered": items[::-1],
        "its own": (msgspec.structs.replace(items[0], member=0), *items),
    }[how]
    with pytest.raises((CohortRefused, ShareRefused)):
        federation.tell(0, SealDelivery(federation.plan.digest, changed))
    assert snapshot(federation.clients[0]) == before and before["state"] is State.SEALED


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_signed_garbage_of_a_member_is_complained_of_and_reveals_nothing(mode: str) -> None:
    """The server learns that the pair cannot talk, and nobody shows a key for it."""
    federation = Federation(6, mode=mode)
    epoch_of = federation.clients[0]
    assert not set_up_with_liar(federation, 5, (0,))
    complaint = next(item for item in federation.sent if item.kind is Complaint)
    assert complaint.member == 0 and complaint.message == Complaint(federation.plan.digest, 5)
    assert epoch_of.state is State.IDLE and epoch_of.plan is None
    assert federation.server.conflicts == {(0, 5)} and federation.server.phase is Phase.IDLE
    assert "client-0" in federation.failures[0] and "client-5" in federation.failures[0]
    assert not any(item.kind is UnmaskShares for item in federation.sent)


def test_the_next_cohort_avoids_a_pair_in_conflict() -> None:
    federation = Federation(9, mode="resilient")
    set_up_with_liar(federation, 8, (0,))
    seen = set()
    for _ in range(4):
        cohort = federation.server.cohort()
        assert cohort and not {0, 8} <= set(cohort) and federation.charter.is_union(cohort)
        seen |= {0, 8} & set(cohort)
        assert federation.set_up()
        while federation.server.step is not None:
            federation.step()
        federation.finish()
    assert seen == {0, 8}  # a liar does not choose which of the two stays away for good


def test_a_liar_in_conflict_with_many_stays_away_itself() -> None:
    federation = Federation(9, mode="resilient")
    for victim in (0, 3):
        set_up_with_liar(federation, 8, (victim,))
    federation.server.conflicts |= {(0, 8), (3, 8)}
    for _ in range(2):
        assert federation.server.cohort() == (0, 1, 2, 3, 4, 5)
        federation.server._next_epoch += 1


def test_lockstep_tries_again_and_says_who() -> None:
    federation = Federation(4)
    for _ in range(2):
        assert not set_up_with_liar(federation, 3, (1,))
    assert all("client-1 could not open what client-3" in reason for reason in federation.failures)
    assert federation.set_up()  # once it seals honestly


def test_a_complaint_about_a_stranger_or_after_the_start_is_refused() -> None:
    federation = Federation(4)
    federation.set_up()
    plan = federation.plan.digest
    for member, about in ((0, 0), (0, 9)):
        with pytest.raises(CohortRefused):
            federation.server.receive(member, Complaint(plan, about))
    federation.step()
    with pytest.raises(UnexpectedMessage):
        federation.server.receive(0, Complaint(plan, 1))


@pytest.mark.parametrize("change", ["one more", "one fewer", "its own", "short", "unsigned"])
def test_the_server_refuses_seals_that_do_not_fit(change: str) -> None:
    federation = Federation(4)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    federation.drain(hold=(Seals,))
    item = next(item for item in federation.wire if item.kind is Seals and item.member == 0)
    items = item.message.items
    replace = msgspec.structs.replace
    changed = {
        "one more": (*items, replace(items[0], member=9)),
        "one fewer": items[1:],
        "its own": (replace(items[0], member=0), *items),
        "short": (replace(items[0], ciphertext=items[0].ciphertext[:-1] or bytes(48)), *items[1:]),
        "unsigned": (replace(items[0], signature=bytes(64)), *items[1:]),
    }[change]
    if change == "short":
        changed = (replace(items[0], ciphertext=items[0].ciphertext + b"x"), *items[1:])
    with pytest.raises((ShareRefused, BadSignature)):
        federation.server.receive(0, Seals(federation.plan.digest, changed))
    federation.drain()
    assert federation.server.phase is Phase.COLLECTING


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


# -- offers ---------------------------------------------


@pytest.mark.parametrize("how", ["strangers", "without the client", "a part of a block", "unordered", "too few"])
def test_offers_of_another_world_are_refused(how: str) -> None:
    federation = Federation(9, mode="resilient")
    cohort = {
        "strangers": (*range(9), 9),
        "without the client": tuple(range(3, 9)),
        "a part of a block": tuple(range(8)),
        "unordered": tuple(reversed(range(9))),
        "too few": (0, 1),
    }[how]
    before = snapshot(federation.clients[0])
    with pytest.raises(CohortRefused):
        federation.tell(0, Invitation(federation.offer(cohort=cohort)))
    assert snapshot(federation.clients[0]) == before and not federation.diaries[0].plans


def test_an_epoch_is_joined_once_and_only_ever_a_later_one() -> None:
    federation = Federation(4)
    federation.tell(0, Invitation(federation.offer(epoch=4)))
    for epoch in (0, 3):
        with pytest.raises(WrongContext):
            federation.tell(0, Invitation(federation.offer(epoch=epoch)))
    federation.tell(0, Farewell("over", False))
    for epoch in (0, 4):
        with pytest.raises(WrongContext):
            federation.tell(0, Invitation(federation.offer(epoch=epoch)))
    federation.restart(0)
    with pytest.raises(WrongContext):
        federation.tell(0, Invitation(federation.offer(epoch=4)))
    federation.tell(0, Invitation(federation.offer(epoch=5)))


def test_the_offer_in_force_is_answered_with_the_same_advertisement() -> None:
    federation = Federation(4)
    first = invite(federation, 0)
    assert invite(federation, 0) == first and isinstance(first, Advertisement)
    assert federation.diaries[0].memory.attempts == 1


@pytest.mark.parametrize("remembers", [True, False], ids=["defended", "control"])
def test_a_restarted_client_does_not_join_its_plan_again(remembers: bool) -> None:
    federation = Federation(5, mode="resilient")
    offer = federation.offer()
    first = invite(federation, 0, offer)
    federation.restart(0, remembers=remembers)
    if remembers:
        with pytest.raises(WrongContext):
            invite(federation, 0, offer)
    else:
        assert invite(federation, 0, offer) not in (first, None)


def test_a_plan_is_on_disk_as_joined_before_anything_of_it_leaves() -> None:
    federation = Federation(4)
    diary = federation.diaries[0]

    def full(epoch: int, plan: bytes) -> None:
        raise OSError("no space left on device")

    diary.joined = full  # type: ignore[method-assign]
    before = snapshot(federation.clients[0])
    with pytest.raises(OSError, match="space"):
        invite(federation, 0)
    assert snapshot(federation.clients[0]) == before


@pytest.mark.parametrize("what", ["began", "voted"])
def test_a_journal_that_cannot_be_written_ends_the_epoch_before_anything_leaves(what: str) -> None:
    federation = Federation(4, steps=1)

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    setattr(federation.diaries[0], what, full)
    with pytest.raises(OSError, match="space"):
        federation.voted()
    assert federation.clients[0].state is State.IDLE and federation.clients[0].plan is None
    kinds = {item.kind.__name__ for item in federation.sent if item.to_server and item.member == 0}
    assert ("MaskedInput" if what == "began" else "Vote") not in kinds


def test_an_endless_federation_is_bounded_over_restarts() -> None:
    federation = Federation(4, steps=2, policy=Policy(most_total_steps=5))
    federation.run(2)
    federation.restart(0)
    assert federation.clients[0].steps_begun == 4
    with pytest.raises(PolicyViolation):
        federation.tell(0, Invitation(federation.offer()))


# -- what is left in a client that is taken over ---------------------------------------------


def kept_bytes(item: Any) -> Iterator[bytes]:
    """Every byte string, secret or not, that an object holds."""
    if isinstance(item, bytes | bytearray):
        yield bytes(item)
    elif isinstance(item, Secret):
        yield bytes(item._bytes)
    elif isinstance(item, SecretArray):
        yield from (item._rows[index].tobytes() for index in range(len(item)))
    elif isinstance(item, dict):
        for pair in item.items():
            yield from kept_bytes(pair)
    elif isinstance(item, list | tuple | set):
        for part in item:
            yield from kept_bytes(part)
    elif isinstance(item, msgspec.Struct):
        for name in item.__struct_fields__:
            yield from kept_bytes(getattr(item, name))
    elif hasattr(item, "__dict__"):
        yield from kept_bytes(vars(item))


def pieces(item: Any) -> Iterator[bytes]:
    """Every run of 32 bytes that an object holds, at offsets of 32."""
    for candidate in kept_bytes(item):
        yield from (candidate[start : start + 32] for start in range(0, len(candidate) - 31, 32))


def rebuilds_masks(epoch: Any, step: int) -> bool:
    """Whether any 32 bytes that the client keeps are the step's seed, self-mask seed or mask key."""
    own, plan = epoch.advertisement, epoch.plan.digest
    for piece in pieces(epoch):
        keys = StepKeys(Secret(piece), plan, step)
        if (
            keyschedule.public_key(piece) == own.mask_key(step)
            or keyschedule.self_mask_commitment(piece, plan, step) == own.self_commitment(step)
            or keyschedule.public_key(keys.mask_private.reveal()) == own.mask_key(step)
        ):
            return True
    return False


def test_a_steps_masks_cannot_be_rebuilt_after_it() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    before = copy.deepcopy(federation.clients[0]._epoch)
    federation.compute()
    assert federation.clients[0].state is State.MASKED
    assert not rebuilds_masks(federation.clients[0]._epoch, 0)
    assert rebuilds_masks(before, 0)  # the control: what was kept before masking does


def test_lockstep_roots_of_a_step_are_gone_once_it_is_masked() -> None:
    federation = Federation(4)
    federation.set_up()
    before = copy.deepcopy(federation.clients[0]._epoch)
    federation.compute()
    after = federation.clients[0]._epoch
    roots = {root.reveal() for root in before.keys._roots.values()}
    assert len(roots) == 3 and not roots & set(pieces(after))
    assert {hybrid.next_root(root) for root in roots} <= set(pieces(after))


def test_what_the_set_up_needed_is_gone_with_it() -> None:
    federation = Federation(4)
    federation.set_up(lost={(0, SealDelivery)})
    keys = federation.clients[0]._epoch.keys
    held = [keys._share_private, keys._value, *keys._agreed.values(), *keys._encapsulated.values()]
    secrets = [secret.reveal() for secret in held]
    federation.tell(0, delivered(federation, 0))
    assert all(secret.erased for secret in held) and keys._kem is None
    assert not set(secrets) & set(pieces(federation.clients[0]._epoch))


def test_a_steps_shares_are_gone_after_its_answer() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    keys, steps = federation.clients[0]._epoch.keys, federation.plan.steps
    assert isinstance(keys, ResilientKeys)
    kept = copy.deepcopy(keys._held)
    federation.step()
    for member in range(6):
        for row in (0, steps):
            assert keys._held[member]._rows[row].tobytes() == bytes(32) != kept[member]._rows[row].tobytes()
        for row in (1, steps + 1):
            assert keys._held[member]._rows[row].tobytes() == kept[member]._rows[row].tobytes() != bytes(32)


def test_shares_and_masks_of_a_step_that_went_on_without_the_client_are_gone() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    late = federation.computing.pop(5)
    federation.compute()
    federation.drain(lost={(5, Survivors), (5, SurvivorSignatures)})
    federation.emit(federation.server.expire())
    federation.drain(lost={(5, Survivors), (5, SurvivorSignatures)})
    epoch = federation.clients[5]._epoch
    assert federation.clients[5].progress[1] == 1 and late.step == 0
    for shares in epoch.keys._held.values():
        assert all(not any(shares._rows[row].tobytes()) for row in (0, federation.plan.steps))
    assert not rebuilds_masks(epoch, 0)
    with pytest.raises(LocalProtocolError):
        epoch.keys.stream_keys(0, bytes(32))


@pytest.mark.parametrize("how", ["farewell", "a later epoch", "given up", "the vote"])
@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_everything_is_gone_with_the_epoch(how: str, mode: str) -> None:
    federation = Federation(6, mode=mode)
    federation.set_up()
    epoch = federation.clients[0]._epoch
    if how == "farewell":
        federation.tell(0, Farewell("over", False))
    elif how == "given up":
        (effect,) = federation.tell(0, GivenUp(federation.plan.digest, "over"))
        assert isinstance(effect, Ended)
    elif how == "the vote":
        for _ in range(3):
            federation.step()
    else:
        federation.tell(0, Invitation(federation.offer(epoch=1)))
    assert federation.clients[0]._epoch is not epoch
    assert epoch.group_key.erased and all(root.erased for root in epoch.keys._roots.values())
    if isinstance(epoch.keys, ResilientKeys):
        assert epoch.keys._seed.erased
        assert all(not any(one._rows[row].tobytes()) for one in epoch.keys._held.values() for row in range(len(one)))


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_secrets_are_hidden_in_every_repr(mode: str) -> None:
    """Each attribute of a live client, down to the leaves, shows none of the secret bytes that it drew or holds."""
    federation = Federation(6, mode=mode)
    client = federation.clients[0]
    tape = federation.tapes[0]
    tape.record()
    federation.set_up()
    drawn = tape.stop()
    epoch = client._epoch
    federation.compute()
    secrets = [epoch.group_key.reveal(), *(root.reveal() for root in epoch.keys._roots.values())]
    secrets += [part[:32] for part in drawn]
    if isinstance(epoch.keys, ResilientKeys):
        secrets += [epoch.keys._seed.reveal()]
        for shares in epoch.keys._held.values():
            secrets += [shares.row(row) for row in range(len(shares))]
    assert len(secrets) > 3 and all(any(secret) for secret in secrets)

    def texts(item: Any, depth: int = 0) -> Iterator[str]:
        yield from (repr(item), str(item))
        if depth < 6:
            parts = list(vars(item).values()) if hasattr(item, "__dict__") and not isinstance(item, type) else []
            if isinstance(item, dict):
                parts += [*item.keys(), *item.values()]
            if isinstance(item, list | tuple):
                parts += list(item)
            for part in parts:
                yield from texts(part, depth + 1)

    client._random, client._journal = bytes, None  # the laboratory's tape and diary are no part of a client
    everything = "\n".join(texts(client))
    for secret in secrets:
        for shown_as in (secret.hex(), repr(secret)[2:-1], repr(list(secret))[1:-1]):
            assert shown_as not in everything
    assert repr(client) == "<ClientProtocol of member 0, masked>"
    with pytest.raises(TypeError):
        pickle.dumps(client)
    with pytest.raises(TypeError):
        pickle.dumps(epoch)


def test_refusals_and_complaints_never_hold_a_secret() -> None:
    federation = Federation(4)
    federation.set_up(lost={(0, SealDelivery)})
    keys = federation.clients[0]._epoch.keys
    secrets = list(kept_bytes([keys._share_private, keys._value, keys._agreed, keys._encapsulated]))
    honest = delivered(federation, 0)
    items = tuple(msgspec.structs.replace(item, ciphertext=item.ciphertext[::-1]) for item in honest.items)
    with pytest.raises(BadSignature) as caught:
        federation.tell(0, SealDelivery(federation.plan.digest, items))
    trail, error = "", caught.value
    while error is not None:
        trail += f"{error!r} {error} {vars(error)}"
        error = error.__cause__
    sealed = next(item for item in federation.sent if item.kind is Seals and item.member == 3).message
    garbage = next(item for item in reseal(federation, sealed, 3, 0).items if item.member == 0)
    lie = tuple(msgspec.structs.replace(garbage, member=3) if item.member == 3 else item for item in honest.items)
    effects = federation.tell(0, SealDelivery(federation.plan.digest, lie))
    assert isinstance(effects[0].message, Complaint)
    trail += repr(effects)
    assert not any(secret.hex() in trail or repr(secret)[2:-1] in trail for secret in secrets)


def test_what_a_client_refuses_says_the_same_whatever_its_numbers_are() -> None:
    """Refusals rest on public facts: two clients with other inputs refuse with the same words."""
    words = []
    for seed in (1, 2):
        federation = Federation(4, seed=0, course=LaboratoryCourse())
        chance = random.Random(seed)
        federation.input_of = lambda member, compute, chance=chance: {"dream": [chance.random()] * 20}
        federation.masked()
        message = Published(federation.plan.digest, 2, federation.everybody, bytes(16))
        with pytest.raises(WrongContext) as caught:
            federation.tell(0, message, (bytes(45),))
        words.append(Refusal(caught.value.code, caught.value.found, caught.value.allowed))
    assert words[0] == words[1]


def test_the_first_vector_alone_carries_the_start_shares() -> None:
    federation = Federation(4)
    federation.run()
    for item in federation.sent:
        if item.kind is MaskedInput:
            assert len(item.message.start) == (128 if item.message.step == 0 else 0)
