"""What a malicious server says and computes: sets announced, shares collected and combined, masks taken off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from codream_protocols import keyschedule, shamir
from codream_protocols.client import Send
from codream_protocols.identity import Signer
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    MaskedInput,
    PlanOffer,
    SealedShare,
    ShareDelivery,
    Shares,
    SignedBy,
    Survivors,
    SurvivorSignatures,
    UnmaskShares,
    survivor_statement,
)
from codream_protocols.packing import unpack
from secure_codream.threats.federation import Federation, Stuck

Words = np.ndarray[Any, Any]


# -- what it has seen ---------------------------------------------


def advertisements(federation: Federation) -> dict[int, Advertisement]:
    """Everyone's advertisement, as the clients sent them."""
    found = {}
    for item in federation.sent:
        if isinstance(item.message, Advertisement):
            found[item.member] = item.message
    return found


def masked_input(federation: Federation, step: int, member: int) -> Words:
    """A member's masked vector, off the wire."""
    for item in federation.sent:
        message = item.message if item.kind is MaskedInput and item.member == member else None
        if isinstance(message, MaskedInput) and message.step == step:
            length = federation.plan.spec(step).words
            return unpack(item.frames[0], length, federation.plan.modulus_bits)
    raise LookupError(f"no masked input of member {member} for step {step}")


def broadcast_digest(federation: Federation, step: int) -> bytes:
    """The digest that the step's masked inputs name."""
    for item in federation.sent:
        message = item.message if item.kind is MaskedInput else None
        if isinstance(message, MaskedInput) and message.step == step:
            return message.broadcast
    raise LookupError(f"no masked input for step {step}")


# -- what it says ---------------------------------------------


def said(effects: Sequence[Any]) -> Any:
    """The one message with which a client answers."""
    if len(effects) != 1 or not isinstance(effects[0], Send):
        raise Stuck(f"a client answered with {effects}")
    return effects[0].message


def announce(federation: Federation, member: int, survivors: Sequence[int], step: int = 0) -> Any:
    """Tell one member a survivor set; its signature, or its shares."""
    return said(federation.tell(member, Survivors(federation.plan.digest, step, tuple(survivors))))


def agree_and_answer(federation: Federation, survivors: Sequence[int], step: int = 0) -> dict[int, UnmaskShares]:
    """Tell each survivor the set, collect the signatures, hand them round, collect the shares."""
    plan = federation.plan.digest
    signed = tuple(SignedBy(member, announce(federation, member, survivors, step).signature) for member in survivors)
    return {member: said(federation.tell(member, SurvivorSignatures(plan, step, signed))) for member in survivors}


def advertised(federation: Federation) -> dict[int, Advertisement]:
    """Every client's advertisement, asked for by hand."""
    members = range(len(federation.clients))
    return {member: said(federation.tell(member, PlanOffer(federation.plan))) for member in members}


def shown(federation: Federation, items: Mapping[int, Advertisement]) -> Advertisements:
    """The message that shows these advertisements."""
    return Advertisements(federation.plan.digest, tuple(items[member] for member in sorted(items)))


def sealed_by(federation: Federation, shows: Mapping[int, Mapping[int, Advertisement]]) -> dict[int, Shares]:
    """Show each client its advertisements; the shares that it seals."""
    return {member: said(federation.tell(member, shown(federation, items))) for member, items in shows.items()}


def delivery(
    federation: Federation, sealed: Mapping[int, Shares], member: int, members: Sequence[int]
) -> ShareDelivery:
    """What each of `members` sealed for one of them."""
    parcels = tuple(SealedShare(sender, parcel(sealed[sender], member)) for sender in members if sender != member)
    return ShareDelivery(federation.plan.digest, tuple(members), parcels)


def parcel(message: Shares | ShareDelivery, member: int) -> bytes:
    """The ciphertext for, or of, a member."""
    return next(item.ciphertext for item in message.items if item.member == member)


def confession(federation: Federation, member: int, step: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """All shares of a step that a colluder holds, before it answers: whose -> of the self mask, and of the mask key."""
    epoch = federation.clients[member]._epoch
    if epoch is None:
        raise Stuck(f"member {member} has no epoch")
    steps = federation.plan.steps
    own = {whose: held.row(step) for whose, held in epoch.held.items()}
    return own, {whose: held.row(steps + step) for whose, held in epoch.held.items()}


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


# -- what it computes ---------------------------------------------


def shares_of(answer: UnmaskShares, members: Collection[int]) -> dict[int, bytes]:
    """An answer's rows: whose secret -> share."""
    rows = np.frombuffer(answer.shares, dtype=np.uint8).reshape(-1, KEY_BYTES)
    return {member: rows[place].tobytes() for place, member in enumerate(sorted(members))}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """One secret from the first `threshold` of its shares: who gave it -> share."""
    chosen = sorted(shares)[:threshold]
    rows = {member + 1: np.frombuffer(shares[member], dtype=np.uint8).reshape(1, -1) for member in chosen}
    return shamir.combine(rows).tobytes()


def rebuild(
    federation: Federation, answers: Mapping[int, UnmaskShares], members: Collection[int] | None = None
) -> dict[int, bytes]:
    """Every secret that these answers hold shares of: whose -> secret (of either kind)."""
    members = range(len(federation.clients)) if members is None else members
    rows = {member: shares_of(answer, members) for member, answer in answers.items()}
    threshold = federation.plan.threshold
    return {whose: combine({member: row[whose] for member, row in rows.items()}, threshold) for whose in members}


def is_self_mask(federation: Federation, member: int, step: int, secret: bytes) -> bool:
    """Whether a rebuilt self-mask seed is the advertised one."""
    commitment = keyschedule.self_mask_commitment(secret, federation.plan.digest, step)
    return commitment == advertisements(federation)[member].commitment(step)


def is_mask_key(federation: Federation, member: int, step: int, secret: bytes) -> bool:
    """Whether a rebuilt mask key is the advertised one."""
    return keyschedule.public_key(secret) == advertisements(federation)[member].mask_key(step)


def ring_sum(federation: Federation, vectors: Iterable[Words]) -> Words:
    """The sum in the ring."""
    first, *rest = vectors
    total = first.copy()
    for vector in rest:
        total += vector
    return reduce(federation, total)


def reduce(federation: Federation, total: Words) -> Words:
    """Modulo 2^m."""
    reduced: Words = total & total.dtype.type((1 << federation.plan.modulus_bits) - 1)
    return reduced


def take_off_self_mask(
    federation: Federation, vector: Words, secret: bytes, step: int, broadcast: bytes | None = None
) -> None:
    """Take one self mask off, in place."""
    digest = broadcast_digest(federation, step) if broadcast is None else broadcast
    key = keyschedule.self_mask_key(secret, federation.plan.digest, step, digest)
    add_mask(vector, key, suite=federation.plan.suite, negative=True)


def open_sum(
    federation: Federation,
    step: int,
    included: Collection[int],
    self_masks: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
    *,
    broadcast: bytes | None = None,
    shown: Mapping[int, Advertisement] | None = None,
) -> Words:
    """Add the masked inputs of `included`, and take off every mask that does not cancel among them.

    Args:
        federation: where the masked inputs were sent.
        step: the step.
        included: whose inputs to add.
        self_masks: member -> rebuilt self-mask seed; of all of `included`.
        mask_keys: member -> rebuilt mask key; for each pair of one inside and one outside, of one of the two.
        broadcast: the broadcast's digest, if not the one that the masked inputs name.
        shown: the advertisements that the included members were shown, if not everyone's own.

    Raises:
        KeyError: a needed secret is not known.
    """
    plan, shown = federation.plan, shown or advertisements(federation)
    parts = [shown[member].digest for member in sorted(shown)]
    transcript = keyschedule.digest("transcript", plan.digest, *parts)
    broadcast = broadcast_digest(federation, step) if broadcast is None else broadcast
    total = ring_sum(federation, (masked_input(federation, step, member) for member in included))
    for member in included:
        take_off_self_mask(federation, total, self_masks[member], step, broadcast)
        for other in set(shown) - set(included):
            inside = member in mask_keys
            key = keyschedule.pairwise_mask_key(
                mask_keys[member if inside else other],
                shown[other if inside else member].mask_key(step),
                plan=plan.digest,
                transcript=transcript,
                step=step,
                broadcast=broadcast,
                pair=(member, other),
            )
            add_mask(total, key, suite=plan.suite, negative=member < other)
    return reduce(federation, total)


def split_and_collude(federation: Federation, victim: int, colluders: Collection[int]) -> tuple[Words, Words]:
    """Ask some honest clients for shares of the victim's self mask, the others for those of its mask key.

    Colluders give both, and sign whatever helps. No honest client is asked twice, so no rule is broken.

    Returns:
        What opens as the victim's input, and what it was.
    """
    plan = federation.plan
    everyone = tuple(range(len(federation.clients)))
    rest = tuple(member for member in everyone if member != victim)
    confessed = {member: confession(federation, member, 0) for member in colluders}
    honest = [victim, *(member for member in rest if member not in confessed)]
    asked = max(1, plan.threshold - len(confessed))
    self_shares = {member: own[victim] for member, (own, _) in confessed.items()}
    key_shares = {member: key[victim] for member, (_, key) in confessed.items()}
    statement = survivor_statement(federation.server._transcript(), 0, rest)
    signed = [SignedBy(member, federation.signers[member].sign("survivors", *statement)) for member in confessed]
    for member in honest[:asked]:
        self_shares[member] = shares_of(announce(federation, member, everyone), everyone)[victim]
    signed += [SignedBy(member, announce(federation, member, rest).signature) for member in honest[asked:]]
    message = SurvivorSignatures(plan.digest, 0, tuple(sorted(signed, key=lambda item: item.member)))
    for member in honest[asked:]:
        key_shares[member] = shares_of(said(federation.tell(member, message)), everyone)[victim]
    secrets = [combine(shares, plan.threshold) for shares in (self_shares, key_shares)]
    opened = open_sum(federation, 0, [victim], {victim: secrets[0]}, {victim: secrets[1]})
    return opened, federation.vectors[0, victim]
