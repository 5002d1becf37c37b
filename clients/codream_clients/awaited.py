"""For whom the server says that it waits: its word, for this client's screen and status, and for nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from codream_protocols.errors import CohortRefused
from codream_protocols.identity import Roster
from codream_protocols.messages import Waiting

LAPSES_AFTER = 30.0
"""Seconds; a server that still waits has said so again by then."""


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
        self._told = self._since = clock()

    def take(self, message: Waiting) -> bool:
        """Take its word; whether it names others than before.

        Raises:
            CohortRefused: strangers, or one member twice; nothing has changed.
        """
        numbers = [item.member for item in message.items]
        if numbers != sorted(set(numbers)) or any(number >= len(self._names) for number in numbers):
            raise CohortRefused("strangers, or members out of order", "members of the roster, ascending")
        before = [other.name for other in self._others_now()]
        self._told = self._clock()
        self._others = tuple(
            Other(self._names[item.member], item.present, None if item.heard < 0 else float(item.heard))
            for item in message.items
        )
        if not before:
            self._since = self._told
        return [other.name for other in self._others] != before

    def now(self) -> tuple[tuple[Other, ...], float]:
        """For whom it waits, and for how many seconds it has said so; nobody once its word has lapsed."""
        ago = self._clock() - self._told
        others = tuple(
            Other(one.name, one.present, None if one.heard is None else one.heard + ago) for one in self._others_now()
        )
        return others, self._clock() - self._since if others else 0.0

    def _others_now(self) -> tuple[Other, ...]:
        return self._others if self._clock() - self._told <= LAPSES_AFTER else ()
