"""What one member with an honest server cannot do: decree an epoch, hold one up, use up the numbers of epochs; and what
a server that comes back last still owes.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_protocols import chain as links
from codream_protocols.client import ClientProtocol, State
from codream_protocols.messages import Certificate, EpochRecord, Refusal, SignedBy, Vote
from codream_protocols.packing import pack
from codream_protocols.server import Phase
from codream_protocols.tag import TAG_BYTES
from secure_codream.simulation.wire import Federation

LIAR = 2


class TrustsOneVote(ClientProtocol):
    def _rule_others_vote(self, public: Any, valid: Any) -> None:
        return None


def invented(federation: Federation) -> tuple[EpochRecord, tuple[bytes, ...]]:
    """A record of the running epoch, whose last sum is the liar's invention, with the liar's vote for it."""
    epoch = federation.clients[LIAR]._epoch
    assert epoch is not None and epoch.public is not None
    public = copy.deepcopy(epoch.public)
    spec = public.plan.spec(public.step)
    frame = pack(np.full(spec.words, 7, dtype=np.uint32), public.plan.modulus_bits)
    public.absorb(public.members, frame, bytes(TAG_BYTES))
    assert public.over
    statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
    return public.record([SignedBy(LIAR, federation.signers[LIAR].sign("vote", *statement))])


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("kind", [ClientProtocol, TrustsOneVote])
def test_a_member_cannot_decree_an_epoch_that_it_has_stopped(mode: Any, kind: type[ClientProtocol]) -> None:
    """It stops the epoch in its last step, then gives back a record of it. The control trusts any one vote."""
    federation = Federation(6, mode=mode, steps=1, client_class=kind).masked()
    record, frames = invented(federation)
    federation.wire.clear()
    federation.emit(federation.server._give_up("stopped"))
    federation.drain()
    federation.emit(federation.server.receive(LIAR, record, frames))
    federation.drain()
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
