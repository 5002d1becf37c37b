"""The set-up of an epoch: advertisements that are shown, and seals on their way, on either side.

Members that cannot talk to each other complain, and the next cohort leaves one of them out.
"""

from __future__ import annotations

import msgspec
import pytest

from codream_protocols.client import State
from codream_protocols.errors import BadSignature, CohortRefused, ShareRefused, UnexpectedMessage
from codream_protocols.messages import Complaint, Seal, SealDelivery, Seals, UnmaskShares, decode_to_server
from codream_protocols.server import Phase, SendSeals
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.wire import Federation
from secure_codream.threats.attacks.enrolment import LOW_ORDER
from secure_codream.threats.laboratory.adversary import advertised, delivered, resigned, shown
from secure_codream.threats.laboratory.liar import set_up_with_liar

# -- what the server says before it ---------------------------------------------


@pytest.mark.parametrize("chosen", [(), (0,), (0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4, 5), (3, 4, 5)])
def test_advertisements_of_too_few_or_of_parts_or_without_the_client_are_refused(chosen: tuple[int, ...]) -> None:
    federation = Federation(6, mode="resilient")
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in chosen}))


def test_lockstep_shows_everybody() -> None:
    federation = Federation(6)
    items = advertised(federation)
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, {member: items[member] for member in range(5)}))
    federation.tell(0, shown(federation, items))


def test_advertisements_with_another_in_the_clients_name_are_refused() -> None:
    federation, twin = Federation(4), Federation(4)
    items = advertised(federation)
    twin.clients[0]._random = lambda count: b"\x05" * count
    items[0] = advertised(twin)[0]  # rightly signed: by the same client, with other keys
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


@pytest.mark.parametrize("low", LOW_ORDER, ids=lambda key: key.hex()[:8])
@pytest.mark.parametrize("field", ["share_key", "mask_keys"])
def test_the_server_machine_refuses_low_order_keys(low: bytes, field: str) -> None:
    federation = opened()
    item = advertised(federation, federation.server.plan.offer)[1]
    changed = low if field == "share_key" else item.mask_keys[:32] + low + item.mask_keys[64:]
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, item, **{field: changed}))
    federation.server.receive(1, item)


@pytest.mark.parametrize("field", ["share_key", "kem_key", "commitment", "start_commitment"])
def test_the_server_machine_refuses_repeated_keys(field: str) -> None:
    federation = opened()
    items = advertised(federation, federation.server.plan.offer)
    federation.server.receive(2, items[2])
    with pytest.raises(CohortRefused):
        federation.server.receive(1, resigned(federation, items[1], **{field: getattr(items[2], field)}))
    federation.server.receive(1, items[1])


def opened() -> Federation:
    """A resilient federation whose server has opened an epoch; nothing is delivered."""
    federation = Federation(6, mode="resilient")
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    federation.wire.clear()
    return federation


def test_keys_for_another_number_of_steps_are_refused() -> None:
    federation = Federation(6, mode="resilient")
    items = advertised(federation)
    items[1] = resigned(federation, items[1], mask_keys=items[1].mask_keys[:64])
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


def test_lockstep_takes_no_mask_keys() -> None:
    federation = Federation(4)
    items = advertised(federation)
    items[1] = resigned(federation, items[1], mask_keys=bytes(range(96)))
    with pytest.raises(CohortRefused):
        federation.tell(0, shown(federation, items))


# -- seals on their way ---------------------------------------------


@pytest.mark.parametrize("how", ["a sender missing", "a sender twice", "a stranger", "unordered", "its own"])
def test_deliveries_with_other_senders_than_the_members_are_refused(how: str) -> None:
    federation = Federation(5)
    federation.set_up(lost={(0, SealDelivery)})
    items = delivered(federation, 0).items
    before = snapshot(federation.clients[0])
    changed = {
        "a sender missing": items[1:],
        "a sender twice": (items[0], *items),
        "a stranger": (*items, msgspec.structs.replace(items[0], member=9)),
        "unordered": items[::-1],
        "its own": (msgspec.structs.replace(items[0], member=0), *items),
    }[how]
    with pytest.raises((CohortRefused, ShareRefused)):
        federation.tell(0, SealDelivery(federation.plan.digest, changed))
    assert snapshot(federation.clients[0]) == before and before["state"] is State.SEALED


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_signed_garbage_of_a_member_is_complained_of_and_reveals_nothing(mode: str) -> None:
    """The server learns that the pair cannot talk, and nobody shows a key for it."""
    federation = Federation(6, mode=mode)
    epoch_of = federation.clients[0]
    assert not set_up_with_liar(federation, 5, (0,))
    complaint = next(item for item in federation.sent if item.kind is Complaint)
    assert complaint.member == 0 and complaint.message == Complaint(federation.plan.digest, 5)
    assert epoch_of.state is State.IDLE and epoch_of.plan is None
    assert federation.server.conflicts == {(0, 5)} and federation.server.phase is Phase.IDLE
    assert "client-0" in federation.failures[0] and "client-5" in federation.failures[0]
    assert not any(item.kind is UnmaskShares for item in federation.sent)


def test_the_next_cohort_avoids_a_pair_in_conflict() -> None:
    federation = Federation(9, mode="resilient")
    set_up_with_liar(federation, 8, (0,))
    seen = set()
    for _ in range(4):
        cohort = federation.server.cohort()
        assert cohort and not {0, 8} <= set(cohort) and federation.charter.is_union(cohort)
        seen |= {0, 8} & set(cohort)
        assert federation.set_up()
        while federation.server.step is not None:
            federation.step()
        federation.finish()
    assert seen == {0, 8}  # a liar does not choose which of the two stays away for good


def test_a_liar_in_conflict_with_many_stays_away_itself() -> None:
    federation = Federation(9, mode="resilient")
    for victim in (0, 3):
        set_up_with_liar(federation, 8, (victim,))
    federation.server.conflicts |= {(0, 8), (3, 8)}
    for _ in range(2):
        assert federation.server.cohort() == (0, 1, 2, 3, 4, 5)
        federation.server._next_epoch += 1


def test_lockstep_tries_again_and_says_who() -> None:
    federation = Federation(4)
    for _ in range(2):
        assert not set_up_with_liar(federation, 3, (1,))
    assert all("client-1 could not open what client-3" in reason for reason in federation.failures)
    assert federation.set_up()  # once it seals honestly


def test_a_complaint_about_a_stranger_or_after_the_start_is_refused() -> None:
    federation = Federation(4)
    federation.set_up()
    plan = federation.plan.digest
    for member, about in ((0, 0), (0, 9)):
        with pytest.raises(CohortRefused):
            federation.server.receive(member, Complaint(plan, about))
    federation.step()
    with pytest.raises(UnexpectedMessage):
        federation.server.receive(0, Complaint(plan, 1))


@pytest.mark.parametrize("change", ["one more", "one fewer", "its own", "short", "unsigned"])
def test_the_server_refuses_seals_that_do_not_fit(change: str) -> None:
    federation = Federation(4)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    federation.drain(hold=(Seals,))
    item = next(item for item in federation.wire if item.kind is Seals and item.member == 0)
    items = item.message.items
    replace = msgspec.structs.replace
    changed = {
        "one more": (*items, replace(items[0], member=9)),
        "one fewer": items[1:],
        "its own": (replace(items[0], member=0), *items),
        "short": (replace(items[0], ciphertext=items[0].ciphertext[:-1] or bytes(48)), *items[1:]),
        "unsigned": (replace(items[0], signature=bytes(64)), *items[1:]),
    }[change]
    if change == "short":
        changed = (replace(items[0], ciphertext=items[0].ciphertext + b"x"), *items[1:])
    with pytest.raises((ShareRefused, BadSignature)):
        federation.server.receive(0, Seals(federation.plan.digest, changed))
    federation.drain()
    assert federation.server.phase is Phase.COLLECTING


def test_what_was_sealed_for_a_member_is_read_when_it_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all members at once may be more than fits into memory."""
    federation = Federation(4)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(federation.everybody))
    federation.drain(hold=[Seals])
    *first, last = federation.wire
    for item in first:
        federation.deliver(item)
    reads, real = list[int](), federation.server_journal.seals_for

    def seals_for(member: int) -> tuple[Seal, ...]:
        reads.append(member)
        return real(member)

    monkeypatch.setattr(federation.server_journal, "seals_for", seals_for)
    effects = federation.hear(last.member, decode_to_server(last.data))
    assert reads == []
    third = effects[2]
    assert isinstance(third, SendSeals) and [item.member for item in third.message.items] == [0, 1, 3]
    assert reads == [third.member] == [2]
