"""Votes, certificates and heads: nothing is learnt without enough votes for one history, and a vote binds."""

from __future__ import annotations

import msgspec
import pytest

from codream_protocols.client import Certified, Ended, Send, State
from codream_protocols.errors import (
    AttemptsUsed,
    BoundByVote,
    CertificateRefused,
    CourseDiverged,
    UnexpectedMessage,
    WrongContext,
    WrongHead,
)
from codream_protocols.messages import (
    Certificate,
    EpochRecord,
    Farewell,
    GivenUp,
    Hello,
    Invitation,
    MaskedInput,
    Published,
    SignedBy,
    Vote,
)
from codream_protocols.server import Phase
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation
from secure_codream.threats.attacks.certificates import votes_of
from secure_codream.threats.laboratory.adversary import agree_and_answer, altered, said, told_group_key
from secure_codream.threats.laboratory.switches import SWITCHES, without


def certificate(federation: Federation) -> Certificate:
    return Certificate(federation.plan.digest, tuple(vote for _, vote in sorted(votes_of(federation).items())))


# -- what it takes to learn ---------------------------------------------


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_nothing_is_certified_before_enough_have_voted(mode: str) -> None:
    federation = Federation(6, mode=mode).voted()
    everything = certificate(federation)
    quorum = federation.charter.quorum
    assert quorum == (6 if mode == "lockstep" else 4)
    few = Certificate(everything.plan, everything.votes[: quorum - 1])
    before = snapshot(federation.clients[0])
    with pytest.raises(CertificateRefused):
        federation.tell(0, few)
    assert snapshot(federation.clients[0]) == before and not federation.diaries[0].memory.certified
    (effect,) = federation.tell(0, Certificate(everything.plan, everything.votes[:quorum]))
    assert isinstance(effect, Certified) and effect.number == 1 and effect.head == federation.clients[0].head
    assert federation.diaries[0].memory.certified and federation.clients[0].state is State.IDLE


@pytest.mark.parametrize("rule", [(), ("_rule_certificate",)], ids=["defended", "control"])
def test_votes_twice_count_once(rule: tuple[str, ...]) -> None:
    federation = Federation(6, mode="resilient", client_class=without(*rule)).voted()
    votes = certificate(federation).votes
    with pytest.raises(CertificateRefused):
        federation.tell(0, Certificate(federation.plan.digest, (votes[1],) * 6))


def test_who_learns_learns_the_same() -> None:
    federation = Federation(6, mode="resilient")
    federation.run(2)
    for epoch in range(2):
        learnt = {news.certified[epoch].publication["result"].tobytes() for news in federation.news}
        assert learnt == {federation.certified[epoch].publication["result"].tobytes()}
    assert {client.head for client in federation.clients} == {federation.server.head}


@pytest.mark.parametrize("how", ["stale", "foreign"])
def test_a_stale_or_foreign_certificate_is_refused(how: str) -> None:
    federation = Federation(4)
    federation.voted()
    first = certificate(federation)
    federation.finish()
    federation.voted()
    if how == "stale":
        with pytest.raises(WrongContext):
            federation.tell(0, first)
        relabelled = Certificate(federation.plan.digest, first.votes)
        with pytest.raises(CertificateRefused):
            federation.tell(0, relabelled)
        with SWITCHES["vote-signatures"].off():
            assert isinstance(federation.tell(0, relabelled)[0], Certified)
    else:
        stranger = Federation(4, seed=1).voted()
        with pytest.raises(WrongContext):
            federation.tell(0, certificate(stranger))
        votes = tuple(SignedBy(vote.member, vote.signature) for vote in certificate(stranger).votes)
        with pytest.raises(CertificateRefused):
            federation.tell(0, Certificate(federation.plan.digest, votes))
        assert federation.clients[0].state is State.VOTED


def test_a_certificate_again_changes_nothing() -> None:
    federation = Federation(4).voted()
    everything = certificate(federation)
    federation.finish()
    before = snapshot(federation.clients[0])
    assert federation.tell(0, everything) == []
    assert snapshot(federation.clients[0]) == before


# -- one head, one epoch ---------------------------------------------


def test_after_its_vote_a_client_goes_on_only_with_what_it_voted_for() -> None:
    federation = Federation(4).voted()
    federation.wire.clear()
    for cohort in (federation.everybody, federation.everybody):
        with pytest.raises(BoundByVote):
            federation.tell(0, Invitation(federation.offer(cohort=cohort)))
    federation.restart(0)
    assert federation.clients[0].state is State.VOTED
    with pytest.raises(BoundByVote):
        federation.tell(0, Invitation(federation.offer(epoch=5)))
    assert federation.tell(0, GivenUp(federation.plan.digest, "it is over")) == []
    assert federation.tell(0, Farewell("over", True)) == []
    assert federation.clients[0].state is State.VOTED
    assert isinstance(federation.tell(0, certificate(federation))[0], Certified)


def test_a_withheld_certificate_only_stops_and_is_taken_later() -> None:
    federation = Federation(6, mode="resilient")
    federation.voted()
    federation.drain(lost={(0, Certificate)})
    assert federation.clients[0].state is State.VOTED and federation.clients[1].state is State.IDLE
    federation.hello([0])
    federation.drain()
    assert federation.clients[0].head == federation.server.head and len(federation.news[0].certified) == 1
    assert federation.epoch().number == 2


def test_a_late_member_catches_up_epoch_by_epoch() -> None:
    federation = Federation(6, mode="resilient", steps=1)
    for number in range(1, 4):
        federation.hello(range(3))
        federation.drain()
        federation.emit(federation.server.open_epoch((0, 1, 2)))
        federation.drain()
        while federation.server.step is not None:
            federation.step()
        federation.drain()
        federation.hello([3])  # one of the others votes by the record
        federation.drain()
        assert federation.server.certified == number
    assert federation.clients[5].head == federation.charter.first_head
    federation.hello([5])
    federation.drain()
    assert federation.clients[5].head == federation.server.head
    assert [one.number for one in federation.news[5].certified] == [1, 2, 3]


def test_a_member_at_another_history_is_not_in_the_cohort() -> None:
    federation = Federation(6, mode="resilient", steps=1)
    federation.voted()
    federation.drain(lost={(0, Certificate)})
    federation.server.absent.discard(0)
    federation.server._at[0] = federation.charter.first_head
    assert federation.server.cohort() == (3, 4, 5)


def test_offers_after_an_earlier_head_are_refused_and_after_a_later_one_answered_with_a_hello() -> None:
    federation = Federation(4)
    first = federation.server.head
    federation.run()
    with pytest.raises(WrongHead):
        federation.tell(0, Invitation(federation.offer(head=first)))
    answer = said(federation.tell(0, Invitation(federation.offer(head=b"h" * 32))))
    assert isinstance(answer, Hello) and answer.head == federation.clients[0].head


# -- the last step, told in two ways ---------------------------------------------


def split(federation: Federation) -> dict[int, list[SignedBy]]:
    """A colluder tags a second last sum; the votes of those who were told the one, and the other."""
    federation.masked(1)
    item, key = federation.published(1), told_group_key(federation, 1)
    assert isinstance(item.message, Published)
    forged, frame = altered(federation, item, {0: 1}, key)
    halves: dict[int, list[SignedBy]] = {0: [], 1: []}
    for member in federation.everybody:
        message, frames = (forged, (frame,)) if member % 2 else (item.message, item.frames)
        vote = said(federation.tell(member, message, frames))
        assert isinstance(vote, Vote)
        halves[member % 2].append(SignedBy(member, vote.signature))
    return halves


def test_a_last_step_told_in_two_ways_is_never_certified_both_ways() -> None:
    federation = Federation(4, steps=2)
    halves = split(federation)
    for member in federation.everybody:
        own, other = halves[member % 2], halves[1 - member % 2]
        for votes in (own, [*own, *other]):
            with pytest.raises(CertificateRefused):
                federation.tell(member, Certificate(federation.plan.digest, tuple(votes)))
    assert all(client.state is State.VOTED for client in federation.clients)


@pytest.mark.parametrize("rule", [(), ("_rule_certificate",)], ids=["defended", "control"])
def test_resilient_with_a_colluder_that_votes_for_both_at_most_one_half_learns(rule: tuple[str, ...]) -> None:
    """Of six members three see one last sum and three another; the colluder signs both."""
    federation = Federation(6, mode="resilient", steps=2, client_class=without(*rule))
    federation.masked(1)
    for member, answer in agree_and_answer(federation, federation.everybody, step=1).items():
        if federation.server.step == 1:
            federation.emit(federation.server.receive(member, answer))
    item, key = federation.published(1), told_group_key(federation, 1)
    assert isinstance(item.message, Published)
    forged, frame = altered(federation, item, {0: 1}, key)
    halves: dict[int, list[SignedBy]] = {0: [], 1: []}
    statements = {}
    for member in (0, 2, 4, 1, 3, 5):
        message, frames = (forged, (frame,)) if member % 2 else (item.message, item.frames)
        vote = said(federation.tell(member, message, frames))
        halves[member % 2].append(SignedBy(member, vote.signature))
        statements[member % 2] = (federation.server.head, federation.plan.digest, vote.chain)
    halves[0].append(SignedBy(1, federation.signers[1].sign("vote", *statements[0])))
    learnt = set()
    for member in federation.everybody:
        votes = Certificate(federation.plan.digest, tuple(halves[member % 2]))
        try:
            learnt |= {effect.head for effect in federation.tell(member, votes) if isinstance(effect, Certified)}
        except CertificateRefused:
            assert member % 2
    assert len(learnt) == (2 if rule else 1)


def test_a_vote_for_other_sums_is_refused_by_the_server() -> None:
    federation = Federation(4, steps=2)
    halves = split(federation)
    federation.wire.clear()
    forged = halves[1][0]
    with pytest.raises(CertificateRefused):
        federation.server._on_vote(
            forged.member, Vote(federation.plan.digest, federation.server._epoch.public.chain, forged.signature), ()
        )
    assert federation.server.phase is Phase.VOTING


def test_a_vote_for_another_end_of_the_epoch_names_its_voter_and_waits() -> None:
    """A member whose library computed another last state, or who was told other sums, is bound; the server says who."""
    federation = Federation(4, steps=2)
    halves = split(federation)
    federation.wire.clear()
    assert federation.server.bound_elsewhere() == ()
    other = halves[1][0]
    vote = federation.clients[other.member]._vote
    assert vote is not None
    chain = vote[0].chain
    federation.server._on_vote(other.member, Vote(federation.plan.digest, chain, other.signature), ())
    assert federation.server.bound_elsewhere() == (other.member,)
    assert federation.server.phase is Phase.VOTING and other.member in federation.server.waiting_for()


def test_who_gives_back_an_epoch_that_nobody_else_has_is_named() -> None:
    federation = Federation(4).voted()
    federation.restart_server(remembers=False)
    federation.hello([2])
    federation.drain()
    assert federation.server.bound_elsewhere() == (2,) and federation.server.cohort() == ()
    for _ in range(3):
        federation.hello()
        federation.drain()
    assert federation.server.certified == 1 and federation.server.bound_elsewhere() == ()


# -- crashes ---------------------------------------------


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("remembers", [True, False])
def test_a_server_that_crashes_in_the_vote_gets_the_epoch_back(mode: str, remembers: bool) -> None:
    federation = Federation(6, mode=mode)
    federation.run()
    federation.voted()
    federation.restart_server(remembers=remembers)
    for _ in range(3):
        federation.hello()
        federation.drain()
    assert federation.server.certified == 2
    assert {client.head for client in federation.clients} == {federation.server.head}
    assert federation.epoch().number == 3


@pytest.mark.parametrize("who", [[0], [0, 1, 2, 3]])
def test_clients_that_crash_after_their_vote_vote_again_with_the_same_bytes(who: list[int]) -> None:
    federation = Federation(4).voted()
    votes = votes_of(federation)
    federation.wire.clear()
    for member in who:
        federation.restart(member)
        assert federation.clients[member].state is State.VOTED
    for _ in range(2):
        federation.hello()
        federation.drain()
    assert votes_of(federation) == votes and federation.server.certified == 1


@pytest.mark.parametrize(("mode", "votes"), [("lockstep", 1), ("resilient", 2)])
def test_an_epoch_that_enough_voted_for_is_not_given_up(mode: str, votes: int) -> None:
    federation = Federation(6, mode=mode).voted()
    first = [item for item in federation.wire if item.kind is Vote][:votes]
    federation.wire.clear()
    for item in first:
        federation.deliver(item)
    for _ in range(3):
        federation.emit(federation.server.expire())
        federation.wire.clear()
    assert federation.server.phase is Phase.VOTING and not federation.given_up
    federation.hello()  # whose answer has everybody vote again
    federation.drain()
    assert federation.server.certified == 1


def test_attempts_are_counted_over_restarts_and_from_each_certificate() -> None:
    federation = Federation(4, attempts=2)
    for epoch in range(2):
        federation.tell(0, Invitation(federation.offer(epoch=epoch)))
        federation.restart(0)
    with pytest.raises(AttemptsUsed):
        federation.tell(0, Invitation(federation.offer(epoch=2)))
    other = Federation(4, attempts=2)
    other.run(4)  # each certificate begins a new count
    assert other.server.certified == 4


def test_an_epoch_is_given_up_as_often_as_the_charter_permits_and_not_more() -> None:
    federation = Federation(4, attempts=3)
    for _ in range(3):
        assert federation.set_up()
        federation.emit(federation.server._give_up("it is given up"))
        federation.drain()
        assert all(isinstance(news.ended[-1], Ended) for news in federation.news)
    assert not federation.set_up()
    assert isinstance(federation.refusals[-1][1], AttemptsUsed)


# -- who stands elsewhere ---------------------------------------------


def test_a_vector_at_another_chain_is_told_apart_and_joins_no_sum() -> None:
    course = LaboratoryCourse()
    courses = [course] * 5 + [LaboratoryCourse(bias=0.5)]
    federation = Federation(6, mode="resilient", course=course, courses=courses, steps=3)
    federation.set_up()
    federation.step()
    reveal = federation.step()
    assert reveal is not None and reveal.survivors == (0, 1, 2)
    refusal = next(item.message for item in federation.sent if item.member == 5 and item.kind.__name__ == "Refusal")
    assert refusal.code == CourseDiverged.code


def test_a_record_is_what_anybody_can_verify() -> None:
    federation = Federation(4)
    (certified,) = federation.run()
    record, frames = certified.kept
    late = Federation(4)
    late.clients[0] = federation._client(0, federation.charter, type(late.diaries[0].memory)())
    effects = late.clients[0].receive(record, frames)
    assert isinstance(effects[0], Certified) and effects[0].head == federation.server.head
    assert isinstance(effects[1], Send) and isinstance(effects[1].message, Hello)


@pytest.mark.parametrize("kind", [Certificate, EpochRecord, Published, MaskedInput])
def test_what_is_out_of_turn_changes_nothing(kind: type) -> None:
    federation = Federation(4)
    (certified,) = federation.run()
    record, frames = certified.kept
    if kind is Certificate:
        assert federation.tell(0, Certificate(bytes(32), ())) == []
    elif kind is EpochRecord:
        # Certified long ago: whoever shows it does not know where this client stands.
        assert federation.tell(0, record, frames) == [Send(federation.clients[0].hello())]
        later = msgspec.structs.replace(record, offer=federation.offer(head=b"x" * 32))
        with pytest.raises(WrongContext):
            federation.tell(0, later, frames)
    elif kind is Published:
        with pytest.raises(UnexpectedMessage):
            federation.tell(0, Published(bytes(32), 0, federation.everybody, bytes(16)), (b"",))
    else:  # too late is no fault of its sender's, and a refusal would be written down
        assert federation.server.receive(0, MaskedInput(bytes(32), 0, bytes(32), bytes(16), b""), (b"",)) == []
