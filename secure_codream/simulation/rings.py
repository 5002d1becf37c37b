"""Machines on rings of a few members, so that what holds on all rings can be tried in a moment.

Deployed machines would stand on rings beyond 200 members, of a degree at which what is left to chance fails with 2^-40.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from codream_protocols import charter as charter_module
from codream_protocols.neighbours import Degree, Ring, ring

MakeRing = Callable[[bytes, tuple[int, ...], Degree], Ring]


@contextmanager
def small_rings(neighbours: int, threshold: int, make: MakeRing | None = None) -> Iterator[None]:
    """Every resilient federation stands on a ring of this degree, or on what `make` gives."""
    degree = Degree(neighbours, threshold)
    with (
        patch.object(charter_module, "MAX_COMPLETE", 2),
        patch.object(charter_module, "least_degree", lambda members, colluders: degree),
        patch.object(charter_module, "ring", make or ring),
    ):
        yield


def spread(distances: Sequence[int]) -> MakeRing:
    """A graph whose neighbours stand so far apart that those of one member are hardly neighbours of each other."""

    def make(transcript: bytes, members: tuple[int, ...], degree: Degree) -> Ring:
        steps = np.array([sign * distance for distance in distances for sign in (1, -1)])
        rows = np.sort((np.arange(len(members))[:, None] + steps) % len(members), axis=1)
        return Ring(members, degree, rows)

    return make
