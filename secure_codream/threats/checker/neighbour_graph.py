"""A model of resilient sums over a neighbour graph: what such a protocol would open, and how many neighbours it needs.

The machines keep a complete graph, of up to 200 members. This is the study that a graph of k neighbours each rests on
(Bell et al., CCS 2020; docs/decisions/0014-many-members.md): in it, members agree on masks with their neighbours
alone, and these alone hold shares of their secrets.

    y_i = x_i + self mask of i + sum over the neighbours j of i of +-mask of i and j

Of a member in the sum neighbours give shares of its self mask, of another one shares of its mask key, and `threshold`
shares open either. A mask of a pair is known to the server if either's key was opened, or if either colludes. So it
learns the sum of every connected piece of honest members, along pairs whose masks it does not know, of whom it has all
self masks; and nothing else. `opened` gives these pieces.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, log2
from typing import NamedTuple

SECURITY_BITS = 40
Members = frozenset[int]


@dataclass(frozen=True)
class NeighbourGraph:
    """Members 0 to n - 1, and whose neighbours they are.

    Attributes:
        neighbours: of each member.
    """

    neighbours: tuple[Members, ...]

    @property
    def members(self) -> range:
        """All of them."""
        return range(len(self.neighbours))


def ring(members: int, degree: int, seed: int) -> NeighbourGraph:
    """All members in a random order, on a ring, with the k / 2 next ones to each side as neighbours; `degree` is even.

    The graph of Bell et al. It stands for what a real seed would give, and is drawn from Python's generator.
    """
    order = list(range(members))
    random.Random(seed).shuffle(order)  # noqa: S311 - of a model
    near: list[set[int]] = [set() for _ in order]
    for place, member in enumerate(order):
        for distance in range(1, degree // 2 + 1):
            other = order[(place + distance) % members]
            near[member].add(other)
            near[other].add(member)
    return NeighbourGraph(tuple(map(frozenset, near)))


def opened(
    graph: NeighbourGraph, threshold: int, colluders: Members, told: Mapping[int, Members | None]
) -> list[Members]:
    """The pieces of honest members of which the server learns the sum.

    Args:
        graph: who is whose neighbour.
        threshold: how many shares open a secret.
        colluders: who gives the server all that it has.
        told: each honest member that answers -> the survivors it was told, whose shares of self masks it gives, and of
            all its other neighbours shares of mask keys; None: it gives nothing.
    """
    own, keys = set(colluders), set(colluders)
    for member in graph.members:
        near = graph.neighbours[member]
        views = [told[one] for one in near - colluders if told.get(one) is not None]
        with_it = sum(member in view for view in views if view is not None)
        if with_it + len(near & colluders) >= threshold:
            own.add(member)
        if len(views) - with_it + len(near & colluders) >= threshold:
            keys.add(member)
    hidden = set(graph.members) - keys
    pieces, left = [], set(graph.members) - colluders
    while left:
        piece, edge = set[int](), {min(left)}
        while edge:
            member = edge.pop()
            piece.add(member)
            if member in hidden:
                edge |= (graph.neighbours[member] & hidden) - piece
        left -= piece
        if piece <= own:
            pieces.append(frozenset(piece))
    return pieces


def enough_neighbours(graph: NeighbourGraph, threshold: int, survivors: Members) -> bool:
    """Rule G1: each survivor has `threshold` neighbours among the survivors.

    With t > k / 2, and one set of survivors for all, the honest ones are then one piece, unless there are two places on
    the ring from which on t - k / 2 of the next k / 2 members collude. Proof: pieces are apart where k / 2 places have
    no honest survivor, and several pieces are apart in two such gaps or more. Of the last honest survivor before a gap,
    at most k / 2 surviving neighbours lie behind it, so that t - k / 2 or more lie in the gap, and they collude. The
    gaps do not overlap.
    """
    return all(len(graph.neighbours[member] & survivors) >= threshold for member in survivors)


def signed_by_most(members: int, colluders: int, told: Mapping[int, Members | None]) -> set[Members]:
    """Rule G2: a set is answered for once more than (n + c) / 2 members have signed it; each signs one a step.

    Returns:
        The sets that could be signed by so many; colluders sign everything.
    """
    views = [view for view in told.values() if view is not None]
    return {view for view in views if 2 * (views.count(view) + colluders) > members + colluders}


# -- how many neighbours -------------------------------------------------------------------------------------------


class Degree(NamedTuple):
    """How many neighbours each member has, and how many shares open a secret."""

    neighbours: int
    threshold: int


def tail(members: int, marked: int, neighbours: int, least: int) -> float:
    """Log2 of the probability that a member has `least` marked ones or more among its neighbours (hypergeometric)."""
    others = members - 1
    most = min(marked, neighbours)
    ways = sum(comb(marked, count) * comb(others - marked, neighbours - count) for count in range(least, most + 1))
    return log2(ways) - log2(comb(others, neighbours)) if ways else float("-inf")


def secrecy(members: int, colluders: int, degree: Degree, *, split_views: bool = True) -> float:
    """Log2 of the probability that some member's two secrets can both be opened.

    Args:
        members: n.
        colluders: how many, fixed before the graph is.
        degree: k and t.
        split_views: whether neighbours of one member may be told other survivors than others: then
            2 t > k + its colluding neighbours must hold; else these must be fewer than t.
    """
    neighbours, threshold = degree
    least = 2 * threshold - neighbours if split_views else threshold
    return tail(members, colluders, neighbours, least) + log2(members)


def cut(members: int, colluders: int, degree: Degree) -> float:
    """Log2 of the probability that honest survivors may lie in two pieces, whatever survivors the server names.

    Of the two places that `enough_neighbours` speaks of; how many collude in windows that do not overlap is negatively
    associated (Joag-Dev and Proschan, Annals of Statistics 1983), so that the product of both bounds it.
    """
    half = degree.neighbours // 2
    return 2 * (tail(members, colluders, half, degree.threshold - half) + log2(members)) - 1


def life(members: int, dropouts: int, degree: Degree) -> float:
    """Log2 of the probability that some secret cannot be opened, of dropouts that nobody chooses."""
    neighbours, threshold = degree
    return tail(members, dropouts, neighbours, neighbours - threshold + 1) + log2(members)


def least_degree(
    members: int,
    colluders: float,
    dropouts: float,
    *,
    tries_bits: int = 0,
    split_views: bool = True,
    chosen_dropouts: bool = True,
) -> Degree | None:
    """The fewest neighbours, an even number, with which secrecy and life fail with a probability of 2^-40 at most.

    Args:
        members: n.
        colluders: their share.
        dropouts: the share that falls silent.
        tries_bits: whoever knows all but the last contribution to the seed tries 2^this many graphs.
        split_views: see `secrecy`.
        chosen_dropouts: whether the server chooses whom it calls dropped; see `cut`.

    Returns:
        None where no number holds.
    """
    colluding, silent = int(colluders * members), int(dropouts * members)
    for neighbours in range(4, members, 2):
        for threshold in range(neighbours // 2 + 1 if split_views or chosen_dropouts else 1, neighbours):
            degree = Degree(neighbours, threshold)
            known = secrecy(members, colluding, degree, split_views=split_views)
            if chosen_dropouts:
                known = max(known, cut(members, colluding, degree))
            if known > -SECURITY_BITS - tries_bits:
                continue
            if life(members, silent, degree) <= -SECURITY_BITS:
                return degree
            break  # a larger threshold is worse for life
    return None
