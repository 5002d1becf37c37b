"""The server's part of a resilient step: rebuild what the members shared, and take the masks out of the sum.

Rebuilt secrets are compared with what was advertised, so a wrong share is noticed, and left out while enough others are
there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from itertools import combinations, islice
from math import comb

import numpy as np

from codream_protocols import hybrid, keyschedule, shamir
from codream_protocols.charter import Plan
from codream_protocols.course import Array
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_masks
from codream_protocols.messages import Advertisement
from codream_protocols.neighbours import Ring
from codream_protocols.spans import part_of_sum

MAX_CHOICES = 1024


@part_of_sum("unmasking")
def rebuild(
    plan: Plan,
    advertised: Mapping[int, Advertisement],
    members: tuple[int, ...],
    survivors: tuple[int, ...],
    step: int,
    answers: Mapping[int, bytes],
) -> dict[int, bytes] | None:
    """Each member's secret of a step: of a survivor its self-mask seed, of another its private mask key.

    Where more answers are wrong than decoding can tell, the advertisements still can: if there are few ways to choose
    `threshold` answers, as in a small cohort, each is tried.

    Args:
        plan: the epoch's plan.
        advertised: the advertisements, by member.
        members: the epoch's members, ascending.
        survivors: whose inputs are in the sum.
        step: the step.
        answers: member -> its `UnmaskShares.shares`, of 32 bytes for each of `members`; `threshold` or more.

    Returns:
        None if the answers do not give what was advertised.
    """
    chosen_survivors = set(survivors)

    def fits(member: int, secret: bytes) -> bool:
        return _fits(plan, advertised[member], secret, step, survived=member in chosen_survivors)

    def as_advertised(rebuilt: shamir.Bytes) -> dict[int, bytes] | None:
        found = dict(zip(members, (row.tobytes() for row in rebuilt), strict=True))
        return found if all(fits(member, secret) for member, secret in found.items()) else None

    shares = {
        member + 1: np.frombuffer(answer, dtype=np.uint8).reshape(-1, KEY_BYTES)
        for member, answer in sorted(answers.items())
    }
    decoded = shamir.decode(shares, plan.threshold, secrets.token_bytes)
    if decoded is not None and (found := as_advertised(decoded[0])) is not None:
        return found
    if len(shares) == plan.threshold or comb(len(shares), plan.threshold) > MAX_CHOICES:
        return None
    for chosen in combinations(shares, plan.threshold):
        first = shamir.combine({point: shares[point][:1] for point in chosen})
        if fits(members[0], first.tobytes()):
            found = as_advertised(shamir.combine({point: shares[point] for point in chosen}))
            if found is not None:
                return found
    return None


def rebuild_on(
    ring: Ring,
    plan: Plan,
    advertised: Mapping[int, Advertisement],
    survivors: tuple[int, ...],
    step: int,
    answers: Mapping[int, bytes],
) -> dict[int, bytes] | None:
    """The same on a ring, of whoever is a survivor or has a neighbour that is: of nobody else a mask is in the sum.

    Args:
        ring: who is whose neighbour.
        plan: the epoch's plan.
        advertised: the advertisements, by member.
        survivors: whose inputs are in the sum.
        step: the step.
        answers: member -> its `UnmaskShares.shares`, of 32 bytes for each of its neighbours.

    Returns:
        None if the answers do not give what was advertised.
    """
    shares = np.zeros((*ring.rows.shape, KEY_BYTES), dtype=np.uint8)  # of each member, at each point
    given = np.zeros(ring.rows.shape, dtype=np.bool_)
    for holder, answer in answers.items():
        place = ring.place(holder)
        at = ring.rows[place], ring.points[place] - 1
        shares[at], given[at] = np.frombuffer(answer, dtype=np.uint8).reshape(-1, KEY_BYTES), True
    chosen, found = set(survivors), {}
    for place, member in enumerate(ring.members):
        if member not in chosen and chosen.isdisjoint(ring.of(member)):
            continue
        held = {point + 1: shares[place, point] for point in np.flatnonzero(given[place]).tolist()}
        secret = _rebuilt(plan, advertised[member], held, step, survived=member in chosen)
        if secret is None:
            return None
        found[member] = secret
    return found


def _rebuilt(
    plan: Plan, item: Advertisement, held: Mapping[int, shamir.Bytes], step: int, *, survived: bool
) -> bytes | None:
    """One member's secret from its neighbours' shares: of the first ones, or else with the wrong ones left out."""
    if len(held) < plan.threshold:
        return None
    first = shamir.combine(dict(islice(held.items(), plan.threshold))).tobytes()
    if _fits(plan, item, first, step, survived=survived):
        return first
    decoded = shamir.decode(held, plan.threshold, secrets.token_bytes)
    if decoded is None or not _fits(plan, item, decoded[0].tobytes(), step, survived=survived):
        return None
    return decoded[0].tobytes()


def _fits(plan: Plan, item: Advertisement, secret: bytes, step: int, *, survived: bool) -> bool:
    if survived:
        return keyschedule.self_mask_commitment(secret, plan.digest, step) == item.self_commitment(step)
    return keyschedule.public_key(secret) == item.mask_key(step)


@part_of_sum("unmasking")
def unmask(
    plan: Plan,
    advertised: Mapping[int, Advertisement],
    transcript: bytes,
    survivors: tuple[int, ...],
    step: int,
    chain: bytes,
    rebuilt: Mapping[int, bytes],
    total: Array,
    tag: int,
    ring: Ring | None = None,
) -> int:
    """Take all masks out of the sum of masked vectors, in place, and out of the sum of masked tags, which is returned.

    Args:
        plan: of the epoch.
        advertised: its advertisements, by member.
        transcript: the epoch's.
        survivors: whose vectors are in the sum, ascending.
        step: from 0.
        chain: chain_t.
        rebuilt: of each member, what `rebuild` gave.
        total: the sum of the survivors' masked vectors, modulo the width of its words.
        tag: the sum of their masked tags.
        ring: who is whose neighbour; everybody everybody's if None.
    """
    chosen, keys = set(survivors), list[tuple[bytes, bool]]()
    for member, secret in rebuilt.items():
        if member in chosen:
            keys.append((keyschedule.self_mask_key(secret, plan.digest, step, chain), True))
            continue
        private = keyschedule.prepared(secret)
        for survivor in survivors if ring is None else chosen.intersection(ring.of(member)):
            key = keyschedule.pairwise_mask_key(
                private,
                advertised[survivor].mask_key(step),
                plan=plan.digest,
                transcript=transcript,
                step=step,
                broadcast=chain,
                pair=(survivor, member),
            )
            # The survivor added this mask if its number is the smaller one; take out what it put in.
            keys.append((key, survivor < member))
    add_masks(total, keys, suite=plan.aggregation.suite)
    return tag + hybrid.tag_masks(keys)
