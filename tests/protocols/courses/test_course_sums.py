"""A user's own sums: exact counts, sums of reals, noise, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codream_protocols.courses.sums import Sums, SumsPrivacy
from codream_protocols.settings import SettingsError
from codream_protocols.specs import Block

NOISE = SumsPrivacy(epsilon=4.0, delta=1e-5, norm=1.0, spare_rounds=1)


def test_a_users_sums_are_published_with_how_many_are_in_them() -> None:
    course = Sums({"patients": (Block("number", 2, 100.0, "count"), Block("ages", 1, 1000))})
    (spec,) = course.specs(3)
    assert course.schedule(0) == (0,)
    state = course.start(bytes(32), 0, None)
    assert course.task(state, 0).name == spec.task == "patients"
    sums = {"number": np.array([3, 4]), "ages": np.array([250.5])}
    published = course.publication(course.absorb(state, 0, sums, 5))
    assert {name: value.tolist() for name, value in published.items()} == {
        "patients.number": [3, 4],
        "patients.ages": [250.5],
        "patients.members": [5],
    }
    assert course.figures("patients", sums, 5) == {"ages": 250.5}


def test_a_bound_has_the_type_of_its_kind() -> None:
    (spec,) = Sums({"a": (Block("b", 1, 9.0, "count"), Block("c", 1, 9))}).specs(3)
    assert [type(block.clip) for block in spec.blocks] == [int, float]


def test_vectors_share_one_budget() -> None:
    one = Sums({"a": (Block("b", 1, 1.0),)}, NOISE)
    two = Sums({"a": (Block("b", 1, 1.0),), "c": (Block("d", 1, 1.0),)}, NOISE)
    assert two.noise_multiplier == pytest.approx(one.noise_multiplier * 2**0.5)
    assert all(spec.noise is not None for spec in two.specs(3))
    assert Sums({"a": (Block("b", 1, 1.0),)}).noise_multiplier == 0


@pytest.mark.parametrize(
    ("vectors", "privacy"),
    [
        ({}, None),
        ({"a": ()}, None),
        ({"a": (Block("b", 1, 1.0), Block("b", 2, 1.0))}, None),
        ({"a": (Block("members", 1, 1.0),)}, None),
        ({"a": (Block("b", 1, 5, "count"),)}, NOISE),
    ],
)
def test_vectors_that_cannot_be_summed_are_refused(vectors: Any, privacy: SumsPrivacy | None) -> None:
    with pytest.raises(SettingsError, match="allowed"):
        Sums(vectors, privacy)


@pytest.mark.parametrize("changed", [{"epsilon": 0.0}, {"delta": 0.0}, {"norm": -1.0}, {"spare_rounds": -1}])
def test_a_privacy_of_sums_out_of_range_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="allowed"):
        SumsPrivacy(**{"epsilon": 4.0, "delta": 1e-5, "norm": 1.0, **changed})
