"""Where a vector may be masked instead: on the device that its numbers lie on. The machine decides when, and sees how.

Nothing of what is promised rests on an accelerator being another one: it gives the very bytes that `encoding`, `masks`
and `packing` give from the same keys and random bytes, and its part of the tag. It is this client's own code, as the
machine is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from codream_protocols.charter import Plan
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.tag import TagKey


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked vector.

    Attributes:
        frame: as `packing.pack` gives it.
        product: what `TagKey.of` gives of the vector before it was masked.
        replaced: how many of its numbers were not finite.
    """

    frame: bytes
    product: int = field(repr=False)  # it tells of the vector
    replaced: int


class NotErased(RuntimeError):
    """A device does nothing any more, so that what it was given of a vector, or of its masks, may still lie there."""


class Ready(Protocol):
    """A vector that an accelerator has checked, and found memory for; its keys are not taken yet."""

    def masked(self, keys: Sequence[tuple[bytes, bool]], tag_key: TagKey) -> Masked:
        """Mask it, once.

        Whatever this raises costs the client its epoch, since its masks are gone; nothing has left.

        Raises:
            NotErased: it ends the client, and what lies on the device goes with its process.
        """


class Accelerator(Protocol):
    """Masks vectors where their numbers lie."""

    def ready(self, plan: Plan, step: int, values: Mapping[str, Any], random_bytes: RandomBytes) -> Ready | None:
        """Get a step's vector ready, `values` as `ClientProtocol.provide` has them; None if it is not for this one."""
