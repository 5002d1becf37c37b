"""Small rings: real machines say for whom they answer, the model of `neighbour_graph` says what that opens."""

from __future__ import annotations

import copy
from itertools import combinations

from codream_protocols.client import ClientProtocol
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import Starts, Survivors
from secure_codream.simulation.rings import small_rings
from secure_codream.simulation.wire import Federation
from secure_codream.threats.checker.histories import Tried
from secure_codream.threats.checker.neighbour_graph import NeighbourGraph, opened
from secure_codream.threats.checker.reader import Leak

MEMBERS, NEIGHBOURS, THRESHOLD = 8, 4, 3


def _federation(client_class: type[ClientProtocol]) -> Federation:
    return Federation(MEMBERS, mode="resilient", losses="allow", steps=1, client_class=client_class)


def named_survivors(client_class: type[ClientProtocol]) -> Tried:
    """Tell all members the same survivors, whichever they are: what opens is one sum over all of these, or nothing.

    All clients decide by what all know, so that one of them is asked.
    """
    count = 0
    with small_rings(NEIGHBOURS, THRESHOLD):
        federation = _federation(client_class).masked()
        epoch = federation.server._epoch
        assert epoch is not None and epoch.ring is not None  # noqa: S101 - within an epoch, on a ring
        graph = NeighbourGraph(tuple(frozenset(epoch.ring.of(member)) for member in federation.everybody))
        for size in range(federation.charter.aggregation.least_survivors, MEMBERS + 1):
            for survivors in combinations(federation.everybody, size):
                count += 1
                try:
                    copy.deepcopy(federation.clients[0]).receive(Survivors(federation.plan.digest, 0, survivors))
                except RemoteProtocolError:
                    continue
                told = dict.fromkeys(federation.everybody, frozenset(survivors))
                pieces = opened(graph, THRESHOLD, frozenset(), told)
                if pieces not in ([], [frozenset(survivors)]):
                    least = min(pieces, key=len)
                    return Tried(count, Leak("Inputs", f"reads {'+'.join(f'x{one}' for one in sorted(least))}"))
    return Tried(count)


def changed_starts(client_class: type[ClientProtocol]) -> Tried:
    """Hand on all start shares with one member's changed, whoever's it is: nobody begins there."""
    count = 0
    with small_rings(NEIGHBOURS, THRESHOLD):
        federation = _federation(client_class)
        federation.set_up(lost={(member, Starts) for member in federation.everybody})
        told = next(item.message for item in federation.sent if isinstance(item.message, Starts))
        for member in federation.everybody:
            count += 1
            at = member * KEY_BYTES
            start = told.shares[:at] + bytes(KEY_BYTES) + told.shares[at + KEY_BYTES :]
            client = copy.deepcopy(federation.clients[0])
            try:
                client.receive(Starts(told.plan, start))
            except RemoteProtocolError:
                continue
            return Tried(count, Leak("What", f"begins at a start that member {member} did not commit to"))
    return Tried(count)
