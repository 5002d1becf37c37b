"""The list of mutants fits the code: each place is there once, and each test file that is to notice exists."""

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_changes_one_place_and_names_tests_that_exist(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    changed = mutated(source, mutant)
    assert changed != source
    ast.parse(changed)
    paths = [argument for argument in mutant.tests if argument.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in paths)


def test_names_are_told_once() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 25
