"""Sums of named vectors of a user's own, once: counts, and sums of bounded numbers, for federated statistics.

    course = Sums({"patients": (Block("number", 1, 10_000, "count"), Block("ages", 1, 1e6))})

Each client answers the task "patients" with {"number": ..., "ages": ...}. What is published, once it is certified, is
`patients.number` and `patients.ages`, the sums, and `patients.members`, how many clients are in them. Counts are exact,
reals are rounded to the bits of a value. Such sums depend on no state, so those of a second run with other members
would tell exactly what these had: the charter's blocks are there to prevent that.

With noise, all vectors together keep one budget; they must be of reals, whose noised sums are left as they are, without
bias, and may so lie beyond what clients can add up to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, doc

from codream_protocols.course import Array, Publication, State, Task
from codream_protocols.course import Sums as BlockSums
from codream_protocols.courses.rounds import Figures
from codream_protocols.distributed_noise import multiplier_for
from codream_protocols.settings import MOST, Settings, SettingsError
from codream_protocols.specs import Block, VectorSpec

MEMBERS = "members"


class SumsPrivacy(Settings):
    """Client-level differential privacy of the sums (docs/client-level-privacy.md)."""

    epsilon: Annotated[float, Gt(0), Le(MOST), doc("what all sums together may cost a client, at `delta`")]
    delta: Annotated[float, Gt(0), Lt(1), doc("chance that the bound fails")]
    norm: Annotated[
        float, Gt(0), Le(MOST), doc("Euclidean bound of a client's vector, each block in units of its clip")
    ]
    spare_rounds: Annotated[int, Ge(0), doc("epochs that may fail and be made again within the budget")] = 0


class Sums:
    """Sums as a course: one epoch, one step for each vector. See the module.

    Publication: for each vector, `vector.block` (length,), int64 for counts, float64 for reals, and `vector.members`
    int64 (1,): how many clients are in the sums.

    Args:
        vectors: name -> its blocks; the name is the task that clients are asked.
        privacy: noise for all of them; None for none.
        earlier: how many epochs the charter's predecessors had certified.

    Raises:
        SettingsError: no vector, a vector without blocks, two blocks of one name, one named "members", or counts with
            noise.
    """

    def __init__(
        self, vectors: Mapping[str, Sequence[Block]], privacy: SumsPrivacy | None = None, *, earlier: int = 0
    ) -> None:
        if not vectors:
            raise SettingsError("vectors is empty; one or more are allowed")
        for name, blocks in vectors.items():
            names = [block.name for block in blocks]
            if not names or MEMBERS in names or len(set(names)) != len(names):
                raise SettingsError(f"vector {name!r} has blocks {names}; one or more are allowed, none {MEMBERS!r}")
            if privacy is not None and any(block.kind == "count" for block in blocks):
                raise SettingsError(f"vector {name!r} has counts and noise; blocks of reals are allowed with noise")
        self._vectors = {name: tuple(map(_plain, blocks)) for name, blocks in vectors.items()}
        self._names, self.privacy, self._earlier = tuple(vectors), privacy, earlier

    @property
    def epochs(self) -> int:
        """See `Course`: one after those of predecessors."""
        return self._earlier + 1

    @property
    def noise_multiplier(self) -> float:
        """The noise of each noised sum, over its sensitivity, so that all together keep the budget; 0 without noise."""
        if self.privacy is None:
            return 0.0
        sums = (1 + self.privacy.spare_rounds) * len(self._names)
        return multiplier_for(self.privacy.epsilon, self.privacy.delta, sums)

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """See `Course`."""
        plain = tuple(VectorSpec(name, blocks) for name, blocks in self._vectors.items())
        if self.privacy is None:
            return plain
        norm, multiplier = self.privacy.norm, self.noise_multiplier
        return tuple(spec.with_noise(norm, multiplier, honest) for spec in plain)

    def schedule(self, certified: int) -> tuple[int, ...]:
        """See `Course`."""
        return tuple(range(len(self._names)))

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`: nothing."""
        return {}

    def task(self, state: State, step: int) -> Task:
        """See `Course`: the vector's name, and no arrays."""
        return Task(self._names[step], {})

    def absorb(self, state: State, step: int, sums: BlockSums, count: int) -> State:
        """See `Course`."""
        name = self._names[step]
        found: dict[str, Array] = {f"{name}.{MEMBERS}": np.array([count], dtype=np.int64)}
        for block in self._vectors[name]:
            found[f"{name}.{block.name}"] = sums[block.name].copy()
        return {**state, **found}

    def publication(self, state: State) -> Publication:
        """See `Course`: the state."""
        return state

    def figures(self, task: str, sums: BlockSums, count: int) -> Figures:
        """What people may see of a sum: each block that is one number."""
        shown = [block for block in self._vectors[task] if block.length == 1]
        return {block.name: sums[block.name][0].item() for block in shown}


def _plain(block: Block) -> Block:
    """The same with a bound of the type of its kind: 1 and 1.0 are not the same bytes in a plan."""
    whole = block.kind == "count" and float(block.clip).is_integer()
    return Block(block.name, block.length, int(block.clip) if whole else float(block.clip), block.kind)
