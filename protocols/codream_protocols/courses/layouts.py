"""Named tensors as one vector: in order, each flattened in C order, float32.

A model's layout is its parameters and its floating-point buffers (running statistics of batch norm), in the order of
its `state_dict`. Integer buffers (`num_batches_tracked`) count what one copy has seen and enter no output: they stay
where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from codream_protocols.course import Array
from codream_protocols.settings import SettingsError
from codream_protocols.starts import draw

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Each tensor's name and shape."""


def check_layout(layout: Layout) -> None:
    """Refuse a layout that is no vector.

    Raises:
        SettingsError: no tensors, a name that comes twice, an axis of 0, or an integer buffer.
    """
    names = [name for name, _ in layout]
    if not names or len(set(names)) != len(names):
        raise SettingsError(f"layout of {len(names)} tensors, {len(set(names))} names; one or more, each its own name")
    for name, shape in layout:
        if any(axis < 1 for axis in shape):
            raise SettingsError(f"layout: {name} has shape {shape}; axes of 1 or more are allowed")
        if name.endswith("num_batches_tracked"):
            raise SettingsError(f"layout: found {name}, an integer buffer; leave it out")


def length_of(layout: Layout) -> int:
    """Numbers in all."""
    return sum(math.prod(shape) for _, shape in layout)


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of batch norm: no gradient moves it."""
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var")


def trained(layout: Layout) -> Layout:
    """The tensors that gradients move."""
    return tuple((name, shape) for name, shape in layout if not is_statistic(name))


def for_each(layout: Layout, value: Callable[[str], float]) -> Array:
    """A number for each tensor, by its name, at each place of the vector; float64 (length,)."""
    return np.repeat([float(value(name)) for name, _ in layout], [math.prod(shape) for _, shape in layout])


def initial_weights(layout: Layout, seed: bytes) -> Array:
    """Weights to begin with, float32 (length,), alike on all machines.

    Tensors of two or more axes are uniform within +-1 / sqrt(fan in), as PyTorch's layers have them: the AES-256-CTR
    stream of seed and name, 32 bits a number. Of the others, those named `weight` (the scales of norms) and
    `running_var` are 1, all else is 0.

    Args:
        layout: the tensors.
        seed: 32 bytes.

    Raises:
        LocalProtocolError: a seed of another size.
    """
    return np.concatenate([_initial(name, shape, seed) for name, shape in layout])


def _initial(name: str, shape: tuple[int, ...], seed: bytes) -> Array:
    size = math.prod(shape)
    if len(shape) < 2:
        ones = name.rsplit(".", 1)[-1] in ("weight", "running_var")
        return np.full(size, 1.0 if ones else 0.0, dtype=np.float32)
    words = draw(seed, f"initial {name}", size).astype(np.float64)
    unit = (words - (2.0**31 - 0.5)) * 2.0**-31  # exact, and symmetric about 0
    weights: Array = (unit * math.sqrt(1 / math.prod(shape[1:]))).astype(np.float32)
    return weights
