"""Charters under which a promise fails, what may be summed, and what a plan follows from."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codream_protocols.charter import (
    Aggregation,
    Charter,
    Offer,
    Plan,
    Policy,
    Predecessor,
    check_charter,
    cuts,
    default_threshold,
    derive_plan,
    even_blocks,
)
from codream_protocols.errors import CharterRefused, CohortRefused, UnsafePlan, WrongContext
from codream_protocols.masks import SUITES
from codream_protocols.messages import MaskedInput
from codream_protocols.server import ServerProtocol
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, make_charter
from secure_codream.threats.attacks.charters import CHANGES, changed_world
from secure_codream.threats.laboratory.switches import SWITCHES

CHARTER = make_charter(9, mode="resilient", colluders=1)
COURSE = LaboratoryCourse()


def changed(**fields: Any) -> Charter:
    return msgspec.structs.replace(CHARTER, **fields)


# -- the charter itself ---------------------------------------------


OTHER: dict[str, Any] = {
    "roster": b"r" * 32,
    "members": 10,
    "settings": b"s" * 32,
    "aggregation": Aggregation(mode="resilient", attempts=7),
    "blocks": (tuple(range(9)),),
    "predecessor": Predecessor(bytes(32), bytes(32), 0),
}


def test_charters_and_policies_take_the_mask_generators_that_there_are() -> None:
    permitted, *_ = get_args(get_type_hints(Policy)["suites"])
    for allowed in (permitted, get_type_hints(Aggregation)["suite"]):
        assert get_args(allowed) == tuple(SUITES)
    assert Policy().suites == tuple(SUITES)


@pytest.mark.parametrize("field", Charter.__struct_fields__)
def test_the_digest_and_the_first_head_cover_every_field(field: str) -> None:
    other = changed(**{field: OTHER[field]})
    assert other.digest != CHARTER.digest and len(CHARTER.digest) == 32 and changed().digest == CHARTER.digest
    assert other.first_head != CHARTER.first_head


@pytest.mark.parametrize("field", Aggregation.__struct_fields__)
def test_the_digest_covers_every_field_of_the_aggregation(field: str) -> None:
    other = {
        "mode": "lockstep",
        "colluders": 2,
        "least_survivors": 4,
        "value_bits": 17,
        "suite": "chacha20",
        "losses": "allow",
        "attempts": 19,
    }
    aggregation = msgspec.structs.replace(CHARTER.aggregation, **{field: other[field]})
    assert changed(aggregation=aggregation).digest != CHARTER.digest


def test_a_successor_names_its_predecessors_head() -> None:
    first, second = (changed(predecessor=Predecessor(b"c" * 32, head * 32, 3)) for head in (b"1", b"2"))
    assert first.first_head != second.first_head


UNSAFE: dict[str, dict[str, Any]] = {
    "a member twice": {"blocks": ((0, 1, 2, 3), (3, 4, 5), (6, 7, 8))},
    "a member in no block": {"blocks": ((0, 1, 2), (3, 4, 5), (6, 7))},
    "a stranger in a block": {"blocks": ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))},
    "a block of c + 1": {"blocks": ((0, 1), (2, 3, 4), (5, 6, 7, 8))},
    "one honest input": {"aggregation": Aggregation(mode="resilient", colluders=2, least_survivors=3)},
    "more survivors than members": {"aggregation": Aggregation(mode="resilient", least_survivors=10)},
}


@pytest.mark.parametrize("what", UNSAFE)
def test_unsafe_charters_are_refused_by_both_sides(what: str) -> None:
    check_charter(CHARTER)
    charter = changed(**UNSAFE[what])
    with pytest.raises(UnsafePlan):
        check_charter(charter)
    federation = Federation(9, mode="resilient")
    with pytest.raises(UnsafePlan):
        ServerProtocol(msgspec.structs.replace(charter, roster=federation.roster.hash), federation.roster, COURSE)
    with pytest.raises(UnsafePlan):
        Federation(9, charter=charter)


def test_lockstep_is_for_few() -> None:
    check_charter(make_charter(64))
    with pytest.raises(UnsafePlan):
        check_charter(make_charter(65))
    check_charter(make_charter(200, mode="resilient"))


def test_losses_allowed_need_no_large_blocks() -> None:
    pairs = tuple((one, one + 1) for one in range(0, 8, 2))
    with pytest.raises(UnsafePlan):
        check_charter(make_charter(8, mode="resilient", blocks=pairs))
    check_charter(make_charter(8, mode="resilient", blocks=pairs, losses="allow"))


@given(members=st.integers(3, 200), colluders=st.integers(1, 20))
def test_even_blocks_are_a_partition_of_blocks_as_small_as_they_may_be(members: int, colluders: int) -> None:
    blocks = even_blocks(members, colluders)
    assert [one for block in blocks for one in block] == list(range(members))
    sizes = {len(block) for block in blocks}
    assert max(sizes) - min(sizes) <= 1
    if members >= colluders + 2:
        assert min(sizes) >= colluders + 2 and (len(blocks) + 1) * (colluders + 2) > members
    else:
        assert len(blocks) == 1


@given(data=st.data())
def test_sums_over_whole_blocks_separate_no_member_of_one(data: st.DataObject) -> None:
    """Whatever sums are given, each combination of them is constant on every block."""
    members = data.draw(st.integers(6, 20))
    charter = make_charter(members, mode="resilient", least_survivors=3)
    sets = data.draw(st.lists(st.sets(st.integers(0, members - 1), min_size=3), min_size=1, max_size=6))
    weights = data.draw(st.lists(st.integers(-3, 3), min_size=len(sets), max_size=len(sets)))
    combined = [0] * members
    for chosen, weight in zip(sets, weights, strict=True):
        summed = charter.whole_blocks(chosen)
        if len(summed) < 3:
            continue
        charter.check_summed(summed)
        for member in summed:
            combined[member] += weight
    assert all(len({combined[member] for member in block}) == 1 for block in charter.blocks)


SUMMED: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    "everybody": ({}, tuple(range(9)), True),
    "a block": ({}, (3, 4, 5), True),
    "two blocks": ({}, (0, 1, 2, 6, 7, 8), True),
    "a part of a block": ({}, (0, 1, 2, 3), False),
    "one fewer": ({}, tuple(range(8)), False),
    "two": ({}, (0, 1), False),
    "nobody": ({}, (), False),
    "unordered": ({}, (2, 1, 0), False),
    "a repeat": ({}, (0, 0, 1, 2), False),
    "a stranger": ({}, (6, 7, 8, 9), False),
    "too few": ({"least_survivors": 4}, (0, 1, 2), False),
    "lockstep, everybody": ({"mode": "lockstep"}, tuple(range(9)), True),
    "lockstep, two blocks": ({"mode": "lockstep"}, (0, 1, 2, 3, 4, 5), False),
    "a part, where losses are allowed": ({"losses": "allow"}, (0, 1, 2, 3), True),
    "two, where losses are allowed": ({"losses": "allow"}, (0, 1), False),
}


@pytest.mark.parametrize("what", SUMMED)
def test_what_may_be_summed(what: str) -> None:
    options, members, allowed = SUMMED[what]
    charter = make_charter(9, **{"mode": "resilient", **options})
    if allowed:
        charter.check_summed(members)
    else:
        with pytest.raises(CohortRefused):
            charter.check_summed(members)


def test_cuts_are_judged_over_the_common_refinement() -> None:
    old = [("a", "b", "c"), ("d", "e", "f")]
    assert cuts(old, old, 3) == []
    assert cuts(old, [*old, ("g", "h", "i")], 3) == []  # new sites as a block of their own
    assert cuts(old, [("a", "b", "c", "d", "e", "f")], 3) == []
    assert cuts(old, [("a", "b"), ("d", "e", "f")], 3) == [("a", "b"), ("c",)]  # one leaves
    assert cuts(old, [("a", "b", "c", "g"), ("d", "e", "f")], 3) == [("g",)]  # one joins
    assert cuts(old, [("a", "b", "d"), ("c", "e", "f")], 3) == [("a", "b"), ("c",), ("d",), ("e", "f")]


def test_shares_of_noise_are_sized_by_the_smallest_sum() -> None:
    assert make_charter(9, mode="resilient").least_honest == 2
    assert make_charter(9, mode="resilient", least_survivors=7).least_honest == 6
    assert make_charter(9, mode="lockstep").least_honest == 8
    assert make_charter(9, mode="resilient", losses="allow", least_survivors=5).least_honest == 4


@pytest.mark.parametrize("members", range(3, 201))
def test_two_certificates_at_one_head_have_more_than_the_colluders_in_common(members: int) -> None:
    for colluders in (1, 2, members // 3):
        if 1 <= colluders <= members - 2:
            quorum = make_charter(members, mode="resilient", colluders=colluders).quorum
            assert 2 * quorum - members > colluders
            assert make_charter(members, colluders=colluders).quorum == members


# -- the plan ---------------------------------------------


def test_client_and_server_derive_the_same_plan() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    assert {client.plan.digest for client in federation.clients} == {federation.server.plan.digest}


@pytest.mark.parametrize("field", Plan.__struct_fields__)
def test_the_plans_digest_covers_every_field(field: str) -> None:
    plan = derive_plan(CHARTER, COURSE, Offer(0, CHARTER.everybody, bytes(32)), 0)
    other: dict[str, Any] = {
        "protocol": "x",
        "charter": changed(settings=b"x" * 32),
        "offer": Offer(1, CHARTER.everybody, bytes(32)),
        "certified": 1,
        "specs": LaboratoryCourse(steps=3).specs(1)[:0],
        "schedule": (0,),
        "moduli": (32,),
        "threshold": 9,
    }
    assert msgspec.structs.replace(plan, **{field: other[field]}).digest != plan.digest


@pytest.mark.parametrize("offer", [Offer(1, CHARTER.everybody, bytes(32)), Offer(0, CHARTER.everybody, b"h" * 32),
                                   Offer(0, (0, 1, 2, 3, 4, 5), bytes(32))])  # fmt: skip
def test_the_plan_follows_the_offer(offer: Offer) -> None:
    first = derive_plan(CHARTER, COURSE, Offer(0, CHARTER.everybody, bytes(32)), 0)
    assert derive_plan(CHARTER, COURSE, offer, 0).digest != first.digest


@pytest.mark.parametrize("size", range(3, 201))
def test_threshold_rule(size: int) -> None:
    """No party can collect enough shares of both kinds: each honest client gives one, each colluder two."""
    for colluders in (1, 2, size // 4 or 1):
        threshold = default_threshold(size, colluders)
        assert 2 * threshold > size + colluders
        assert threshold <= size or colluders > size - 2


def test_the_ring_does_not_hang_on_who_is_there() -> None:
    bits = {
        derive_plan(CHARTER, COURSE, Offer(0, cohort, bytes(32)), 0).moduli
        for cohort in ((0, 1, 2), tuple(range(6)), tuple(range(9)))
    }
    assert len(bits) == 1


def test_nothing_is_planned_after_the_courses_last_epoch() -> None:
    federation = Federation(4, epochs=2)
    federation.run(2)
    assert federation.server.done
    offer = federation.offer()
    with pytest.raises(WrongContext):
        federation.plan_of(offer)
    longer = Federation(4, epochs=3)
    longer.run(2)
    assert longer.plan_of(longer.offer()).certified == 2


# -- a server with another charter ---------------------------------------------


def test_every_field_of_a_charter_is_among_the_changes() -> None:
    fields = {f"aggregation.{name}" for name in Aggregation.__struct_fields__}
    fields |= set(Charter.__struct_fields__) - {"aggregation"}
    assert fields <= set(CHANGES)


def world(change: str) -> tuple[Federation, ServerProtocol]:
    federation = Federation(9, mode="resilient", colluders=2, least_survivors=5, blocks=even_blocks(9, 2))
    charter, course, roster = changed_world(federation, CHANGES[change])
    return federation, ServerProtocol(charter, roster, course)


@pytest.mark.parametrize("change", [name for name in CHANGES if not name.startswith("course")])
def test_a_client_of_another_charter_is_told_so_at_its_hello(change: str) -> None:
    federation, server = world(change)
    for client in federation.clients[: server.charter.members]:
        with pytest.raises(CharterRefused):
            server.hello(0, client.hello())
    assert server.cohort() == ()


@pytest.mark.parametrize("change", CHANGES)
def test_under_another_charter_or_course_no_sum_ever_opens(change: str) -> None:
    """Even at a server that lets everybody in: keys, chains and masks are those of what the clients agreed on."""
    federation, server = world(change)
    federation.server = server
    with SWITCHES["charter-at-hello"].off():
        federation.hello(federation.server.charter.everybody)
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.server.charter.everybody))
    federation.drain()
    federation.compute()
    federation.drain()
    for _ in range(3):
        federation.emit(federation.server.expire())
        federation.drain()
    assert not federation.reveals
    if "start" not in change:  # at the same plan, a member that stands elsewhere is told apart by its first vector
        assert not any(item.kind is MaskedInput for item in federation.sent)
