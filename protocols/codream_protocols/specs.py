"""What a step's vector is made of: blocks of numbers with a public bound, and the noise that each client adds.

Bounds are constants of the charter: a bound that moved would have a kink at every client's value, and sums on both
sides of it would tell that value (docs/decisions/0005-protocol-2.md).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, Struct

from codream_protocols.distributed_noise import Noise, make_noise, noised_modulus_bits
from codream_protocols.errors import UnsafePlan
from codream_protocols.identity import Name
from codream_protocols.record_noise import RecordNoise, make_record_noise, summed_modulus_bits
from codream_protocols.ring import modulus_bits_for
from codream_protocols.rotation import padded_length

MAX_COORDINATES = 1 << 26
MAX_COUNT = (1 << 32) - 1
DIGIT_BITS = 8  # counts travel as digits of a byte, so that their sums are exact whatever the bits of a value
RING_BITS = 16  # of vectors of a resolution of their own, at least: so many take no longer to mask and pack than fewer
MOST_VALUE_BITS = 24
LEAST_CLIP = 1e-9  # far below it, fixed-point arithmetic in doubles would no longer be exact


class Block(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of numbers with one bound.

    Attributes:
        name: the block's name, once in a vector.
        length: how many numbers.
        clip: their bound: reals lie in [-clip, clip], counts in 0 .. clip.
        kind: "real" numbers are rounded to the value's bits; a "count" is an integer, and its sum is exact.
    """

    name: Name
    length: Annotated[int, Meta(ge=1, le=MAX_COORDINATES)]
    clip: float
    kind: Literal["real", "count"] = "real"

    @property
    def digits(self) -> int:
        """Ring elements of one number."""
        return 1 if self.kind == "real" else max(1, -(-int(self.clip).bit_length() // DIGIT_BITS))

    @property
    def words(self) -> int:
        """Ring elements of the block."""
        return self.length * self.digits


class VectorSpec(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One kind of vector that clients send: its task's name, its blocks, in order, and the noise each client adds.

    `Noise` hides whether a client sent anything of its own, `RecordNoise` whether one of its records took part. Without
    noise, `value_bits` is how many bits its reals have at least; None takes the charter's v, and no more.
    """

    task: Name
    blocks: Annotated[tuple[Block, ...], Meta(min_length=1, max_length=64)]
    noise: Noise | RecordNoise | None = None
    value_bits: Annotated[int, Meta(ge=2, le=MOST_VALUE_BITS)] | None = None

    @property
    def hides_clients(self) -> bool:
        """Whether its noise bounds what a sum tells of a client as a whole."""
        return isinstance(self.noise, Noise)

    @property
    def has_reals(self) -> bool:
        """Whether not all of it is counts."""
        return any(block.kind == "real" for block in self.blocks)

    @property
    def length(self) -> int:
        """Ring elements in all, before padding."""
        return sum(block.words for block in self.blocks)

    @property
    def words(self) -> int:
        """Ring elements on the wire: padded for the rotation where there is noise."""
        return padded_length(self.length) if isinstance(self.noise, Noise) else self.length

    def with_noise(self, norm: float, multiplier: float, honest: int) -> VectorSpec:
        """The same vector, bounded in norm, with shares of which `honest` are the whole noise; see `make_noise`."""
        return VectorSpec(self.task, self.blocks, make_noise(norm, self.length, multiplier, honest))

    def with_record_noise(self, norm: float, multiplier: float, honest: int, bound: float) -> VectorSpec:
        """The same vector as a sum over records, with shares of noise; see `make_record_noise`."""
        return VectorSpec(self.task, self.blocks, make_record_noise(norm, self.length, multiplier, honest, bound))

    def least_modulus_bits(self, value_bits: int, clients: int, steps: int) -> int:
        """The smallest m for which sums over `clients` do not wrap; with noise, but with a negligible probability."""
        if self.noise is None:
            bits = self.value_bits or value_bits
            widest = max(bits if block.kind == "real" else DIGIT_BITS for block in self.blocks)
            return max(modulus_bits_for(widest, clients), RING_BITS if self.value_bits else 1)
        if isinstance(self.noise, RecordNoise):
            return summed_modulus_bits(self.noise, self.length, clients, steps)
        return noised_modulus_bits(self.noise, self.length, clients, steps)

    def top(self, value_bits: int, modulus_bits: int, clients: int) -> int:
        """What a real's bound becomes: 2^v - 1, or with a resolution of its own as much as the ring holds of all.

        With noise, which fills it, the whole ring.
        """
        ring = (1 << modulus_bits) - 1
        if self.noise is not None:
            return ring
        return min(ring // clients, (1 << MOST_VALUE_BITS) - 1) if self.value_bits else (1 << value_bits) - 1


def check_spec(spec: VectorSpec) -> None:
    """Refuse a kind of vector that cannot be encoded.

    Raises:
        UnsafePlan: the rule that is broken, what was found and what is allowed.
    """
    names = [block.name for block in spec.blocks]
    if len(set(names)) != len(names):
        raise UnsafePlan(f"repeated block names in {spec.task!r}", "distinct block names")
    if spec.words > MAX_COORDINATES:
        raise UnsafePlan(f"{spec.words} coordinates in {spec.task!r}", f"at most {MAX_COORDINATES}")
    if spec.noise is not None and not (math.isfinite(spec.noise.norm) and spec.noise.norm >= LEAST_CLIP):
        raise UnsafePlan(f"norm {spec.noise.norm} of {spec.task!r}", f"a finite number, {LEAST_CLIP:g} or more")
    if spec.noise is not None and spec.value_bits is not None:
        raise UnsafePlan(f"bits of a value of {spec.task!r}, which has noise", "one or the other")
    for block in spec.blocks:
        whole = 1 <= block.clip <= MAX_COUNT and float(block.clip).is_integer()
        if block.kind == "count" and (spec.noise is not None or not whole):
            raise UnsafePlan(
                f"a count up to {block.clip} in {spec.task}.{block.name}",
                f"an integer from 1 to {MAX_COUNT}, in a vector without noise",
            )
        if not (math.isfinite(block.clip) and block.clip >= LEAST_CLIP):
            raise UnsafePlan(
                f"clip {block.clip} of {spec.task}.{block.name}", f"a finite number, {LEAST_CLIP:g} or more"
            )
