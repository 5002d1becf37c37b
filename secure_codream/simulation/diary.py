"""A client's journal in memory: its disk, where nothing has to outlive the process.

What it holds is what the next process of the same client is given.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from codream_protocols.client import Begun, Journal, Memory
from codream_protocols.record import Kept


class Diary(Journal):
    """A client's journal, in memory; `memory` is what the next process of the client is given."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.plans: dict[int, bytes] = {}  # epoch -> the plan joined

    def joined(self, epoch: int, plan: bytes) -> None:
        """See `Journal`."""
        self.plans[epoch] = plan
        self._change(next_epoch=epoch + 1, attempts=self.memory.attempts + 1)

    def began(self, begun: Begun, rho: float) -> None:
        """See `Journal`."""
        self._change(begun=begun, steps=self.memory.steps + 1, rho=self.memory.rho + rho)

    def voted(self, kept: Kept) -> None:
        """See `Journal`."""
        self._change(vote=kept)

    def certified(self, kept: Kept) -> None:
        """See `Journal`."""
        self._change(certified=(*self.memory.certified, kept), vote=None, attempts=0)

    def saw_wrong_sum(self, plan: bytes) -> None:
        """See `Journal`."""
        self._change(wrong_sums=(*self.memory.wrong_sums, plan))

    def recall(self, place: int) -> Kept:
        """See `Journal`."""
        return self.memory.certified[place]

    def _change(self, **changes: Any) -> None:
        held = {item.name: getattr(self.memory, item.name) for item in fields(Memory)}
        self.memory = Memory(**{**held, **changes})
