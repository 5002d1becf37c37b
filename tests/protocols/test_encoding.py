"""From named blocks to ring elements and back, in the form that clients and courses use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols.charter import Offer, Plan, derive_plan
from codream_protocols.encoding import StreamRounding, check_range, decode, encode, integers
from codream_protocols.errors import LocalProtocolError, WrongSum
from codream_protocols.masks import word_type
from codream_protocols.seeded import SeededBytes
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import make_charter

MIXED = VectorSpec("mixed", (Block("dream", 5, 0.5), Block("seen", 3, 70_000, "count"), Block("loss", 1, 4.0)))


def plan_of(spec: VectorSpec = MIXED, members: int = 5, **options: Any) -> Plan:
    charter = make_charter(members, **options)
    return derive_plan(charter, LaboratoryCourse((spec,), 2), Offer(0, charter.everybody, bytes(32)), 0)


def values_of(seed: int, spec: VectorSpec = MIXED) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {
        block.name: chance.integers(0, int(block.clip) + 1, block.length)
        if block.kind == "count"
        else chance.uniform(-block.clip, block.clip, block.length)
        for block in spec.blocks
    }


@given(st.integers(3, 64), st.integers(2, 24), st.integers(0, 2**32))
@settings(max_examples=60)
def test_sums_decode_to_the_sums_of_the_values(members: int, bits: int, seed: int) -> None:
    """Counts exactly; reals to one step of each input."""
    plan = plan_of(members=members, value_bits=bits)
    inputs = [values_of(seed + member) for member in range(members)]
    words = [encode(plan, 0, one, SeededBytes(seed, str(place)))[0] for place, one in enumerate(inputs)]
    assert all(
        one.dtype == word_type(plan.modulus_bits(0)) and int(one.max()) < 1 << plan.modulus_bits(0) for one in words
    )
    total = np.sum(words, axis=0, dtype=words[0].dtype) & words[0].dtype.type((1 << plan.modulus_bits(0)) - 1)
    check_range(plan, 0, total, members)
    sums = decode(plan, 0, total, members)
    for block in MIXED.blocks:
        expected = np.sum([one[block.name] for one in inputs], axis=0)
        if block.kind == "count":
            assert sums[block.name].dtype == np.int64 and (sums[block.name] == expected).all()
        else:
            step = 2 * block.clip / ((1 << bits) - 1)
            np.testing.assert_allclose(sums[block.name], expected, atol=members * step + 1e-9)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 65_535, 70_000])
def test_counts_are_exact_whatever_the_bits_of_a_value(count: int) -> None:
    plan = plan_of(value_bits=2)
    values = {**values_of(0), "seen": np.full(3, count)}
    words, _ = encode(plan, 0, values, SeededBytes(0, "count"))
    assert (decode(plan, 0, words, 1)["seen"] == count).all()


@pytest.mark.parametrize("members", [3, 7, 64, 100])
def test_a_vector_of_its_own_resolution_fills_its_ring_and_never_wraps(members: int) -> None:
    spec = VectorSpec("update", (Block("dream", 3, 2.0),), value_bits=10)
    plan = plan_of(spec, members, mode="resilient")
    words, _ = encode(plan, 0, {"dream": np.array([2.0, -2.0, 0.7])}, SeededBytes(0, "ring"))
    total = words.astype(np.int64) * members
    assert total[0] == members * plan.top(0) < 1 << plan.modulus_bits(0) and total[1] == 0
    sums = decode(plan, 0, total.astype(words.dtype), members)["dream"]
    np.testing.assert_allclose(sums, members * np.array([2.0, -2.0, 0.7]), atol=members * 4.0 / plan.top(0))
    check_range(plan, 0, total, members)
    with pytest.raises(WrongSum):
        check_range(plan, 0, total, members - 1)


def test_what_is_beyond_its_bound_is_clipped() -> None:
    plan = plan_of()
    values = {
        "dream": np.array([9.0, -9.0, 0.5, -0.5, 0]),
        "seen": np.array([-5, 99_999, 3.4]),
        "loss": np.array([1e300]),
    }
    sums = decode(plan, 0, encode(plan, 0, values, SeededBytes(0, "clip"))[0], 1)
    np.testing.assert_allclose(sums["dream"], [0.5, -0.5, 0.5, -0.5, 0], atol=1e-4)
    assert sums["seen"].tolist() == [0, 70_000, 3]
    np.testing.assert_allclose(sums["loss"], 4.0, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_zero_before_anything_else(bad: float) -> None:
    plan = plan_of()
    values = {"dream": np.array([bad, 0.5, 0, 0, 0]), "seen": np.array([bad, 7, 0]), "loss": np.array([1.0])}
    words, replaced = encode(plan, 0, values, SeededBytes(0, "bad"))
    sums = decode(plan, 0, words, 1)
    assert replaced == 2
    np.testing.assert_allclose(sums["dream"], [0, 0.5, 0, 0, 0], atol=1e-4)
    assert sums["seen"].tolist() == [0, 7, 0]


def test_nothing_to_send_is_zeros() -> None:
    plan = plan_of()
    sums = decode(plan, 0, encode(plan, 0, None, SeededBytes(0, "none"))[0], 1)
    assert sums["seen"].tolist() == [0, 0, 0]
    np.testing.assert_allclose(sums["dream"], 0, atol=1e-4)


def test_a_failed_learner_still_sends_the_noise_that_others_count_on() -> None:
    spec = VectorSpec("update", (Block("dream", 64, 1.0),)).with_noise(1.0, 5.0, 4)
    plan = plan_of(spec)
    zeros, _ = encode(plan, 0, None, SeededBytes(1, "noise"))
    assert len(set(integers(plan, 0, zeros).tolist())) > 10
    assert float(np.std(integers(plan, 0, zeros))) > 10


@pytest.mark.parametrize(
    "values",
    [{}, {"dream": np.zeros(5)}, {**values_of(0), "more": np.zeros(1)}, {**values_of(0), "dream": np.zeros(6)}],
    ids=["none", "some", "more", "another size"],
)
def test_blocks_that_do_not_fit_are_local_misuse(values: dict[str, np.ndarray]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(plan_of(), 0, values, SeededBytes(0, "misuse"))


def test_arrays_of_any_shape_and_type_are_taken() -> None:
    plan = plan_of(VectorSpec("image", (Block("dream", 12, 1.0),)))
    image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 2, 2)
    words = [encode(plan, 0, {"dream": one}, SeededBytes(3, "shape"))[0] for one in (image, image.reshape(-1))]
    assert (words[0] == words[1]).all()


def test_a_sum_that_no_inputs_have_is_refused() -> None:
    plan = plan_of()
    words = np.zeros(MIXED.length, dtype=word_type(plan.modulus_bits(0)))
    top = plan.top(0)
    for place, most in ((0, 3 * top), (5, 3 * 255), (MIXED.length - 1, 3 * top)):
        words[:] = 0
        words[place] = most
        check_range(plan, 0, words, 3)
        words[place] += 1
        with pytest.raises(WrongSum):
            check_range(plan, 0, words, 3)


def test_integers_of_noised_sums_are_those_nearest_zero() -> None:
    spec = VectorSpec("update", (Block("dream", 8, 1.0),)).with_noise(1.0, 1.0, 4)
    plan = plan_of(spec)
    half = 1 << (plan.modulus_bits(0) - 1)
    words = np.array([0, 1, half - 1, half, 2 * half - 1], dtype=np.uint32)
    assert integers(plan, 0, words).tolist() == [0, 1, half - 1, -half, -1]
    assert integers(plan_of(), 0, words) is words


def test_rounding_is_without_bias_and_from_the_given_source() -> None:
    plan = plan_of(VectorSpec("update", (Block("dream", 20_000, 1.0),)), value_bits=2)
    values = {"dream": np.full(20_000, 0.123)}
    first, again, other = (encode(plan, 0, values, SeededBytes(seed, "round"))[0] for seed in (1, 1, 2))
    assert (first == again).all() and not (first == other).all()
    assert abs(decode(plan, 0, first, 1)["dream"].mean() - 0.123) < 0.02
    twice = VectorSpec("update", (Block("dream", 1 << 17, 1.0),))
    words = encode(plan_of(twice, value_bits=2), 0, {"dream": np.full(1 << 17, 0.123)}, SeededBytes(1, "round"))[0]
    assert not (words[: 1 << 16] == words[1 << 16 :]).all()
    rounding = StreamRounding(SeededBytes(0, "stream"))
    drawn = np.concatenate([rounding.random(1000), rounding.random(1000)])
    assert drawn.min() >= 0 and drawn.max() < 1 and len(set(drawn.tolist())) > 1990
