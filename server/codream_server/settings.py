"""What the aggregator's operator decides: how patient it is. Nothing here changes what a client reveals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codream_protocols.courses.settings import SettingsError


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Patience, in seconds. While the server's own loop is held up, none of it passes; see `patience`.

    Attributes:
        join: how long to wait for the whole roster before the first epoch: resilient goes on with who is there then,
            and a server that cannot go on gives up. None waits without limit.
        step: how long lockstep waits for a lost member of a running epoch, before the epoch is given up. In resilient
            mode, how long at least a member is waited for that is there and does not answer although all others have;
            ten times as long as the slowest of them took, if that is longer.
        beat: how often a client must be heard.
        lost_after: silence after which a member counts as lost.

    Raises:
        SettingsError: a number out of its range.
    """

    join: float | None = None
    step: float = 600.0
    beat: float = 1.0
    lost_after: float = 30.0

    def __post_init__(self) -> None:
        for name in ("join", "step", "beat", "lost_after"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value}; a number of seconds above 0 is allowed")
        if not 0.1 <= self.beat <= 3600:
            raise SettingsError(f"beat is {self.beat}; 0.1 to 3600 s is allowed")
        if self.lost_after < 2 * self.beat:
            raise SettingsError(f"lost_after is {self.lost_after}; twice beat ({self.beat}) or more is allowed")
