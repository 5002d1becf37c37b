"""What a server's page and screen say where a bound of the secure sums cuts much of what clients send."""

from __future__ import annotations

from collections.abc import Sequence

from codream_protocols.courses.codream import UPDATE
from codream_protocols.courses.parameters import PARAMETERS
from secure_codream.reports.events import Event, StepFinished

MOST_CLIPPED = 0.01
"""Share of the coordinates beyond which clipping is told of."""
_BOUNDS = {UPDATE: "update_clip under [dreams]", PARAMETERS: "clip under [averaging]"}


def clipped_line(events: Sequence[Event]) -> str | None:
    """In how many sums more than `MOST_CLIPPED` was cut, and by which setting; None where in none."""
    steps = [event for event in events if isinstance(event, StepFinished)]
    told = [(step.task, step.clipped) for step in steps if step.clipped is not None]
    cut = [task for task, share in told if share > MOST_CLIPPED]
    if not cut:
        return None
    bounds = " or ".join(sorted({_BOUNDS.get(task, f"the bound of {task!r}") for task in cut}))
    return (
        f"in {len(cut)} of {len(told)} sums more than {MOST_CLIPPED:.0%} of what clients sent was cut by its bound; "
        f"a larger {bounds} may help"
    )
