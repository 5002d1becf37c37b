"""Whose pieces are under way: so few at once that together they fit into memory, however many members there are.

Each member has a few pieces under way at most (`parcels.WINDOW`), so turns are the credit that all of them share. A
turn lasts until all pieces are there. While others wait it ends early for whoever is slow, and that one stands behind
them all: so many drip-feeders as may collude cost the others a few seconds each, and not the step. What a slow member
has sent by then is kept. Whatever it does in its turn, be it a record's thousands of pieces, ever new parcels or the
same piece again and again: where others wait, the turn is over after `LONGEST`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

MOST_TURNS = 4
GRACE = 5.0  # seconds in which a turn need not have moved
PIECE_SECONDS = 1.0  # that each piece may take on average while others wait, after that
LONGEST = 30.0  # seconds of a turn while others wait

Who = TypeVar("Who", bound=Hashable)


class Turns(Generic[Who]):
    """Hands turns out, in the order in which they are wanted.

    Args:
        most: turns at once.
    """

    def __init__(self, most: int = MOST_TURNS) -> None:
        self._most = most
        self._line: list[Who] = []  # those in front have a turn
        self._began: dict[Who, float] = {}  # of each turn
        self._ends: dict[Who, float] = {}  # of each turn, when it is too slow, or long enough
        self._moved: dict[Who, float] = {}

    def holders(self, wanting: Collection[Who], now: float) -> list[Who]:
        """Who has a turn now, of those that want one; whoever wants none any more gives it back."""
        wanted = set(wanting)
        self._line = [who for who in self._line if who in wanted]
        known = set(self._line)
        self._line += [who for who in wanting if who not in known]
        waiting = len(self._line) - self._most
        slow = [who for who in self._line[: self._most] if self._ends.get(who, now) < now]
        for who in slow[: max(0, waiting)]:
            self._line.remove(who)
            self._line.append(who)
            del self._began[who], self._ends[who]
        held = self._line[: self._most]
        self._began = {who: self._began.get(who, now) for who in held}
        self._ends = {who: self._ends.get(who, now + GRACE) for who in held}
        self._moved = {who: self._moved.get(who, now) for who in held}
        return held

    def moved(self, who: Who, now: float) -> None:
        """A piece of a holder is there, or is on its way to it."""
        if who in self._ends:
            self._ends[who] = min(self._ends[who] + PIECE_SECONDS, self._began[who] + LONGEST)
            self._moved[who] = now

    def is_still(self, who: Who, now: float) -> bool:
        """Whether a holder's turn has not moved for long; asked again, not before as long has passed once more."""
        if now - self._moved.get(who, now) < GRACE:
            return False
        self._moved[who] = now
        return True
