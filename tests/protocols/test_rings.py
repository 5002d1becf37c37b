"""Sums of more than 200 members, on rings: real machines, with a few members on rings of their own degree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from codream_protocols import charter as charter_module
from codream_protocols import keyschedule
from codream_protocols.charter import Offer, derive_plan
from codream_protocols.errors import CohortRefused, InconsistentSurvivors, ShareRefused, UnsafePlan, VectorRefused
from codream_protocols.messages import (
    Advertisement,
    Complaint,
    MaskedInput,
    OpenedStarts,
    Published,
    Seals,
    SignedBy,
    Starts,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
)
from codream_protocols.neighbours import MAX_COMPLETE, Degree, Ring, least_degree, ring, silent
from codream_protocols.server import Phase
from secure_codream.simulation.rings import small_rings, spread
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, make_charter
from secure_codream.threats.checker import neighbour_graph as study
from secure_codream.threats.laboratory.rings import ring_of

MEMBERS, NEIGHBOURS, THRESHOLD = 14, 8, 5


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_rings(NEIGHBOURS, THRESHOLD):
        yield


def federation() -> Federation:
    return Federation(MEMBERS, mode="resilient", losses="allow", steps=2)


# -- how many neighbours ---------------------------------------------


@pytest.mark.parametrize(("members", "colluders"), [(300, 3), (1_000, 50), (2_000, 20)])
def test_as_many_neighbours_as_the_study_asks_for_after_2_to_the_128_tries(members: int, colluders: int) -> None:
    degree = least_degree(members, colluders)
    assert degree is not None
    shown = members - silent(members)
    found = study.Degree(*degree)
    assert max(study.secrecy(shown, colluders, found), study.cut(shown, colluders, found)) <= -40 - 128
    assert study.life(members, members // 10, found) <= -40
    fewer = study.Degree(degree.neighbours - 2, degree.threshold - 1)
    assert max(study.secrecy(shown, colluders, fewer), study.cut(shown, colluders, fewer)) > -40 - 128 - 1 or (
        study.life(members, members // 10, fewer) > -40
    )


def test_where_no_number_of_neighbours_holds_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert least_degree(1_000, 300) is None
    charter = make_charter(30, mode="resilient", losses="allow", colluders=14)
    with (
        monkeypatch.context() as deployed,  # undone before the fixture is
        pytest.raises(UnsafePlan, match="30 members with 14 colluders"),
    ):
        deployed.setattr(charter_module, "least_degree", least_degree)
        derive_plan(charter, LaboratoryCourse(), Offer(0, charter.everybody, charter.first_head), 0)


def test_up_to_200_members_all_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_COMPLETE == 200
    with monkeypatch.context() as deployed:  # undone before the fixture is
        deployed.setattr(charter_module, "MAX_COMPLETE", MAX_COMPLETE)
        for members, complete in ((200, True), (201, False)):
            charter = make_charter(members, mode="resilient", losses="allow")
            plan = derive_plan(charter, LaboratoryCourse(), Offer(0, charter.everybody, charter.first_head), 0)
            assert (plan.degree is None) is complete is (plan.ring(bytes(32), charter.everybody) is None)


# -- the graph ---------------------------------------------


def test_neighbours_are_mutual_and_another_transcript_gives_another_ring() -> None:
    members = (*range(20), 300)
    found = ring(bytes(32), members, Degree(6, 4))
    assert all(len(found.of(one)) == 6 and one not in found.of(one) for one in members)
    assert all(one in found.of(other) for one in members for other in found.of(one))
    points = [found.point(3, holder) for holder in found.of(3)]
    assert points == [1, 2, 3, 4, 5, 6]
    for place, one in enumerate(members):
        assert found.points[place].tolist() == [found.point(other, one) for other in found.of(one)]
    assert (ring(b"\1" * 32, members, Degree(6, 4)).rows != found.rows).any()


def test_numbers_of_members_are_told_apart_in_both_forms() -> None:
    assert keyschedule.numbers(1, 2, 255) == bytes([1, 2, 255])
    assert keyschedule.numbers(1, 256) == bytes([0, 0, 0, 1, 0, 0, 1, 0])
    assert keyschedule.numbers() == b""


# -- whole epochs ---------------------------------------------


def test_an_epoch_on_a_ring_gives_the_sums_of_who_is_there() -> None:
    fed = federation()
    assert fed.set_up()
    found = fed.step()
    assert found is not None and found.survivors == fed.everybody
    assert (found.total == fed.plain_sum(0, fed.everybody)).all()
    gone = fed.step({(3, MaskedInput), (7, MaskedInput), (7, Survivors)})
    assert gone is not None and gone.survivors == tuple(one for one in fed.everybody if one not in (3, 7))
    assert (gone.total == fed.plain_sum(1, gone.survivors)).all()
    assert fed.finish() is not None
    assert [member for member, _ in fed.refusals] == [7]  # it was not told the survivors, and then their signatures


def test_masks_and_shares_are_of_neighbours_alone() -> None:
    fed = federation()
    assert fed.set_up()
    found = ring_of(fed)
    sealed = {item.member: item.message for item in fed.sent if isinstance(item.message, Seals)}
    for member, message in sealed.items():
        sizes = {seal.member: len(seal.ciphertext) for seal in message.items}
        full = {one for one, size in sizes.items() if size > 48}
        assert full == set(found.of(member))
        assert set(sizes) - full <= ({0} if member else set(fed.everybody))  # the first member's value alone


def test_who_is_silent_as_starts_are_opened_is_spoken_for_by_its_partners() -> None:
    fed = federation()
    assert fed.set_up(lost={(4, OpenedStarts), (9, OpenedStarts)})
    assert fed.step() is not None


def test_wrong_start_shares_are_refused_by_both_sides() -> None:
    fed = federation()
    fed.set_up(lost={(one, Starts) for one in fed.everybody})
    told = next(item.message for item in fed.sent if isinstance(item.message, Starts))
    assert isinstance(told, Starts)
    with pytest.raises(VectorRefused):
        fed.tell(2, Starts(told.plan, told.shares[32:] + told.shares[:32]))
    fed.perform(2, fed.tell(2, told))
    assert fed.tell(2, told) == []  # the same again
    with pytest.raises(CohortRefused):
        fed.tell(2, Starts(told.plan, bytes(len(told.shares))))


def test_a_server_refuses_start_shares_that_nobody_committed_to() -> None:
    fed = federation()
    fed.hello()
    fed.drain()
    fed.emit(fed.server.open_epoch(fed.server.cohort()))
    fed.drain(hold=(OpenedStarts,))
    item = fed.wire[0]
    assert isinstance(item.message, OpenedStarts)
    with pytest.raises(VectorRefused):
        fed.hear(item.member, OpenedStarts(item.message.plan, bytes(len(item.message.shares))))
    with pytest.raises(VectorRefused):
        fed.hear(item.member, OpenedStarts(item.message.plan, item.message.shares[32:]))
    fed.drain()
    assert fed.server.phase is Phase.COLLECTING


# -- rules ---------------------------------------------


def test_everybody_too_is_answered_for_only_once_most_have_signed() -> None:
    fed = federation().masked()
    plan = fed.plan
    assert plan.least_signers == (MEMBERS + 1) // 2 + 1 > THRESHOLD
    (effect,) = fed.tell(0, Survivors(plan.digest, 0, fed.everybody))
    assert isinstance(effect.message, SurvivorSignature)
    items = []
    for one in fed.everybody[1 : plan.least_signers]:
        (signed,) = fed.tell(one, Survivors(plan.digest, 0, fed.everybody))
        items.append((one, signed.message.signature))
    signatures = tuple(SignedBy(*item) for item in items)
    with pytest.raises(InconsistentSurvivors):
        fed.tell(0, SurvivorSignatures(plan.digest, 0, signatures[:-1]))
    (answer,) = fed.tell(0, SurvivorSignatures(plan.digest, 0, signatures))
    assert isinstance(answer.message, UnmaskShares) and len(answer.message.shares) == 32 * NEIGHBOURS


def test_survivors_without_enough_neighbours_are_refused_by_everybody() -> None:
    fed = federation().masked()
    found = ring_of(fed)
    few = found.of(2)[: NEIGHBOURS - THRESHOLD + 1]
    survivors = tuple(one for one in fed.everybody if one not in few)
    assert 2 in found.lacking(survivors, survivors)
    for member in fed.everybody:
        with pytest.raises(CohortRefused, match="too few neighbours"):
            fed.tell(member, Survivors(fed.plan.digest, 0, survivors))


# One behind the other, with 12 neighbours and a threshold of 7, these lost: member 8 has 6 left, all others enough even
# without it. Of 150 steps of 1,000 members of whom a quarter fell silent that happened in one.
AROUND_ONE = {2, 3, 7, 9, 13, 14}


def test_who_lacks_neighbours_cannot_be_left_out_of_a_sum_of_all() -> None:
    with small_rings(12, 7, spread(range(1, 7))):
        fed = Federation(24, mode="resilient", losses="allow", steps=2)
        assert fed.set_up()
        rest = [one for one in fed.everybody if one not in AROUND_ONE]
        others = [one for one in rest if one != 8]
        assert ring_of(fed).lacking(rest, rest) == [8] and ring_of(fed).lacking(others, others) == []
        assert fed.step({(one, MaskedInput) for one in AROUND_ONE}) is None
    (given_up,) = fed.given_up
    assert "too few vectors" in given_up.reason and not given_up.wrong_sum
    assert not any(isinstance(item.message, Survivors | Published) for item in fed.sent)


def test_a_block_that_lacks_neighbours_is_left_out() -> None:
    lost, lacking = ((0, 5, 11), (1, 7, 12)), (6, 18, 19)
    blocks = (*lost, lacking, (2, 15, 22), (3, 9, 21), (4, 13, 16), (8, 14, 20), (10, 17, 23))
    with small_rings(12, 7, spread(range(1, 7))):
        fed = Federation(24, mode="resilient", blocks=blocks, steps=1)
        assert fed.set_up()
        found = fed.step({(one, MaskedInput) for block in lost for one in block})
    assert found is not None
    assert set(found.survivors) == set(fed.everybody) - {one for block in (*lost, lacking) for one in block}
    assert (found.total == fed.plain_sum(0, found.survivors)).all()
    assert not fed.refusals and fed.finish() is not None


def test_a_tenth_may_be_missing_when_the_ring_is_made_and_no_more() -> None:
    fed = federation()
    assert fed.plan.least_members == MEMBERS - 1
    assert fed.set_up(lost={(3, Advertisement)})
    other = federation()
    assert not other.set_up(lost={(3, Advertisement), (5, Advertisement)})


def test_seals_for_others_than_partners_are_refused() -> None:
    fed = federation()
    fed.hello()
    fed.drain()
    fed.emit(fed.server.open_epoch(fed.server.cohort()))
    fed.drain(hold=(Seals,))
    item = next(one for one in fed.wire if one.member == 4)
    assert isinstance(item.message, Seals)
    with pytest.raises(ShareRefused):
        fed.hear(4, Seals(item.message.plan, item.message.items[:-1]))


def test_a_complaint_about_others_than_partners_is_refused() -> None:
    fed = federation().masked()
    partners = ring_of(fed).partners(4)
    stranger = next(one for one in fed.everybody if one not in (4, *partners))
    with pytest.raises(CohortRefused, match="sealed nothing"):
        fed.hear(4, Complaint(fed.plan.digest, stranger))
    assert not fed.server.conflicts and fed.server.plan is not None
    fed.emit(fed.hear(4, Complaint(fed.plan.digest, partners[-1])))
    assert len(fed.given_up) == 1


# -- wrong shares, and a server that is started again ---------------------------------------------


def test_a_members_wrong_shares_are_found_and_left_out() -> None:
    fed = federation().masked()
    fed.emit(fed.server._advance())
    for member in fed.everybody:
        fed.perform(member, fed.tell(member, Survivors(fed.plan.digest, 0, fed.everybody)))
    fed.drain(hold=(UnmaskShares,))
    assert fed.server.phase is Phase.UNMASKING
    for item in list(fed.wire):
        if item.kind is UnmaskShares and item.member == 6:
            fed.wire.remove(item)
    fed.hear(6, UnmaskShares(fed.plan.digest, 0, bytes(32 * NEIGHBOURS)))
    fed.drain()
    assert (fed.reveals[0].total == fed.plain_sum(0, fed.everybody)).all()


@pytest.mark.parametrize("phase", [Phase.SEALING, Phase.OPENING, Phase.COLLECTING, Phase.AGREEING, Phase.UNMASKING])
def test_a_server_that_is_started_again_goes_on_in_its_epoch(phase: Phase) -> None:
    holds = {
        Phase.SEALING: Seals,
        Phase.OPENING: OpenedStarts,
        Phase.COLLECTING: MaskedInput,
        Phase.AGREEING: SurvivorSignature,
        Phase.UNMASKING: UnmaskShares,
    }
    fed = federation()
    fed.hello()
    fed.drain()
    fed.emit(fed.server.open_epoch(fed.server.cohort()))
    fed.drain(hold=(holds[phase],))
    fed.compute()
    fed.drain(hold=(holds[phase],))
    assert fed.server.phase is phase
    fed.restart_server()
    assert fed.server.phase is phase
    fed.hello()
    fed.drain()
    fed.compute()
    fed.drain()
    while fed.server.step is not None:
        assert fed.step() is not None
    fed.finish()
    assert len(fed.certified) == 1
    assert (fed.reveals[0].total == fed.plain_sum(0, fed.everybody)).all()
    assert np.array_equal(fed.reveals[0].survivors, fed.everybody)


def test_a_ring_is_what_its_rows_say() -> None:
    found = ring(bytes(32), tuple(range(10)), Degree(4, 3))
    assert isinstance(found, Ring)
    everybody = found.members
    assert found.lacking(everybody, everybody) == []
    assert found.lacking([0], found.of(0)[:2]) == [0]
