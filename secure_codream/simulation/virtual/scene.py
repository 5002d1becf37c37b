"""What is simulated: who takes part, what they sum, who falls silent when; all of it follows from a seed.

Every process makes its part of the federation from this alone: keys, inputs and silences are streams of the seed, so a
run gives the same sums and the same head whatever the engine and however many workers there are. Keys that follow from
a seed hide nothing; nobody's data are in such a run.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from codream_protocols.charter import Aggregation, Charter, Plan, even_blocks, first_plan
from codream_protocols.errors import LocalProtocolError
from codream_protocols.identity import MAX_MEMBERS, Member, Roster, ServerEntry, Signer
from codream_protocols.seeded import SeededBytes
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.toy_course import LaboratoryCourse

BLOCK = "values"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of sums of vectors.

    Attributes:
        members: virtual clients; all are invited.
        dimension: coordinates of a vector; inputs are uniform in [-1, 1).
        steps: vectors that each sends, one after the other.
        aggregation: how sums are made.
        drop: the share of clients that fall silent in each step, drawn anew; they are back for the next one.
        seed: of keys, inputs, rounding and silences.
    """

    members: int
    dimension: int
    steps: int
    aggregation: Aggregation
    drop: float = 0.0
    seed: int = 0

    def plan(self) -> Plan:
        """The plan of its epoch; what could never run is refused before workers are started.

        Raises:
            UnsafePlan: a promise of the protocol would fail.
            LocalProtocolError: more members than a roster takes.
        """
        if self.members > MAX_MEMBERS:
            raise LocalProtocolError(f"{self.members} members", f"{MAX_MEMBERS} or fewer")
        return first_plan(self.charter(self.roster()), self.course())

    def course(self) -> LaboratoryCourse:
        """What they do: a few numbers that each sum moves, so that whoever is told another one is found out."""
        return LaboratoryCourse((VectorSpec("sum", (Block(BLOCK, self.dimension, 1.0),)),), steps=self.steps, epochs=1)

    def random(self, member: int) -> SeededBytes:
        """What a virtual client draws from, after its two keys."""
        draw = SeededBytes(self.seed, f"virtual client {member}")
        draw(64)
        return draw

    def signer(self, member: int) -> Signer:
        """A virtual client's identity."""
        return Signer(SeededBytes(self.seed, f"virtual client {member}")(32))

    def roster(self) -> Roster:
        """Everybody; made anew in each process."""
        members = []
        for number in range(self.members):
            keys = SeededBytes(self.seed, f"virtual client {number}")(64)
            members.append(Member(f"virtual-{number}", Signer(keys[:32]).public, keys[32:]))
        return Roster("simulated", 1, ServerEntry("tcp://127.0.0.1:1", bytes(32)), tuple(members))

    def charter(self, roster: Roster) -> Charter:
        """What they agreed on."""
        return Charter(
            roster=roster.hash,
            members=self.members,
            settings=bytes(32),
            aggregation=self.aggregation,
            blocks=even_blocks(self.members, self.aggregation.colluders),
        )

    def inputs(self, member: int, step: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """A virtual client's vector of a step."""
        generator = np.random.default_rng((self.seed, member, step))
        return {BLOCK: generator.uniform(-1, 1, self.dimension).astype(np.float32)}

    def silent(self, step: int) -> frozenset[int]:
        """Who answers nothing in a step."""
        if not self.drop:
            return frozenset()
        draws = np.random.default_rng((self.seed, self.members, step, 1)).random(self.members)
        return frozenset(np.flatnonzero(draws < self.drop).tolist())
