"""A client's count of answered steps outlives its process: a server gets no second life by a client's restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from codream_clients.step_count import StepCount
from codream_protocols.client import ClientProtocol, State
from codream_protocols.errors import PolicyViolation
from codream_protocols.messages import Broadcast, PlanOffer
from codream_protocols.plan import Policy
from secure_codream.threats.federation import STATE, Federation

VICTIM, ALLOWED = 0, 3
POLICY = Policy(least_cohort=2, least_survivors=2, colluders=0, tasks={"update": 1.0}, most_total_steps=ALLOWED)


def started(whole: Federation, count: StepCount, *, remembers: bool = True) -> ClientProtocol:
    """The victim's machine as its process starts it."""
    return ClientProtocol(
        member=VICTIM,
        signer=whole.signers[VICTIM],
        roster=whole.roster,
        policy=POLICY,
        answered_steps=count.steps if remembers else 0,
        count=count.add,
    )


def federation(count: StepCount) -> Federation:
    whole = Federation(4, policy=POLICY, steps=2)
    whole.clients[VICTIM] = started(whole, count)
    assert whole.set_up()
    return whole


@pytest.mark.parametrize("remembers", [True, False], ids=["remembered", "control: forgotten"])
def test_an_endless_session_does_not_go_on_after_a_restart(tmp_path: Path, remembers: bool) -> None:
    whole = federation(StepCount(tmp_path / "answered_steps"))
    for _ in range(2):
        assert whole.step() is not None
    again = started(whole, StepCount(tmp_path / "answered_steps"), remembers=remembers)
    offer = PlanOffer(msgspec.structs.replace(whole.plan, session=bytes(15) + b"\1"))
    if remembers:
        with pytest.raises(PolicyViolation, match="2 more steps after 2"):
            again.receive(offer)
    else:
        again.receive(offer)
    assert (again.plan is not None) is not remembers


def test_a_step_that_cannot_be_counted_is_not_begun(tmp_path: Path) -> None:
    whole = federation(StepCount(tmp_path / "gone" / "answered_steps"))
    message = Broadcast(whole.plan.digest, 0, (1.0,), (STATE.shape,))
    with pytest.raises(FileNotFoundError):
        whole.tell(VICTIM, message, (STATE.tobytes(),))
    assert (whole.clients[VICTIM].state, whole.clients[VICTIM].answered_steps) == (State.READY, 0)
    (tmp_path / "gone").mkdir()  # control: now it can
    whole.tell(VICTIM, message, (STATE.tobytes(),))
    assert whole.clients[VICTIM].state is State.COMPUTING
    assert StepCount(tmp_path / "gone" / "answered_steps").steps == 1
