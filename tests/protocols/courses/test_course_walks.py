"""Every course: total, finite, bounded, deterministic, and no state is ever changed in place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols.charter import Aggregation, Charter, Offer, derive_plan
from codream_protocols.course import canonical, fingerprint
from codream_protocols.courses.metrics import METRICS
from codream_protocols.courses.registry import COURSES as REGISTRY
from codream_protocols.courses.registry import course_class
from codream_protocols.encoding import decode, encode
from codream_protocols.settings import SettingsError
from tests.protocols.courses.walk import COURSES, HONEST, MEMBERS, constant, legal_sums, trail, uniform, walk

ROOT = Path(__file__).resolve().parents[3]
BOUNDS = {
    "dreams": 10.0,
    "half_dreams": 10.0,
    "soft_labels": 30.0,
    "half_soft_labels": 30.0,
    "generator": 100.0,
    "generators": 100.0,
    "meta": 100.0,
    "noise": 10.0,
    "noises": 10.0,
    "weights": 1e6,
    "variate": 100.0,
}
extremes = pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
every = pytest.mark.parametrize("name", COURSES)


def check(arrays: Any) -> None:
    for name, array in canonical(arrays).items():
        assert np.isfinite(array).all(), name
        if name in BOUNDS:
            assert array.dtype == np.float32
            assert np.abs(array).max(initial=0.0) <= BOUNDS[name], name


@every
@settings(max_examples=10)
@given(number=st.integers(0, 2**32))
def test_any_sums_give_a_state_within_its_bounds_and_change_nothing_in_place(name: str, number: int) -> None:
    for _, before, after in walk(COURSES[name], uniform(number)):
        check(before)
        check(after)
    assert trail(name, number) == trail(name, number)


@every
@extremes
def test_sums_at_the_bounds_of_the_encoding_give_a_state(name: str, value: float) -> None:
    for _, _, after in walk(COURSES[name], constant(value)):
        check(after)


@every
@settings(max_examples=25)
@given(data=st.data())
def test_sums_of_extremes_in_any_mixture_give_a_state(name: str, data: st.DataObject) -> None:
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _, _, after in walk(COURSES[name], lambda length: source.choice([-1.0, -1e-30, 0.0, 1e-9, 1.0], length)):
        check(after)


@every
def test_inputs_stay_as_they_are(name: str) -> None:
    course, last = COURSES[name], None
    for certified in range(course.epochs):
        state = course.start(bytes(32), certified, last)
        for step, kind in enumerate(course.schedule(certified)):
            sums = legal_sums(course.specs(HONEST)[kind], uniform(step))
            before, given_sums = fingerprint(state), fingerprint(sums)
            following = course.absorb(canonical(state), step, canonical(sums), MEMBERS)
            assert fingerprint(course.absorb(state, step, sums, MEMBERS)) == fingerprint(following)
            assert (fingerprint(state), fingerprint(sums)) == (before, given_sums)
            state = following
        last = course.publication(state)


@every
def test_another_sum_gives_another_state(name: str) -> None:
    """Of metrics the chain tells: they are in no state."""
    course = COURSES[name]
    state = course.start(bytes(32), 0, None)
    for step, kind in enumerate(course.schedule(0)):
        spec = course.specs(HONEST)[kind]
        sums = legal_sums(spec, lambda length: np.full(length, 0.3))
        sums = {block: (value / 1e7 if spec.noise else value) for block, value in sums.items()}
        following = course.absorb(state, step, sums, MEMBERS)
        other = {block: value.copy() for block, value in sums.items()}
        first = other[spec.blocks[0].name]
        first[0] = first[0] // 2 if first.dtype == np.int64 else first[0] * 0.999
        changed = fingerprint(course.absorb(state, step, other, MEMBERS)) != fingerprint(following)
        assert changed == (spec.task != METRICS)
        state = following


def test_a_second_process_computes_the_same() -> None:
    code = (
        "from tests.protocols.courses.walk import COURSES, trail\n"
        "print('\\n\\n'.join(trail(name, 5) for name in COURSES))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "\n\n".join(trail(name, 5) for name in COURSES)


@every
def test_a_charter_derives_the_same_plan_twice_and_sums_pass_through_its_encoding(name: str) -> None:
    charter = Charter(
        roster=bytes(32),
        members=MEMBERS,
        settings=bytes(32),
        aggregation=Aggregation(least_survivors=MEMBERS),
        blocks=(tuple(range(MEMBERS)),),
    )
    course = COURSES[name]
    plan = derive_plan(charter, course, Offer(0, tuple(range(MEMBERS)), bytes(32)), 0)
    assert msgspec.msgpack.encode(plan) == msgspec.msgpack.encode(
        derive_plan(charter, course, Offer(0, tuple(range(MEMBERS)), bytes(32)), 0)
    )
    state = course.start(bytes(32), 0, None)
    for step in range(plan.steps):
        source = np.random.default_rng(step)
        total = np.zeros(plan.spec(step).words, dtype=np.uint64)
        for _ in range(MEMBERS):
            values = {
                block.name: np.abs(source.uniform(-block.clip, block.clip, block.length))
                for block in plan.spec(step).blocks
            }
            total += encode(plan, step, values, source.bytes)[0]
        total &= np.uint64((1 << plan.modulus_bits(step)) - 1)
        state = course.absorb(state, step, decode(plan, step, total.astype(np.uint32), MEMBERS), MEMBERS)
        check(state)


@every
def test_a_figure_is_a_number_or_nothing_whatever_the_sums(name: str) -> None:
    course: Any = COURSES[name]
    for draw in (constant(-1.0), constant(0.0), constant(1.0), uniform(3)):
        for spec in course.specs(HONEST):
            for value in course.figures(spec.task, legal_sums(spec, draw), MEMBERS).values():
                assert value is None or np.isfinite(value)


def test_metrics_are_exact_counts_and_their_figures_are_means_over_images() -> None:
    course: Any = COURSES["fedavg"]
    sums = {
        key: np.array([value]) for key, value in {"correct": 30, "tested": 40, "train_correct": 7, "trained": 0}.items()
    }
    assert course.figures("metrics", sums, 3) == {"accuracy": 0.75, "train_accuracy": None, "tested": 40}
    assert all(block.kind == "count" for block in course.specs(HONEST)[0].blocks)


@pytest.mark.parametrize("name", ["codream", "codream-fast", "fedavg", "scaffold"])
def test_every_epoch_begins_with_metrics_and_the_last_one_has_nothing_else(name: str) -> None:
    course = COURSES[name]
    specs = course.specs(HONEST)
    tasks = [[specs[kind].task for kind in course.schedule(epoch)] for epoch in range(course.epochs)]
    assert [found[0] for found in tasks] == ["metrics"] * 3
    assert all(len(found) > 1 and "metrics" not in found[1:] for found in tasks[:-1])
    assert tasks[-1] == ["metrics"]


def test_all_courses_have_their_names() -> None:
    assert list(REGISTRY) == ["codream", "codream-fast", "fedavg", "fedprox", "scaffold", "moon", "dp-sgd", "sums"]
    assert course_class("moon") is type(COURSES["moon"])
    with pytest.raises(SettingsError, match="allowed are codream"):
        course_class("avgkd")
