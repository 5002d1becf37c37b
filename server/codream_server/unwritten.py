"""What must be written, and the disk does not take: it is tried again at growing intervals, and never forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_server.events import Events, worth_a_line
from codream_server.patience import Growing, PatientClock


class ResultsUnwritten(LocalProtocolError):
    """The federation came to its end, and the disk does not take its results; the record has them."""

    code = "results-unwritten"


class Unwritten:
    """What waits for the disk; its length is how much.

    Args:
        patient: the time that passes between two tries.
        events: where failures are said.

    Attributes:
        failures: of the disk, so far.
    """

    def __init__(self, patient: PatientClock, events: Events) -> None:
        self._patient, self._events = patient, events
        self._waiting: dict[tuple[str, int, str], Callable[[], None]] = {}  # what, of which epoch or member, why
        self._rewrite = Growing(1.0, 30.0)
        self.failures = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def keep_trying(self, what: str, number: int, error: OSError, again: Callable[[], None], kind: str = "") -> None:
        """Once for each kind and member, however often it comes: a flood must not wait here."""
        if not self._waiting:
            self._rewrite.start(self._patient.now)
        self._waiting[what, number, kind] = again
        self.failed(what, error)

    def failed(self, what: str, error: OSError) -> None:
        """Say that the disk failed at something that need not be tried again, or is by somebody else."""
        self.failures += 1
        if worth_a_line(self.failures):
            self._events.say("storage_failed", what=what, reason=str(error), count=self.failures)

    def write_again(self, *, at_once: bool = False) -> None:
        """Try all of it, if it is due; what fails once more comes back by `keep_trying`."""
        if not self._waiting or not (at_once or self._rewrite.is_due(self._patient.now)):
            return
        waiting, self._waiting = self._waiting, {}
        for again in waiting.values():
            with contextlib.suppress(RemoteProtocolError):  # a vote that has been counted meanwhile
                again()

    def check_results(self) -> None:
        """Raises `ResultsUnwritten` if something published is not written."""
        numbers = [str(number) for what, number, _ in sorted(self._waiting) if what == "publication"]
        if numbers:
            raise ResultsUnwritten(
                f"a disk that does not take what was published of epoch {', '.join(numbers)}",
                "one with room for it",
                "all epochs are certified; start the server again, and it writes from its record what is missing",
            )
