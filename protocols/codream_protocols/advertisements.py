"""What every party checks of an epoch's advertisements.

A client checks them before it seals, a server before it shows them, and whoever replays a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codream_protocols import hybrid, keyschedule
from codream_protocols.charter import Plan
from codream_protocols.errors import CohortRefused, VectorRefused, WrongContext
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import Advertisement


def check_advertisement(plan: Plan, item: Advertisement) -> None:
    """Refuse an advertisement of another plan or of the wrong size (its signature is checked apart).

    Raises:
        WrongContext: another plan.
        CohortRefused: a stranger, or keys for another number of steps.
    """
    if item.plan != plan.digest:
        raise WrongContext(f"an advertisement for plan {item.plan.hex()[:16]}…", "this epoch's plan")
    if item.member not in plan.invited:
        raise CohortRefused(f"an advertisement of member {item.member}", "invited members")
    size = plan.steps * KEY_BYTES if plan.aggregation.mode == "resilient" else 0
    if len(item.mask_keys) != size or len(item.self_commitments) != size:
        raise CohortRefused(f"keys of {len(item.mask_keys)} bytes", f"{size} for {plan.steps} steps")


def check_public_keys(plan: Plan, item: Advertisement) -> None:
    """Refuse keys of low order or of the wrong form before anything rests on them; raises `CohortRefused`."""
    throwaway = keyschedule.prepared(item.commitment)  # any scalar will do: only the peer's key is under test
    keyschedule.agree(throwaway, item.share_key)
    hybrid.check_kem_key(item.kem_key)
    if plan.aggregation.mode == "resilient":
        for step in range(plan.steps):
            keyschedule.agree(throwaway, item.mask_key(step))


def check_distinct_keys(items: Iterable[Advertisement]) -> None:
    """Refuse public keys that occur twice: whoever repeats another's key would cancel, or share, that one's masks.

    X25519 keys are compared as X25519 reads them, since several encodings are one key there (RFC 7748, section 5).

    Raises:
        CohortRefused: a repeated key or commitment.
    """
    keys = DistinctKeys()
    for item in items:
        keys.add(item)


class DistinctKeys:
    """The public keys and commitments of advertisements that were taken, one after the other; none occurs twice."""

    def __init__(self) -> None:
        self._points = set[int]()
        self._others = set[bytes]()

    def add(self, item: Advertisement) -> None:
        """Take one more advertisement's; raises `CohortRefused`, and takes none, if one occurs already."""
        keys = [keyschedule.coordinate(key) for key in item.agreement_keys]
        points, others = {*keys}, {item.kem_key, item.commitment, item.start_commitment}
        twice = len(points) < len(keys) or len(others) < 3
        if twice or not points.isdisjoint(self._points) or not others.isdisjoint(self._others):
            raise CohortRefused("a public key or commitment that occurs twice", "fresh ones of each member")
        self._points |= points
        self._others |= others


def check_shown(plan: Plan, items: Sequence[Advertisement]) -> tuple[int, ...]:
    """Who makes the epoch: everybody whose advertisement was shown, and nobody else.

    Returns:
        Their numbers, ascending.

    Raises:
        CohortRefused: out of order, uninvited, too few, or a part of a block.
    """
    members = tuple(item.member for item in items)
    plan.charter.check_summed(members)
    if not plan.invited.issuperset(members):
        raise CohortRefused("uninvited members", "invited members")
    if len(members) < plan.least_members:
        raise CohortRefused(f"{len(members)} members", f"{plan.least_members} or more")
    return members


def check_start_shares(plan: Plan, items: Sequence[Advertisement], shares: bytes) -> None:
    """Refuse start shares that their members did not commit to; raises `VectorRefused`."""
    if len(shares) != KEY_BYTES * len(items):
        raise VectorRefused(f"{len(shares)} bytes of start shares", f"{KEY_BYTES * len(items)}")
    for place, item in enumerate(items):
        share = shares[place * KEY_BYTES : (place + 1) * KEY_BYTES]
        if hybrid.commit_start(plan.digest, item.member, share) != item.start_commitment:
            raise VectorRefused(f"a start share that member {item.member} did not commit to", "the committed one")
