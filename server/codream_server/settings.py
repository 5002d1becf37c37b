"""What the aggregator's operator decides: how patient it is. Nothing here changes what a client reveals."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, doc

from codream_protocols.settings import Settings, SettingsError


class Timing(Settings):
    """`[timing]`, in seconds, the server's patience; no part of the charter.

    While the server's own loop is held up, none of it passes; see `patience`.
    """

    join: Annotated[
        Annotated[float, Gt(0), Le(604_800)] | None,
        doc("how long to wait for the whole roster before the first epoch; without it, for ever"),
    ] = None
    step: Annotated[
        float,
        Gt(0),
        Le(604_800),
        doc(
            "how long lockstep waits for a lost member before it gives the epoch up, and resilient at least for one "
            "that is there and does not answer, or ten times as long as the slowest of the others took"
        ),
    ] = 600.0
    beat: Annotated[float, Ge(0.1), Le(3600), doc("how often a client must be heard")] = 1.0
    lost_after: Annotated[float, Gt(0), Le(86_400), doc("silence after which a member counts as lost")] = 60.0

    def _check(self) -> None:
        if self.lost_after < 2 * self.beat:
            raise SettingsError(f"lost_after is {self.lost_after}; twice beat ({self.beat}) or more is allowed")

    def for_all(self, *, under_way: bool) -> float:
        """How long a process waits for the whole roster: where epochs were opened before, who is away is lost."""
        if under_way:
            return self.lost_after if self.join is None else min(self.join, self.lost_after)
        return float("inf") if self.join is None else self.join
