"""What the server tells its operator, event by event; docs/events.md lists them.

An event log that cannot be written (a full disk, no descriptor left) must not end a federation, and must not stay
unnoticed: its events then go to standard error. Text that came over the network is shown with its control characters
made visible.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from codream_protocols.charter import Offer, derive_plan
from codream_protocols.course import Sums
from codream_protocols.courses.metrics import METRICS
from codream_protocols.encoding import decode
from codream_protocols.packing import unpack
from codream_protocols.record import Kept
from codream_protocols.server import ServerProtocol
from codream_server.patience import is_power_of_two

Event = dict[str, Any]
Figures = dict[str, Any]
_FIRST_LINES = 100
_MOST_SHOWN = 512


class Events:
    """Hands events on, whatever happens to the log.

    Args:
        emit: takes each event, a dict with `event` and its fields.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit, self._failures = emit, 0

    def say(self, event: str, **fields: Any) -> None:
        """Emit one event."""
        try:
            self._emit({"event": event, **fields})
        except OSError as error:
            self._failures += 1
            if worth_a_line(self._failures):
                self._complain(f"the event log cannot be written ({error}): {event} {fields}")

    @staticmethod
    def _complain(text: str) -> None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            return  # nobody is left to tell


def kept_of(event: Event) -> Event:
    """What of an event a file keeps: of a refusal whose it was and the code; the rest describes one member's message.

    The operator's screen has all of it.
    """
    said_of_a_message = ("found", "allowed") if event["event"] == "refused" else ()
    return {name: value for name, value in event.items() if name not in said_of_a_message}


def worth_a_line(count: int) -> bool:
    """Whether the count-th of many alike is written down: a flood must not fill the disk."""
    return count <= _FIRST_LINES or is_power_of_two(count)


def printable(text: str) -> str:
    """Text from the network as a terminal may show it, cut to what a line of the log takes."""
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return shown if len(shown) <= _MOST_SHOWN else shown[: _MOST_SHOWN - 1] + "…"


def step_figures(course: Any, task: str, sums: Sums, count: int) -> Figures:
    """What the course has people see of a sum; nothing if it has nothing, or if its own code fails at it."""
    figures = getattr(course, "figures", None)
    if figures is None:
        return {}
    try:
        return dict(figures(task, sums, count))
    except Exception:
        return {}  # for the screen alone: it must not stop what it is about


def metrics_of(protocol: ServerProtocol, kept: Kept, certified: int) -> Figures:
    """The figures of the metrics step of an epoch, which was certified after `certified` others; {} without one."""
    record, frames = kept
    plan = derive_plan(protocol.charter, protocol.course, record.offer, certified)
    for step, frame in enumerate(frames):
        if plan.spec(step).task == METRICS:
            count = len(record.steps[step].members)
            sums = decode(plan, step, unpack(frame, plan.spec(step).words, plan.modulus_bits(step)), count)
            return step_figures(protocol.course, METRICS, sums, count)
    return {}


def rounds_of(protocol: ServerProtocol) -> int:
    """Epochs in which something is learnt: all but a last one of metrics alone."""
    epochs, course = protocol.course.epochs, protocol.course
    if epochs < 2:
        return epochs
    specs = course.specs(protocol.charter.least_honest)
    last = {specs[kind].task for kind in course.schedule(epochs - 1)}
    return epochs - 1 if last == {METRICS} else epochs


def rho_of_records(protocol: ServerProtocol) -> float:
    """What the epochs certified in earlier processes cost a client, in zCDP."""
    if all(spec.noise is None for spec in protocol.course.specs(protocol.charter.least_honest)):
        return 0.0
    offer = Offer(0, protocol.charter.everybody, protocol.head)  # a plan's cost hangs on neither
    certified = range(protocol.charter.earlier, protocol.certified)
    spent = sum(derive_plan(protocol.charter, protocol.course, offer, number).total_rho for number in certified)
    plan = protocol.plan  # gone on with: its steps so far, all of them if it is in its votes
    return spent if plan is None else spent + sum(plan.rho(plan.spec(step)) for step in range(protocol.steps_begun))
