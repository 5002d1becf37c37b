"""Which settings an algorithm goes by: a variant that changes another one would be a row of the same under a new name.

Each algorithm says so by `goes_by(dreams, models)`, from its variant's dreams and each client's model; code of one's
own that has no such method may go by all. It is coarse on purpose: what other values of `[dreams]` and `[learning]`
leave without effect (`views_by` without views) is not looked at, but for the steps that move dreams. A test changes
whatever an algorithm does not go by, and sees that its rows stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codream_clients.learning.settings import Learning
from codream_protocols.courses.codream import Dreams
from codream_protocols.settings import declared
from secure_codream.configuration.reading import ConfigError

DREAMS = frozenset(setting.name for setting in declared(Dreams))
LEARNING = frozenset(setting.name for setting in declared(Learning)) - {"held_back"}
"""But for what no comparison goes by: whoever is compared trains on all that it has."""
MOVING = frozenset(
    {
        *("half_way", "way", "optimiser", "server_lr", "update_clip", "update_bits"),
        *("adaptive_weight", "adaptive_from"),
    }
)
"""What of `[dreams]` says how dreams are moved."""
DREAMING = frozenset({"local_steps", "dream_lr", "loss"})
"""What of `[learning]` does."""
PASSES = frozenset({"warm_up_epochs", "local_epochs", "training_rounds", "distil_epochs", "distil_every"})
OWN_IMAGES = PASSES | {"batch_size", "lr", "schedule", "momentum", "weight_decay", "balanced"}
"""What training on own images goes by: who does not distil passes over them as often as others over dreams."""
DISTILLING = frozenset(
    {
        *("distil_epochs", "distil_batch_size", "distil_lr", "distil_schedule", "distil_clip", "distil_shift"),
        *("momentum", "weight_decay", "temperature"),
    }
)
"""What learning from labelled images, and nothing else, goes by."""


@dataclass(frozen=True)
class GoesBy:
    """What an algorithm goes by.

    Attributes:
        dreams: keys of `[dreams]`.
        learning: keys of `[learning]`.
    """

    dreams: frozenset[str] = frozenset()
    learning: frozenset[str] = frozenset()


def effective(algorithm: object, dreams: Dreams, models: Sequence[str]) -> GoesBy:
    """What `algorithm` goes by with these dreams and each client's model."""
    said = getattr(algorithm, "goes_by", None)
    if said is None:
        return GoesBy(DREAMS, LEARNING | {"held_back"})
    found: GoesBy = said(dreams, models)
    return found


def refuse_idle(variant: str, algorithm: str, given: Mapping[str, Mapping[str, Any]], goes_by: GoesBy) -> None:
    """Refuse a variant's own settings, table -> key -> value, that its algorithm does not go by.

    Raises:
        ConfigError: with the keys, and those that are allowed.
    """
    for table, allowed in (("dreams", goes_by.dreams), ("learning", goes_by.learning)):
        if idle := [key for key in given[table] if key not in allowed]:
            instead = f"allowed are {', '.join(sorted(allowed))}" if allowed else "none is allowed"
            raise ConfigError(
                f"{variant}.{table}: found {', '.join(idle)}, of no effect on {algorithm} as it is here; {instead}: "
                f"leave out the others, or set them for all under [{table}]"
            )
