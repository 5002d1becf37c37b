"""How often this client does what a server can make it do."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """How often something may be done: `burst` times at once, and `rate` times a second in the long run."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._rate, self._left, self._clock, self._at = burst, rate, burst, clock, clock()

    def take(self) -> bool:
        """Whether it may be done once more now; if so, it counts."""
        now = self._clock()
        self._left, self._at = min(self._burst, self._left + (now - self._at) * self._rate), now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def add(self) -> None:
        """It may be done once more."""
        self._left += 1
