"""A step's vector: named blocks of real numbers on the client's side, one vector of ring elements on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from codream_protocols import ring
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.plan import LEAST_CLIP, Plan, VectorSpec


def check_clips(spec: VectorSpec, clips: Sequence[float]) -> None:
    """Refuse clips of a step that are not one positive number per block, at most the plan's.

    Raises:
        VectorRefused: what was found, what is allowed.
    """
    if len(clips) != len(spec.blocks):
        raise VectorRefused(f"{len(clips)} clips for task {spec.task!r}", f"{len(spec.blocks)}")
    for block, clip in zip(spec.blocks, clips, strict=True):
        if not LEAST_CLIP <= clip <= block.clip:  # also refuses NaN
            raise VectorRefused(f"clip {clip} of {spec.task}.{block.name}", f"{LEAST_CLIP:g} to {block.clip:g}")


def encode_vector(
    plan: Plan,
    step: int,
    clips: Sequence[float],
    values: Mapping[str, ring.Floats],
    rounding: np.random.Generator,
) -> ring.Words:
    """Encode a step's blocks as one vector of ring elements.

    Args:
        plan: the epoch's plan.
        step: the step; it names the blocks.
        clips: the bound of each block, in the order of the plan.
        values: block name -> array whose size is the block's length (any shape).
        rounding: generator for the stochastic rounding.

    Returns:
        Shape (spec.length,), words below 2^value_bits.

    Raises:
        LocalProtocolError: a block is missing, unknown, of another size, or not finite.
    """
    spec = plan.spec(step)
    names = {block.name for block in spec.blocks}
    if set(values) != names:
        raise LocalProtocolError(f"blocks {sorted(values)}", f"exactly {sorted(names)}")
    parts = []
    for block, clip in zip(spec.blocks, clips, strict=True):
        flat = np.asarray(values[block.name], dtype=np.float64).reshape(-1)
        if len(flat) != block.length:
            raise LocalProtocolError(f"{len(flat)} values for {spec.task}.{block.name}", f"{block.length}")
        parts.append(
            ring.encode(flat, clip, value_bits=plan.value_bits, modulus_bits=plan.modulus_bits, rounding=rounding)
        )
    return np.concatenate(parts)


def decode_vector(
    plan: Plan, step: int, clips: Sequence[float], total: ring.Words, survivors: int
) -> dict[str, ring.Floats]:
    """Decode a revealed sum into the sums of its blocks, each of shape (block.length,)."""
    sums: dict[str, ring.Floats] = {}
    start = 0
    for block, clip in zip(plan.spec(step).blocks, clips, strict=True):
        part = total[start : start + block.length]
        sums[block.name] = ring.decode_sum(part, survivors, clip, value_bits=plan.value_bits)
        start += block.length
    return sums
