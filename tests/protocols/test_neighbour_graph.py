"""The study of sums over a neighbour graph: decision 14's numbers, attacks on a graph, and the rules that stop them."""

from __future__ import annotations

from itertools import combinations

import pytest

from secure_codream.threats.checker.neighbour_graph import (
    Degree,
    Members,
    NeighbourGraph,
    cut,
    enough_neighbours,
    least_degree,
    life,
    opened,
    ring,
    secrecy,
    signed_by_most,
)

TRIES = (0, 30, 80, 128)
TABLE = {
    1_000: [(110, 71), (126, 84), (150, 104), (168, 119)],
    10_000: [(138, 89), (158, 105), (192, 132), (220, 155)],
    100_000: [(152, 98), (176, 117), (208, 143), (236, 166)],
}
"""Of decision 14: n -> k and t, for so many bits of tries."""


def one_view(graph: NeighbourGraph, colluders: Members, survivors: Members) -> dict[int, Members | None]:
    return {member: survivors for member in graph.members if member not in colluders}


@pytest.mark.parametrize(
    ("members", "tries", "split_views", "degree"),
    [
        (1_000, 0, True, (104, 66)),
        (1_000, 30, True, (116, 76)),
        (1_000, 0, False, (46, 20)),
        (100_000, 0, True, (144, 92)),
        (100_000, 30, True, (166, 109)),
        (100_000, 0, False, (56, 25)),
    ],
)
def test_shares_alone_hold_with_so_many_neighbours(
    members: int, tries: int, split_views: bool, degree: tuple[int, int]
) -> None:
    """5 % collude, 10 % fall silent at random: no secret of either kind beside the other, and every one is opened."""
    assert secrecy(members, members // 20, Degree(*degree), split_views=split_views) <= -40 - tries
    assert life(members, members // 10, Degree(*degree)) <= -40
    if members == 1_000:
        found = least_degree(members, 0.05, 0.1, tries_bits=tries, split_views=split_views, chosen_dropouts=False)
        assert found is not None and degree[0] - 4 <= found.neighbours <= degree[0]


def test_where_the_server_names_the_dropouts_more_neighbours_are_needed() -> None:
    assert cut(1_000, 50, Degree(104, 66)) > -32 and cut(100_000, 5_000, Degree(144, 92)) > -32
    for members, row in TABLE.items():
        for tries, found in zip(TRIES, row, strict=True):
            degree, colluding = Degree(*found), members // 20
            assert max(secrecy(members, colluding, degree), cut(members, colluding, degree)) <= -40 - tries
            assert life(members, members // 10, degree) <= -40
    assert least_degree(1_000, 0.05, 0.1) == TABLE[1_000][0]


def test_fewer_neighbours_keep_secrets_and_do_not_live() -> None:
    for members, degree in ((1_000, Degree(78, 52)), (100_000, Degree(106, 70))):
        assert secrecy(members, members // 20, degree) <= -40
        assert life(members, members // 10, degree) == pytest.approx(-21, abs=0.5)


def test_where_no_number_of_neighbours_holds_there_is_none() -> None:
    assert least_degree(200, 0.3, 0.3) is None


def test_all_there_opens_one_sum_and_a_complete_graph_too() -> None:
    graph = ring(30, 8, 1)
    everybody = frozenset(graph.members)
    assert opened(graph, 6, frozenset(), one_view(graph, frozenset(), everybody)) == [everybody]
    complete = ring(9, 8, 1)
    assert opened(complete, 6, frozenset({0}), one_view(complete, frozenset({0}), frozenset(range(7)))) == [
        frozenset(range(1, 7))
    ]


def test_neighbours_declared_dropped_uncover_a_member_unless_survivors_must_have_neighbours() -> None:
    graph = ring(40, 8, 2)
    victim = 5
    survivors = frozenset(graph.members) - graph.neighbours[victim]
    assert frozenset({victim}) in opened(graph, 6, frozenset(), one_view(graph, frozenset(), survivors))
    assert not enough_neighbours(graph, 6, survivors)  # G1: nobody answers for this set


def test_split_views_that_all_have_enough_neighbours_uncover_a_member_unless_most_have_signed_one() -> None:
    """On a complete graph 2 t > n + c forbids it; on a graph each member's neighbourhood can be told its own story."""
    graph, victim, threshold = spread(200, 8), 0, 5
    everybody, near = frozenset(range(200)), spread(200, 8).neighbours[0]
    told: dict[int, Members | None] = dict.fromkeys(range(200), everybody - near - {victim})
    told |= dict.fromkeys(near, everybody)  # the victim's neighbours believe that all are there
    assert enough_neighbours(graph, threshold, everybody)
    assert frozenset({victim}) in opened(graph, threshold, frozenset(), told)
    answered = signed_by_most(200, 0, told)
    assert answered == {everybody - near - {victim}}  # G2: the victim's neighbours never see their story signed
    heard = {member: view if view in answered else None for member, view in told.items()}
    assert not any(victim in piece for piece in opened(graph, threshold, frozenset(), heard))


def spread(members: int, degree: int) -> NeighbourGraph:
    """Neighbours at distances 1, 5, 25, ...: those of one member are hardly neighbours of each other."""
    steps = [5**power for power in range(degree // 2)]
    return NeighbourGraph(
        tuple(
            frozenset((member + sign * step) % members for step in steps for sign in (1, -1))
            for member in range(members)
        )
    )


@pytest.mark.parametrize("colluding", [0, 1])
def test_with_both_rules_a_small_graph_opens_one_sum_alone(colluding: int) -> None:
    """Eight members of four neighbours each, every set of survivors, every colluder: one sum, over all honest ones."""
    threshold = 3  # 2 t > k + c
    for seed in range(4):
        graph = ring(8, 4, seed)
        for colluders in map(frozenset, combinations(graph.members, colluding)):
            found = 0
            for size in range(3, 9):
                for survivors in map(frozenset, combinations(graph.members, size)):
                    if not enough_neighbours(graph, threshold, survivors):
                        continue
                    pieces = opened(graph, threshold, colluders, one_view(graph, colluders, survivors))
                    assert pieces in ([], [survivors - colluders])
                    found += bool(pieces)
            assert found
