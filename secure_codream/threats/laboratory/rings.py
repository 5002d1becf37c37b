"""What a malicious server collects and computes on a ring: shares of neighbours, and one member's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from codream_protocols import shamir
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import SignedBy, SurvivorSignatures
from codream_protocols.neighbours import Ring
from codream_protocols.unmasking import unmask
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.laboratory.adversary import (
    Words,
    advertisements,
    announce,
    chain_of,
    masked_input,
    reduce,
    said,
    transcript_of,
)


def ring_of(federation: Federation) -> Ring:
    """The running epoch's."""
    epoch = federation.server._epoch
    if epoch is None or epoch.ring is None:
        raise Stuck("no epoch on a ring")
    return epoch.ring


def alone(federation: Federation, victim: int, told: Mapping[int, Sequence[int]], step: int = 0) -> Words:
    """A member's input, from its self mask and its neighbours' mask keys; each member is told its own survivors.

    Each gets the signatures of those that were told the same.
    """
    signed: dict[tuple[int, ...], list[SignedBy]] = {}
    for member, survivors in told.items():
        signature = announce(federation, member, survivors, step)
        signed.setdefault(tuple(survivors), []).append(SignedBy(member, signature.signature))
    ring, plan = ring_of(federation), federation.plan
    answers = {
        member: said(federation.tell(member, SurvivorSignatures(plan.digest, step, tuple(signed[tuple(survivors)]))))
        for member, survivors in told.items()
    }

    def secret(whose: int) -> bytes:
        holders = [one for one in ring.of(whose) if (whose in told[one]) == (whose == victim)]
        shares = {}
        for holder in holders[: ring.degree.threshold]:
            place = ring.of(holder).index(whose) * KEY_BYTES
            share = answers[holder].shares[place : place + KEY_BYTES]
            shares[ring.point(whose, holder)] = np.frombuffer(share, dtype=np.uint8)
        return shamir.combine(shares).tobytes()

    total = masked_input(federation, step, victim).copy()
    unmask(
        plan,
        advertisements(federation),
        transcript_of(federation),
        (victim,),
        step,
        chain_of(federation, step),
        {member: secret(member) for member in (victim, *ring.of(victim))},
        total,
        0,
        ring=ring,
    )
    return reduce(federation, total)
