"""What came of a learner's failures: a federation goes on without its work, and must not look as if all were well.

A learner that fails gives zeros, of which nobody else is told. They count once the epoch that they were summed in is
certified; those of an attempt that is given up, or of a step whose sum does not hold this client's vector, come to
nothing. An epoch that was not learnt counts until it is. `content` outlasts the process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

MOST_ATTEMPTS = 4096
"""So many attempts are told apart; a charter bounds those under one head, and a certificate forgets all before."""


class Failures:
    """The failures of one client under one charter.

    Args:
        charter: its digest, in hexadecimal digits; what was kept under another one counts no more.
        content: what an earlier process kept; None if there was none.
        keep: called with `content` whenever something counts, from any thread.

    Raises:
        ValueError: what was kept is no such content.
    """

    def __init__(
        self,
        charter: str = "",
        content: bytes | None = None,
        keep: Callable[[bytes], object] = lambda content: None,
    ) -> None:
        self._charter = charter
        self._zeros: Counter[str] = Counter()
        self._unlearnt: set[int] = set()
        self._pending: dict[str, dict[int, str]] = {}  # plan -> step -> task, the newest attempt last
        self._keep, self._lock = keep, Lock()
        if content is not None:
            self._read(content)

    def __bool__(self) -> bool:
        return bool(self._zeros or self._unlearnt)

    def __str__(self) -> str:
        """Such as "zeros were summed for 'update' in 3 steps; epochs 1 to 4, 7 were not learnt, or not in full"."""
        said = [
            f"zeros were summed for {task!r} in {count} {'step' if count == 1 else 'steps'}"
            for task, count in sorted(self._zeros.items())
        ]
        if self._unlearnt:
            epochs = "epoch" if len(self._unlearnt) == 1 else "epochs"
            were = "was" if len(self._unlearnt) == 1 else "were"
            said.append(f"{epochs} {_ranges(sorted(self._unlearnt))} {were} not learnt, or not in full")
        return "; ".join(said)

    def zeroed(self, plan: bytes, step: int, task: str) -> None:
        """Zeros stand for this client's vector in a step of an attempt."""
        with self._changing():
            if plan.hex() in self._pending or len(self._pending) < MOST_ATTEMPTS:
                self._pending.setdefault(plan.hex(), {})[step] = task

    def certified(self, plan: bytes, counted: Iterable[int]) -> None:
        """An epoch is certified with this client's vectors in the sums of these steps."""
        if plan.hex() not in self._pending:
            return
        with self._changing():
            attempts = list(self._pending)
            for earlier in attempts[: attempts.index(plan.hex())]:
                del self._pending[earlier]  # given up
            zeroed = self._pending.pop(plan.hex())
            self._zeros.update(zeroed[step] for step in counted if step in zeroed)

    def not_learnt(self, number: int) -> None:
        """An epoch is certified, and this client's learner failed at it."""
        with self._changing():
            self._unlearnt.add(number)

    def learnt(self, number: int) -> None:
        """It is learnt after all, or was at once."""
        if number in self._unlearnt:
            with self._changing():
                self._unlearnt.discard(number)

    @property
    def content(self) -> bytes:
        """What `Failures` takes again, as JSON."""
        pending = [[plan, step, task] for plan, zeroed in self._pending.items() for step, task in zeroed.items()]
        kept = {
            "charter": self._charter,
            "zeros": dict(self._zeros),
            "unlearnt": sorted(self._unlearnt),
            "pending": pending,
        }
        return json.dumps(kept, indent=2).encode() + b"\n"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            before = self.content
            yield
            if self.content != before:
                self._keep(self.content)

    def _read(self, content: bytes) -> None:
        try:
            kept = json.loads(content)
            if kept["charter"] != self._charter:
                return
            self._zeros.update({str(task): _count(times) for task, times in kept["zeros"].items()})
            self._unlearnt.update(_count(number) for number in kept["unlearnt"])
            for plan, step, task in kept["pending"]:
                self._pending.setdefault(str(plan), {})[_count(step)] = str(task)
        except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"no list of failures ({type(error).__name__})") from error


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"no list of failures: found {str(value)[:40]!r}; a whole number of at least 0 is needed")
    return value


def _ranges(numbers: list[int]) -> str:
    """Such as "1 to 4, 7"; ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
