"""Offers of epochs: what a client joins, once only, and what is on disk before anything of it leaves.

Restarts and full disks are no way around it.
"""

from __future__ import annotations

from typing import Any

import pytest

from codream_protocols.charter import Policy
from codream_protocols.client import State
from codream_protocols.errors import CohortRefused, PolicyViolation, WrongContext
from codream_protocols.messages import Advertisement, Farewell, Invitation
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import invite

# -- offers ---------------------------------------------


@pytest.mark.parametrize("how", ["strangers", "without the client", "a part of a block", "unordered", "too few"])
def test_offers_of_another_world_are_refused(how: str) -> None:
    federation = Federation(9, mode="resilient")
    cohort = {
        "strangers": (*range(9), 9),
        "without the client": tuple(range(3, 9)),
        "a part of a block": tuple(range(8)),
        "unordered": tuple(reversed(range(9))),
        "too few": (0, 1),
    }[how]
    before = snapshot(federation.clients[0])
    with pytest.raises(CohortRefused):
        federation.tell(0, Invitation(federation.offer(cohort=cohort)))
    assert snapshot(federation.clients[0]) == before and not federation.diaries[0].plans


def test_an_epoch_is_joined_once_and_only_ever_a_later_one() -> None:
    federation = Federation(4)
    federation.tell(0, Invitation(federation.offer(epoch=4)))
    for epoch in (0, 3):
        with pytest.raises(WrongContext):
            federation.tell(0, Invitation(federation.offer(epoch=epoch)))
    federation.tell(0, Farewell("over", False))
    for epoch in (0, 4):
        with pytest.raises(WrongContext):
            federation.tell(0, Invitation(federation.offer(epoch=epoch)))
    federation.restart(0)
    with pytest.raises(WrongContext):
        federation.tell(0, Invitation(federation.offer(epoch=4)))
    federation.tell(0, Invitation(federation.offer(epoch=5)))


def test_the_offer_in_force_is_answered_with_the_same_advertisement() -> None:
    federation = Federation(4)
    first = invite(federation, 0)
    assert invite(federation, 0) == first and isinstance(first, Advertisement)
    assert federation.diaries[0].memory.attempts == 1


@pytest.mark.parametrize("remembers", [True, False], ids=["defended", "control"])
def test_a_restarted_client_does_not_join_its_plan_again(remembers: bool) -> None:
    federation = Federation(5, mode="resilient")
    offer = federation.offer()
    first = invite(federation, 0, offer)
    federation.restart(0, remembers=remembers)
    if remembers:
        with pytest.raises(WrongContext):
            invite(federation, 0, offer)
    else:
        assert invite(federation, 0, offer) not in (first, None)


def test_a_plan_is_on_disk_as_joined_before_anything_of_it_leaves() -> None:
    federation = Federation(4)
    diary = federation.diaries[0]

    def full(epoch: int, plan: bytes) -> None:
        raise OSError("no space left on device")

    diary.joined = full  # type: ignore[method-assign]
    before = snapshot(federation.clients[0])
    with pytest.raises(OSError, match="space"):
        invite(federation, 0)
    assert snapshot(federation.clients[0]) == before


@pytest.mark.parametrize("what", ["began", "voted"])
def test_a_journal_that_cannot_be_written_ends_the_epoch_before_anything_leaves(what: str) -> None:
    federation = Federation(4, steps=1)

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    setattr(federation.diaries[0], what, full)
    with pytest.raises(OSError, match="space"):
        federation.voted()
    assert federation.clients[0].state is State.IDLE and federation.clients[0].plan is None
    kinds = {item.kind.__name__ for item in federation.sent if item.to_server and item.member == 0}
    assert ("MaskedInput" if what == "began" else "Vote") not in kinds


def test_an_endless_federation_is_bounded_over_restarts() -> None:
    federation = Federation(4, steps=2, policy=Policy(most_total_steps=5))
    federation.run(2)
    federation.restart(0)
    assert federation.clients[0].steps_begun == 4
    with pytest.raises(PolicyViolation):
        federation.tell(0, Invitation(federation.offer()))
