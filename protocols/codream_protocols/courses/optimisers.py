"""What follows a step's mean: the optimisers of the dreams, one entry each, and nothing to add elsewhere.

Updates are differences that clients have worked out; gradients point uphill, and are gone down:

    average   the mean is added
    fedadam   Adam, the mean of the updates as a pseudo-gradient (Reddi et al., ICLR 2021)
    adam      Adam on the mean gradient, as CoDream's authors have it, who call it DistAdam

A new one is a class with the methods of `Average`, named in `OPTIMISERS`: the names that configurations take, the
reference of settings and the course follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from codream_protocols.course import Array, State
from codream_protocols.courses.numbers import Doubles, adam, fresh_moments

BETAS = (0.9, 0.999)
Way = Literal["update", "gradient"]


class Optimiser(Protocol):
    """Pure arithmetic as in `numbers`: every party computes it alike to the last bit.

    Attributes:
        way: what clients send for it.
    """

    @property
    def way(self) -> Way:
        """See the class."""

    def fresh(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """What it keeps in the course's state, before the first step."""

    def step(self, state: State, mean: Doubles, rate: float) -> tuple[Doubles, dict[str, Array]]:
        """The move of the dreams for a step's mean, both of one shape, and what it keeps after it."""


@dataclass(frozen=True)
class Average:
    """The mean update itself, times the rate."""

    way: Way = "update"

    def fresh(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """See `Optimiser`."""
        return {}

    def step(self, state: State, mean: Doubles, rate: float) -> tuple[Doubles, dict[str, Array]]:
        """See `Optimiser`."""
        return rate * mean, {}


@dataclass(frozen=True)
class Adam:
    """Adam along mean updates, or against mean gradients."""

    way: Way

    def fresh(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """See `Optimiser`."""
        return fresh_moments(shape)

    def step(self, state: State, mean: Doubles, rate: float) -> tuple[Doubles, dict[str, Array]]:
        """See `Optimiser`."""
        move, moments = adam(state, mean, rate, BETAS)
        return (move if self.way == "update" else -move), moments


OPTIMISERS: Mapping[str, Optimiser] = {"average": Average(), "fedadam": Adam("update"), "adam": Adam("gradient")}
"""By the names that configurations and charters use."""

if TYPE_CHECKING:
    OptimiserName = str
else:
    OptimiserName = Literal[tuple(OPTIMISERS)]


def fitting(way: str) -> tuple[str, ...]:
    """The optimisers of what clients send."""
    return tuple(name for name, optimiser in OPTIMISERS.items() if optimiser.way == way)
