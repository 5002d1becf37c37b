"""The suite's attacks on the machines in memory, each with its control; and single layers, forms and edges by hand.

Attacks over the network are tested with the whole suite: tests/secure_codream/test_threats.py.
"""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from codream_protocols import client as client_module
from codream_protocols import keyschedule
from codream_protocols.client import Compute, State
from codream_protocols.errors import (
    BadSignature,
    CohortRefused,
    ConflictingBroadcast,
    PolicyViolation,
    SecondSurvivorSet,
    ShareRefused,
    UnsafePlan,
    WrongContext,
)
from codream_protocols.keyschedule import StepKeys
from codream_protocols.messages import (
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    SealedShare,
    ShareDelivery,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    encode_message,
)
from codream_protocols.plan import Policy
from codream_protocols.secret import Secret, SecretArray
from secure_codream.threats.adversary import advertised, announce, shown
from secure_codream.threats.attack import Attack, Defences, Verdict
from secure_codream.threats.clients import collect
from secure_codream.threats.enrolment import LOW_ORDER, resigned
from secure_codream.threats.federation import STATE, Federation, make_plan
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.suite import Entry, prove
from secure_codream.threats.switches import without

IN_MEMORY = ("dropouts", "enrolment", "broadcasts", "clients", "implementation", "peers")
MODULES = {family: importlib.import_module(f"secure_codream.threats.{family}") for family in IN_MEMORY}
BY_NAME = {
    attack.name: Entry(attack, family, getattr(module, "SWITCHES", {}))
    for family, module in MODULES.items()
    for attack in module.ATTACKS
}
QUICK = [entry.attack for entry in BY_NAME.values() if entry.attack.quick]


# -- what the server announces in a step ---------------------------------------------


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_attack_fails_and_its_control_works(attack: Attack) -> None:
    """Against a promise: defended. Against what is not promised: it works, and its control shows what stops it."""
    finding = prove(BY_NAME[attack.name], Laboratory)
    limit = any(key.startswith("L") for key in attack.promises)
    assert finding.verdict is (Verdict.LIMIT if limit else Verdict.DEFENDED), finding


@pytest.mark.parametrize(
    ("layer", "refusal"),
    [("_rule_one_survivor_set", "SecondSurvivorSet"), ("_rule_erase_answered", "LocalProtocolError")],
)
@pytest.mark.parametrize("name", ["both-kinds-of-share", "two-survivor-sets", "rerun-with-one-fewer"])
def test_second_survivor_set_one_layer_alone_suffices(name: str, layer: str, refusal: str) -> None:
    """Without the refusal the second answer has nothing to say: the shares are erased. And the other way round."""
    (other,) = {"_rule_one_survivor_set", "_rule_erase_answered"} - {layer}
    evidence = BY_NAME[name].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith(refusal)


def test_second_survivor_set_is_refused_between_signature_and_answer() -> None:
    federation = Federation(5, threshold=3).masked()
    announce(federation, 0, (0, 1, 2))
    for other in [(0, 1, 3), (0, 1, 2, 3, 4)]:
        with pytest.raises(SecondSurvivorSet):
            announce(federation, 0, other)
    assert isinstance(announce(federation, 0, (0, 1, 2)), SurvivorSignature)


def test_survivors_below_the_policys_minimum_are_refused_whatever_the_plan_says() -> None:
    """A second layer: a client that let a plan with a smaller minimum pass still keeps to its own in each step."""
    policy = Policy(least_cohort=2, least_survivors=4, colluders=0, tasks={"update": 1.0})
    federation = Federation(5, threshold=3, policy=policy, client_class=without("_rule_policy")).masked()
    assert federation.plan.least_survivors == 2
    with pytest.raises(CohortRefused):
        announce(federation, 0, (0, 1, 2))
    assert isinstance(announce(federation, 0, (0, 1, 2, 3)), SurvivorSignature)


def test_skipped_or_forged_agreement_two_of_three_and_the_own_one_suffice() -> None:
    """The rule itself is not the obstacle: threshold signatures, this client's included, are enough."""
    federation = Federation(5, threshold=3).masked()
    survivors = (0, 1, 2, 3)
    signed = tuple(SignedBy(member, announce(federation, member, survivors).signature) for member in (0, 1, 2))
    (effect,) = federation.tell(0, SurvivorSignatures(federation.plan.digest, 0, signed[1:]))
    assert isinstance(effect.message, UnmaskShares)


# -- what the server shows in a step ---------------------------------------------


@pytest.mark.parametrize("rules", [(), ("_rule_one_broadcast",)], ids=["defended", "control"])
def test_a_second_broadcast_never_makes_a_second_masked_input(rules: tuple[str, ...]) -> None:
    """Refused; and without the refusal the client repeats the bytes that it sent, since it masks once a step."""
    federation = Federation(4, threshold=3, client_class=without(*rules)).masked()
    sent = next(item for item in federation.sent if item.kind is MaskedInput and item.member == 0)
    message = Broadcast(federation.plan.digest, 0, (0.5,), (STATE.shape,))
    if not rules:
        with pytest.raises(ConflictingBroadcast):
            federation.tell(0, message, (STATE.tobytes(),))
    else:
        (effect,) = federation.tell(0, message, (STATE.tobytes(),))
        assert encode_message(effect.message) == sent.data and effect.frames == sent.frames


def test_masked_input_is_repeated_byte_by_byte() -> None:
    federation = Federation(4, threshold=3).masked()
    question = next(item for item in federation.sent if item.kind is Broadcast and item.member == 0)
    sent = next(item for item in federation.sent if item.kind is MaskedInput and item.member == 0)
    for _ in range(3):
        (effect,) = federation.tell(0, question.message, question.frames)
        assert encode_message(effect.message) == sent.data and effect.frames == sent.frames


@pytest.mark.parametrize("rules", [(), ("_rule_one_broadcast",)], ids=["defended", "control"])
def test_an_earlier_step_is_never_taken_up_again(rules: tuple[str, ...]) -> None:
    federation = Federation(4, threshold=3, client_class=without(*rules)).masked(step=1)
    message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
    if rules:  # without the rule the client only repeats what it sent for the step in force
        (effect,) = federation.tell(0, message, (STATE.tobytes(),))
        assert effect.message.step == 1
    else:
        with pytest.raises(WrongContext):
            federation.tell(0, message, (STATE.tobytes(),))
    with pytest.raises(WrongContext):
        announce(federation, 0, (0, 1, 2, 3), step=0)


# -- whom the server shows: keys, Sybils, split views ---------------------------------------------


def test_the_server_machine_refuses_forged_and_foreign_advertisements() -> None:
    federation = Federation(4, threshold=3)
    federation.emit(federation.server.start())
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.server.receive(2, items[1])
    with pytest.raises(BadSignature):
        federation.server.receive(1, msgspec.structs.replace(items[1], share_key=items[2].share_key))
    with pytest.raises(WrongContext):
        federation.server.receive(1, msgspec.structs.replace(items[1], plan=bytes(32)))


def test_second_set_of_advertisements_or_members_is_refused() -> None:
    federation = Federation(5, threshold=3)
    items = advertised(federation)
    first = federation.tell(0, shown(federation, items))
    assert federation.tell(0, shown(federation, items)) == first
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in (0, 1, 2)}))


@pytest.mark.parametrize("chosen", [(1, 2, 3, 4), (0, 1), (0,), ()], ids=str)
def test_advertisements_of_too_few_or_without_the_client_are_refused(chosen: tuple[int, ...]) -> None:
    federation = Federation(5, threshold=3)
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in chosen}))


def test_advertisements_with_another_in_the_clients_name_are_refused() -> None:
    federation, twin = Federation(4, threshold=3), Federation(4, threshold=3)
    items = advertised(federation)
    twin.clients[0]._random = lambda count: b"\x05" * count
    items[0] = advertised(twin)[0]  # rightly signed: by the same client, with other keys
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


@pytest.mark.parametrize("low", LOW_ORDER, ids=lambda key: key.hex()[:8])
@pytest.mark.parametrize("field", ["share_key", "mask_keys"])
def test_the_server_machine_refuses_low_order_keys(low: bytes, field: str) -> None:
    federation = Federation(4, threshold=3)
    federation.emit(federation.server.start())
    item = advertised(federation)[1]
    changed = low if field == "share_key" else item.mask_keys[:32] + low + item.mask_keys[64:]
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, item, **{field: changed}))
    federation.server.receive(1, item)


def test_the_server_machine_refuses_repeated_keys() -> None:
    federation = Federation(4, threshold=3)
    federation.emit(federation.server.start())
    items = advertised(federation)
    federation.server.receive(2, items[2])
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, items[1], share_key=items[2].share_key))
    federation.server.receive(1, items[1])


def test_keys_for_another_number_of_steps_are_refused() -> None:
    federation = Federation(4, threshold=3)
    items = advertised(federation)
    items[1] = resigned(federation, items[1], mask_keys=items[1].mask_keys[:64])
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


# -- shares on their way ---------------------------------------------


@pytest.mark.parametrize("how", ["a sender missing", "a sender twice", "a stranger", "too few", "without the client"])
def test_deliveries_with_other_senders_than_announced_are_refused(how: str) -> None:
    federation = Federation(5, threshold=4)
    federation.set_up(lost={(0, ShareDelivery)})
    honest = next(item for item in federation.sent if item.kind is ShareDelivery and item.member == 0).message
    members, items = honest.members, honest.items
    if how == "a sender missing":
        items = items[1:]
    elif how == "a sender twice":
        items = (*items, items[0])
    elif how == "a stranger":
        members = (*members, 9)
    elif how == "too few":
        members, items = members[:3], items[:2]
    else:
        members = members[1:]
    with pytest.raises((CohortRefused, ShareRefused)):
        federation.tell(0, ShareDelivery(federation.plan.digest, members, items))
    assert federation.clients[0].state is State.SHARED


def test_wrong_answers_of_three_in_twenty_are_left_out() -> None:
    federation = Federation(20, steps=1)
    federation.set_up()
    federation.begin_step()
    answers = collect(federation, UnmaskShares)
    for member in range(20):
        wrong = UnmaskShares(federation.plan.digest, 0, bytes(32 * 20))
        federation.emit(federation.server.receive(member, wrong if member < 3 else answers[member].message))
    assert len(federation.reveals) == 1


@pytest.mark.parametrize("size", [31, 33, 32 * 3, 32 * 5])
def test_answers_of_the_wrong_size_are_refused(size: int) -> None:
    federation = Federation(4, threshold=3).masked()
    with pytest.raises(ShareRefused):
        federation.server.receive(0, UnmaskShares(federation.plan.digest, 0, bytes(size)))


# -- plans ---------------------------------------------


@pytest.mark.parametrize("how", ["another roster", "strangers", "without the client", "unsafe"])
def test_plans_of_another_world_are_refused(how: str) -> None:
    federation = Federation(5)
    replaced = {
        "another roster": ({"roster": bytes(32)}, WrongContext),
        "strangers": ({"cohort": (0, 1, 2, 3, 7)}, CohortRefused),
        "without the client": ({"cohort": (1, 2, 3, 4)}, CohortRefused),
        "unsafe": ({"threshold": 2}, UnsafePlan),
    }
    changed, error = replaced[how]
    with pytest.raises(error):
        federation.tell(0, PlanOffer(msgspec.structs.replace(federation.plan, **changed)))


def test_replayed_epoch_is_refused() -> None:
    federation = Federation(4)
    federation.set_up()
    first = federation.plan
    federation.tell(0, PlanOffer(msgspec.structs.replace(first, epoch=4)))
    for epoch in (0, 3):
        with pytest.raises(WrongContext):
            federation.tell(0, PlanOffer(msgspec.structs.replace(first, epoch=epoch)))
    with pytest.raises(WrongContext):  # the same epoch with other content
        federation.tell(0, PlanOffer(msgspec.structs.replace(first, epoch=4, recipe=b"x" * 32)))
    federation.tell(0, Farewell(b"", "over"))
    for epoch in (0, 4):
        with pytest.raises(WrongContext):
            federation.tell(0, PlanOffer(msgspec.structs.replace(first, epoch=epoch)))
    federation.tell(0, PlanOffer(msgspec.structs.replace(first, epoch=5)))


def test_the_plan_in_force_is_answered_with_the_same_advertisement() -> None:
    federation = Federation(4)
    first = federation.tell(0, PlanOffer(federation.plan))
    assert federation.tell(0, PlanOffer(federation.plan)) == first


def test_endless_session_over_many_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_SESSIONS", 2)
    federation = Federation(3)
    for session in (b"a" * 16, b"b" * 16):
        federation.tell(0, PlanOffer(make_plan(federation.roster, session=session)))
    with pytest.raises(PolicyViolation):
        federation.tell(0, PlanOffer(make_plan(federation.roster, session=b"c" * 16)))


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


def rebuilds_masks(federation: Federation, epoch: Any, step: int) -> bool:
    """Whether any 32 bytes that the client keeps are the step's seed, self-mask seed or mask key."""
    own = epoch.advertisement
    for candidate in kept_bytes(epoch):
        for start in range(0, len(candidate) - 31, 32):
            piece = candidate[start : start + 32]
            keys = StepKeys(Secret(piece), epoch.digest, step)
            if (
                keyschedule.public_key(piece) == own.mask_key(step)
                or keyschedule.self_mask_commitment(piece, epoch.digest, step) == own.commitment(step)
                or keyschedule.public_key(keys.mask_private.reveal()) == own.mask_key(step)
            ):
                return True
    return False


def test_a_steps_masks_cannot_be_rebuilt_after_it() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    before = copy.deepcopy(federation.clients[0]._epoch)
    federation.begin_step()
    federation.drain({(member, Survivors) for member in range(4)})
    assert federation.clients[0].state is State.MASKED
    assert not rebuilds_masks(federation, federation.clients[0]._epoch, 0)
    assert rebuilds_masks(federation, before, 0)  # the control: what was kept before masking does


def test_a_steps_shares_are_gone_after_its_answer() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    epoch, steps = federation.clients[0]._epoch, federation.plan.steps
    kept = copy.deepcopy(epoch.held)
    federation.step()
    for member in range(4):
        for row in (0, steps):
            assert epoch.held[member]._rows[row].tobytes() == bytes(32) != kept[member]._rows[row].tobytes()
        for row in (1, steps + 1):
            assert epoch.held[member]._rows[row].tobytes() == kept[member]._rows[row].tobytes() != bytes(32)


def test_shares_of_a_skipped_step_are_gone_when_a_later_one_begins() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    epoch, steps = federation.clients[0]._epoch, federation.plan.steps
    federation.tell(0, Broadcast(federation.plan.digest, 2, (1.0,), (STATE.shape,)), (STATE.tobytes(),))
    for member in range(4):
        assert all(epoch.held[member]._rows[row].tobytes() == bytes(32) for row in (0, 1, steps, steps + 1))
        assert epoch.held[member]._rows[2].tobytes() != bytes(32)
    assert not rebuilds_masks(federation, epoch, 0) and not rebuilds_masks(federation, epoch, 1)


@pytest.mark.parametrize("how", ["farewell", "a later epoch"])
def test_everything_is_gone_with_the_epoch(how: str) -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    epoch = federation.clients[0]._epoch
    if how == "farewell":
        federation.tell(0, Farewell(federation.plan.digest, "over"))
        assert federation.clients[0]._epoch is None and federation.clients[0].plan is None
    else:
        federation.tell(0, PlanOffer(msgspec.structs.replace(federation.plan, epoch=1)))
    assert epoch.seed.erased and epoch.share_private.erased
    assert all(not any(shares._rows[row].tobytes()) for shares in epoch.held.values() for row in range(len(shares)))


def test_secrets_are_hidden_in_every_repr() -> None:
    """Each attribute of a live client, down to the leaves, shows none of the secret bytes that it drew or holds."""
    federation = Federation(4, threshold=3)
    client = federation.clients[0]
    drawn: list[bytes] = []
    source = client._random
    client._random = lambda count: drawn.append(source(count)) or drawn[-1]
    federation.set_up()
    epoch = client._epoch
    federation.begin_step()
    federation.drain({(member, Survivors) for member in range(4)})
    secrets = [epoch.seed.reveal(), *(part[:32] for part in drawn)]
    for shares in epoch.held.values():
        secrets += [shares.row(row) for row in range(len(shares))]
    assert len(secrets) > 20 and all(any(secret) for secret in secrets)

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

    everything = "\n".join(texts(client))
    for secret in secrets:
        for shown_as in (secret.hex(), repr(secret)[2:-1], repr(list(secret))[1:-1]):
            assert shown_as not in everything
    assert repr(client) == "<ClientProtocol of member 0, masked>"
    with pytest.raises(TypeError):
        pickle.dumps(client)
    with pytest.raises(TypeError):
        pickle.dumps(epoch)


def test_refusals_never_hold_a_secret() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up(lost={(0, ShareDelivery)})
    honest = next(item for item in federation.sent if item.kind is ShareDelivery and item.member == 0).message
    items = tuple(SealedShare(item.member, item.ciphertext[::-1]) for item in honest.items)
    epoch = federation.clients[0]._epoch
    secrets = list(kept_bytes([epoch.seed, epoch.share_private, epoch.own_shares]))
    with pytest.raises(ShareRefused) as caught:
        federation.tell(0, ShareDelivery(federation.plan.digest, honest.members, items))
    trail, error = "", caught.value
    while error is not None:
        trail += f"{error!r} {error} {vars(error)}"
        error = error.__cause__
    assert not any(secret.hex() in trail or repr(secret)[2:-1] in trail for secret in secrets)


def test_a_vector_is_computed_once_for_each_step() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
    (first,) = federation.tell(0, message, (STATE.tobytes(),))
    assert isinstance(first, Compute) and (first.arrays[0] == STATE).all() and not first.arrays[0].flags.writeable
    assert federation.tell(0, message, (STATE.tobytes(),)) == []
    assert federation.clients[0].answered_steps == 1
