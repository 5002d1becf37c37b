"""For the report's "what the server saw": one member's masked vector of one step, and that step's sum."""

from __future__ import annotations

from dataclasses import dataclass

from codream_protocols.course import Array
from codream_protocols.messages import MaskedInput
from codream_protocols.packing import unpack
from codream_protocols.server import ServerProtocol, StepFinished


@dataclass(frozen=True)
class Exhibit:
    """What the server saw of one member in one step, and what it could make of all of them."""

    member: int
    epoch: int
    round: int
    step: int
    task: str
    masked: Array
    total: Array
    survivors: tuple[int, ...]
    modulus_bits: int


class Exhibition:
    """Keeps the first masked input of one step, and its sum.

    Args:
        protocol: the server's machine.
        at: (epoch, step); None keeps nothing.

    Attributes:
        masked: a member and its vector, until their epoch is over.
        exhibit: both together, once the sum is made.
    """

    def __init__(self, protocol: ServerProtocol, at: tuple[int, int] | None) -> None:
        self._protocol, self._at = protocol, at
        self.masked: tuple[int, Array] | None = None
        self.exhibit: Exhibit | None = None

    def epoch_began(self) -> None:
        """What was seen of the epoch before has no sum."""
        self.masked = None

    def saw(self, member: int, message: MaskedInput, frames: tuple[bytes, ...]) -> None:
        """A masked input was taken."""
        plan = self._protocol.plan
        if self._at is None or self.masked is not None or plan is None or self.exhibit is not None:
            return
        if (plan.offer.epoch, message.step) == self._at:
            self.masked = member, unpack(frames[0], plan.spec(message.step).words, plan.modulus_bits)

    def summed(self, finished: StepFinished) -> None:
        """A sum was made."""
        plan = self._protocol.plan
        if self.masked is None or self.exhibit is not None or plan is None:
            return
        if (plan.offer.epoch, finished.step) == self._at:
            member, masked = self.masked
            self.exhibit = Exhibit(
                member,
                plan.offer.epoch,
                plan.certified,
                finished.step,
                finished.task,
                masked,
                finished.total.copy(),
                finished.survivors,
                plan.modulus_bits,
            )
