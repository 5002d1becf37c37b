"""How a server stands, for whoever looks while it runs: its phase, who is there, and whom it waits for by name.

Of one member it says the name, whether it is there and when it was last heard. Within an epoch it names, of those that
it waits for, who is not there, and who refuses every invitation. Of the others it says that some have not answered,
and this only as long as it names nobody: so it follows from the phase and from who is there. Bytes are those until the
phase began. Who answers first, how many have, and how long a member computes, cannot be read off. Between epochs nobody
computes for one, and all that it waits for are named. Members that are there are told the same, every `NAMED_EVERY`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from codream_protocols.identity import Roster
from codream_protocols.messages import MOST_AGO_SECONDS, Awaited, Waiting
from codream_protocols.server import Phase, ServerProtocol
from codream_server.patience import Growing
from codream_server.peers import Peer, Traffic

LONGEST_SILENCE = 600.0  # seconds between two `waiting` events, and between two requests
NAMED_EVERY = 10.0
"""Seconds; within 15 s somebody who looks knows for whom a federation waits."""


class Waits:
    """Of the present phase: when to say for whom it waits, when to ask them again, and who they are, for a status.

    Args:
        lost_after: seconds after which those that are there are asked; names are known and said no later.

    Attributes:
        named: members, ascending; none if it waits for some that are there, None if for nobody, or not for long yet.
    """

    def __init__(self, lost_after: float) -> None:
        named = min(NAMED_EVERY, lost_after)
        self.named: tuple[int, ...] | None = None
        self._naming = Growing(named, named)
        self.telling, self.asking = (Growing(first, LONGEST_SILENCE) for first in (named, lost_after))

    def start(self, now: float) -> bool:
        """A phase begins; whether it was told of the one before that it lasts."""
        before, self.named = self.named, None
        for moments in (self._naming, self.telling, self.asking):
            moments.start(now)
        return before is not None

    def look(self, now: float, named: Iterable[int] | None, *, idle: bool) -> bool:
        """Who may be named now, None if nobody is waited for: whether it is time to tell the members so.

        Within an epoch it is taken only then. Between epochs, where nobody computes for one, always, once it lasts.
        """
        due = self._naming.is_due(now)
        if due or (idle and self.named is not None):
            self.named = None if named is None else tuple(sorted(named))
        return due


def waiting_message(named: tuple[int, ...] | None, peers: Mapping[int, Peer], now: float) -> Waiting:
    """What members are told of whom the server waits for: what a status says of one, in whole seconds.

    Args:
        named: as in `Waits`.
        peers: who has said Hello, by number.
        now: the time on the patient clock.
    """
    return Waiting(
        tuple(
            Awaited(
                member,
                member in peers and peers[member].present,
                min(MOST_AGO_SECONDS, int(now - peers[member].beat)) if member in peers else -1,
            )
            for member in named or ()
        ),
        unnamed=named == (),
    )


@dataclass(frozen=True)
class Present:
    """A member: whether it is there, and how many seconds ago it last beat, None if never in this process."""

    name: str
    present: bool
    heard: float | None


@dataclass(frozen=True)
class Standing:
    """A server at one moment.

    Attributes:
        phase: of the present epoch (docs/events.md); `idle` before one, `finished` after the last.
        certified: epochs, those of predecessors counted.
        step: of the present epoch, from 0; None outside one.
        steps: of the present epoch.
        members: all, in the roster's order.
        waiting: names of those that are waited for and may be named (`Waits`), as of the last time that it was looked.
        seconds: for how long it has waited, for them or for some that it does not name; None if for nobody.
        bytes_up: from all members together until the present phase began: each answer would show as its bytes came.
        bytes_down: to all of them.
    """

    phase: str
    certified: int
    step: int | None
    steps: int | None
    members: tuple[Present, ...]
    waiting: tuple[str, ...]
    seconds: float | None
    bytes_up: int
    bytes_down: int


def standing(
    protocol: ServerProtocol,
    roster: Roster,
    peers: Mapping[int, Peer],
    traffic: Traffic,
    waiting: tuple[int, ...] | None,
    seconds: float,
    now: float,
) -> Standing:
    """Put it together.

    Args:
        protocol: the server's machine.
        roster: has the names.
        peers: who has said Hello, by number.
        traffic: until the present phase began.
        waiting: who is waited for, as in `Waits`.
        seconds: for how long.
        now: the time on the patient clock.
    """
    plan = protocol.plan
    over = plan is None and protocol.done
    named = (protocol.behind() or None) if over else waiting
    return Standing(
        phase="finished" if over else protocol.phase.value,
        certified=protocol.certified,
        step=protocol.step if plan is not None and protocol.phase is not Phase.IDLE else None,
        steps=None if plan is None else len(plan.schedule),
        members=tuple(
            Present(
                member.name,
                number in peers and peers[number].present,
                now - peers[number].beat if number in peers else None,
            )
            for number, member in enumerate(roster.members)
        ),
        waiting=tuple(roster.members[member].name for member in named or ()),
        seconds=None if named is None else seconds,
        bytes_up=traffic.up,
        bytes_down=traffic.down,
    )
