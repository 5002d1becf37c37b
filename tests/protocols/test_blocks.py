"""Sums over whole blocks isolate nobody, however many and in whatever order; sums over other sets do, and quickly."""

from __future__ import annotations

from random import Random

import pytest

from codream_protocols.charter import cuts, even_blocks
from secure_codream.threats.checker.blocks import Federation, random_blocks, successions
from secure_codream.threats.checker.enumerator import cancelling, constant_on, isolated, readable, reduced
from secure_codream.threats.checker.wild_server import WildServer
from secure_codream.threats.checker.world import Setting, World, without


def attacks(count: int, seed: int, proposals: int = 40, each: int = 50) -> tuple[int, int]:
    """So many servers against federations of up to 12: how many sums they got, and how many sequences had two."""
    random, sums, long = Random(seed), 0, 0
    for _ in range(count // each):
        federation = Federation(random)
        for _ in range(each):
            found = federation.attack(proposals)
            assert not found.isolated and not found.told_apart, found
            sums += len(found.sums)
            long += len(found.sums) > 1
    return sums, long


def test_no_sequence_of_sets_isolates_a_member() -> None:
    sums, long = attacks(5_000, seed=1)
    assert sums > 10_000 and long > 2_000  # the server is not just refused


@pytest.mark.exhaustive
def test_no_sequence_of_sets_isolates_a_member_in_a_hundred_thousand() -> None:
    sums, long = attacks(100_000, seed=2)
    assert sums > 200_000 and long > 40_000


@pytest.mark.parametrize(("losses", "off"), [("allow", ()), ("blocks", ("_rule_whole_blocks",))])
def test_without_blocks_a_member_is_isolated_quickly(losses: str, off: tuple[str, ...]) -> None:
    random = Random(3)
    found = [Federation(random, losses, without(*off)).attack(40) for _ in range(40)]
    assert sum(bool(one.isolated) for one in found) > 30


def test_three_sets_solve_for_one_member() -> None:
    """Sets that differ in two or three each: rules about pairs of sets would let them pass."""
    sums = [(0, 1, 2, 3, 4), (1, 2), (3, 4)]
    assert isolated(sums, range(5)) == [0]
    assert isolated(sums[:2], range(5)) == []
    assert isolated([(0, 1, 2), (1, 2, 3)], range(4)) == []
    assert isolated([(0, 1, 2), (1, 2, 3)], (0, 1, 2)) == [0]  # 3 colludes


def test_linear_algebra() -> None:
    assert reduced([[2, 4], [1, 2], [0, 0]]) == [[1, 2]]
    assert reduced([[1, 1, 0], [0, 1, 1]])[0][:2] == [1, 0]
    assert cancelling([[1, 0], [1, 0], [0, 1]]) == [[1, reduced([[1, -1]])[0][1], 0]]
    assert cancelling([[], []]) == [[1, 0], [0, 1]]
    assert constant_on(readable([(0, 1, 2)], (0, 1)), (0, 1), [(0, 1, 2)])
    assert not constant_on(readable([(0, 2)], (0, 1)), (0, 1), [(0, 1, 2)])


# -- through the machines ---------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("members", "colluders"), [(6, 1), (9, 1), (12, 2)])
def test_no_server_isolates_a_member_through_whole_machines(members: int, colluders: int, seed: int) -> None:
    blocks = random_blocks(Random(seed), members, colluders + 2)
    setting = Setting("resilient", members, colluders, blocks=blocks, steps=2)
    found = WildServer(World(setting), seed).run(150)
    assert found.leak is None and found.count > 20


# -- charters that follow one another ---------------------------------------------


def check_successions(count: int, seed: int) -> tuple[int, int]:
    """How many charters were cut, and after how many of these a member is isolated."""
    cut = exposed = 0
    for found in successions(Random(seed), count):
        if not found.cut:
            assert not found.isolated and found.fewest != 1, found
        cut += bool(found.cut)
        exposed += bool(found.isolated)
    return cut, exposed


def test_every_charter_that_isolates_a_member_cuts_a_block() -> None:
    cut, exposed = check_successions(4_000, seed=4)
    assert exposed > 500 and cut > exposed


@pytest.mark.exhaustive
def test_every_charter_that_isolates_a_member_cuts_a_block_in_a_hundred_thousand() -> None:
    check_successions(100_000, seed=5)


def test_cuts() -> None:
    old, least = even_blocks(6, 1), 3
    assert old == ((0, 1, 2), (3, 4, 5))
    assert cuts(old, old, least) == [] == cuts(old, [*old, (6, 7, 8)], least)
    assert cuts(old, [(0, 1, 2, 3, 4, 5)], least) == []
    assert cuts(old, [(0, 1, 2, 6), (3, 4, 5)], least) == [(6,)]  # the newcomer
    assert cuts(old, [(0, 1, 2), (3, 4, 6)], least) == [(3, 4), (5,), (6,)]


def test_cuts_must_be_given_all_blocks_of_predecessors() -> None:
    """Who joins a block has answered for none: judged by its own past alone, it would not see that it is exposed."""
    old, new = ((0, 1, 2),), ((0, 1, 2, 3),)
    assert all(3 in isolated([*old, *new], [one for one in range(4) if one != colluder]) for colluder in range(3))
    assert cuts((), new, 3) == [] and cuts(old, new, 3) == [(3,)]
