"""What a person sees while a simulation runs, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from codream_protocols.neighbours import SECURITY_BITS, TRIES_BITS, Degree
from secure_codream.simulation.virtual.run import Outcome
from secure_codream.simulation.virtual.scene import Scene

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
_LEAST_PART = 0.05  # of all work: what comes first is not shared evenly, and would promise too much


class SimulationView:
    """Shows how far a run is, and how long it still takes if the rest goes as what is done; a context manager.

    Args:
        console: where; on a terminal a line that is redrawn, elsewhere a line now and then.
        clock: gives seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._began: float | None = None
        self._said = -PLAIN_SECONDS
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting the workers", total=1.0, left="")

    def __enter__(self) -> SimulationView:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def feed(self, phase: str, part: float) -> None:
        """Take notice: what is under way, and which part of all work is done, 0 to 1."""
        now = self._clock()
        began = self._began = now if self._began is None else self._began
        known = now > began and part >= _LEAST_PART
        text = f"about {(now - began) * (1 - part) / part:.0f} s left" if known else ""
        self._progress.update(self._task, description=phase, completed=part, left=text)
        if not self._console.is_terminal and now - self._said >= PLAIN_SECONDS:
            self._said = now
            self._console.print(f"{phase}: {part:.0%} done, {text or 'time left unknown'}", markup=False)


def outcome_tables(scene: Scene, outcome: Outcome) -> list[Table]:
    """The steps, and what they cost."""
    steps = Table("step", "inputs", "here, s", "predicted, s", "sum", title="Sums")
    for number, step in enumerate(outcome.steps, start=1):
        steps.add_row(
            str(number), str(step.survivors), f"{step.seconds:.2f}", f"{step.predicted:.2f}", step.digest[:16]
        )
    costs = Table("of the epoch", "", title="Costs")
    rows = {
        "wall, s (of that, set-up)": f"{outcome.seconds:.1f} ({outcome.set_up_seconds:.1f})",
        "predicted on the virtual network, s (of that, set-up)": f"{outcome.predicted:.2f} "
        f"({outcome.set_up_predicted:.2f})",
        "processor of a client, s": f"{outcome.client_seconds / scene.members:.3f}",
        "processor of the server, s": f"{outcome.server_seconds:.1f}",
        "up, MB a client": f"{outcome.bytes_up / scene.members / 1e6:.3f}",
        "down, MB a client": f"{outcome.bytes_down / scene.members / 1e6:.3f}",
        "head": outcome.head[:16],
    }
    for name, value in rows.items():
        costs.add_row(name, value)
    return [steps, costs]


def degree_line(scene: Scene, degree: Degree) -> str:
    """On a ring: how many neighbours, and why so many."""
    colluders = scene.aggregation.colluders
    return (
        f"each of {scene.members:,} members has {degree.neighbours} neighbours, of whom {degree.threshold} open a "
        f"secret: with {colluders:,} colluder{'s' * (colluders > 1)}, and a tenth silent at random, secrecy and life "
        f"fail with 2^-{SECURITY_BITS}, after 2^{TRIES_BITS} tries of the ring"
    )


def _here(outcome: Outcome) -> float:
    return outcome.client_seconds + outcome.server_seconds - outcome.spared_seconds


def spared_line(outcome: Outcome) -> str:
    """What a deployment would compute besides; its clients share nothing."""
    return (
        f"what is alike for every member {outcome.alike_spared:,} times, and {outcome.agreements_spared:,} key "
        "agreements, a worker did not compute once more for another of its virtual clients: clients' seconds are with "
        f"the {outcome.spared_seconds:.0f} s that these would take, and {_here(outcome):.0f} s were spent here"
    )
