"""What a model holds besides the weights that are trained: attributes, buffers, frozen weights, and what is in them."""

from collections import deque
from collections.abc import Mapping, Set
from inspect import isroutine
from typing import Any

import numpy as np
import torch
from torch import nn

_OF_TORCH = frozenset(vars(nn.Module()))
_VALUES = (str, bytes, int, float, complex, bool, type(None), Set)


def difference(one: nn.Module, other: nn.Module) -> str | None:
    """The name of something that two copies of a model hold and that is not the same; None if all is.

    Layers of `opacus.layers` may note how long a batch is, which they do before they use it. Functions and generators
    of random numbers count as alike.
    """
    ours, theirs = dict(one.named_modules()), dict(other.named_modules())
    if ours.keys() != theirs.keys():
        return str(next(iter(ours.keys() ^ theirs.keys())))
    for path, module in ours.items():
        held, others = _held(module), _held(theirs[path])
        for name in dict.fromkeys([*held, *others]):
            if not (name in held and name in others and _same(held[name], others[name], set())):
                return f"{path}.{name}" if path else name
    return None


def _held(module: nn.Module) -> dict[str, Any]:
    held: dict[str, Any] = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    if not type(module).__module__.startswith("opacus.layers"):
        held.update((name, value) for name, value in vars(module).items() if name not in _OF_TORCH)
    return held


def _same(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two things are alike, whatever they are made of."""
    if one is other or (id(one), id(other)) in seen:
        return True
    if type(one) is not type(other):
        return False
    seen.add((id(one), id(other)))
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, _VALUES):
        return bool(one == other) or (one != one and other != other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key], seen) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(_same(a, b, seen) for a, b in zip(one, other, strict=True))
    return isroutine(one) or _same(getattr(one, "__dict__", None), getattr(other, "__dict__", None), seen)
