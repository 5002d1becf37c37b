"""What a server holds after a step: the sum that it may open, and every client's frame, read as if nothing hid it.

The clients' vectors are given by whoever attacks; they go through the real machines. With the switch "masks" off a
frame says what its client sent, rounded; with it on, what the masks make of that. So an attack computes the same in
both runs, and only what it reads differs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_protocols.distributed_noise import make_noise, noised_modulus_bits
from codream_protocols.messages import MaskedInput
from codream_protocols.plan import Block, VectorSpec
from codream_protocols.ring import modulus_bits_for
from codream_protocols.tasks import UPDATE
from codream_protocols.vectors import decode_vector
from secure_codream.threats.adversary import masked_input
from secure_codream.threats.attack import Defences
from secure_codream.threats.federation import Stuck
from secure_codream.threats.laboratory import Laboratory

Floats = NDArray[np.float64]
_BLOCK, _LEAST_SURVIVORS = "values", 2


class Watched:
    """A federation for one epoch whose clients send what they are given, and whose server looks closely.

    Args:
        laboratory: seed, mask suite, bits of a value.
        defences: rules that are off are taken out of the clients.
        clients: n, 2 or more.
        length: N, coordinates of a vector.
        clip: bound of a coordinate.
        steps: of the epoch.
        norm: Euclidean bound of a vector; only with noise.
        noise_multiplier: deviation of the distributed noise of the fewest survivors over that bound; 0 for no noise.

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
    ) -> None:
        bits = laboratory.cohort.value_bits
        noise = make_noise(norm / clip, length, noise_multiplier, _LEAST_SURVIVORS) if noise_multiplier else None
        self._federation = laboratory.federation(
            defences,
            members=clients,
            specs=(VectorSpec(UPDATE, (Block(_BLOCK, length, clip),), noise),),
            steps=steps,
            modulus_bits=modulus_bits_for(bits, clients)
            if noise is None
            else noised_modulus_bits(noise, length, clients, steps),
            threshold=None,
            colluders=0,
            least_survivors=_LEAST_SURVIVORS,
            policy=None,
        )
        self._clip, self._step = clip, -1
        if not self._federation.set_up():
            raise Stuck(f"the set-up failed: {self._federation.failures}")

    @property
    def rho(self) -> float:
        """What a step costs a client, in zCDP; 0 without noise."""
        plan = self._federation.plan
        return plan.rho(plan.spec(0))

    def step(self, vectors: NDArray[np.floating[Any]], lost: Collection[int] = ()) -> Floats:
        """The sum (N,) that the server opens of the vectors (n, N), without the members who drop out.

        Raises:
            Stuck: too many dropped out.
        """
        self._federation.input_of = lambda member, effect: {_BLOCK: vectors[member]}
        reveal = self._federation.step({(member, MaskedInput) for member in lost})
        if reveal is None:
            raise Stuck(f"the step failed: {self._federation.failures}")
        self._step = reveal.step
        return self._decoded(reveal.total, len(reveal.survivors))

    def read(self, member: int) -> Floats:
        """A member's frame of the newest step, decoded on its own as if it were plain: (N,)."""
        return self._decoded(masked_input(self._federation, self._step, member), 1)

    def _decoded(self, words: NDArray[Any], survivors: int) -> Floats:
        values: Floats = decode_vector(self._federation.plan, self._step, [self._clip], words, survivors)[_BLOCK]
        return values
