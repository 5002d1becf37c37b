"""The model checker finds no strategy where the threshold rule holds, and finds the leak wherever a defence is off."""

from __future__ import annotations

import pytest

from secure_codream.threats.model_checker import Checker, safe
from secure_codream.threats.switches import without

SETTINGS = [
    (members, colluders, threshold)
    for members in (3, 4)
    for colluders in range(members - 1)
    for threshold in range(1, members + 1)
]
SAFE = [setting for setting in SETTINGS if safe(*setting)]
UNSAFE = [setting for setting in SETTINGS if not safe(*setting)]


@pytest.mark.parametrize(("members", "colluders", "threshold"), SAFE)
@pytest.mark.parametrize("claims", [1, 2])
def test_no_strategy_leaks(members: int, colluders: int, threshold: int, claims: int) -> None:
    for least in range(max(threshold, colluders + 2), members + 1):
        assert Checker(members, colluders, threshold, least, claims=claims).search() is None


@pytest.mark.parametrize(("members", "colluders", "threshold"), SETTINGS)
def test_threshold_rule_is_exact(members: int, colluders: int, threshold: int) -> None:
    """With as small a minimum as the threshold allows, a leak exists exactly where 2 * threshold <= n + c."""
    checker = Checker(members, colluders, threshold, least=threshold, unsafe=True)
    leak = checker.search()
    assert (leak is None) == safe(members, colluders, threshold)
    assert leak is None or checker.confirm(leak)


@pytest.mark.parametrize(("members", "colluders", "threshold", "least"), [(3, 0, 2, 3), (4, 1, 3, 4), (4, 0, 3, 4)])
def test_without_the_minimum_a_small_sum_opens(members: int, colluders: int, threshold: int, least: int) -> None:
    assert Checker(members, colluders, threshold, least).search() is None
    checker = Checker(members, colluders, threshold, least, without("_rule_enough_survivors"))
    leak = checker.search()
    assert leak is not None and len(leak.sums[0]) < least - colluders
    assert checker.confirm(leak)


ONE_SET = ("_rule_one_survivor_set", "_rule_erase_answered")


@pytest.mark.parametrize(("members", "colluders", "threshold"), [(3, 0, 2), (3, 1, 3), (4, 2, 4)])
def test_without_one_survivor_set_inputs_open(members: int, colluders: int, threshold: int) -> None:
    """Two layers: the refusal of a second set, and the erasure of what was answered. Either alone prevents the leak."""
    least = max(threshold, colluders + 2)
    for layer in ONE_SET:
        assert Checker(members, colluders, threshold, least, without(layer), claims=2).search() is None
    checker = Checker(members, colluders, threshold, least, without(*ONE_SET), claims=2)
    leak = checker.search()
    if threshold == members:  # only the whole epoch may be claimed: there is no second set
        assert leak is None
    else:
        assert leak is not None and len(leak.sums) > 1 and checker.confirm(leak)


def test_without_agreement_a_small_sum_opens() -> None:
    """Five members, none colluding, threshold three: each may be told another set, none of them twice."""
    checker = Checker(5, 0, 3, 3, without("_rule_signed_survivors"))
    leak = checker.search()
    assert leak is not None and len(leak.sums[0]) < 3
    assert len(set(leak.strategy.values())) > 1
    assert checker.confirm(leak)
    assert Checker(5, 0, 3, 3).outcome(leak.strategy) is None  # the very strategy, against the whole protocol


@pytest.mark.parametrize(("colluders", "threshold"), [(0, 3), (0, 4), (0, 5), (1, 4), (1, 5), (2, 4), (2, 5), (3, 5)])
@pytest.mark.parametrize("by_symmetry", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_no_strategy_leaks_with_five_members(colluders: int, threshold: int, by_symmetry: bool) -> None:
    for least in range(max(threshold, colluders + 2), 6):
        assert Checker(5, colluders, threshold, least, by_symmetry=by_symmetry).search() is None


def outcomes(checker: Checker) -> set[tuple[int, ...]]:
    """What strategies open, without names: how many sums, over how many, with how many secrets known."""
    found = set()
    for strategy in checker.strategies():
        opened = checker.opened(strategy)
        found.add((len(opened.self_masks), len(opened.mask_keys), *sorted(map(len, opened.sums))))
    return found


@pytest.mark.parametrize(("members", "colluders", "threshold"), [(3, 0, 1), (3, 0, 2), (4, 0, 2), (4, 0, 3), (4, 1, 3)])
def test_symmetry_leaves_no_outcome_out(members: int, colluders: int, threshold: int) -> None:
    every, some = (
        Checker(members, colluders, threshold, threshold, unsafe=True, by_symmetry=symmetry)
        for symmetry in (False, True)
    )
    assert outcomes(some) == outcomes(every)
    assert sum(1 for _ in some.strategies()) < sum(1 for _ in every.strategies())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("colluders", "threshold"), [(0, 4), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6), (2, 5), (2, 6), (3, 5), (3, 6), (4, 6)]
)
def test_no_strategy_leaks_with_six_members(colluders: int, threshold: int) -> None:
    for least in range(max(threshold, colluders + 2), 7):
        assert Checker(6, colluders, threshold, least, by_symmetry=True).search() is None
