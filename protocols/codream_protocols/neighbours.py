"""Resilient sums of more than 200 members: who is whose neighbour, and how many neighbours are needed.

Members agree on masks with k neighbours each, who alone hold shares of their secrets (Bell et al., CCS 2020). All
stand on a ring, in an order that the transcript's digest gives, and have the k / 2 next ones to each side. What k and t
must be, against which attacks, and who could try how many graphs: docs/decisions/0014-many-members.md. The model in
`secure_codream/threats/checker/neighbour_graph.py` says what a server would learn.

Two rules make it as safe as a complete graph, and a client sees to both before it gives a share. G1: every survivor has
t neighbours among the survivors, whoever's neighbours they are. G2: more than (n + c) / 2 members have signed the set
of survivors, the set of everybody, too.

k and t are found in integers alone, so that all machines find the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb
from typing import Any, NamedTuple

import numpy as np

from codream_protocols.keyschedule import digest, number

MAX_COMPLETE = 200  # members of a roster up to which everybody is everybody's neighbour
MAX_NEIGHBOURS = 254  # share points are bytes
SECURITY_BITS = 40
TRIES_BITS = 128  # whoever advertises last, and the server, may try that many graphs: none that they find fails
SILENT_TENTHS = 1  # of the members that are invited, and again of those that take part

Places = np.ndarray[Any, np.dtype[np.int64]]


class Degree(NamedTuple):
    """How many neighbours each member has, and how many shares open a secret."""

    neighbours: int
    threshold: int


def silent(members: int) -> int:
    """How many of so many may fall silent at random, and all secrets are opened nevertheless."""
    return members * SILENT_TENTHS // 10


@lru_cache(maxsize=64)
def least_degree(members: int, colluders: int) -> Degree | None:
    """The fewest neighbours, an even number, with which secrecy and life fail with a probability of 2^-40 at most.

    Secrecy of all members together, whatever survivors the server names and whatever it tells whom, and after
    2^`TRIES_BITS` tries of the seed: no member has 2 t - k colluding neighbours or more, and there are no two places on
    the ring from which on t - k / 2 of the next k / 2 members collude. Life: no member has more than k - t neighbours
    that fall silent, if one in ten does, and nobody chooses who.

    Args:
        members: n, who is invited; a tenth may be missing when the graph is made.
        colluders: c, fixed before the graph is.

    Returns:
        None where no number holds.
    """
    shown, bits = members - silent(members), SECURITY_BITS + TRIES_BITS
    for neighbours in range(4, min(MAX_NEIGHBOURS, shown - 1) + 1, 2):
        half = neighbours // 2
        around, ways_around = _tails(shown - 1, colluders, neighbours), comb(shown - 1, neighbours)
        beside, ways_beside = _tails(shown - 1, colluders, half), comb(shown - 1, half)
        lost, ways_lost = _tails(members - 1, silent(members), neighbours), comb(members - 1, neighbours)
        for threshold in range(half + 1, neighbours):
            apart = members * around[2 * threshold - neighbours] << bits <= ways_around
            # How many collude in windows that do not overlap is negatively associated: the product bounds two.
            whole = (members * beside[threshold - half]) ** 2 << bits <= 2 * ways_beside**2
            if apart and whole:
                if members * lost[neighbours - threshold + 1] << SECURITY_BITS <= ways_lost:
                    return Degree(neighbours, threshold)
                break  # a larger threshold is worse for life
    return None


def _tails(others: int, marked: int, drawn: int) -> list[int]:
    """For each number, the ways to draw so many of the others with at least that number of marked ones among them."""
    ways, tails = [0] * (drawn + 1), [0] * (drawn + 2)
    for count in range(max(0, drawn - (others - marked)), min(marked, drawn) + 1):
        ways[count] = comb(marked, count) * comb(others - marked, drawn - count)
    for count in range(drawn, -1, -1):
        tails[count] = tails[count + 1] + ways[count]
    return tails


@dataclass(frozen=True, eq=False)
class Ring:
    """An epoch's graph.

    Attributes:
        members: of the epoch, ascending.
        degree: k and t.
        rows: shape (n, k): of each member's place among the members, its neighbours' places, ascending.
    """

    members: tuple[int, ...]
    degree: Degree
    rows: Places

    @cached_property
    def numbers(self) -> Places:
        """The members as an array."""
        return np.array(self.members)

    @cached_property
    def points(self) -> Places:
        """Shape (n, k): at which point a member holds its share of the secrets of each neighbour: 1 to k."""
        count, degree = self.rows.shape
        order = np.lexsort((np.repeat(np.arange(count), degree), self.rows.reshape(-1)))
        points = np.empty(count * degree, dtype=np.int64)
        points[order] = 1 + np.arange(count * degree) % degree  # each stands k times among others' neighbours
        return points.reshape(count, degree)

    def place(self, member: int) -> int:
        """A member's place among the members."""
        return int(np.searchsorted(self.numbers, member))

    def of(self, member: int) -> tuple[int, ...]:
        """A member's neighbours, ascending; it has shares of their secrets, and they of its."""
        return tuple(self.numbers[self.rows[self.place(member)]].tolist())

    def partners(self, member: int) -> tuple[int, ...]:
        """Who seals for a member, and for whom it seals: its neighbours, and the first member.

        The first member's partners are all others: the tag's key comes from its value.
        """
        if member == self.members[0]:
            return self.members[1:]
        return tuple(sorted({self.members[0], *self.of(member)}))

    def point(self, member: int, holder: int) -> int:
        """At which point a neighbour holds its share of a member's secrets: 1 to k."""
        return 1 + int(np.searchsorted(self.rows[self.place(member)], self.place(holder)))

    def lacking(self, of: Iterable[int], among: Iterable[int]) -> list[int]:
        """Which of these members have fewer than t neighbours among those."""
        there = np.zeros(len(self.members), dtype=np.int64)
        there[np.searchsorted(self.numbers, list(among))] = 1
        places = np.searchsorted(self.numbers, list(of))
        few = there[self.rows[places]].sum(axis=1) < self.degree.threshold
        return [self.members[place] for place in places[few]]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every pair of neighbours, once."""
        for place, row in enumerate(self.rows):
            yield from ((self.members[place], self.members[other]) for other in row if place < other)


@lru_cache(maxsize=4)
def ring(transcript: bytes, members: tuple[int, ...], degree: Degree) -> Ring:
    """The graph that an epoch's transcript gives, of at least k + 1 members."""
    drawn = [digest("ring", transcript, number(member)) for member in members]
    order = np.array(sorted(range(len(members)), key=drawn.__getitem__))
    reach = degree.neighbours // 2
    steps = np.array([step for step in range(-reach, reach + 1) if step])
    rows = np.empty((len(members), degree.neighbours), dtype=np.int64)
    rows[order] = np.sort(order[(np.arange(len(members))[:, None] + steps) % len(members)], axis=1)
    rows.setflags(write=False)
    return Ring(members, degree, rows)
