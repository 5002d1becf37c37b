"""What a malicious server computes from what it has seen: shares combined, masks taken off, sums opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from codream_protocols import keyschedule, shamir
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import Advertisement, MaskedInput, UnmaskShares
from codream_protocols.packing import unpack
from tests.protocols.federation import Federation


def advertisements(federation: Federation) -> dict[int, Advertisement]:
    """Everyone's advertisement, as the clients sent them."""
    return {item.member: item.message for item in federation.sent if item.kind is Advertisement}


def masked_input(federation: Federation, step: int, member: int) -> np.ndarray[Any, Any]:
    """A member's masked vector, off the wire."""
    for item in federation.sent:
        if item.kind is MaskedInput and item.member == member and item.message.step == step:
            length = federation.plan.spec(step).length
            return unpack(item.frames[0], length, federation.plan.modulus_bits)
    raise LookupError(f"no masked input of member {member} for step {step}")


def shares_of(answer: UnmaskShares, members: Collection[int]) -> dict[int, bytes]:
    """An answer's rows: whose secret -> share."""
    rows = np.frombuffer(answer.shares, dtype=np.uint8).reshape(-1, KEY_BYTES)
    return {member: rows[place].tobytes() for place, member in enumerate(sorted(members))}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """One secret from the first `threshold` of its shares: who gave it -> share."""
    chosen = sorted(shares)[:threshold]
    rows = {member + 1: np.frombuffer(shares[member], dtype=np.uint8).reshape(1, -1) for member in chosen}
    return shamir.combine(rows).tobytes()


def is_self_mask(federation: Federation, member: int, step: int, secret: bytes) -> bool:
    """Whether a rebuilt self-mask seed is the advertised one."""
    commitment = keyschedule.self_mask_commitment(secret, federation.plan.digest, step)
    return commitment == advertisements(federation)[member].commitment(step)


def is_mask_key(federation: Federation, member: int, step: int, secret: bytes) -> bool:
    """Whether a rebuilt mask key is the advertised one."""
    return keyschedule.public_key(secret) == advertisements(federation)[member].mask_key(step)


def open_sum(
    federation: Federation,
    step: int,
    included: Collection[int],
    self_masks: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
    *,
    broadcast: bytes | None = None,
    shown: Mapping[int, Advertisement] | None = None,
) -> np.ndarray[Any, Any]:
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
    if broadcast is None:
        item = next(item for item in federation.sent if item.kind is MaskedInput and item.message.step == step)
        broadcast = item.message.broadcast
    total = sum(masked_input(federation, step, member) for member in included)
    for member in included:
        key = keyschedule.self_mask_key(self_masks[member], plan.digest, step, broadcast)
        add_mask(total, key, suite=plan.suite, negative=True)
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
    return total & total.dtype.type((1 << plan.modulus_bits) - 1)
