"""A step's vector: named blocks of numbers on the client's side, one vector of ring elements on the wire.

Without noise, each real is rounded at random without bias, and each count is cut into digits of a byte. With
noise, the blocks, each divided by its clip, make one vector that is bounded, rotated and noised as a whole
(`distributed_noise`); a sum over records is integers already, and is clamped and noised (`record_noise`). All
randomness is the operating system's, or what a simulation gives in its place.

A number that is not finite counts 0, and a learner that failed sends zeros, with the noise that others count on: a
client that refused would tell something of its model by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codream_protocols import distributed_noise, record_noise, ring
from codream_protocols.charter import Plan
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import LocalProtocolError, WrongSum
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import Suite, stream_pieces, stream_words, word_type
from codream_protocols.record_noise import RecordNoise
from codream_protocols.rotation import step_signs
from codream_protocols.spans import part_of_sum
from codream_protocols.specs import DIGIT_BITS, Block

Array = np.ndarray[Any, Any]


class StreamRounding:
    """Uniform numbers for stochastic rounding, each call's the stream of a fresh key of the given generator."""

    def __init__(self, random_bytes: RandomBytes, suite: Suite = "aes-256-ctr") -> None:
        self._random_bytes, self._suite = random_bytes, suite

    def key(self) -> bytes:
        """A fresh key."""
        return self._random_bytes(KEY_BYTES)

    def random(self, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """`size` numbers in [0, 1), float64, of 32 bits each."""
        return stream_words(size, "<u4", self.key(), suite=self._suite) * np.float64(2.0**-32)

    def dither(self) -> ring.Dither:
        """Numbers of 16 bits: of each piece those that its piece of the stream begins with."""
        return stream_pieces("<u2", self.key(), suite=self._suite)


@part_of_sum("encoding")
def encode(plan: Plan, step: int, values: Mapping[str, Array] | None, random_bytes: RandomBytes) -> tuple[Array, int]:
    """Encode a step's blocks as one vector of ring elements.

    Args:
        plan: the epoch's plan.
        step: the step; it names the blocks.
        values: block name -> array whose size is the block's length (any shape); None sends zeros, noised if planned.
        random_bytes: a cryptographic generator, n -> n bytes.

    Returns:
        Words of `word_type(m)`, shape (spec.words,), each below 2^m; and how many numbers were not finite.

    Raises:
        LocalProtocolError: a block is missing, unknown or of another size.
    """
    spec, rounding = plan.spec(step), StreamRounding(random_bytes, plan.aggregation.suite)
    if values is None:
        values = {block.name: np.zeros(block.length) for block in spec.blocks}
    names = {block.name for block in spec.blocks}
    if set(values) != names:
        raise LocalProtocolError(f"blocks {sorted(values)}", f"exactly {sorted(names)}")
    parts = [flat_block(block, values[block.name], spec.task) for block in spec.blocks]
    if isinstance(spec.noise, RecordNoise):
        total, replaced = _whole(parts)
        return record_noise.encode(
            total, spec.noise, modulus_bits=plan.modulus_bits(step), random_bytes=random_bytes
        ), replaced
    if spec.noise is not None:
        scaled, replaced = _scaled(spec.blocks, parts)
        words = distributed_noise.encode(
            scaled,
            spec.noise,
            step_signs(plan.digest, step, spec.length),
            modulus_bits=plan.modulus_bits(step),
            rounding=rounding,
            random_bytes=random_bytes,
        )
        return words, replaced
    words, start, replaced = np.empty(spec.words, dtype=word_type(plan.modulus_bits(step))), 0, 0
    for block, flat in zip(spec.blocks, parts, strict=True):
        part = words[start : start + block.words]
        replaced += encode_block(block, flat, part, plan.top(step), rounding)
        start += block.words
    return words, replaced


def flat_block(block: Block, values: Array, task: str) -> Array:
    """A block's numbers, float32 or float64, shape (length,).

    Raises:
        LocalProtocolError: another number of them.
    """
    single = getattr(values, "dtype", None) == np.float32
    flat = np.asarray(values, dtype=np.float32 if single else np.float64).reshape(-1)
    if len(flat) != block.length:
        raise LocalProtocolError(f"{len(flat)} values for {task}.{block.name}", f"{block.length}")
    return flat


def encode_block(block: Block, flat: Array, words: Array, top: int, rounding: StreamRounding) -> int:
    """Write a block without noise to its words, shape (block.words,); how many numbers were not finite."""
    if block.kind == "count":
        return _count_digits(block, flat, words)
    return ring.encode(flat, block.clip, words, top=top, dither=rounding.dither())


def _scaled(blocks: Sequence[Block], parts: Sequence[Array]) -> tuple[Array, int]:
    """All values over their clips, as one vector; and how many were not finite, or would not be, and are 0."""
    with np.errstate(over="ignore"):
        scaled = np.concatenate(
            [flat.astype(np.float64) / block.clip for flat, block in zip(parts, blocks, strict=True)]
        )
    finite = np.isfinite(scaled)
    return np.where(finite, scaled, 0.0), int(np.count_nonzero(~finite))


def _whole(parts: Sequence[Array]) -> tuple[Array, int]:
    """All values as one vector of integers; and how many were not finite, and are 0."""
    values = np.concatenate([flat.astype(np.float64) for flat in parts])
    finite = np.isfinite(values)
    limit = float(record_noise.MAX_LARGEST)
    return np.clip(np.rint(np.where(finite, values, 0.0)), -limit, limit).astype(np.int64), int(
        np.count_nonzero(~finite)
    )


def _count_digits(block: Block, flat: Array, words: Array) -> int:
    """Writes counts as digits of a byte; how many were not finite."""
    finite = np.isfinite(flat)
    counts = np.clip(np.rint(np.where(finite, flat, 0.0).astype(np.float64)), 0, block.clip).astype(np.uint64)
    for place, digits in enumerate(words.reshape(block.digits, block.length)):
        digits[:] = (counts >> np.uint64(DIGIT_BITS * place)) & np.uint64(255)
    return len(flat) - int(np.count_nonzero(finite))


def integers(plan: Plan, step: int, words: Array) -> Array:
    """The integers that ring elements stand for: themselves, or with noise the representatives nearest zero."""
    if plan.spec(step).noise is None:
        return words
    half = np.int64(1 << (plan.modulus_bits(step) - 1))
    return (words.astype(np.int64) + half) % (2 * half) - half


def check_range(plan: Plan, step: int, total: Array, survivors: int) -> None:
    """Refuse a sum that no inputs can have.

    Raises:
        WrongSum: an element beyond what `survivors` inputs add up to.
    """
    spec, start = plan.spec(step), 0
    if spec.noise is not None:
        return
    for block in spec.blocks:
        top = 255 if block.kind == "count" else plan.top(step)
        part = total[start : start + block.words]
        if int(part.max()) > survivors * top:
            raise WrongSum(f"an element of {spec.task}.{block.name} beyond {survivors} inputs", "sums of inputs")
        start += block.words


@part_of_sum("encoding")
def decode(plan: Plan, step: int, total: Array, survivors: int, room: Array | None = None) -> dict[str, Array]:
    """Decode a sum into the sums of its blocks: float64, counts int64, shape (length,).

    Args:
        plan: the epoch's plan.
        step: the step.
        total: shape (spec.words,), ring elements.
        survivors: how many vectors it holds.
        room: float64, shape (spec.words,), where the sums may lie; `total` may be the end of its bytes, and is lost.
    """
    spec = plan.spec(step)
    if isinstance(spec.noise, RecordNoise):
        values = record_noise.decode_sum(integers(plan, step, total), spec.noise)
        ends = np.cumsum([block.length for block in spec.blocks])[:-1]
        return {block.name: part for block, part in zip(spec.blocks, np.split(values, ends), strict=True)}
    if spec.noise is not None:
        signs = step_signs(plan.digest, step, spec.length)
        total = distributed_noise.decode_sum(
            total, spec.noise, signs, spec.length, modulus_bits=plan.modulus_bits(step)
        )
    sums: dict[str, Array] = {}
    start = 0
    for block in spec.blocks:
        part = total[start : start + block.words]
        if spec.noise is not None:
            sums[block.name] = part * block.clip
        elif block.kind == "count":
            places = part.astype(np.int64).reshape(block.digits, block.length)
            count = np.zeros(block.length, dtype=np.int64)
            for place, digit in enumerate(places):
                count += digit << np.int64(DIGIT_BITS * place)
            sums[block.name] = count
        else:
            out = None if room is None else room[start : start + block.words]
            sums[block.name] = ring.decode_sum(part, survivors, block.clip, top=plan.top(step), out=out)
        start += block.words
    return sums
