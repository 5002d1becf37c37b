"""What one member with an honest server cannot do: decree an epoch, hold one up, use up the numbers of epochs; and what
a server that comes back last still owes.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_protocols import chain as links
from codream_protocols.client import ClientProtocol, State
from codream_protocols.encoding import integers
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.hybrid import tag_secret
from codream_protocols.messages import (
    Certificate,
    EpochRecord,
    GivenUp,
    MaskedInput,
    Published,
    Refusal,
    Seals,
    SignedBy,
    Survivors,
    Vote,
)
from codream_protocols.packing import pack
from codream_protocols.running import Entry, Summed
from codream_protocols.server import Phase, ServerProtocol
from codream_protocols.tag import TAG_BYTES, TagKey, tag_bytes
from secure_codream.simulation.packets import packet
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import agree_and_answer

LIAR = 2


class TrustsOneVote(ClientProtocol):
    def _rule_others_vote(self, voters: Any) -> None:
        return None


def invented(federation: Federation) -> tuple[EpochRecord, tuple[bytes, ...]]:
    """A record of the running epoch, whose last sum is the liar's invention, with the liar's vote for it."""
    epoch = federation.clients[LIAR]._epoch
    assert epoch is not None and epoch.public is not None
    public = copy.deepcopy(epoch.public)
    spec = public.plan.spec(public.step)
    frame = pack(np.full(spec.words, 7, dtype=np.uint32), public.plan.modulus_bits(public.step))
    public.absorb(public.members, frame, bytes(TAG_BYTES))
    assert public.over
    statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
    return public.record([SignedBy(LIAR, federation.signers[LIAR].sign("vote", *statement))])


def give_back_and_show(federation: Federation, record: EpochRecord, frames: tuple[bytes, ...]) -> None:
    """The liar gives its record back; an honest server shows one vote to nobody, but suppose that it did."""
    federation.emit(federation.server.receive(LIAR, record, frames))
    federation.drain()
    for member in federation.everybody:
        with contextlib.suppress(RemoteProtocolError):
            federation.perform(member, federation.tell(member, record, frames))
    federation.drain()


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("kind", [ClientProtocol, TrustsOneVote])
def test_a_member_cannot_decree_an_epoch_that_it_has_stopped(mode: Any, kind: type[ClientProtocol]) -> None:
    """It stops the epoch in its last step, then gives back a record of it. The control trusts any one vote."""
    federation = Federation(6, mode=mode, steps=1, client_class=kind).masked()
    record, frames = invented(federation)
    federation.wire.clear()
    federation.emit(federation.server._give_up("stopped"))
    federation.drain()
    give_back_and_show(federation, record, frames)
    honest = [client for member, client in enumerate(federation.clients) if member != LIAR]
    moved = [client for client in honest if client.state is State.VOTED or client.certified]
    assert bool(moved) is (kind is TrustsOneVote)
    assert bool(federation.certified) is (kind is TrustsOneVote)


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_a_liar_that_votes_for_a_sum_that_all_others_saw_fail_holds_nothing_up(mode: Any) -> None:
    """More wrong sums than there can be colluders: whoever votes for it all the same is one."""
    federation = Federation(6, mode=mode, steps=1).masked()
    server, epoch = federation.server, federation.server._epoch
    assert epoch is not None and epoch.public is not None
    epoch.step, server.phase = None, Phase.VOTING
    statement = links.vote_statement(epoch.plan.offer.head, epoch.plan.digest, epoch.public.chain)
    signature = federation.signers[LIAR].sign("vote", *statement)
    server.receive(LIAR, Vote(epoch.plan.digest, epoch.public.chain, signature))
    for saw in (0, 1):
        assert server.phase is Phase.VOTING
        server.receive(saw, Refusal("wrong-sum", "", "", epoch.plan.digest))
    assert server.phase is Phase.IDLE and server.plan is None


def forged(federation: Federation, step: int) -> tuple[EpochRecord, tuple[bytes, ...]]:
    """A record whose sums from `step` on are the liar's, under tags that fit, since it has the group key; its vote."""
    epoch = federation.clients[LIAR]._epoch
    assert epoch is not None and epoch.public is not None and epoch.group_key is not None
    public, plan = copy.deepcopy(epoch.public), epoch.plan
    assert public.step == step
    while not public.over:
        words = np.full(plan.spec(public.step).words, 7, dtype=np.uint32)
        key = TagKey(tag_secret(epoch.group_key.reveal(), public.step, public.chain), len(words))
        total = key.of(integers(plan, public.step, words)) + sum(map(key.pad, public.members))
        public.absorb(public.members, pack(words, plan.modulus_bits(public.step)), tag_bytes(total % (1 << 128)))
    statement = links.vote_statement(plan.offer.head, plan.digest, public.chain)
    return public.record([SignedBy(LIAR, federation.signers[LIAR].sign("vote", *statement))])


def voted_for(federation: Federation) -> set[int]:
    """Who has voted, and whom a certificate has reached, but for the liar."""
    everybody = enumerate(federation.clients)
    return {member for member, one in everybody if member != LIAR and (one.state is State.VOTED or one.certified)}


@pytest.mark.parametrize("kind", [ClientProtocol, TrustsOneVote])
@pytest.mark.parametrize(("mode", "step"), [("resilient", 0), ("resilient", 2), ("lockstep", 2)])
def test_a_member_cannot_decree_what_a_server_that_was_started_again_has_forgotten(
    mode: Any, step: int, kind: type[ClientProtocol]
) -> None:
    """The clients still hold their keys, and the liar's tags fit: only the number of votes tells."""
    federation = Federation(6, mode=mode, steps=3, client_class=kind)
    assert federation.set_up()
    for _ in range(step):
        federation.step()
    honest = [member for member in federation.everybody if member != LIAR]
    federation.compute(honest)
    federation.drain(hold=(Survivors,))
    record, frames = forged(federation, step)
    federation.restart_server(remembers=False)
    federation.hello()
    federation.drain()
    give_back_and_show(federation, record, frames)
    assert bool(voted_for(federation)) is bool(federation.certified) is (kind is TrustsOneVote)


@pytest.mark.parametrize("how", ["restarted", "did not hear of it"])
@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_who_does_not_know_that_an_epoch_was_given_up_follows_no_lone_vote_for_it(mode: Any, how: str) -> None:
    federation = Federation(6, mode=mode, steps=1).masked()
    record, frames = forged(federation, 0)
    federation.wire.clear()
    federation.emit(federation.server._give_up("numbers out of range"))
    federation.drain(lost={(0, GivenUp)} if how != "restarted" else ())
    if how == "restarted":
        federation.restart(0)
    federation.hello()
    federation.drain()
    give_back_and_show(federation, record, frames)
    assert not voted_for(federation) and not federation.certified


def to_the_last_sum(federation: Federation, heard: int) -> None:
    """Run an epoch until the first so many members have heard its last sum, and no vote has arrived."""
    assert federation.set_up() and federation.step() is not None
    federation.compute()
    federation.drain(lost={(member, Published) for member in range(heard, 6)}, hold=(Vote,))


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("heard", [1, 5])
def test_a_server_that_stops_after_the_last_sum_goes_on_with_the_votes(mode: Any, heard: int) -> None:
    """All sums were on its disk before the first member heard the last; who lacks it gets it, and checks it itself."""
    federation = Federation(6, mode=mode, steps=2)
    to_the_last_sum(federation, heard)
    assert federation.server.phase is Phase.VOTING
    federation.restart_server()  # no vote reaches it
    server = federation.server
    for _ in range(2):
        federation.hello()
        federation.drain()
    assert server.certified == 1 and {client.certified for client in federation.clients} == {1}
    assert server.open_epoch(federation.everybody)  # and its number was not used up


def test_control_a_server_that_has_forgotten_leaves_who_has_voted_alone() -> None:
    federation = Federation(6, steps=2)
    to_the_last_sum(federation, heard=1)
    federation.restart_server(remembers=False)
    for _ in range(3):
        federation.hello()
        federation.drain()
    assert federation.server.certified == 0 and federation.server.bound_elsewhere() == (0,)


def test_a_member_that_leaves_set_ups_is_named_and_stays_away_for_ever_more_epochs() -> None:
    """Else one member uses up everybody's attempts, and nobody knows which."""
    federation = Federation(9, mode="resilient", steps=1, epochs=9)
    leaver, together = 8, []
    federation.hello()
    federation.drain()
    for _ in range(9):
        federation.emit(federation.server.open_epoch(federation.server.cohort()))
        federation.drain(hold=(Seals,))
        plan = federation.server.plan
        assert plan is not None
        together.append(leaver in plan.cohort)
        if leaver in plan.cohort:
            gone = msgspec.structs.replace(federation.clients[leaver].hello(), plan=b"", sums=0)
            federation.emit(federation.server.hello(leaver, gone))
        federation.compute()
        federation.drain()
        federation.compute()
        federation.drain()
        if federation.server.plan is not None:
            federation.emit(federation.server.expire())
            federation.drain()
        federation.hello()
        federation.drain()
    assert together[:2] == [True, True] and together.count(True) <= 4 and federation.server.certified >= 4
    assert all("without client-8" in reason for reason in federation.failures)


def dead_vote(federation: Federation) -> list[Entry]:
    """An epoch whose last tag the liar spoilt: all sums are there, and every honest member saw the last one fail."""
    assert federation.set_up()
    kept, written = [], federation.server_journal.running

    def running(entry: Entry, *, must: bool = False) -> None:
        written(entry, must=must)
        kept.append(entry)

    federation.server_journal.running = running  # type: ignore[method-assign]
    before = list(federation.server_journal.entries)
    federation.compute()
    place = next(i for i, item in enumerate(federation.wire) if item.kind is MaskedInput and item.member == LIAR)
    item = federation.wire[place]
    assert isinstance(item.message, MaskedInput)
    spoilt = msgspec.structs.replace(item.message, tag=bytes(16))
    federation.wire[place] = packet(LIAR, spoilt, item.frames, to_server=True)
    federation.drain()
    assert isinstance(kept[-1], Summed) and federation.server_journal.entries == []
    return [*before, *kept]


@pytest.mark.parametrize("liar", ["votes", "keeps its keys", "stays away"])
def test_a_liar_does_not_bring_an_epoch_back_that_all_others_saw_fail(liar: str) -> None:
    """Once a server was started again, it waited for ever for votes of those who could not give any."""
    federation = Federation(6, mode="resilient", steps=1)
    kept = dead_vote(federation)
    assert federation.given_up and federation.given_up[-1].wrong_sum
    federation.server = server = ServerProtocol(federation.charter, federation.roster, federation.course, running=kept)
    assert server.phase is Phase.VOTING  # it was killed before it could take the file away
    honest = [member for member in federation.everybody if member != LIAR]
    federation.hello(honest)
    federation.drain()
    if liar == "votes":
        public = server._epoch.public
        assert public is not None
        statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
        signature = federation.signers[LIAR].sign("vote", *statement)
        server.receive(LIAR, Vote(public.plan.digest, public.chain, signature))
    elif liar == "keeps its keys":
        plan = server.plan
        assert plan is not None
        server.hello(LIAR, msgspec.structs.replace(federation.clients[LIAR].hello(), plan=plan.digest))
    federation.emit(server.expire())
    assert federation.server.phase is Phase.IDLE and set(server.cohort()) >= {3, 4, 5}
    assert server.bound_elsewhere() == ((LIAR,) if liar == "votes" else ())


def test_control_more_votes_than_may_collude_are_waited_for() -> None:
    federation = Federation(6, mode="resilient", steps=1).voted()
    votes = [item for item in federation.wire if item.kind is Vote][:2]
    federation.wire.clear()
    for item in votes:
        federation.deliver(item)
    federation.emit(federation.server.expire())
    assert federation.server.phase is Phase.VOTING or federation.server.certified


def test_a_liar_does_not_choose_which_of_a_pair_stays_away() -> None:
    """Whose turn it is hung on the number of the next epoch, which a member's claims can move."""
    federation = Federation(9, mode="resilient", steps=1, epochs=40)
    honest, liar = 0, 8
    federation.server.conflicts.add((honest, liar))
    there = []
    for _ in range(12):
        federation.hello()
        federation.drain()
        claim = msgspec.structs.replace(
            federation.clients[liar].hello(), epoch=federation.server._next_epoch + federation.server._next_epoch % 2
        )
        federation.server.hello(liar, claim)
        cohort = federation.server.cohort()
        there.append(honest in cohort)
        federation.emit(federation.server.open_epoch(cohort))
        federation.drain()
        federation.compute()
        federation.drain()
    assert there.count(True) == 6 and federation.server.certified >= 6


def test_a_giver_cannot_take_away_an_epoch_that_others_are_bound_to() -> None:
    federation = Federation(6, mode="resilient", steps=1).masked()
    record, frames = forged(federation, 0)
    for member, answer in agree_and_answer(federation, federation.everybody).items():
        if federation.server.step == 0:
            federation.emit(federation.server.receive(member, answer))
    federation.drain(lost={(member, Published) for member in (3, 4, 5)}, hold=(Vote,))
    assert {member for member, one in enumerate(federation.clients) if one.state is State.VOTED} == {0, 1, 2}
    federation.restart_server(remembers=False)
    for member in (3, 4, 5):
        federation.server.hello(member, federation.clients[member].hello())
    for member in (LIAR, 0, 1):
        federation.server.hello(member, federation.clients[member].hello())
        public, votes = federation.clients[member]._vote  # type: ignore[misc]
        federation.server.receive(member, *public.record([votes[member]]))
    assert federation.server.bound_elsewhere() == (0, 1, LIAR) and federation.server.cohort() == ()
    federation.server.receive(LIAR, record, frames)
    assert federation.server.bound_elsewhere() == (0, 1, LIAR) and federation.server.cohort() == ()


def test_a_member_that_claims_a_huge_epoch_uses_up_no_numbers() -> None:
    federation = Federation(4, steps=1, epochs=4)
    claim = msgspec.structs.replace(federation.clients[LIAR].hello(), epoch=1 << 40)
    for round_number in range(4):
        federation.hello()
        federation.drain()
        federation.emit(federation.server.hello(LIAR, msgspec.structs.replace(claim, head=federation.server.head)))
        federation.drain()
        if round_number == 1:  # one honest member misses an invitation, and so lags behind
            federation.emit(federation.server.open_epoch(federation.server.cohort()))
            federation.wire = [item for item in federation.wire if item.member != 1]
            federation.emit(federation.server._give_up("nobody answered"))
            federation.drain()
        federation.run()
    assert federation.server.certified == 4 and {client.certified for client in federation.clients} == {4}


def test_a_server_that_starts_again_after_the_last_certificate_still_hands_it_out() -> None:
    federation = Federation(4, steps=1, epochs=1).voted()
    federation.drain(lost={(member, Certificate) for member in federation.everybody})
    assert federation.server.done and {client.state for client in federation.clients} == {State.VOTED}
    assert federation.server.behind() == federation.everybody  # nobody has said that it heard
    federation.restart_server()
    assert federation.server.done and federation.server.behind() == federation.everybody
    federation.hello()
    federation.drain()
    assert federation.server.behind() == () and {client.certified for client in federation.clients} == {1}


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_a_server_killed_at_any_packet_gives_no_epoch_up(mode: Any) -> None:
    """It is started again before each packet, in turn: the epoch goes on with the same keys, to its certificate."""
    for place in range(1000):
        federation = Federation(6, mode=mode, steps=2)
        federation.hello()
        federation.drain()
        federation.emit(federation.server.open_epoch(federation.everybody))
        done = 0
        while done < place and (federation.wire or federation.computing):
            if federation.wire:
                federation.deliver(federation.wire.pop(0))
                done += 1
            else:
                federation.compute()
        if done < place:
            break
        plan = federation.plan.digest
        federation.restart_server()
        for _ in range(2):
            federation.hello()
            federation.drain()
            while federation.computing:
                federation.compute()
                federation.drain()
        assert federation.server.certified == 1 and not federation.given_up, place
        assert {client.certified for client in federation.clients} == {1}
        assert federation.certified[-1].kept[0].advertisements[0].plan == plan  # none was begun anew
    assert place > 40


@pytest.mark.parametrize("kept", [False, True], ids=["the line is cut", "what was said arrives"])
def test_a_server_killed_at_any_packet_after_a_loss_goes_on_by_itself(kept: bool) -> None:
    """Members that have answered sign no more: enough signatures are on disk before anybody is shown them."""
    lost = 5
    for place in range(1000):
        federation = Federation(6, mode="resilient", steps=1, epochs=1)
        assert federation.set_up()
        federation.computing.pop(lost)
        others, done, killed = [member for member in federation.everybody if member != lost], 0, False
        for _ in range(400):
            if federation.server.certified:
                break
            if done == place and not killed:
                killed = True
                federation.wire = [item for item in federation.wire if kept and not item.to_server]
                federation.restart_server()
                federation.emit(federation.server.lost(lost))
                federation.hello(others)
            elif federation.wire:
                item, done = federation.wire.pop(0), done + 1
                if item.member != lost:
                    federation.deliver(item)
            elif federation.computing:
                federation.compute()
            elif lost not in federation.server.absent:
                federation.emit(federation.server.lost(lost))
            else:
                federation.hello(others)
        assert federation.server.certified == 1, (place, federation.server.phase, federation.failures)
        assert not federation.refusals, place  # of whoever says again, in a block that fell, what it had said
        if not killed:
            break
    assert place > 25


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_the_last_sum_is_told_to_nobody_before_it_is_on_disk(mode: Any) -> None:
    """Else one member could vote for what nobody has any more; the epoch waits, and the same message brings it on."""
    federation = Federation(6, mode=mode, steps=1, epochs=1)
    assert federation.set_up()
    written, fails = federation.server_journal.running, [True]

    def running(entry: Entry, *, must: bool = False) -> None:
        if must and fails[0]:
            raise OSError(28, "No space left on device")
        written(entry, must=must)

    federation.server_journal.running = running  # type: ignore[method-assign]
    federation.compute()
    last: list[Any] = []
    while federation.wire:
        item = federation.wire.pop(0)
        try:
            federation.deliver(item)
        except OSError:
            last.append(item)
    assert last and not [item for item in federation.sent if item.kind is Published]
    fails[0] = False
    federation.deliver(last[-1])
    federation.drain()
    assert federation.finish() is not None or federation.server.certified == 1
    assert (federation.reveals[-1].total == federation.plain_sum(0, federation.everybody)).all()


def test_a_server_that_lost_a_sum_which_a_member_has_gives_the_epoch_up() -> None:
    """Its disk took no entry, and did not let it take the file away: nothing that it says fits any more."""
    federation = Federation(3, steps=2)
    assert federation.set_up()
    entries = list(federation.server_journal.entries)
    assert federation.step() is not None
    federation.server_journal.entries = entries
    federation.restart_server()
    federation.hello()
    federation.drain()
    assert federation.failures == ["client-0 has sums that this server has lost"]
    federation.epoch()
    assert federation.server.certified == 1


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_a_server_started_again_waits_for_whom_it_has_not_heard_and_goes_on_without_whom_it_is_told_is_lost(
    mode: Any,
) -> None:
    federation = Federation(6, mode=mode, steps=2)
    assert federation.set_up()
    federation.restart_server()
    there = [0, 1, 2, 4, 5]
    federation.hello(there)
    federation.drain()
    federation.compute(there)
    federation.drain()
    assert federation.server.phase is Phase.COLLECTING and federation.server.waiting_for() == (3,)
    federation.emit(federation.server.lost(3))
    federation.drain()
    if mode == "lockstep":
        assert federation.server.phase is Phase.COLLECTING and federation.server.waiting_for() == (3,)
    else:
        assert federation.reveals[-1].survivors == (0, 1, 2)
