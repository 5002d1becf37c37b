"""A step's vector: named blocks of real numbers on the client's side, one vector of ring elements on the wire.

Without noise, each block is encoded by itself (`ring`). With noise, the blocks, each divided by its clip, make one
vector that is bounded, rotated and noised as a whole (`distributed_noise`); what is promised then does not depend on
the clips of a step.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from codream_protocols import distributed_noise, ring
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.plan import LEAST_CLIP, Plan, VectorSpec
from codream_protocols.rotation import step_signs


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
    random_bytes: RandomBytes = secrets.token_bytes,
) -> ring.Words:
    """Encode a step's blocks as one vector of ring elements.

    Args:
        plan: the epoch's plan.
        step: the step; it names the blocks.
        clips: the bound of each block, in the order of the plan.
        values: block name -> array whose size is the block's length (any shape).
        rounding: generator for the stochastic rounding.
        random_bytes: a cryptographic generator for the noise, n -> n bytes.

    Returns:
        Shape (spec.words,), words below 2^value_bits, or below 2^modulus_bits where there is noise.

    Raises:
        LocalProtocolError: a block is missing, unknown, of another size, or not finite.
    """
    spec = plan.spec(step)
    names = {block.name for block in spec.blocks}
    if set(values) != names:
        raise LocalProtocolError(f"blocks {sorted(values)}", f"exactly {sorted(names)}")
    parts = []
    for block in spec.blocks:
        flat = np.asarray(values[block.name], dtype=np.float64).reshape(-1)
        if len(flat) != block.length:
            raise LocalProtocolError(f"{len(flat)} values for {spec.task}.{block.name}", f"{block.length}")
        parts.append(flat)
    if spec.noise is not None:
        return distributed_noise.encode(
            np.concatenate([flat / clip for flat, clip in zip(parts, clips, strict=True)]),
            spec.noise,
            step_signs(plan.digest, step, spec.length),
            modulus_bits=plan.modulus_bits,
            rounding=rounding,
            random_bytes=random_bytes,
        )
    words = [
        ring.encode(flat, clip, value_bits=plan.value_bits, modulus_bits=plan.modulus_bits, rounding=rounding)
        for flat, clip in zip(parts, clips, strict=True)
    ]
    return np.concatenate(words)


def decode_vector(
    plan: Plan, step: int, clips: Sequence[float], total: ring.Words, survivors: int
) -> dict[str, ring.Floats]:
    """Decode a revealed sum, shape (spec.words,), into the sums of its blocks, each of shape (block.length,)."""
    spec = plan.spec(step)
    if spec.noise is not None:
        signs = step_signs(plan.digest, step, spec.length)
        total = distributed_noise.decode_sum(total, spec.noise, signs, spec.length, modulus_bits=plan.modulus_bits)
    sums: dict[str, ring.Floats] = {}
    start = 0
    for block, clip in zip(spec.blocks, clips, strict=True):
        part = total[start : start + block.length]
        if spec.noise is not None:
            sums[block.name] = part * clip
        else:
            sums[block.name] = ring.decode_sum(part, survivors, clip, value_bits=plan.value_bits)
        start += block.length
    return sums
