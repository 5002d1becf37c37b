"""The server of one resilient epoch, of the second implementation: it routes, adds, and takes the masks off.

Written from docs/protocol.md alone, whose section numbers these are: sections 8, 10, 11 and 13, for honest members, of
whom some fall silent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack

from tests.protocols.second_graph import Graph
from tests.protocols.second_implementation import (
    Federation,
    Plan,
    Trajectory,
    check_advertisements,
    pairwise_key,
    self_mask_key,
    transcript_of,
)
from tests.protocols.second_primitives import (
    cut,
    expand,
    interpolated,
    masked,
    number,
    numbers,
    pack,
    public,
    signed,
    tag_mask,
    unpack,
)

Told = tuple[int, bytes, list[bytes]]  # a member, a message, its frames


@dataclass
class Server:
    """Told what members say, it says what each is to be told; `expire` ends its waiting."""

    federation: Federation
    offer: list[Any]
    away: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.plan = Plan(self.federation, self.offer, 0)
        self.phase, self.asked = "advertisement", list(self.offer[1])
        self.said: dict[int, list[Any]] = {}  # in this phase
        self.survivors: list[list[int]] = []
        self.totals: list[list[int]] = []  # of each step, without masks

    def open(self) -> list[Told]:
        return self.tell(self.asked, "invitation", self.offer)

    def receive(self, member: int, data: bytes, frames: list[bytes]) -> list[Told]:
        tag, plan, *fields = msgpack.unpackb(data)
        assert plan == self.plan.digest
        if tag != self.phase:
            return []  # too late
        self.said[member] = [*fields, *frames]
        return self.go_on()

    def expire(self) -> list[Told]:
        self.away |= self.waiting_for
        return self.go_on()

    @property
    def waiting_for(self) -> set[int]:
        return set(self.asked) - set(self.said) - self.away

    def go_on(self) -> list[Told]:
        enough = {"opened-starts": 0, "survivor-signature": self.plan.signers, "vote": self.federation.quorum}
        if self.plan.k is None:
            enough["unmask"] = self.plan.threshold
        if self.waiting_for and len(self.said) < enough.get(self.phase, len(self.asked)):
            return []
        told: list[Told] = getattr(self, "on_" + self.phase.replace("-", "_"))()
        return told

    def tell(self, members: list[int], *message: Any, frames: tuple[bytes, ...] = ()) -> list[Told]:
        return [(member, msgpack.packb(message), list(frames)) for member in members]

    def wait(self, phase: str) -> None:
        self.phase, self.said = phase, {}

    # Section 8.

    def on_advertisement(self) -> list[Told]:
        blocks = self.federation.charter[4]
        members = sorted(one for block in blocks if set(block) <= set(self.said) for one in block)
        self.items = [[self.plan.digest, *self.said[member]] for member in members]
        check_advertisements(self.plan, self.items)
        self.asked = self.members = members
        self.graph = Graph(transcript_of(self.plan, self.items), members, self.plan.k)
        self.wait("seals")
        shown = [["advertisement", *item] for item in self.items]
        return self.tell(members, "advertisements", self.plan.digest, shown)

    def on_seals(self) -> list[Told]:
        told = []
        sealed = {member: {seal[0]: seal[1:] for seal in self.said[member][0]} for member in self.members}
        for member in self.members:
            partners = self.graph.partners(member)
            assert list(sealed[member]) == partners
            seals = [[sender, *sealed[sender][member]] for sender in partners]
            told += self.tell([member], "seal-delivery", self.plan.digest, seals)
        self.wait("masked-input" if self.plan.k is None else "opened-starts")
        return told

    def on_opened_starts(self) -> list[Told]:
        """As soon as each member has spoken, or been spoken for."""
        shares: dict[int, bytes] = {}
        for member, (opened,) in self.said.items():
            shares |= zip(sorted([member, *self.graph.partners(member)]), cut(opened), strict=True)
        if set(shares) != set(self.members):
            return []
        start = b"".join(shares[member] for member in self.members)
        self.public = Trajectory(self.plan, self.items, cut(start))  # compares each with its commitment
        self.wait("masked-input")
        return self.tell(self.members, "starts", self.plan.digest, start)

    # Section 10.

    @property
    def step(self) -> int:
        return len(self.public.sums)

    def on_masked_input(self) -> list[Told]:
        if self.plan.k is None and not self.survivors:
            self.public = Trajectory(self.plan, self.items, cut(next(iter(self.said.values()))[3]))
        words, bits = self.plan.words(self.step), self.plan.bits[self.step]
        blocks = self.federation.charter[4]
        survivors = {one for block in blocks if set(block) <= set(self.said) for one in block}
        while self.plan.k is not None:
            few = {one for one in survivors if len(survivors & {*self.graph.near[one]}) < self.plan.threshold}
            if not few:
                break
            survivors -= {one for block in blocks if few & set(block) for one in block}
        self.survivors.append(sorted(survivors))
        self.total, self.tag = [0] * words, 0
        for member in self.survivors[-1]:
            step, chain, tag, _, frame = self.said[member]
            assert (step, chain) == (self.step, self.public.chain)
            elements = unpack(frame, words, bits)
            self.total = [(one + other) % (1 << bits) for one, other in zip(self.total, elements, strict=True)]
            self.tag += int.from_bytes(tag, "little")
        all_there = self.plan.k is None and self.survivors[-1] == self.members
        self.wait("unmask" if all_there else "survivor-signature")
        return self.tell(self.members, "survivors", self.plan.digest, self.step, self.survivors[-1])

    def on_survivor_signature(self) -> list[Told]:
        parts = (self.public.chain, number(self.step), numbers(*self.survivors[-1]))
        items = [[member, signature] for member, (_, signature) in sorted(self.said.items())]
        assert all(signed(self.federation.identities[one], signature, "survivors", *parts) for one, signature in items)
        self.wait("unmask")
        return self.tell(self.members, "survivor-signatures", self.plan.digest, self.step, items)

    def on_unmask(self) -> list[Told]:
        step, plan, survivors = self.step, self.plan, self.survivors[-1]
        bits, context = plan.bits[step], (plan.digest, number(step))
        items = {item[1]: item for item in self.items}
        shares: dict[int, dict[int, bytes]] = {member: {} for member in self.members}
        for holder, (_, opened) in self.said.items():
            for owner, share in zip(self.graph.owners(holder), cut(opened), strict=True):
                shares[owner][self.graph.holders(owner)[holder]] = share
        for member in self.members:
            beside = [one for one in self.graph.near[member] if one in survivors]
            if member not in survivors and not beside:
                continue
            enough = dict(list(shares[member].items())[: plan.threshold])
            assert len(enough) == plan.threshold
            secret = interpolated(enough)
            if member in survivors:
                assert expand(secret, "self mask commitment", *context) == cut(items[member][7])[step]
                self.take_off(self_mask_key(self.public, secret), 1, bits)
                continue
            assert public(secret) == cut(items[member][6])[step]
            for survivor in beside:
                key = pairwise_key(self.public, secret, cut(items[survivor][6])[step], (member, survivor))
                self.take_off(key, 1 if survivor < member else -1, bits)
        frame, tag = pack(self.total, bits), (self.tag % (1 << 128)).to_bytes(16, "little")
        self.totals.append(self.total)
        self.public.absorb(survivors, frame, tag)
        self.wait("masked-input" if self.step < plan.steps else "vote")
        return self.tell(self.members, "published", plan.digest, step, survivors, tag, frames=(frame,))

    def take_off(self, key: bytes, sign: int, bits: int) -> None:
        self.total = masked(self.total, key, -sign, bits)
        self.tag -= sign * tag_mask(key)

    # Section 13.

    def on_vote(self) -> list[Told]:
        """A certificate, or the record for those of the cohort that were not in the epoch, and are there."""
        statement = (self.offer[2], self.plan.digest, self.public.chain)
        votes = [[member, vote] for member, (_, vote) in sorted(self.said.items())]
        assert all(signed(self.federation.identities[one], vote, "vote", *statement) for one, vote in votes)
        if len(votes) >= self.federation.quorum:
            self.wait("")
            return self.tell(self.members, "certificate", self.plan.digest, votes)
        items = [["advertisement", *item] for item in self.items]
        steps = [[survivors, tag] for survivors, tag, _ in self.public.steps]
        record = ["epoch-record", self.offer, items, b"".join(self.public.shares), steps, votes]
        others = [one for one in self.offer[1] if one not in {*self.said, *self.away}]
        return self.tell(others, *record, frames=tuple(frame for *_, frame in self.public.steps))
