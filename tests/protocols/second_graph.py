"""Of the second implementation: who is whose neighbour, and how many are needed (docs/protocol.md, section 10)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import comb

from tests.protocols.second_primitives import digest, number


def ways(others: int, marked: int, drawn: int, least: int) -> int:
    """W of the document."""
    return sum(comb(marked, found) * comb(others - marked, drawn - found) for found in range(least, drawn + 1))


@cache
def degree(invited: int, colluders: int) -> tuple[int, int]:
    """k and t."""
    silent = invited // 10
    shown = invited - silent
    for k in range(4, min(254, shown - 1) + 1, 2):
        half = k // 2
        for t in range(half + 1, k):
            apart = invited * ways(shown - 1, colluders, k, 2 * t - k) * 2**168 <= comb(shown - 1, k)
            window = invited * ways(shown - 1, colluders, half, t - half)
            whole = window**2 * 2**168 <= 2 * comb(shown - 1, half) ** 2
            alive = invited * ways(invited - 1, silent, k, k - t + 1) * 2**40 <= comb(invited - 1, k)
            if apart and whole and alive:
                return k, t
    raise AssertionError("no number of neighbours is safe")


@dataclass(frozen=True)
class Graph:
    """An epoch's graph: complete, or a ring of k neighbours each."""

    transcript: bytes
    members: list[int]
    k: int | None

    @cached_property
    def near(self) -> dict[int, list[int]]:
        """Of each member, whom it shares masks with, ascending."""
        if self.k is None:
            return {one: [other for other in self.members if other != one] for one in self.members}
        around = sorted(self.members, key=lambda one: digest("ring", self.transcript, number(one)))
        found = {}
        for place, one in enumerate(around):
            beside = [
                around[(place + sign * step) % len(around)] for step in range(1, self.k // 2 + 1) for sign in (1, -1)
            ]
            assert len({one, *beside}) == self.k + 1
            found[one] = sorted(beside)
        return found

    def partners(self, member: int) -> list[int]:
        """Who seals for a member, and for whom it seals."""
        first = self.members[0]
        if member == first:
            return self.members[1:]
        return sorted({*self.near[member], first})

    def holders(self, owner: int) -> dict[int, int]:
        """Who holds shares of a member's secrets, and at which x."""
        if self.k is None:
            return {member: member + 1 for member in self.members}
        return {member: place for place, member in enumerate(self.near[owner], 1)}

    def owners(self, holder: int) -> list[int]:
        """Of whom a member holds shares, ascending."""
        return self.members if self.k is None else self.near[holder]
