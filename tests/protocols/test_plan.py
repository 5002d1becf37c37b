"""What a policy permits of a plan, and kinds of vector that no plan has."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from codream_protocols import charter as charter_module
from codream_protocols.charter import MAX_STEPS, MAX_SUMS_BYTES, Offer, Plan, Policy, derive_plan, even_blocks
from codream_protocols.errors import PolicyViolation, UnsafePlan
from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.messages import largest_message
from codream_protocols.packing import packed_size
from codream_protocols.record_file import MAX_RECORD_BYTES
from codream_protocols.specs import MAX_COORDINATES, MAX_COUNT, Block, VectorSpec
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import make_charter

CHARTER = make_charter(9, mode="resilient", colluders=2, least_survivors=5, blocks=even_blocks(9, 2))


def planned(course: LaboratoryCourse | None = None, **options: Any) -> Plan:
    charter = msgspec.structs.replace(CHARTER, aggregation=msgspec.structs.replace(CHARTER.aggregation, **options))
    return derive_plan(charter, course or LaboratoryCourse(), Offer(0, charter.everybody, bytes(32)), 0)


PLAN = planned()
UNSAFE: dict[str, tuple[VectorSpec, ...]] = {
    "a task twice": (VectorSpec("update", (Block("a", 1, 1.0),)),) * 2,
    "a block twice": (VectorSpec("update", (Block("a", 1, 1.0), Block("a", 1, 1.0))),),
    "too long": (VectorSpec("update", (Block("a", MAX_COORDINATES, 1.0), Block("b", 1, 1.0))),),
    "counts too long": (VectorSpec("update", (Block("a", MAX_COORDINATES // 2, MAX_COUNT, "count"),)),),
    "clip zero": (VectorSpec("update", (Block("a", 1, 0.0),)),),
    "clip tiny": (VectorSpec("update", (Block("a", 1, 1e-12),)),),
    "clip negative": (VectorSpec("update", (Block("a", 1, -1.0),)),),
    "clip NaN": (VectorSpec("update", (Block("a", 1, math.nan),)),),
    "clip infinite": (VectorSpec("update", (Block("a", 1, math.inf),)),),
    "a count of halves": (VectorSpec("update", (Block("a", 1, 2.5, "count"),)),),
    "a count up to nothing": (VectorSpec("update", (Block("a", 1, 0, "count"),)),),
    "a count too large": (VectorSpec("update", (Block("a", 1, float(MAX_COUNT + 1), "count"),)),),
    "bits of its own with noise": (
        msgspec.structs.replace(VectorSpec("update", (Block("a", 1, 1.0),)).with_noise(1.0, 1.0, 3), value_bits=10),
    ),
    "a count with noise": (VectorSpec("update", (Block("a", 1, 5, "count"),)).with_noise(1.0, 1.0, 3),),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_kinds_of_vector_that_cannot_be_encoded_are_refused(what: str) -> None:
    with pytest.raises(UnsafePlan):
        planned(LaboratoryCourse(UNSAFE[what]))


class _Scheduled(LaboratoryCourse):
    """A course with a schedule of its own."""

    def __init__(self, schedule: tuple[int, ...]) -> None:
        super().__init__()
        self.order = schedule

    def schedule(self, certified: int) -> tuple[int, ...]:
        return self.order


@pytest.mark.parametrize("schedule", [(), (1,), (-1,), (0, 1), (0,) * 4097])
def test_schedules_over_what_is_not_there_are_refused(schedule: tuple[int, ...]) -> None:
    planned(_Scheduled((0, 0)))
    with pytest.raises(UnsafePlan):
        planned(_Scheduled(schedule))


def test_an_epoch_whose_record_no_file_would_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certified, it could not be read again by any party that starts anew."""
    plan = planned(_Scheduled((0, 0, 0)))
    size = 3 * packed_size(plan.spec(0).words, plan.modulus_bits(0))
    monkeypatch.setattr(charter_module, "MAX_SUMS_BYTES", size)
    planned(_Scheduled((0, 0, 0)))
    with pytest.raises(UnsafePlan, match=f"at most {size}, which a record's file holds"):
        planned(_Scheduled((0, 0, 0, 0)))
    assert MAX_SUMS_BYTES + largest_message(MAX_MEMBERS, MAX_STEPS, resilient=True) < MAX_RECORD_BYTES


def test_the_largest_ring_has_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    charter = make_charter(200, mode="resilient", colluders=1, value_bits=24)
    offer = Offer(0, charter.everybody, bytes(32))
    assert derive_plan(charter, LaboratoryCourse(), offer, 0).moduli == (32,)
    monkeypatch.setattr(VectorSpec, "least_modulus_bits", lambda self, bits, clients, steps: 33)
    with pytest.raises(UnsafePlan):
        derive_plan(charter, LaboratoryCourse(), offer, 0)


OWN = VectorSpec("update", (Block("dream", 20, 1.0), Block("seen", 1, 9, "count")), value_bits=10)


@pytest.mark.parametrize(("members", "bits"), [(3, 16), (64, 16), (65, 17), (200, 18)])
def test_each_kind_of_vector_has_a_ring_of_its_own(members: int, bits: int) -> None:
    """Of 16 bits at least where it has a resolution of its own, and with as many values as the ring has room for."""
    kinds = (OWN, VectorSpec("logits", (Block("a", 1, 1.0),)), VectorSpec("counts", (Block("a", 1, 9, "count"),)))
    charter = make_charter(members, mode="resilient")
    plan = derive_plan(charter, LaboratoryCourse(kinds, 3), Offer(0, charter.everybody, bytes(32)), 0)
    more = (members - 1).bit_length()
    assert plan.moduli == (bits, 16 + more, 8 + more) == tuple(map(plan.modulus_bits, range(3)))
    assert plan.top(0) >= 1023 and members * plan.top(0) < 1 << bits <= members * (plan.top(0) + 1)
    assert plan.top(1) == (1 << 16) - 1


def test_a_resolution_of_its_own_counts_for_the_policy() -> None:
    plan = planned(LaboratoryCourse((OWN,), 3), value_bits=8)
    assert plan.top(0).bit_length() == 13 == plan.finest_bits and planned(value_bits=8).finest_bits == 8
    policy = msgspec.structs.replace(POLICY, most_value_bits=13, most_coordinates=21)
    policy.check(plan)
    with pytest.raises(PolicyViolation, match="bits of a value: 13"):
        msgspec.structs.replace(policy, most_value_bits=12).check(plan)


EXACT: dict[str, Any] = {
    "least_cohort": 9,
    "least_survivors": 5,
    "colluders": 2,
    "modes": ("resilient",),
    "suites": ("aes-256-ctr",),
    "most_steps": 3,
    "most_coordinates": 20,
    "most_value_bits": 16,
}
POLICY = Policy(**EXACT)


def test_a_policy_permits_its_limits() -> None:
    POLICY.check(PLAN)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("least_cohort", 10),
        ("least_survivors", 6),
        ("colluders", 3),
        ("modes", ("lockstep",)),
        ("suites", ("chacha20",)),
        ("most_steps", 2),
        ("most_coordinates", 19),
        ("most_value_bits", 15),
        ("least_noise", 0.1),
    ],
)
def test_a_policy_refuses_one_more_than_its_limit(field: str, value: Any) -> None:
    with pytest.raises(PolicyViolation) as caught:
        msgspec.structs.replace(POLICY, **{field: value}).check(PLAN)
    assert caught.value.found and caught.value.allowed and caught.value.code == "policy"


def test_parts_of_blocks_are_summed_only_where_the_policy_says_so_or_with_noise() -> None:
    plan = planned(losses="allow")
    with pytest.raises(PolicyViolation):
        POLICY.check(plan)
    msgspec.structs.replace(POLICY, losses=True).check(plan)
    spec = VectorSpec("update", (Block("dream", 16, 1.0),)).with_noise(1.0, 1.0, plan.charter.least_honest)
    msgspec.structs.replace(POLICY, most_coordinates=64).check(planned(LaboratoryCourse((spec,)), losses="allow"))


def test_every_limit_of_a_policy_has_a_test() -> None:
    """`most_total_steps`, `most_rho` and `most_wrong_sums` count over a client's life, `cuts` over its charters: see
    the attacks, test_true_sums and the party's tests."""
    assert set(Policy.__struct_fields__) == {
        "least_cohort", "least_survivors", "colluders", "modes", "suites", "most_steps", "most_total_steps",
        "most_coordinates", "most_value_bits", "losses", "cuts", "least_noise", "most_rho", "most_wrong_sums",
        "shared_noise",
    }  # fmt: skip


@pytest.mark.parametrize("members", [3, 5, 30])
def test_the_default_policy_takes_the_default_charter(members: int) -> None:
    charter = make_charter(members)
    Policy().check(derive_plan(charter, LaboratoryCourse(), Offer(0, charter.everybody, bytes(32)), 0))
