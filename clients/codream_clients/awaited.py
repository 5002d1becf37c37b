"""For whom the server says that it waits: its word, for this client's screen and status, and for nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from codream_clients.allowance import Allowance
from codream_protocols.errors import CohortRefused
from codream_protocols.identity import Roster
from codream_protocols.messages import Waiting

LAPSES_AFTER = 30.0
"""Seconds; a server that still waits has said so again by then."""

LINES = 32.0, 1 / 600
"""Of names that change: so many lines at once, and so many a second in the long run."""


@dataclass(frozen=True)
class Other:
    """A member, by the server's word: whether it is there, and how many seconds ago it was heard, None if never."""

    name: str
    present: bool
    heard: float | None


class ServersWord:
    """What the server said last.

    Args:
        roster: has the names: a server gives numbers, and no text.
        clock: seconds.
    """

    def __init__(self, roster: Roster, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = [member.name for member in roster.members]
        self._clock = clock
        self._others: tuple[Other, ...] = ()
        self._unnamed = self._changed = False
        self._told = self._since = clock()
        self._lines = Allowance(*LINES, clock)

    def take(self, message: Waiting) -> bool:
        """Take its word; whether it is worth a line: it names others than it did, and not too often.

        A change that comes too often is said later, if it lasts.

        Raises:
            CohortRefused: strangers, or one member twice; nothing has changed.
        """
        numbers = [item.member for item in message.items]
        if numbers != sorted(set(numbers)) or any(number >= len(self._names) for number in numbers):
            raise CohortRefused("strangers, or members out of order", "members of the roster, ascending")
        before, waited = [other.name for other in self._others_now()], self._waits
        self._told, self._unnamed = self._clock(), message.unnamed
        self._others = tuple(
            Other(self._names[item.member], item.present, None if item.heard < 0 else float(item.heard))
            for item in message.items
        )
        if not waited:
            self._since = self._told
        self._changed |= [other.name for other in self._others] != before
        if not self._changed or not self._lines.take():
            return False
        self._changed = False
        return True

    def now(self) -> tuple[tuple[Other, ...], float | None]:
        """Whom it names, and for how many seconds it has said that it waits; None if for nobody, or it has lapsed.

        It may wait for some and name nobody.
        """
        ago = self._clock() - self._told
        others = tuple(
            Other(one.name, one.present, None if one.heard is None else one.heard + ago) for one in self._others_now()
        )
        return others, self._clock() - self._since if self._waits else None

    def _others_now(self) -> tuple[Other, ...]:
        return self._others if self._waits else ()

    @property
    def _waits(self) -> bool:
        return (self._unnamed or bool(self._others)) and self._clock() - self._told <= LAPSES_AFTER
