"""How much of a run is done: what members have sent, each message weighed by what it took to make.

Answers are no measure: those of the set-up's first letters cost next to nothing, and in what follows a member agrees
with all its partners. The weights are microseconds of a processor for each member and partner, server and wire
included, as measured on 40 members of a complete graph and 205 of a ring; only how they stand to each other counts.
"""

from __future__ import annotations

from codream_protocols.messages import (
    MaskedInput,
    OpenedStarts,
    Seals,
    SurvivorSignature,
    ToServer,
    UnmaskShares,
    Vote,
)
from secure_codream.simulation.virtual.scene import Scene

_OPENING = 185.0  # what the partners sealed; on a ring before the first input, else with it
_FOR_A_PARTNER = {
    Seals: 250.0,
    OpenedStarts: _OPENING,
    MaskedInput: 52.0,
    SurvivorSignature: 2.0,
    UnmaskShares: 7.0,
    Vote: 4.0,
}
_A_COORDINATE, _A_COORDINATE_OF_A_PARTNER = 0.016, 0.0003  # of a vector; what is masked with each partner


class Work:
    """What an epoch asks of a scene's members.

    Attributes:
        total: of all messages of an epoch in which only those drop that the scene makes silent.

    Args:
        scene: what is simulated.
        neighbours: of each member on a ring; None on a complete graph.
    """

    def __init__(self, scene: Scene, neighbours: int | None) -> None:
        self._ring, self._partners = neighbours is not None, neighbours or scene.members - 1
        self._vector = scene.dimension * (_A_COORDINATE + _A_COORDINATE_OF_A_PARTNER * self._partners)
        in_step: list[type[ToServer]] = [MaskedInput]
        if scene.aggregation.mode == "resilient":
            in_step += [SurvivorSignature, UnmaskShares] if self._ring else [UnmaskShares]
        once: list[type[ToServer]] = [Seals, OpenedStarts, Vote] if self._ring else [Seals, Vote]
        self.total = scene.members * sum(map(self.of, once))
        for step in range(scene.steps):
            answering = scene.members - len(scene.silent(step))
            self.total += answering * sum(self.of(kind, first=not step) for kind in in_step)

    def of(self, kind: type[ToServer], *, first: bool = False) -> float:
        """What a member does before it sends a message of this kind; `first`: in the first step."""
        weight = _FOR_A_PARTNER.get(kind, 0.0) * self._partners
        if kind is not MaskedInput:
            return weight
        return weight + self._vector + (_OPENING * self._partners if first and not self._ring else 0.0)
