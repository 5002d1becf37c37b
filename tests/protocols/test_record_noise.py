"""What one record moves, and the noise beside it: on the code that rounds, clamps and encodes."""

from __future__ import annotations

import math
import secrets

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from codream_protocols.charter import Aggregation, Charter, Policy, first_plan
from codream_protocols.courses.dp_sgd import DPSGD, GRADIENT, DPSGDSettings
from codream_protocols.distributed_noise import WRAP_AROUND
from codream_protocols.encoding import StreamRounding, decode, encode, integers
from codream_protocols.errors import PolicyViolation, UnsafePlan
from codream_protocols.record_noise import (
    RecordNoise,
    clamped,
    largest_square,
    make_record_noise,
    record_rho,
    round_records,
)
from codream_protocols.specs import VectorSpec
from codream_protocols.zcdp import distributed_rho

LAYOUT = (("weight", (10, 6)),)
ROUNDING = StreamRounding(secrets.token_bytes)


def course(**changed: float) -> DPSGD:
    options = {"epsilon": 4.0, "delta": 1e-5, "sample_rate": 0.1, "batch_size": 20.0, "steps": 2, "spare_rounds": 0}
    return DPSGD(DPSGDSettings(layout=LAYOUT, rounds=3, **{**options, **changed}))


def charter(members: int, mode: str = "lockstep", least: int = 3, blocks: int = 1) -> Charter:
    size = members // blocks
    return Charter(
        roster=bytes(32),
        members=members,
        settings=bytes(32),
        aggregation=Aggregation(mode=mode, least_survivors=least),
        blocks=tuple(tuple(range(size * number, size * (number + 1))) for number in range(blocks)),
    )


@given(arrays(np.float32, (7, 5), elements=some.floats(-40, 40, width=32)), some.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_no_rounded_record_is_longer_than_what_noise_is_made_for(vectors: np.ndarray, radius: int) -> None:
    """Whatever comes in, also what was not clipped: that counts as nothing."""
    most = largest_square(RecordNoise(1.0, radius, 100, 1, 1), 5)
    rounded = round_records(vectors, most, ROUNDING)
    assert (np.square(rounded).sum(axis=1) <= most).all()
    near = np.abs(rounded - vectors).max(axis=1) < 1.01
    assert (near | ~rounded.any(axis=1)).all()
    short = np.linalg.norm(vectors, axis=1) < 0.9 * radius - 3
    assert near[short].all()


def test_control_rounded_once_some_record_is_longer() -> None:
    """Each coordinate away from zero: what is rounded but once has a tenth more than the sensitivity."""
    row = np.full((2000, 16), 0.45, dtype=np.float32)  # radius 2
    most = largest_square(RecordNoise(1.0, 2, 100, 1, 1), 16)
    once = np.floor(row + ROUNDING.random(row.size).reshape(row.shape))
    assert np.square(once).sum(axis=1).max() > most >= np.square(round_records(row, most, ROUNDING)).sum(axis=1).max()


def test_rounding_has_no_bias_where_the_norm_leaves_room() -> None:
    rows = np.tile(np.linspace(-3, 3, 8, dtype=np.float32), (20_000, 1))
    rounded = round_records(rows, 10**6, ROUNDING)
    assert rounded.mean(axis=0) == pytest.approx(rows[0], abs=0.02)


@given(arrays(np.int64, 6, elements=some.integers(-900, 900)), arrays(np.int64, 6, elements=some.integers(-50, 50)))
@settings(max_examples=60, deadline=None)
def test_clamping_makes_nobodys_part_longer(others: np.ndarray, own: np.ndarray) -> None:
    noise = RecordNoise(1.0, 10, 500, 1, 1)
    moved = clamped(others + own, noise) - clamped(others, noise)
    assert (np.abs(moved) <= np.abs(own)).all() and np.abs(clamped(others + own, noise)).max() <= 500


def test_what_is_encoded_is_the_clamped_sum_with_noise_of_the_stated_size() -> None:
    plan = first_plan(charter(4), course())
    (spec,) = plan.specs
    assert isinstance(spec.noise, RecordNoise) and spec.noise.honest == 3
    far = np.full(60, 10 * spec.noise.largest)
    found = np.concatenate(
        [integers(plan, 0, encode(plan, 0, {GRADIENT: far}, secrets.token_bytes)[0]) for _ in range(200)]
    )
    assert found.mean() == pytest.approx(spec.noise.largest, abs=6 * spec.noise.variance**0.5 / 12000**0.5)
    assert found.std() == pytest.approx(spec.noise.variance**0.5, rel=0.05)


def test_who_sends_zeros_sends_its_noise() -> None:
    """A spent ledger, or a learner that failed: others count on its share."""
    plan = first_plan(charter(4), course())
    noise = plan.specs[0].noise
    assert isinstance(noise, RecordNoise)
    found = np.concatenate([integers(plan, 0, encode(plan, 0, None, secrets.token_bytes)[0]) for _ in range(200)])
    assert found.std() == pytest.approx(noise.variance**0.5, rel=0.05)
    assert encode(plan, 0, {GRADIENT: np.array([math.nan] + [0.0] * 59)}, secrets.token_bytes)[1] == 1


def test_a_sum_is_that_of_the_clients_and_does_not_wrap() -> None:
    """At the clamp, all of one sign; nor would seven deviations of noise beside it."""
    plan = first_plan(charter(6), course(coordinate_bound=4.0))
    (spec,) = plan.specs
    noise = spec.noise
    assert isinstance(noise, RecordNoise)
    for sign in (1, -1):
        far = {GRADIENT: np.full(60, sign * noise.largest)}
        words = sum(encode(plan, 0, far, secrets.token_bytes)[0].astype(np.uint64) for _ in range(6))
        total = (words & np.uint64((1 << plan.modulus_bits(0)) - 1)).astype(np.uint32)
        (values,) = decode(plan, 0, total, 6).values()
        assert values == pytest.approx(
            sign * 6 * 4 * noise.norm, abs=8 * math.sqrt(6 * noise.variance) * noise.norm / noise.radius
        )
    reach = 6 * noise.largest + 7 * math.sqrt(6 * noise.variance)
    assert reach < 1 << (plan.modulus_bits(0) - 1) and WRAP_AROUND == 1 << 40


def test_shares_are_sized_by_the_smallest_set_that_may_be_summed() -> None:
    """Twelve sites in blocks of three: two shares count, not eleven; for eleven, a record costs five times."""
    small = charter(12, "resilient", blocks=4)
    plan = first_plan(small, course())
    (spec,) = plan.specs
    assert isinstance(spec.noise, RecordNoise) and spec.noise.honest == small.least_honest == 2
    (roster,) = course().specs(11)
    assert isinstance(roster.noise, RecordNoise)
    assert roster.noise.variance * 5 < spec.noise.variance
    whole, real = record_rho(roster.noise, 60), record_rho(roster.noise, 60, 2)
    assert real > 5 * whole

    class Careless(DPSGD):
        def specs(self, honest: int) -> tuple[VectorSpec, ...]:
            return super().specs(11)

    with pytest.raises(UnsafePlan, match=r"counts on 11 shares.*at most 2"):
        first_plan(small, Careless(course().settings))


def test_what_a_record_costs_is_the_theorem_of_its_noise() -> None:
    noise = make_record_noise(0.3, 1000, 0.8, 3, 64.0)
    rho = record_rho(noise, 1000)
    assert rho == distributed_rho(largest_square(noise, 1000), noise.variance, 3, 1000) <= 1 / (2 * 0.8**2)
    assert rho == pytest.approx(1 / (2 * 0.8**2), rel=1e-4)
    assert largest_square(noise, 1000) <= 1.01 * noise.radius**2


def test_a_client_counts_on_others_noise_only_where_it_says_so() -> None:
    plan = first_plan(charter(4), course())
    with pytest.raises(PolicyViolation, match=r"other members add.*shared_noise = true"):
        Policy().check(plan)
    Policy(shared_noise=True).check(plan)
    with pytest.raises(PolicyViolation, match="losses"):  # of clients nothing is hidden
        losses = msgspec.structs.replace(charter(4).aggregation, losses="allow")
        allowed = msgspec.structs.replace(charter(4), aggregation=losses)
        Policy(shared_noise=True).check(first_plan(allowed, course()))
    with pytest.raises(PolicyViolation, match="times the sensitivity"):
        Policy(shared_noise=True, least_noise=0.5).check(plan)
    assert plan.total_rho == 0
