"""What a malicious server says and computes: sets announced, shares collected and combined, masks taken off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np

from codream_protocols import chain as links
from codream_protocols import hybrid, keyschedule, shamir
from codream_protocols import server as server_module
from codream_protocols.charter import Offer
from codream_protocols.client import Send
from codream_protocols.encoding import integers
from codream_protocols.identity import Signer
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Invitation,
    MaskedInput,
    Published,
    Seal,
    SealDelivery,
    Seals,
    SignedBy,
    Survivors,
    SurvivorSignatures,
    UnmaskShares,
    survivor_statement,
)
from codream_protocols.packing import pack, unpack
from codream_protocols.resilient import ResilientKeys
from codream_protocols.tag import TagKey, tag_bytes, tag_number
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.wire import Federation, Stuck

Words = np.ndarray[Any, Any]


# -- what it has seen ---------------------------------------------


def advertisements(federation: Federation) -> dict[int, Advertisement]:
    """Everyone's newest advertisement, as the clients sent them."""
    found = {}
    for item in federation.sent:
        if isinstance(item.message, Advertisement):
            found[item.member] = item.message
    return found


def vector_sent(federation: Federation, step: int, member: int) -> Packet:
    """The packet of a member's newest masked vector of a step."""
    for item in reversed(federation.sent):
        message = item.message if item.kind is MaskedInput and item.member == member else None
        if isinstance(message, MaskedInput) and message.step == step:
            return item
    raise LookupError(f"no masked input of member {member} for step {step}")


def masked_input(federation: Federation, step: int, member: int) -> Words:
    """A member's masked vector, off the wire."""
    item = vector_sent(federation, step, member)
    return unpack(item.frames[0], federation.plan.spec(step).words, federation.plan.modulus_bits(step))


def chain_of(federation: Federation, step: int, member: int | None = None) -> bytes:
    """The chain that a member's masked vector of a step names; anybody's if no member is given."""
    for item in reversed(federation.sent):
        message = item.message if item.kind is MaskedInput else None
        if isinstance(message, MaskedInput) and message.step == step and member in (None, item.member):
            return message.chain
    raise LookupError(f"no masked input for step {step}")


def transcript_of(federation: Federation, shown: Mapping[int, Advertisement] | None = None) -> bytes:
    """The transcript of these advertisements (everyone's own)."""
    shown = shown or advertisements(federation)
    return links.transcript(federation.plan.digest, [shown[member].digest for member in sorted(shown)])


# -- what it says ---------------------------------------------


def said(effects: Sequence[Any]) -> Any:
    """The one message with which a client answers."""
    if len(effects) != 1 or not isinstance(effects[0], Send):
        raise Stuck(f"a client answered with {effects}")
    return effects[0].message


def invite(federation: Federation, member: int, offer: Offer | None = None) -> Any:
    """Invite one client by hand; its advertisement. The offer is the next epoch's unless given."""
    offer = offer or federation.offer()
    federation._plan = federation.plan_of(offer)
    return said(federation.tell(member, Invitation(offer)))


def advertised(federation: Federation, offer: Offer | None = None) -> dict[int, Advertisement]:
    """Every invited client's advertisement, asked for by hand."""
    offer = offer or federation.offer()
    return {member: invite(federation, member, offer) for member in offer.cohort}


def announce(federation: Federation, member: int, survivors: Sequence[int], step: int = 0) -> Any:
    """Tell one member a survivor set; its signature, or its shares."""
    return said(federation.tell(member, Survivors(federation.plan.digest, step, tuple(survivors))))


def agree_and_answer(
    federation: Federation, survivors: Sequence[int], step: int = 0, asked: Sequence[int] | None = None
) -> dict[int, UnmaskShares]:
    """Tell each of `asked` (everybody) the set, collect the signatures, hand them round, collect the shares."""
    plan, asked = federation.plan.digest, federation.everybody if asked is None else asked
    answers, signatures = {}, {}
    for member in asked:
        answer = announce(federation, member, survivors, step)
        if isinstance(answer, UnmaskShares):
            answers[member] = answer
        else:
            signatures[member] = answer.signature
    signed = tuple(SignedBy(member, signature) for member, signature in sorted(signatures.items()))
    for member in signatures:
        answers[member] = said(federation.tell(member, SurvivorSignatures(plan, step, signed)))
    return answers


def shown(federation: Federation, items: Mapping[int, Advertisement]) -> Advertisements:
    """The message that shows these advertisements."""
    return Advertisements(federation.plan.digest, tuple(items[member] for member in sorted(items)))


def sealed_by(federation: Federation, shows: Mapping[int, Mapping[int, Advertisement]]) -> dict[int, Seals]:
    """Show each client its advertisements; what it seals."""
    return {member: said(federation.tell(member, shown(federation, items))) for member, items in shows.items()}


def delivery(federation: Federation, sealed: Mapping[int, Seals], member: int, members: Sequence[int]) -> SealDelivery:
    """What each of `members` sealed for one of them."""
    seals = []
    for sender in members:
        if sender != member:
            item = parcel(sealed[sender], member)
            seals.append(item.sent_by(sender))
    return SealDelivery(federation.plan.digest, tuple(seals))


def parcel(message: Seals | SealDelivery, member: int) -> Seal:
    """The seal for, or of, a member."""
    return next(item for item in message.items if item.member == member)


def delivered(federation: Federation, member: int) -> SealDelivery:
    """The newest delivery of seals that was sent to a member."""
    for item in reversed(federation.sent):
        if item.member == member and isinstance(item.message, SealDelivery):
            return item.message
    raise Stuck(f"no seals were delivered to member {member}")


def set_up_by_hand(
    federation: Federation,
    members: Sequence[int],
    items: Mapping[int, Advertisement] | None = None,
    sealing: Sequence[int] | None = None,
) -> dict[int, Seals]:
    """Advertise, seal and deliver among `members` without a server; who is asked computes when `compute` is called."""
    items = items or advertised(federation)
    items = {member: items[member] for member in members}
    sealed = sealed_by(federation, dict.fromkeys(members if sealing is None else sealing, items))
    for member in sealed:
        federation.perform(member, federation.tell(member, delivery(federation, sealed, member, members)))
    return sealed


def resigned(federation: Federation, item: Advertisement, **changed: bytes) -> Advertisement:
    """An advertisement of a member that colludes: whatever it holds is rightly signed."""
    item = msgspec.structs.replace(item, **changed)
    signature = federation.signers[item.member].sign("advertisement", *item.signed_parts())
    return msgspec.structs.replace(item, signature=signature)


def confession(federation: Federation, member: int, step: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """All shares of a step that a member holds, before it answers: whose -> of the self mask, and of the mask key."""
    epoch = federation.clients[member]._epoch
    if epoch is None or not isinstance(epoch.keys, ResilientKeys):
        raise Stuck(f"member {member} has no shares")
    steps = federation.plan.steps
    own = {whose: held.row(step) for whose, held in epoch.keys._held.items()}
    return own, {whose: held.row(steps + step) for whose, held in epoch.keys._held.items()}


def told_group_key(federation: Federation, member: int) -> bytes:
    """The epoch's group key, which any member can tell the server."""
    epoch = federation.clients[member]._epoch
    if epoch is None or epoch.group_key is None:
        raise Stuck(f"member {member} has no group key")
    return epoch.group_key.reveal()


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


@contextmanager
def credulous() -> Iterator[None]:
    """The server's own machine believes every signature: it is the attacker's."""
    with patch.object(server_module, "verify", lambda *arguments: None):
        yield


# -- sums that it makes up ---------------------------------------------


def altered(
    federation: Federation, item: Packet, change: Mapping[int, int], group_key: bytes | None = None
) -> tuple[Published, bytes]:
    """A published sum with `change` added to some elements (place -> how much).

    Args:
        federation: where it was published.
        item: the packet of the true one.
        change: what is added.
        group_key: makes the tag fit, as a colluder can; without it the tag stays the true sum's.
    """
    message, plan = item.message, federation.plan
    if not isinstance(message, Published):
        raise Stuck("no published sum")
    words = unpack(item.frames[0], plan.spec(message.step).words, plan.modulus_bits(message.step))
    forged = words.astype(np.int64)
    for place, amount in change.items():
        forged[place] += amount
    forged %= 1 << plan.modulus_bits(message.step)
    new = forged.astype(words.dtype)
    tag = message.tag
    if group_key is not None:
        secret = hybrid.tag_secret(group_key, message.step, chain_of(federation, message.step))
        key = TagKey(secret, plan.spec(message.step).words)
        before, after = (key.of(integers(plan, message.step, part)) for part in (words, new))
        tag = tag_bytes((tag_number(tag) + after - before) % (1 << 128))
    return msgspec.structs.replace(message, tag=tag), pack(new, plan.modulus_bits(message.step))


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


def ring_sum(federation: Federation, vectors: Iterable[Words], step: int = 0) -> Words:
    """The sum in a step's ring, which is the first one's where all steps bring the same kind of vector."""
    first, *rest = vectors
    total = first.copy()
    for vector in rest:
        total += vector
    return reduce(federation, total, step)


def reduce(federation: Federation, total: Words, step: int = 0) -> Words:
    """Modulo a step's 2^m, see `ring_sum`."""
    reduced: Words = total & total.dtype.type((1 << federation.plan.modulus_bits(step)) - 1)
    return reduced


def take_off_self_mask(
    federation: Federation, vector: Words, secret: bytes, step: int, chain: bytes | None = None
) -> None:
    """Take one self mask off, in place."""
    chain = chain_of(federation, step) if chain is None else chain
    key = keyschedule.self_mask_key(secret, federation.plan.digest, step, chain)
    add_mask(vector, key, suite=federation.plan.aggregation.suite, negative=True)


def open_sum(
    federation: Federation,
    step: int,
    included: Collection[int],
    self_masks: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
    *,
    chain: bytes | None = None,
    shown: Mapping[int, Advertisement] | None = None,
) -> Words:
    """Resilient: add the masked inputs of `included`, and take off every mask that does not cancel among them.

    Args:
        federation: where the masked inputs were sent.
        step: the step.
        included: whose inputs to add.
        self_masks: member -> rebuilt self-mask seed; of all of `included`.
        mask_keys: member -> rebuilt mask key; for each pair of one inside and one outside, of one of the two.
        chain: the chain that the inputs were masked at, if not the one that they name.
        shown: the advertisements that the included members were shown, if not everyone's own.

    Raises:
        KeyError: a needed secret is not known.
    """
    plan, shown = federation.plan, shown or advertisements(federation)
    transcript = transcript_of(federation, shown)
    chain = chain_of(federation, step) if chain is None else chain
    total = ring_sum(federation, (masked_input(federation, step, member) for member in included), step)
    for member in included:
        take_off_self_mask(federation, total, self_masks[member], step, chain)
        for other in set(shown) - set(included):
            inside = member in mask_keys
            key = keyschedule.pairwise_mask_key(
                mask_keys[member if inside else other],
                shown[other if inside else member].mask_key(step),
                plan=plan.digest,
                transcript=transcript,
                step=step,
                broadcast=chain,
                pair=(member, other),
            )
            add_mask(total, key, suite=plan.aggregation.suite, negative=member < other)
    return reduce(federation, total, step)


def without_block(federation: Federation, member: int) -> tuple[int, ...]:
    """Everybody but a member's block: the largest set of survivors that leaves it out."""
    block = next(block for block in federation.charter.blocks if member in block)
    return tuple(one for one in federation.everybody if one not in block)


def split_and_collude(federation: Federation, victim: int, colluders: Collection[int]) -> tuple[Words, Words]:
    """Ask some honest clients for shares of the victim's self mask, the others for those of its mask key.

    Colluders give both, and sign whatever helps. No honest client is asked twice, so no rule is broken.

    Returns:
        What opens as the victim's input, and what it was.
    """
    plan, everyone = federation.plan, federation.everybody
    rest = without_block(federation, victim)
    confessed = {member: confession(federation, member, 0) for member in colluders}
    honest = [victim, *(member for member in everyone if member not in confessed and member != victim)]
    asked = max(1, plan.threshold - len(confessed))
    self_shares = {member: own[victim] for member, (own, _) in confessed.items()}
    key_shares = {member: key[victim] for member, (_, key) in confessed.items()}
    statement = survivor_statement(chain_of(federation, 0), 0, rest)
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
