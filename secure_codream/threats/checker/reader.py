"""What a server can read of honest inputs, given what came out of the clients.

A key is known if its other end is played by the server, or if a secret that it derives from is rebuilt: of a member's
secret, the colluders have the shares dealt to them, and each answered row counts that is the true share. A combination
of inputs can be read if every unknown key cancels in it. Promised is: at most one sum in a step, over the honest
members of a set that may be summed; over all steps and epochs, only combinations that are constant on blocks.
`confirm` reads a leak for real: combines the shares, derives the keys, takes the masks off, compares with the inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from codream_protocols import keyschedule, shamir
from codream_protocols.charter import Plan
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import Advertisement
from secure_codream.threats.checker.enumerator import Set, cancelling, constant_on, reduced
from secure_codream.threats.checker.node import Mask, Masked, Node, Owned
from secure_codream.threats.checker.world import MASK_KEY, SELF_MASK, World


@dataclass(frozen=True)
class Readable:
    """What can be read in one step: for each row, its coefficients of the honest members' inputs."""

    plan: bytes
    step: int
    members: Set
    rows: tuple[tuple[int, ...], ...]

    @property
    def sums(self) -> tuple[Set, ...]:
        """Those members whose inputs are in each row."""
        return tuple(tuple(one for one, factor in zip(self.members, row, strict=True) if factor) for row in self.rows)


@dataclass(frozen=True)
class Leak:
    """A broken promise, what broke it in words, and the clients that it was broken with."""

    promise: str
    told: str
    nodes: tuple[Node, ...] = field(default=(), repr=False, compare=False)
    readable: Readable | None = None


class Reader:
    """Says what a server can read of honest inputs, given what came out of the clients."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._rows: dict[tuple[frozenset[Owned], tuple[Masked, ...]], tuple[tuple[int, ...], ...]] = {}

    def secrets(self, nodes: Iterable[Node]) -> frozenset[Owned]:
        """Members' secrets of which `threshold` shares are known."""
        counts: Counter[Owned] = Counter()
        dealt: dict[bytes, int] = {}
        for node in nodes:
            counts.update(node.story.gave)
            dealt.update(node.story.dealt)
        thresholds = self.world.thresholds
        return frozenset(
            what
            for what, count in counts.items()
            if what[0] in thresholds and count + dealt.get(what[0], 0) >= thresholds[what[0]]
        )

    def read(self, nodes: Iterable[Node]) -> list[Readable]:
        """What can be read, by plan and step."""
        everything = list(nodes)
        known = self.secrets(everything)
        steps: dict[tuple[bytes, int], list[Masked]] = {}
        for node in everything:
            for masked in node.story.masked:
                steps.setdefault((masked.plan, masked.step), []).append(masked)
        found = []
        for (plan, step), vectors in steps.items():
            rows = self.rows(known, tuple(vectors))
            if rows:
                found.append(Readable(plan, step, tuple(masked.member for masked in vectors), rows))
        return found

    def rows(self, known: frozenset[Owned], vectors: tuple[Masked, ...]) -> tuple[tuple[int, ...], ...]:
        """The combinations of these vectors in which every unknown mask cancels."""
        place = (known, vectors)
        if place not in self._rows:
            unknown: dict[bytes, int] = {}
            for masked in vectors:
                for mask in masked.masks:
                    if not self.is_known(known, masked.step, mask):
                        unknown.setdefault(mask.key, len(unknown))
            matrix = [[0] * len(unknown) for _ in vectors]
            for line, masked in zip(matrix, vectors, strict=True):
                for mask in masked.masks:
                    if mask.key in unknown:
                        line[unknown[mask.key]] += -1 if mask.negative else 1
            self._rows[place] = tuple(map(tuple, cancelling(matrix)))
        return self._rows[place]

    def is_known(self, known: frozenset[Owned], step: int, mask: Mask) -> bool:
        """Whether the server knows a mask key."""
        if mask.own == mask.peer:
            return (mask.own, step, SELF_MASK) in known
        if mask.peer not in self.world.honest_keys:
            return True  # its other end is played
        return any((end, step, MASK_KEY) in known for end in (mask.own, mask.peer))

    def leak(self, nodes: Sequence[Node]) -> Leak | None:
        """The first promise about inputs that is broken."""
        everything = self.read(nodes)
        for found in everything:
            if len(found.rows) > 1:
                return Leak("Inputs", f"reads {_sums(found)} in step {found.step}", tuple(nodes), found)
            if not all(row in (0, 1) for row in found.rows[0]) or found.sums[0] not in self.world.promised:
                return Leak("Inputs", f"reads {_sums(found)} in step {found.step}", tuple(nodes), found)
        if self.world.setting.losses == "blocks":
            rows = reduced(
                [
                    sum(row for one, row in zip(found.members, found.rows[0], strict=True) if one == member)
                    for member in self.world.honest
                ]
                for found in everything
            )
            if not constant_on(rows, self.world.honest, self.world.charter.blocks):
                return Leak("Who", "reads a combination that is not constant on blocks", tuple(nodes))
        return None

    def confirm(self, leak: Leak) -> bool:
        """Read a leak for real: combine shares, derive keys, take the masks off, and compare with the inputs."""
        found = leak.readable
        if found is None:
            return False
        known = {what: self._rebuilt(what, leak.nodes) for what in self.secrets(leak.nodes) if what[1] == found.step}
        vectors = [
            masked
            for node in leak.nodes
            for masked in node.story.masked
            if (masked.plan, masked.step) == (found.plan, found.step)
        ]
        plan = next(node.public.plan for node in leak.nodes if node.public and node.public.plan.digest == found.plan)
        advertised: dict[bytes, Advertisement] = {}
        for node in leak.nodes:
            if node.machine._epoch is not None:
                advertised.update({item.digest: item for item in node.machine._epoch.advertised.values()})
        for row in found.rows:
            total = np.zeros(len(vectors[0].words), dtype=word_type(plan.modulus_bits(0)))
            expected = np.zeros_like(total)
            for factor, masked in zip(row, vectors, strict=True):
                if not factor:
                    continue
                if factor != 1:
                    return False
                total += np.array(masked.words, dtype=total.dtype)
                expected += self.world.plain(plan, [masked.member])
                for mask in masked.masks:
                    key = self._derived(plan, masked, mask, known, advertised)
                    if key is None and mask.peer not in self.world.honest_keys:
                        key = mask.key  # its other end is played
                    if key is None:
                        continue  # nobody knows it: it has to cancel
                    if key != mask.key:
                        return False
                    add_mask(total, key, suite=plan.aggregation.suite, negative=not mask.negative)
            top = (1 << plan.modulus_bits(0)) - 1
            if ((total & top) != (expected & top)).any():
                return False
        return True

    def _rebuilt(self, what: Owned, nodes: Iterable[Node]) -> bytes:
        """A secret from shares: those that clients gave away, and the server's own."""
        shares: dict[int, bytes] = {}
        for node in nodes:
            if what in node.story.gave:
                shares[node.member + 1] = node.story.held[what]
            epoch = node.machine._epoch
            if epoch is not None and epoch.advertisement.digest == what[0]:
                for (_, member, _), seat in self.world.seats.items():
                    if epoch.advertised.get(member) == seat.advertisement:
                        shares[member + 1] = seat.shares(node.machine, node.seals)[what[1:]]
        chosen = sorted(shares)[: self.world.thresholds[what[0]]]
        rows = {point: np.frombuffer(shares[point], dtype=np.uint8).reshape(1, -1) for point in chosen}
        return shamir.combine(rows).tobytes()

    def _derived(
        self,
        plan: Plan,
        masked: Masked,
        mask: Mask,
        known: Mapping[Owned, bytes],
        advertised: Mapping[bytes, Advertisement],
    ) -> bytes | None:
        if mask.own == mask.peer:
            secret = known.get((mask.own, masked.step, SELF_MASK))
            if secret is None:
                return None
            return keyschedule.self_mask_key(secret, plan.digest, masked.step, masked.chain)
        for mine, other in ((mask.own, mask.peer), (mask.peer, mask.own)):
            if (mine, masked.step, MASK_KEY) in known:
                return keyschedule.pairwise_mask_key(
                    known[mine, masked.step, MASK_KEY],
                    advertised[other].mask_key(masked.step),
                    plan=plan.digest,
                    transcript=masked.transcript,
                    step=masked.step,
                    broadcast=masked.chain,
                    pair=(advertised[mine].member, advertised[other].member),
                )
        return None


def _sums(found: Readable) -> str:
    return " and ".join("+".join(f"x{one}" for one in summed) for summed in found.sums)
