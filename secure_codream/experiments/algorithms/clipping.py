"""What a comparison says where a bound of the secure sums cuts much of what clients send.

A bound that is often met decides rows of a table, and nothing in them shows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from codream_clients.learning.training import ConvergenceWarning
from codream_protocols.courses.rounds import Rounds
from codream_protocols.server import StepFinished
from secure_codream.reports.clipping import MOST_CLIPPED


def telling_of_clipping(course: Rounds, what: str, bound: str) -> Callable[[StepFinished], None]:
    """Hears of each step's sum, and warns with `ConvergenceWarning` where more than `MOST_CLIPPED` was clipped.

    Args:
        course: whose sums they are; those without a figure `clipped` are passed over.
        what: clients send.
        bound: the setting that clips it.
    """

    def tell(step: StepFinished) -> None:
        clipped = course.figures(step.task, step.sums, len(step.survivors)).get("clipped")
        if clipped is not None and clipped > MOST_CLIPPED:
            share = f"more than {MOST_CLIPPED:.0%} of their coordinates"
            text = f"{what} were clipped in {share}; a larger {bound} may help"
            warnings.warn(text, ConvergenceWarning, stacklevel=2)

    return tell
