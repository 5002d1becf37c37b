"""Attacks by name. Each has a control: the same attack with that one defence taken out, where it works."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_protocols import client as client_module
from codream_protocols import keyschedule
from codream_protocols.client import ClientProtocol, Compute, State
from codream_protocols.errors import (
    BadSignature,
    CohortRefused,
    ConflictingBroadcast,
    InconsistentSurvivors,
    LocalProtocolError,
    PolicyViolation,
    RemoteProtocolError,
    SecondSurvivorSet,
    ShareRefused,
    UnsafePlan,
    WrongContext,
)
from codream_protocols.identity import Signer
from codream_protocols.keyschedule import StepKeys
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    SealedShare,
    ShareDelivery,
    Shares,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    encode_message,
)
from codream_protocols.plan import Block, Policy, VectorSpec
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.vectors import decode_vector
from tests.protocols import adversary
from tests.protocols.federation import STATE, Federation, make_plan, packet


def without(*rules: str) -> type[ClientProtocol]:
    """A client with these rules taken out."""
    for rule in rules:
        assert callable(getattr(ClientProtocol, rule))
    off = dict.fromkeys(rules, lambda self, *arguments: None)
    return type("Without" + "And".join(rules), (ClientProtocol,), off)


# -- what the server announces in a step ---------------------------------------------


def announce(federation: Federation, member: int, survivors: tuple[int, ...], step: int = 0) -> Any:
    (effect,) = federation.tell(member, Survivors(federation.plan.digest, step, survivors))
    return effect.message


def agree_and_answer(federation: Federation, survivors: tuple[int, ...]) -> dict[int, UnmaskShares]:
    """Tell each survivor the set, collect the signatures, hand them round, collect the shares."""
    plan = federation.plan.digest
    signed = tuple(SignedBy(member, announce(federation, member, survivors).signature) for member in survivors)
    return {member: federation.tell(member, SurvivorSignatures(plan, 0, signed))[0].message for member in survivors}


def both_kinds_of_share(federation: Federation, victim: int = 0) -> np.ndarray:
    """First everybody survived, then all but the victim: shares of its self mask and of its mask key."""
    everyone = tuple(range(len(federation.clients)))
    rest = tuple(member for member in everyone if member != victim)
    first = {member: announce(federation, member, everyone) for member in rest}
    second = agree_and_answer(federation, rest)
    secrets = [
        adversary.combine(
            {member: adversary.shares_of(answer, everyone)[victim] for member, answer in answers.items()},
            federation.plan.threshold,
        )
        for answers in (first, second)
    ]
    return adversary.open_sum(federation, 0, [victim], {victim: secrets[0]}, {victim: secrets[1]})


def test_second_survivor_set_is_refused() -> None:
    with pytest.raises(SecondSurvivorSet):
        both_kinds_of_share(Federation(4, threshold=3).masked())


def test_second_survivor_set_first_layer_alone_suffices() -> None:
    with pytest.raises(SecondSurvivorSet):
        both_kinds_of_share(Federation(4, threshold=3, client_class=without("_rule_erase_answered")).masked())


def test_second_survivor_set_second_layer_alone_suffices() -> None:
    """With the refusal taken out the second answer has nothing to say: the shares are erased."""
    federation = Federation(4, threshold=3, client_class=without("_rule_one_survivor_set")).masked()
    with pytest.raises(LocalProtocolError, match="erased"):
        both_kinds_of_share(federation)


def test_second_survivor_set_control_recovers_the_input() -> None:
    federation = Federation(
        4, threshold=3, client_class=without("_rule_one_survivor_set", "_rule_erase_answered")
    ).masked()
    assert (both_kinds_of_share(federation) == federation.vectors[0, 0]).all()


def test_second_survivor_set_is_refused_between_signature_and_answer() -> None:
    federation = Federation(5, threshold=3).masked()
    announce(federation, 0, (0, 1, 2))
    for other in [(0, 1, 3), (0, 1, 2, 3, 4)]:
        with pytest.raises(SecondSurvivorSet):
            announce(federation, 0, other)
    assert isinstance(announce(federation, 0, (0, 1, 2)), SurvivorSignature)


def survivors_below_minimum(client_class: type[ClientProtocol]) -> np.ndarray:
    federation = Federation(
        5,
        threshold=3,
        client_class=client_class,
        policy=Policy(least_cohort=2, least_survivors=4, colluders=0, tasks={"update": 1.0}),
        least_survivors=4,
    ).masked()
    answers = agree_and_answer(federation, (0, 1, 2))
    shares = {member: adversary.shares_of(answer, range(5)) for member, answer in answers.items()}
    rebuilt = {
        secret: adversary.combine({member: rows[secret] for member, rows in shares.items()}, 3) for secret in range(5)
    }
    keys = {secret: rebuilt[secret] for secret in (3, 4)}
    total = adversary.open_sum(federation, 0, (0, 1, 2), rebuilt, keys)
    return total - federation.plain_sum(0, (0, 1, 2))


def test_survivors_below_the_minimum_are_refused() -> None:
    with pytest.raises(CohortRefused):
        survivors_below_minimum(ClientProtocol)


def test_survivors_below_the_minimum_control_opens_the_small_sum() -> None:
    assert not survivors_below_minimum(without("_rule_enough_survivors")).any()


def test_survivors_below_the_policys_minimum_are_refused_whatever_the_plan_says() -> None:
    """A second layer: a client that let a plan with a smaller minimum pass still keeps to its own in each step."""
    policy = Policy(least_cohort=2, least_survivors=4, colluders=0, tasks={"update": 1.0})
    federation = Federation(5, threshold=3, policy=policy, client_class=without("_rule_policy")).masked()
    assert federation.plan.least_survivors == 2
    with pytest.raises(CohortRefused):
        announce(federation, 0, (0, 1, 2))
    assert isinstance(announce(federation, 0, (0, 1, 2, 3)), SurvivorSignature)


def test_client_outside_the_survivors_is_refused() -> None:
    federation = Federation(5, threshold=3).masked()
    with pytest.raises(CohortRefused):
        announce(federation, 0, (1, 2, 3, 4))
    assert federation.clients[0].state is State.MASKED


def test_client_outside_the_survivors_control_helps_to_open_others_sum() -> None:
    federation = Federation(5, threshold=3, client_class=without("_rule_is_survivor")).masked()
    assert isinstance(announce(federation, 0, (1, 2, 3, 4)), SurvivorSignature)


# Told these sets, three of five clients give a share of each secret that opens the sum of 0 and 1 alone.
SPLIT = {0: (0, 1, 2), 1: (0, 1, 3), 2: (0, 1, 2), 3: (0, 1, 3), 4: (0, 1, 4)}


def different_survivors_for_each(client_class: type[ClientProtocol]) -> np.ndarray:
    federation = Federation(5, threshold=3, least_survivors=3, client_class=client_class).masked()
    plan = federation.plan.digest
    signatures = {member: announce(federation, member, told).signature for member, told in SPLIT.items()}
    self_masks: dict[int, dict[int, bytes]] = {member: {} for member in range(5)}
    mask_keys: dict[int, dict[int, bytes]] = {member: {} for member in range(5)}
    for member, told in SPLIT.items():
        obtainable = tuple(SignedBy(other, signatures[other]) for other in sorted(SPLIT) if SPLIT[other] == told)
        (effect,) = federation.tell(member, SurvivorSignatures(plan, 0, obtainable))
        for secret, share in adversary.shares_of(effect.message, range(5)).items():
            (self_masks if secret in told else mask_keys)[secret][member] = share
    total = adversary.open_sum(
        federation,
        0,
        (0, 1),
        {member: adversary.combine(self_masks[member], 3) for member in (0, 1)},
        {member: adversary.combine(mask_keys[member], 3) for member in (2, 3, 4)},
    )
    return total - federation.plain_sum(0, (0, 1))


def test_different_survivors_without_agreement_are_refused() -> None:
    with pytest.raises(InconsistentSurvivors):
        different_survivors_for_each(ClientProtocol)


def test_different_survivors_control_opens_a_sum_below_the_minimum() -> None:
    assert not different_survivors_for_each(without("_rule_signed_survivors")).any()


def forged_signatures(federation: Federation, how: str) -> tuple[SignedBy, ...]:
    survivors = (0, 1, 2, 3)
    good = {member: announce(federation, member, survivors).signature for member in (0, 1, 2, 3)}
    if how == "none":
        return ()
    if how == "too few":
        return (SignedBy(0, good[0]), SignedBy(1, good[1]))
    if how == "one signature under three names":
        return tuple(SignedBy(member, good[1]) for member in (1, 2, 3))
    if how == "one member three times":
        return tuple(SignedBy(1, good[1]) for _ in range(3))
    if how == "made by the server":
        return tuple(SignedBy(member, Signer(bytes(32)).sign("survivors", b"", b"", b"")) for member in (1, 2, 3))
    if how == "over another set":
        other = Federation(5, threshold=3).masked()  # the same keys and plan: the same seed
        assert other.plan == federation.plan
        return tuple(SignedBy(member, announce(other, member, (1, 2, 3)).signature) for member in (1, 2, 3))
    if how == "of a dropped member":
        statement = federation.signers[4].sign("survivors", *client_module.survivor_statement(
            federation.server._transcript(), 0, survivors))  # fmt: skip
        return (SignedBy(1, good[1]), SignedBy(4, statement))
    raise AssertionError(how)


FORGERIES = [
    "none",
    "too few",
    "one signature under three names",
    "one member three times",
    "made by the server",
    "over another set",
    "of a dropped member",
]


@pytest.mark.parametrize("how", FORGERIES)
def test_skipped_or_forged_agreement_is_refused(how: str) -> None:
    federation = Federation(5, threshold=3).masked()
    message = SurvivorSignatures(federation.plan.digest, 0, forged_signatures(federation, how))
    with pytest.raises((InconsistentSurvivors, BadSignature)):
        federation.tell(0, message)
    assert federation.clients[0].state is State.SIGNED


@pytest.mark.parametrize("how", FORGERIES)
def test_skipped_or_forged_agreement_control_is_answered(how: str) -> None:
    federation = Federation(5, threshold=3, client_class=without("_rule_signed_survivors")).masked()
    message = SurvivorSignatures(federation.plan.digest, 0, forged_signatures(federation, how))
    (effect,) = federation.tell(0, message)
    assert isinstance(effect.message, UnmaskShares)


def test_skipped_or_forged_agreement_two_of_three_and_the_own_one_suffice() -> None:
    """The rule itself is not the obstacle: threshold signatures, this client's included, are enough."""
    federation = Federation(5, threshold=3).masked()
    survivors = (0, 1, 2, 3)
    signed = tuple(SignedBy(member, announce(federation, member, survivors).signature) for member in (0, 1, 2))
    (effect,) = federation.tell(0, SurvivorSignatures(federation.plan.digest, 0, signed[1:]))
    assert isinstance(effect.message, UnmaskShares)


# -- what the server shows in a step ---------------------------------------------


def different_broadcasts() -> tuple[np.ndarray, np.ndarray]:
    """The victim sees the true state, the others one whose update is zero. Returns the guess, and the truth."""
    federation = Federation(5, threshold=4, value_bits=20)
    federation.set_up()
    victim_values = np.random.default_rng(1).uniform(-1, 1, 20)
    federation.input_of = lambda member, compute: {"dream": victim_values if compute.arrays[0].any() else np.zeros(20)}
    digest = {}
    for member in range(5):
        state = STATE if member == 0 else np.zeros_like(STATE)
        message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
        digest[member] = message.digest((state.tobytes(),))
        federation.deliver(packet(member, message, (state.tobytes(),), to_server=False))
    answers = {member: announce(federation, member, (0, 1, 2, 3, 4)) for member in range(5)}
    shares = {member: adversary.shares_of(answer, range(5)) for member, answer in answers.items()}
    self_masks = {
        secret: adversary.combine({member: rows[secret] for member, rows in shares.items()}, 4) for secret in range(5)
    }
    total = sum(adversary.masked_input(federation, 0, member) for member in range(5))
    for member in range(5):  # everyone's self mask comes off rightly; the pairwise masks have to cancel
        key = keyschedule.self_mask_key(self_masks[member], federation.plan.digest, 0, digest[member])
        client_module.add_mask(total, key, suite=federation.plan.suite, negative=True)
    total &= total.dtype.type((1 << federation.plan.modulus_bits) - 1)
    return decode_vector(federation.plan, 0, (1.0,), total, 5)["dream"], victim_values


def test_different_broadcasts_yield_garbage() -> None:
    guess, values = different_broadcasts()
    assert np.abs(guess - values).max() > 0.5


def test_different_broadcasts_control_reads_the_victims_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasquini et al., CCS 2022: without the broadcast's digest in the keys the masks cancel."""
    bound_pairwise, bound_self = keyschedule.pairwise_mask_key, keyschedule.self_mask_key
    monkeypatch.setattr(
        keyschedule,
        "pairwise_mask_key",
        lambda private, peer, **context: bound_pairwise(private, peer, **{**context, "broadcast": b""}),
    )
    monkeypatch.setattr(
        keyschedule, "self_mask_key", lambda secret, plan, step, broadcast: bound_self(secret, plan, step, b"")
    )
    guess, values = different_broadcasts()
    np.testing.assert_allclose(guess, values, atol=1e-4)


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


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (lambda plan: Broadcast(bytes(32), 0, (1.0,), (STATE.shape,)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 3, (1.0,), (STATE.shape,)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 0, (1.5,), (STATE.shape,)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 0, (float("nan"),), (STATE.shape,)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 0, (1.0, 1.0), (STATE.shape,)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 0, (1.0,), (STATE.shape,)), ()),
        (lambda plan: Broadcast(plan, 0, (1.0,), (STATE.shape,)), (STATE.tobytes(), b"")),
        (lambda plan: Broadcast(plan, 0, (1.0,), (STATE.shape,)), (STATE.tobytes()[:-1],)),
        (lambda plan: Broadcast(plan, 0, (1.0,), ((1 << 26, 1 << 26, 1 << 26, 1 << 26),)), (STATE.tobytes(),)),
        (lambda plan: Broadcast(plan, 0, (1.0,), (STATE.shape,)), (np.full_like(STATE, np.inf).tobytes(),)),
        (lambda plan: Survivors(plan, 0, (0, 1, 2, 3)), ()),
        (lambda plan: Farewell(plan, "over"), (b"frame",)),
    ],
    ids=[
        "another plan", "beyond the last step", "clip above the plan's", "clip NaN", "too many clips", "no frame",
        "too many frames", "short frame", "huge shape", "infinite state", "survivors before the input", "stray frame",
    ],
)  # fmt: skip
def test_broadcasts_beyond_the_plan_are_refused_and_change_nothing(message: Callable, frames: tuple) -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    with pytest.raises(RemoteProtocolError):
        federation.tell(0, message(federation.plan.digest), frames)
    assert federation.clients[0].state is State.READY and federation.clients[0].answered_steps == 0
    assert federation.step() is not None


# -- whom the server shows: keys, Sybils, split views ---------------------------------------------


def advertised(federation: Federation) -> dict[int, Advertisement]:
    """Every client's advertisement, asked for by hand."""
    return {
        member: federation.tell(member, PlanOffer(federation.plan))[0].message
        for member in range(len(federation.clients))
    }


def shown(federation: Federation, items: dict[int, Advertisement]) -> Advertisements:
    return Advertisements(federation.plan.digest, tuple(items[member] for member in sorted(items)))


class Forger(Signer):
    """Claims a roster's identity key and signs with another one."""

    __slots__ = ("claimed",)

    def __init__(self, claimed: bytes) -> None:
        super().__init__(bytes(31) + b"\x07")
        self.claimed = claimed

    @property
    def public(self) -> bytes:
        """The key of the member that is impersonated."""
        return self.claimed


def invented_members(client_class: type[ClientProtocol]) -> tuple[np.ndarray, np.ndarray]:
    """Every member but the victim is the server itself, under forged advertisements."""
    federation = Federation(4, threshold=3, client_class=client_class)
    for member in (1, 2, 3):
        federation.clients[member] = without("_rule_signed_advertisement")(
            member=member,
            signer=Forger(federation.signers[member].public),
            roster=federation.roster,
            policy=federation.policy,
        )
    items = advertised(federation)
    sealed = {member: federation.tell(member, shown(federation, items))[0].message for member in range(4)}
    for member in range(4):
        parcels = tuple(
            SealedShare(sender, next(item.ciphertext for item in sealed[sender].items if item.member == member))
            for sender in range(4)
            if sender != member
        )
        federation.tell(member, ShareDelivery(federation.plan.digest, (0, 1, 2, 3), parcels))
    steps = federation.plan.steps
    held = {member: federation.clients[member]._epoch.held[0] for member in (1, 2, 3)}
    self_mask = adversary.combine({member: shares.row(0) for member, shares in held.items()}, 3)
    mask_key = adversary.combine({member: shares.row(steps) for member, shares in held.items()}, 3)
    message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
    federation.deliver(packet(0, message, (STATE.tobytes(),), to_server=False))
    opened = adversary.open_sum(federation, 0, [0], {0: self_mask}, {0: mask_key}, shown=items)
    return opened, federation.vectors[0, 0]


def test_sybils_with_unsigned_keys_are_refused() -> None:
    with pytest.raises(BadSignature):
        invented_members(ClientProtocol)


def test_sybils_control_recover_the_input() -> None:
    opened, plain = invented_members(without("_rule_signed_advertisement"))
    assert (opened == plain).all()


def test_keys_swapped_in_the_middle_are_refused() -> None:
    federation = Federation(4, threshold=3)
    items = advertised(federation)
    other = Federation(4, threshold=3, seed=9)
    items[1] = msgspec.structs.replace(items[1], share_key=advertised(other)[1].share_key)
    with pytest.raises(BadSignature):
        federation.tell(0, shown(federation, items))
    control = Federation(4, threshold=3, client_class=without("_rule_signed_advertisement"))
    advertised(control)
    items = {**items, 0: control.clients[0]._epoch.advertisement}
    assert isinstance(control.tell(0, shown(control, items))[0].message, Shares)


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


def split_view() -> bool:
    """Clients 3 and 4 never hear of client 0. Whether some set's sum opens with all self masks known."""
    federation = Federation(5, threshold=3)
    items = advertised(federation)
    views = {0: (0, 1, 2), 1: (0, 1, 2, 3, 4), 2: (0, 1, 2, 3, 4), 3: (1, 2, 3, 4), 4: (1, 2, 3, 4)}
    seen = {**views, 0: (0, 1, 2, 3, 4)}
    sealed = {
        member: federation.tell(member, shown(federation, {other: items[other] for other in seen[member]}))[0].message
        for member in range(5)
    }
    for member, members in views.items():
        parcels = tuple(
            SealedShare(sender, next(item.ciphertext for item in sealed[sender].items if item.member == member))
            for sender in members
            if sender != member
        )
        federation.tell(member, ShareDelivery(federation.plan.digest, members, parcels))
    message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
    self_masks: dict[int, dict[int, bytes]] = {member: {} for member in range(5)}
    for member, members in views.items():
        federation.deliver(packet(member, message, (STATE.tobytes(),), to_server=False))
        for secret, share in adversary.shares_of(announce(federation, member, members), members).items():
            self_masks[secret][member] = share
    bare = {}
    for member in range(5):
        secret = adversary.combine(self_masks[member], 3)
        bare[member] = adversary.masked_input(federation, 0, member)
        key = keyschedule.self_mask_key(secret, federation.plan.digest, 0, message.digest((STATE.tobytes(),)))
        client_module.add_mask(bare[member], key, suite=federation.plan.suite, negative=True)
    ring = (1 << federation.plan.modulus_bits) - 1
    return any(
        ((sum(bare[member].astype(np.int64) for member in chosen) & ring) == federation.plain_sum(0, chosen)).all()
        for size in range(1, 6)
        for chosen in combinations(range(5), size)
    )


def test_split_view_yields_garbage() -> None:
    assert not split_view()


def test_split_view_control_opens_without_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys that do not bind the transcript, the masks of clients with different views cancel."""
    bound = keyschedule.pairwise_mask_key
    monkeypatch.setattr(
        keyschedule,
        "pairwise_mask_key",
        lambda private, peer, **context: bound(private, peer, **{**context, "transcript": b""}),
    )
    assert split_view()


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


def colluders_advertisement(federation: Federation, item: Advertisement, **changed: bytes) -> Advertisement:
    """An advertisement of a member that colludes: whatever it holds is rightly signed."""
    item = msgspec.structs.replace(item, **changed)
    signature = federation.signers[item.member].sign("advertisement", *item.signed_parts())
    return msgspec.structs.replace(item, signature=signature)


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@pytest.mark.parametrize("low", LOW_ORDER, ids=lambda key: key.hex()[:8])
@pytest.mark.parametrize("field", ["share_key", "mask_keys"])
def test_low_order_keys_are_refused(low: bytes, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(4, threshold=3)
    federation.emit(federation.server.start())
    items = advertised(federation)
    changed = low if field == "share_key" else items[1].mask_keys[:32] + low + items[1].mask_keys[64:]
    items[1] = colluders_advertisement(federation, items[1], **{field: changed})
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))
    with pytest.raises(CohortRefused):
        federation.server.receive(1, items[1])
    assert federation.clients[0].state is State.ADVERTISED

    def agree_with_anyone(private: bytes, peer: bytes) -> bytes:  # the control: X25519 without its check
        return bytes(32) if peer in LOW_ORDER else sound(private, peer)

    sound = keyschedule.agree
    monkeypatch.setattr(keyschedule, "agree", agree_with_anyone)
    assert isinstance(federation.tell(0, shown(federation, items))[0].message, Shares)


@pytest.mark.parametrize("how", ["another's mask key", "another's share key", "the own key twice"])
def test_repeated_keys_are_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(4, threshold=3)
    federation.emit(federation.server.start())
    items = advertised(federation)
    changed = {
        "another's mask key": {"mask_keys": items[2].mask_keys[:32] + items[1].mask_keys[32:]},
        "another's share key": {"share_key": items[2].share_key},
        "the own key twice": {"mask_keys": items[1].mask_keys[:32] * federation.plan.steps},
    }[how]
    items[1] = colluders_advertisement(federation, items[1], **changed)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))
    federation.server.receive(2, items[2])
    with pytest.raises(CohortRefused):
        federation.server.receive(1, items[1])
    monkeypatch.setattr(client_module, "check_distinct_keys", lambda items: None)  # the control
    assert isinstance(federation.tell(0, shown(federation, items))[0].message, Shares)


def test_keys_for_another_number_of_steps_are_refused() -> None:
    federation = Federation(4, threshold=3)
    items = advertised(federation)
    items[1] = colluders_advertisement(federation, items[1], mask_keys=items[1].mask_keys[:64])
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


def test_replayed_advertisement_of_an_earlier_epoch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(4, threshold=3)
    old = advertised(federation)
    federation.plan = msgspec.structs.replace(federation.plan, epoch=1)
    items = {**advertised(federation), 1: old[1]}
    with pytest.raises(WrongContext):
        federation.tell(0, shown(federation, items))
    with pytest.raises(BadSignature):
        federation.tell(
            0, shown(federation, {**items, 1: msgspec.structs.replace(old[1], plan=federation.plan.digest)})
        )
    monkeypatch.setattr(client_module, "check_advertisement", lambda plan, digest, roster, item: None)  # the control
    assert isinstance(federation.tell(0, shown(federation, items))[0].message, Shares)


# -- shares on their way ---------------------------------------------


class NoAuthentication:
    """The control for the sealed shares: a cipher that opens whatever it is given."""

    def __init__(self, key: bytes) -> None:
        pass

    def encrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
        return data + bytes(16)

    def decrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
        return data[:-16]


def tampered_delivery(how: str) -> list:
    federation = Federation(4, threshold=3)
    federation.set_up(lost={(0, ShareDelivery)})
    honest = next(item for item in federation.sent if item.kind is ShareDelivery and item.member == 0).message
    parcel = {item.member: item.ciphertext for item in honest.items}
    if how == "a bit flipped":
        parcel[1] = bytes([parcel[1][0] ^ 1]) + parcel[1][1:]
    elif how == "two senders swapped":
        parcel[1], parcel[2] = parcel[2], parcel[1]
    elif how == "meant for another":
        to_two = next(item for item in federation.sent if item.kind is ShareDelivery and item.member == 2).message
        parcel[1] = next(item.ciphertext for item in to_two.items if item.member == 1)
    elif how == "own sent back":
        own = next(item for item in federation.sent if item.kind is Shares and item.member == 0).message
        parcel[1] = next(item.ciphertext for item in own.items if item.member == 1)
    items = tuple(SealedShare(member, ciphertext) for member, ciphertext in sorted(parcel.items()))
    try:
        return federation.tell(0, ShareDelivery(federation.plan.digest, honest.members, items))
    finally:
        accepted = federation.clients[0].state is State.READY
        assert accepted == (client_module.ChaCha20Poly1305 is NoAuthentication)


TAMPERING = ["a bit flipped", "two senders swapped", "meant for another", "own sent back"]


@pytest.mark.parametrize("how", TAMPERING)
def test_altered_or_swapped_shares_are_refused(how: str) -> None:
    with pytest.raises(ShareRefused):
        tampered_delivery(how)


@pytest.mark.parametrize("how", TAMPERING)
def test_altered_or_swapped_shares_control_is_accepted(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ChaCha20Poly1305", NoAuthentication)
    assert tampered_delivery(how) == []


def test_replayed_shares_of_an_earlier_epoch_do_not_open() -> None:
    federation = Federation(4, threshold=3)
    federation.set_up()
    old = next(item for item in federation.sent if item.kind is ShareDelivery and item.member == 0).message
    later = Federation(4, threshold=3, plan=msgspec.structs.replace(federation.plan, epoch=1))
    later.set_up(lost={(0, ShareDelivery)})
    with pytest.raises(ShareRefused):
        later.tell(0, ShareDelivery(later.plan.digest, old.members, old.items))


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


def test_wrong_answers_of_a_client_are_noticed_and_left_out() -> None:
    federation = Federation(5, threshold=3)
    federation.set_up()
    federation.begin_step()
    answers = _collect(federation, UnmaskShares)
    bad = UnmaskShares(federation.plan.digest, 0, bytes(32 * 5))
    federation.emit(federation.server.receive(0, bad))
    for member in (1, 2):
        federation.emit(federation.server.receive(member, answers[member].message))
    assert not federation.reveals  # three answers, one of them wrong
    federation.emit(federation.server.receive(3, answers[3].message))
    assert (federation.reveals[0].total == federation.plain_sum(0, range(5))).all()


def test_wrong_answers_of_too_many_fail_without_a_sum() -> None:
    federation = Federation(5, threshold=3)
    federation.set_up()
    federation.begin_step()
    answers = _collect(federation, UnmaskShares)
    for member in range(5):
        wrong = UnmaskShares(federation.plan.digest, 0, bytes([member]) * (32 * 5))
        federation.emit(federation.server.receive(member, wrong if member < 3 else answers[member].message))
    assert federation.failures == ["wrong shares in step 0: its sum cannot be rebuilt"] and not federation.reveals


def test_wrong_answers_control_without_commitments_give_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codream_protocols.server.ServerEpoch._fits", lambda self, step, member, secret: True)
    federation = Federation(5, threshold=3)
    federation.set_up()
    federation.begin_step()
    answers = _collect(federation, UnmaskShares)
    federation.emit(federation.server.receive(0, UnmaskShares(federation.plan.digest, 0, bytes(32 * 5))))
    for member in (1, 2):
        federation.emit(federation.server.receive(member, answers[member].message))
    assert (federation.reveals[0].total != federation.plain_sum(0, range(5))).any()


def test_wrong_answers_of_three_in_twenty_are_left_out() -> None:
    federation = Federation(20, steps=1)
    federation.set_up()
    federation.begin_step()
    answers = _collect(federation, UnmaskShares)
    for member in range(20):
        wrong = UnmaskShares(federation.plan.digest, 0, bytes(32 * 20))
        federation.emit(federation.server.receive(member, wrong if member < 3 else answers[member].message))
    assert len(federation.reveals) == 1


class WrongDealer(ClientProtocol):
    """Shares secrets that are not those it advertised."""

    def _seal_shares(self, epoch: Any, advertised: Any) -> Any:
        return super()._seal_shares(dataclasses.replace(epoch, seed=Secret(b"\x0d" * 32)), advertised)


def test_wrong_shares_dealt_by_a_client_fail_without_a_sum() -> None:
    federation = Federation(4, threshold=3, client_class=[ClientProtocol, WrongDealer, ClientProtocol, ClientProtocol])
    assert federation.set_up()
    assert federation.step() is None
    assert "cannot be rebuilt" in federation.failures[0]


@pytest.mark.parametrize("size", [31, 33, 32 * 3, 32 * 5])
def test_answers_of_the_wrong_size_are_refused(size: int) -> None:
    federation = Federation(4, threshold=3).masked()
    with pytest.raises(ShareRefused):
        federation.server.receive(0, UnmaskShares(federation.plan.digest, 0, bytes(size)))


def _collect(federation: Federation, kind: type) -> dict[int, Any]:
    """Run until every client has sent a message of this kind, and take these messages off the wire."""
    taken: dict[int, Any] = {}
    while federation.wire:
        item = federation.wire.pop(0)
        if item.kind is kind:
            taken[item.member] = item
        else:
            federation.deliver(item)
    return taken


# -- plans ---------------------------------------------

NARROW = Policy(
    least_cohort=5,
    least_survivors=4,
    colluders=1,
    most_steps=3,
    most_total_steps=100,
    most_coordinates=20,
    most_value_bits=16,
    tasks={"update": 1.0},
    suites=("aes-256-ctr",),
    recipe=b"r" * 32,
)
WITHIN: dict[str, Any] = {"colluders": 1, "least_survivors": 4, "recipe": b"r" * 32, "threshold": 4}
BEYOND: dict[str, dict[str, Any]] = {
    "cohort": {"cohort": (0, 1, 2, 3)},
    "survivors": {"least_survivors": 3},
    "colluders": {"colluders": 0},
    "steps": {"steps": 4},
    "coordinates": {"specs": (VectorSpec("update", (Block("dream", 21, 1.0),)),)},
    "bits of a value": {"value_bits": 17},
    "suite": {"suite": "chacha20"},
    "recipe": {"recipe": bytes(32)},
    "task": {"specs": (VectorSpec("gradient", (Block("dream", 20, 1.0),)),)},
    "clip": {"specs": (VectorSpec("update", (Block("dream", 19, 1.0), Block("weight", 1, 1.5))),)},
}


@pytest.mark.parametrize("what", BEYOND)
def test_plan_beyond_the_policy_is_refused(what: str) -> None:
    federation = Federation(5, policy=NARROW, **{**WITHIN, **BEYOND[what]})
    with pytest.raises(PolicyViolation):
        federation.tell(0, PlanOffer(federation.plan))
    assert federation.clients[0].state is State.IDLE


@pytest.mark.parametrize("what", BEYOND)
def test_plan_beyond_the_policy_control_is_accepted(what: str) -> None:
    federation = Federation(5, policy=NARROW, client_class=without("_rule_policy"), **{**WITHIN, **BEYOND[what]})
    assert isinstance(federation.tell(0, PlanOffer(federation.plan))[0].message, Advertisement)


def test_plan_within_the_policy_is_accepted() -> None:
    assert Federation(5, policy=NARROW, **WITHIN).set_up()


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


def test_replayed_epoch_control_is_accepted() -> None:
    federation = Federation(4, client_class=without("_rule_fresh_epoch"))
    federation.set_up()
    federation.tell(0, Farewell(b"", "over"))
    assert isinstance(federation.tell(0, PlanOffer(federation.plan))[0].message, Advertisement)


def test_the_plan_in_force_is_answered_with_the_same_advertisement() -> None:
    federation = Federation(4)
    first = federation.tell(0, PlanOffer(federation.plan))
    assert federation.tell(0, PlanOffer(federation.plan)) == first


def endless_session(client_class: type[ClientProtocol]) -> int:
    """How many steps a client answers in ever new epochs."""
    policy = Policy(least_cohort=2, least_survivors=2, colluders=0, tasks={"update": 1.0}, most_total_steps=7)
    federation = Federation(3, policy=policy, client_class=client_class, steps=3)
    answered = 0
    for epoch in range(5):
        following = msgspec.structs.replace(federation.plan, epoch=epoch + 1)
        if not federation.set_up():
            break
        while federation.server.phase.value == "ready":
            answered += federation.step() is not None
        federation.plan = following
        federation.server = type(federation.server)(following, federation.roster)
    return answered


def test_endless_session_stops_at_the_policys_total() -> None:
    assert endless_session(ClientProtocol) == 6  # a third epoch of three steps would make nine


def test_endless_session_control_goes_on() -> None:
    assert endless_session(without("_rule_budget")) == 15


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
