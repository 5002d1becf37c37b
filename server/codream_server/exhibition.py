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
    """Keeps the masked input of one step's first member in the roster's order, and its sum.

    Of the first that came it would tell who is the fastest.

    Args:
        protocol: the server's machine.
        at: (epoch, step); None keeps nothing.

    Attributes:
        masked: a member and its packed vector, until their epoch is over.
        exhibit: both together, once the sum is made.
    """

    def __init__(self, protocol: ServerProtocol, at: tuple[int, int] | None) -> None:
        self._protocol, self._at = protocol, at
        self.masked: tuple[int, bytes] | None = None
        self.exhibit: Exhibit | None = None

    def epoch_began(self) -> None:
        """What was seen of the epoch before has no sum."""
        self.masked = None

    def saw(self, member: int, message: MaskedInput, frames: tuple[bytes, ...]) -> None:
        """A masked input was taken; nothing is seen of one whose frame was of no use, and not asked for."""
        plan = self._protocol.plan
        if not frames or self._at is None or plan is None or message.plan != plan.digest or self.exhibit is not None:
            return
        if (plan.offer.epoch, message.step) == self._at and (self.masked is None or member < self.masked[0]):
            self.masked = member, frames[0]

    def summed(self, finished: StepFinished) -> None:
        """A sum was made."""
        plan = self._protocol.plan
        if self.masked is None or self.exhibit is not None or plan is None:
            return
        if (plan.offer.epoch, finished.step) == self._at and self.masked[0] in finished.survivors:
            member, frame = self.masked
            masked = unpack(frame, plan.spec(finished.step).words, plan.modulus_bits(finished.step))
            self.exhibit = Exhibit(
                member,
                plan.offer.epoch,
                plan.certified,
                finished.step,
                finished.task,
                masked,
                finished.total.copy(),
                finished.survivors,
                plan.modulus_bits(finished.step),
            )
