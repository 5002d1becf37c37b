"""What a server holds after a step: the sum that is published, and every client's frame, read as if nothing hid it.

The clients' vectors are given by whoever attacks; they go through the real machines. With the switch "masks" off a
frame says what its client sent, rounded; with it on, what the masks make of that. So an attack computes the same in
both runs, and only what it reads differs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codream_protocols.charter import even_blocks
from codream_protocols.encoding import decode
from codream_protocols.messages import MaskedInput
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Stuck
from secure_codream.threats.laboratory.adversary import masked_input
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.laboratory import Laboratory

Floats = NDArray[np.float64]
_TASK, _BLOCK = "update", "values"
COLLUDERS, LEAST_SURVIVORS = 1, 3


class Watched:
    """A federation for one epoch whose clients send what they are given, and whose server looks closely.

    The state stands still, as the best case for a server: it may compare the sums of different steps.

    Args:
        laboratory: seed, mask suite, bits of a value.
        defences: rules that are off are taken out of the clients.
        clients: n, 3 or more.
        length: N, coordinates of a vector.
        clip: bound of a coordinate.
        steps: of the epoch.
        norm: Euclidean bound of a vector; only with noise.
        noise_multiplier: deviation of the noise of the fewest honest members over that bound; 0 for no noise.
        losses: None is lockstep; else the resilient mode, over whole "blocks" or, with "allow", over any three.

    Raises:
        Stuck: the honest set-up came to no end.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        defences: Defences,
        *,
        clients: int,
        length: int,
        clip: float,
        steps: int = 1,
        norm: float = 1.0,
        noise_multiplier: float = 0.0,
        losses: Literal["blocks", "allow"] | None = None,
    ) -> None:
        spec = VectorSpec(_TASK, (Block(_BLOCK, length, clip),))
        if noise_multiplier:
            smallest = min(map(len, even_blocks(clients, COLLUDERS)))
            honest = {None: clients, "blocks": max(smallest, LEAST_SURVIVORS), "allow": LEAST_SURVIVORS}[losses]
            spec = spec.with_noise(norm / clip, noise_multiplier, honest - COLLUDERS)
        self._federation = laboratory.federation(
            defences,
            members=clients,
            mode="lockstep" if losses is None else "resilient",
            losses=losses or "blocks",
            colluders=COLLUDERS,
            least_survivors=LEAST_SURVIVORS,
            course=LaboratoryCourse((spec,), steps, gain=0.0),
        )
        self._step = -1
        if not self._federation.set_up():
            raise Stuck(f"the set-up failed: {self._federation.failures}")

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Who is only ever summed together, where losses are not allowed."""
        return self._federation.charter.blocks

    @property
    def rho(self) -> float:
        """What a step costs a client, in zCDP; 0 without noise."""
        plan = self._federation.plan
        return plan.rho(plan.spec(0))

    def step(self, vectors: NDArray[np.floating[Any]], lost: Collection[int] = ()) -> Floats:
        """The sum (N,) that the server opens of the vectors (n, N), without those who drop out, and their blocks.

        Raises:
            Stuck: too many dropped out.
        """
        self._federation.input_of = lambda member, effect: {_BLOCK: vectors[member]}
        reveal = self._federation.step({(member, MaskedInput) for member in lost})
        if reveal is None:
            raise Stuck(f"the step failed: {self._federation.failures}")
        self._step, self.survivors = reveal.step, reveal.survivors
        return np.asarray(reveal.sums[_BLOCK], dtype=np.float64)

    def read(self, member: int) -> Floats:
        """A member's frame of the newest step, decoded on its own as if it were plain: (N,)."""
        words = masked_input(self._federation, self._step, member)
        return np.asarray(decode(self._federation.plan, self._step, words, 1)[_BLOCK], dtype=np.float64)
