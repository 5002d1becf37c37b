"""What is public of an epoch is enough to recompute it, and nothing of it can be changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from codream_protocols import hybrid
from codream_protocols.charter import Offer
from codream_protocols.errors import RemoteProtocolError, VectorRefused
from codream_protocols.messages import EpochRecord, MaskedInput, SignedBy, decode_to_client, encode_message
from codream_protocols.record import History, Kept, certified_epochs, check_certificate, valid_votes
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import told_group_key, transcript_of

FEDERATION = Federation(6, mode="resilient", steps=2, seed=3)
KEPT: list[Kept] = [one.kept for one in FEDERATION.run(3)]


def verified(records: list[Kept]) -> list[tuple[int, bytes]]:
    epochs = certified_epochs(FEDERATION.charter, FEDERATION.roster, FEDERATION.course, records)
    return [(number, head) for number, head, _ in epochs]


def test_start_shares_that_nobody_committed_to_are_refused_before_a_vote_is_looked_at() -> None:
    """Who has no votes yet, a member that was away say, would else take a start that somebody chose."""
    record, frames = KEPT[0]
    forged = msgspec.structs.replace(record, start=bytes(32) + record.start[32:])
    with pytest.raises(VectorRefused, match="did not commit to"):
        History(FEDERATION.charter, FEDERATION.roster, FEDERATION.course).replay((forged, frames))


def test_a_first_vector_with_start_shares_that_nobody_committed_to_moves_no_server() -> None:
    """Else the first liar to answer decides at which start the server stands, and every honest vector is at another."""
    federation = Federation(4)
    federation.set_up()
    federation.compute()
    place = next(place for place, item in enumerate(federation.wire) if item.kind is MaskedInput)
    item = federation.wire.pop(place)
    assert isinstance(item.message, MaskedInput)
    forged = msgspec.structs.replace(item.message, start=bytes(32) + item.message.start[32:])
    with pytest.raises(VectorRefused, match="did not commit to"):
        federation.server.receive(item.member, forged, item.frames)
    federation.deliver(item)
    federation.drain()
    assert federation.server.step == 1 or federation.server.certified or federation.server.phase.value == "voting"


def test_records_give_back_every_head_and_what_was_learnt() -> None:
    epochs = list(certified_epochs(FEDERATION.charter, FEDERATION.roster, FEDERATION.course, KEPT))
    assert [number for number, _, _ in epochs] == [1, 2, 3]
    assert epochs[-1][1] == FEDERATION.server.head == FEDERATION.clients[0].head
    for (_, _, trajectory), certified in zip(epochs, FEDERATION.certified, strict=True):
        assert (trajectory.publication()["result"] == certified.publication["result"]).all()


def test_a_record_travels_as_a_message() -> None:
    record, frames = KEPT[0]
    back = decode_to_client(encode_message(record))
    assert isinstance(back, EpochRecord) and verified([(back, frames)]) == verified(KEPT[:1])


def changed(**fields: Any) -> Kept:
    record, frames = KEPT[0]
    return msgspec.structs.replace(record, **fields), frames


def tampered() -> dict[str, Kept]:
    record, frames = KEPT[0]
    first, second, *rest = record.advertisements
    step = record.steps[0]
    replace = msgspec.structs.replace
    return {
        "another epoch": changed(offer=replace(record.offer, epoch=7)),
        "another head": changed(offer=replace(record.offer, head=bytes(32))),
        "another cohort": changed(offer=Offer(0, (0, 1, 2), record.offer.head)),
        "an advertisement less": changed(advertisements=record.advertisements[1:]),
        "a block less": changed(advertisements=record.advertisements[3:], start=record.start[96:]),
        "advertisements out of order": changed(advertisements=(second, first, *rest)),
        "an advertisement twice": changed(advertisements=(first, first, *rest)),
        "another key": changed(advertisements=(replace(first, share_key=second.share_key), second, *rest)),
        "another signature": changed(advertisements=(replace(first, signature=second.signature), second, *rest)),
        "another start share": changed(start=bytes(32) + record.start[32:]),
        "start shares exchanged": changed(start=record.start[32:64] + record.start[:32] + record.start[64:]),
        "a start share less": changed(start=record.start[32:]),
        "other survivors": changed(steps=(replace(step, members=(0, 1, 2)), *record.steps[1:])),
        "a part of a block": changed(steps=(replace(step, members=(0, 1, 2, 3)), *record.steps[1:])),
        "another tag": changed(steps=(replace(step, tag=bytes(16)), *record.steps[1:])),
        "a step less": (replace(record, steps=record.steps[:1]), frames[:1]),
        "a sum less": (record, frames[:1]),
        "another sum": (record, (frames[1], frames[1])),
        "a bit of a sum": (record, (bytes([frames[0][0] ^ 1]) + frames[0][1:], frames[1])),
        "a sum of another size": (record, (frames[0][:-1], frames[1])),
        "votes too few": changed(votes=record.votes[:3]),
        "a vote twice": changed(votes=(record.votes[0],) * 4),
        "a stranger's vote": changed(votes=(*record.votes[:3], SignedBy(6, record.votes[3].signature))),
        "a vote in another's name": changed(votes=(*record.votes[:3], SignedBy(5, record.votes[0].signature))),
    }


@pytest.mark.parametrize("what", tampered())
def test_whatever_is_changed_is_noticed(what: str) -> None:
    with pytest.raises(RemoteProtocolError):
        verified([tampered()[what]])


def test_records_fit_only_in_their_order_and_under_their_charter() -> None:
    assert len(verified(KEPT)) == 3
    for records in ([KEPT[1]], [KEPT[0], KEPT[2]], [KEPT[0], KEPT[0]]):
        with pytest.raises(RemoteProtocolError):
            verified(records)
    other = msgspec.structs.replace(FEDERATION.charter, settings=b"x" * 32)
    with pytest.raises(RemoteProtocolError):
        list(certified_epochs(other, FEDERATION.roster, FEDERATION.course, KEPT))


def test_another_course_gives_another_history() -> None:
    for course in (LaboratoryCourse(steps=2, bias=0.1), LaboratoryCourse(steps=2, gain=0.5)):
        with pytest.raises(RemoteProtocolError):
            list(certified_epochs(FEDERATION.charter, FEDERATION.roster, course, KEPT))


def test_the_head_covers_head_plan_and_chain() -> None:
    charter, roster, course = FEDERATION.charter, FEDERATION.roster, FEDERATION.course
    history = History(charter, roster, course)
    first = history.replay(KEPT[0])
    assert history.head == charter.first_head and history.certified == 0 and history.publication is None
    assert len(first.links) == first.plan.steps + 1 and len(set(first.links)) == len(first.links)
    votes = valid_votes(roster, first, KEPT[0][0].votes)
    check_certificate(charter, votes)
    history.append(first)
    assert history.head not in (charter.first_head, first.chain) and history.certified == 1


def test_the_start_shares_that_go_out_in_clear_open_nothing_of_the_group_key() -> None:
    """From what the server sees, the start seed follows; the group key does not, and needs every member's value."""
    federation = Federation(4)
    federation.set_up()
    federation.compute()
    message = next(item.message for item in federation.wire if item.kind is MaskedInput)
    assert isinstance(message, MaskedInput)
    key = told_group_key(federation, 0)
    transcript, members = transcript_of(federation), federation.everybody
    shares = [message.start[place : place + 32] for place in range(0, 128, 32)]
    guesses = {
        hybrid.group_key(transcript, members, shares),
        hybrid.group_key(transcript, members, [hybrid.start_share(share) for share in shares]),
        hybrid.start_seed(transcript, members, message.start),
    }
    assert key not in guesses
    values = [hybrid.start_share(bytes([member]) * 32) for member in members]
    assert hybrid.group_key(transcript, members, values) != hybrid.group_key(transcript, members, values[::-1])


def test_start_and_group_key_hang_on_every_members_value() -> None:
    transcript, members = bytes(32), (0, 1, 2)
    values = [bytes([member]) * 32 for member in members]
    for place in range(3):
        other = [*values]
        other[place] = b"x" * 32
        assert hybrid.group_key(transcript, members, other) != hybrid.group_key(transcript, members, values)
        shares = [b"".join(map(hybrid.start_share, one)) for one in (values, other)]
        assert hybrid.start_seed(transcript, members, shares[0]) != hybrid.start_seed(transcript, members, shares[1])
    assert hybrid.group_key(b"t" * 32, members, values) != hybrid.group_key(transcript, members, values)
