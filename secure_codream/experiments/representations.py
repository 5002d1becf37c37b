"""A classifier as a feature extractor and a head, whatever its architecture.

MOON compares representations, FedGen generates them. The head is the model's last linear layer, the one that gives
the K logits; its input is the representation. A hook catches it, so that users' own models need no special form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class NoLinearHead(ValueError):
    """The model does not end in a linear layer with one output for each class."""


def head(model: nn.Module, classes: int) -> nn.Linear:
    """The last linear layer of the model, as it was registered.

    Raises:
        NoLinearHead: there is none, or it does not give `classes` logits.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != classes:
        found = f"a last linear layer with {linear[-1].out_features} outputs" if linear else "no linear layer"
        raise NoLinearHead(f"{type(model).__name__}: found {found}; allowed: one that gives {classes} logits")
    return linear[-1]


@contextmanager
def watched(model: nn.Module, classes: int) -> Iterator[Callable[[], torch.Tensor]]:
    """While open, the call gives the representation (B, D) of the model's newest forward pass, with its gradient."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        caught[:] = [inputs[0].flatten(1)]

    handle = head(model, classes).register_forward_pre_hook(catch)
    try:
        yield lambda: caught[0]
    finally:
        handle.remove()
