"""What somebody's own code raises, whatever it is, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Raised:
    """What a learner's code raised, kept from the event loop, to which some exceptions mean other things.

    A `StopIteration` would never arrive there, a `SystemExit` or a `CancelledError` would end this client as if it had
    been told to end.
    """

    error: BaseException

    def __str__(self) -> str:
        try:
            return f"{type(self.error).__name__}: {self.error}"
        except Exception:  # whose own text fails, too
            return type(self.error).__name__

    @property
    def ordinary(self) -> bool:
        """Whether it means an error, wherever it is raised again."""
        return isinstance(self.error, Exception) and not isinstance(self.error, StopIteration | StopAsyncIteration)


def caught(call: Callable[[], Result]) -> Result | Raised:
    """What a call returns, or has raised, whatever that is."""
    try:
        return call()
    except BaseException as error:
        return Raised(error)
