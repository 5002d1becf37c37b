"""Plans that no client accepts, and what a policy permits."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codream_protocols.errors import PolicyViolation, UnsafePlan
from codream_protocols.plan import (
    MAX_COORDINATES,
    Block,
    Plan,
    Policy,
    VectorSpec,
    check_plan,
    default_threshold,
    tolerated_colluders,
)
from codream_protocols.ring import modulus_bits_for
from codream_protocols.server import ServerEpoch
from secure_codream.threats.federation import Federation

FEDERATION = Federation(5, colluders=1, threshold=4)
PLAN = FEDERATION.plan


def changed(**fields: Any) -> Plan:
    return msgspec.structs.replace(PLAN, **fields)


@given(size=st.integers(2, 200), data=st.data())
def test_threshold_rule(size: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(0, size - 2))
    threshold = data.draw(st.integers(1, size + 1))
    plan = changed(
        cohort=tuple(range(size)),
        threshold=threshold,
        colluders=colluders,
        least_survivors=data.draw(st.integers(colluders + 2, size)),
        value_bits=16,
        modulus_bits=modulus_bits_for(16, size),
    )
    safe = 2 * threshold > size + colluders and threshold <= size
    if safe:
        check_plan(plan)
        assert tolerated_colluders(size, threshold) >= colluders
    else:
        with pytest.raises(UnsafePlan, match="threshold"):
            check_plan(plan)


@pytest.mark.parametrize("size", range(2, 201))
def test_default_threshold_is_always_safe(size: int) -> None:
    threshold = default_threshold(size)
    assert threshold == min(size, math.floor(2 * size / 3) + 1)
    assert tolerated_colluders(size, threshold) >= 0
    assert 2 * threshold > size + tolerated_colluders(size, threshold)
    assert not 2 * threshold > size + tolerated_colluders(size, threshold) + 1


UNSAFE: dict[str, dict[str, Any]] = {
    "protocol": {"protocol": "secure-codream/0"},
    "cohort repeated": {"cohort": (0, 1, 2, 3, 3)},
    "cohort descending": {"cohort": (1, 0, 2, 3, 4)},
    "cohort of one": {"cohort": (0,), "threshold": 1, "least_survivors": 1, "colluders": 0},
    "threshold low": {"threshold": 3},
    "threshold high": {"threshold": 6},
    "too many colluders": {"colluders": 3},
    "one honest input": {"least_survivors": 2},
    "more survivors than members": {"least_survivors": 6},
    "ring too small": {"modulus_bits": 18},
    "suite": {"suite": "aes-128-ctr"},
    "schedule": {"schedule": (0, 1)},
    "task twice": {"specs": (PLAN.specs[0], PLAN.specs[0])},
    "block twice": {"specs": (VectorSpec("update", (Block("a", 1, 1.0), Block("a", 1, 1.0))),)},
    "too long": {"specs": (VectorSpec("update", (Block("a", MAX_COORDINATES, 1.0), Block("b", 1, 1.0))),)},
    "clip zero": {"specs": (VectorSpec("update", (Block("a", 1, 0.0),)),)},
    "clip negative": {"specs": (VectorSpec("update", (Block("a", 1, -1.0),)),)},
    "clip NaN": {"specs": (VectorSpec("update", (Block("a", 1, math.nan),)),)},
    "clip infinite": {"specs": (VectorSpec("update", (Block("a", 1, math.inf),)),)},
}


@pytest.mark.parametrize("what", UNSAFE)
def test_unsafe_plans_are_refused_by_both_sides(what: str) -> None:
    check_plan(PLAN)
    plan = changed(**UNSAFE[what])
    with pytest.raises(UnsafePlan):
        check_plan(plan)
    with pytest.raises(UnsafePlan):
        ServerEpoch(plan, FEDERATION.roster)


@pytest.mark.parametrize("field", Plan.__struct_fields__)
def test_the_digest_covers_every_field(field: str) -> None:
    other: dict[str, Any] = {
        "protocol": "x",
        "suite": "x",
        "session": b"x" * 16,
        "roster": b"x" * 32,
        "recipe": b"x" * 32,
        "cohort": (0, 1),
        "specs": (VectorSpec("update", (Block("dream", 20, 0.5),)),),
        "schedule": (0,),
    }
    value = other.get(field, getattr(PLAN, field) + 1 if isinstance(getattr(PLAN, field), int) else None)
    assert changed(**{field: value}).digest != PLAN.digest
    assert len(PLAN.digest) == 32 and changed().digest == PLAN.digest


POLICY = Policy(least_cohort=5, least_survivors=3, colluders=1, tasks={"update": 1.0})


def test_a_policy_permits_its_limits() -> None:
    POLICY.check(PLAN)
    exact = msgspec.structs.replace(
        POLICY, most_steps=3, most_coordinates=20, most_value_bits=16, suites=(PLAN.suite,), recipe=PLAN.recipe
    )
    exact.check(PLAN)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("least_cohort", 6),
        ("least_survivors", 4),
        ("colluders", 2),
        ("most_steps", 2),
        ("most_coordinates", 19),
        ("most_value_bits", 15),
        ("tasks", {}),
        ("tasks", {"other": 1.0}),
        ("tasks", {"update": 0.99}),
        ("suites", ("chacha20",)),
        ("recipe", b"x" * 32),
    ],
)
def test_a_policy_refuses_one_more_than_its_limit(field: str, value: Any) -> None:
    with pytest.raises(PolicyViolation) as caught:
        msgspec.structs.replace(POLICY, **{field: value}).check(PLAN)
    assert caught.value.found and caught.value.allowed and caught.value.code == "policy"


def test_every_limit_of_a_policy_has_a_test() -> None:
    """`most_total_steps` counts over a client's life: see the endless session among the attacks; `least_noise` and
    `most_rho`: see test_distributed_noise."""
    assert set(Policy.__struct_fields__) == {
        "least_cohort", "least_survivors", "least_threshold", "colluders", "most_steps",
        "most_total_steps", "most_coordinates",
        "most_value_bits", "tasks", "suites", "recipe", "least_noise", "most_rho",
    }  # fmt: skip


def test_policies_are_cautious_by_default() -> None:
    with pytest.raises(PolicyViolation):
        Policy(tasks={"update": 1.0}).check(Federation(3).plan)  # tolerates no colluder
    Policy(tasks={"update": 1.0}).check(Federation(4, colluders=1).plan)
