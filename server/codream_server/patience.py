"""Time as a patient server counts it.

A member is lost when it is silent, not when the server was too busy, or asleep, to hear it. So deadlines are measured
on a clock that stands still while the server's own loop was held up: between two looks it advances by at most `most`,
however late the second look came. What goes wrong again and again is said, and tried, at growing intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class PatientClock:
    """Seconds during which this process listened.

    Args:
        most: the longest time that one look may add.
        clock: the true time, seconds.
    """

    def __init__(self, most: float, clock: Clock = time.monotonic) -> None:
        self.now = 0.0
        self._most, self._clock, self._looked = most, clock, clock()

    def look(self) -> float:
        """Advance; returns how many seconds the server was held up beyond what it allows itself."""
        passed = self._clock() - self._looked
        self._looked += passed
        self.now += min(passed, self._most)
        return max(0.0, passed - self._most)


class RateLimit:
    """A bucket of `burst` tokens that refills at `rate` a second; what finds it empty is over the limit.

    Args:
        burst: how many at once.
        rate: how many a second in the long run.
        clock: seconds.
    """

    def __init__(self, burst: int, rate: float, clock: Clock = time.monotonic) -> None:
        self.over = 0
        self._burst, self._rate, self._clock = burst, rate, clock
        self._tokens, self._at = float(burst), clock()

    def admits(self) -> bool:
        """Take a token; False, and counted, if there is none."""
        now = self._clock()
        self._tokens, self._at = min(self._burst, self._tokens + (now - self._at) * self._rate), now
        if self._tokens < 1:
            self.over += 1
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """The last one was of use, and does not count."""
        self._tokens = min(self._burst, self._tokens + 1)


class Growing:
    """Moments at growing intervals: `first` seconds after the start, then each time twice as long, up to `most`."""

    def __init__(self, first: float, most: float) -> None:
        self._first, self._most = first, most
        self.start(0.0)

    def start(self, now: float) -> None:
        """Begin anew."""
        self._gap, self._due = self._first, now + self._first

    def is_due(self, now: float) -> bool:
        """Whether the moment has come; then the next one is set."""
        if now < self._due:
            return False
        self._gap = min(2 * self._gap, self._most)
        self._due = now + self._gap
        return True


def is_power_of_two(count: int) -> bool:
    """Which of many alike are written down, so that a flood cannot fill the disk."""
    return count & (count - 1) == 0
