"""Classifiers whose architectures differ, since CoDream exchanges dreams and never weights.

All take images (N, channels, height, width) and give logits (N, classes), for sides from 8 (digits) over 28
(MNIST) to 32 (CIFAR-10), square or not. All have normalisation layers: batch norm, whose running statistics the dreams'
regulariser R_bn reads (DeepInversion, Yin et al., CVPR 2020), or group norm (Wu and He, ECCV 2018), which
differential privacy needs because it mixes no records.
`ZOO` are small ones for small data, `resnet8` after He et al., CVPR 2016; `NETWORKS` are the literature's
(`networks`); `FRONTS` have fixed features in front of a small head (`fronts`). A user's own function,
`my_module:build`, stands wherever a name does (`own_parts`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from codream_clients.models import fronts, networks
from codream_clients.models.gate import examine, trial_images
from codream_clients.models.layers import Sides, conv, dense
from codream_clients.models.names import FRONT_MODELS, LITERATURE_MODELS, Norm, UnknownModelError, split_norm
from codream_clients.own_parts import call_own_part, is_reference, load_own_part

__all__ = ["FRONTS", "NETWORKS", "ZOO", "ModelShapeError", "Norm", "UnknownModelError", "build"]

Builder = Callable[[int, Sides, int, Norm], nn.Module]
"""(channels, (height, width), classes, norm) -> a model."""


CPU = torch.device("cpu")


class ModelShapeError(ValueError):
    """The zoo's models cannot take such images or classes."""


def build(
    name: str,
    *,
    channels: int,
    size: int | Sides,
    classes: int,
    seed: int,
    norm: Norm = "batch",
    device: torch.device = CPU,
    examined: bool = False,
) -> nn.Module:
    """A freshly initialised model, on the CPU: (N, channels, height, width) -> logits (N, classes).

    `name` is one of `ZOO`, `NETWORKS` or `FRONTS`, with `_gn` at its end for group norm whatever `norm` says, or
    module:function, which is called as function(channels, size, classes) and RUNS THAT MODULE'S CODE; its model goes
    through the gate (`gate.examine`) on `device`, where it is to be used, unless the caller has it `examined`, and asks
    for more. `norm` is of no effect there.
    `size` is the side of a square, or (height, width); what an own function gets says `call_builder`.
    The weights depend on `seed` and the other arguments alone, as far as an own function draws from torch's
    global generator; the global random state stays as it was.
    Raises `UnknownModelError` for any other name; `ModelShapeError` unless channels >= 1, sides >= 8,
    classes >= 2 and norm is "batch" or "group"; `OwnPartError` for an own function that fails, and its
    `ModelRefused` for a model that cannot take part.
    """
    base, named_norm = split_norm(name)
    norm = named_norm or norm
    sides = (size, size) if isinstance(size, int) else size
    if channels < 1 or min(sides) < 8 or classes < 2 or norm not in get_args(Norm):
        raise ModelShapeError(
            f"channels={channels}, size={size}, classes={classes}, norm={norm!r}; needed are channels >= 1, "
            "sides >= 8, classes >= 2, norm 'batch' or 'group'"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if not is_reference(base):
            network = _BUILDERS[base](channels, sides, classes, norm)
            # Pooling and batch norm run 1.5 times as fast on a CPU where channels lie beside each other. Opacus, which
            # takes group norm alone, cannot read gradients of such a layout.
            return network.to(memory_format=torch.channels_last) if norm == "batch" else network
        model = call_builder(base, load_own_part(base), (channels, *sides), classes)
    if not examined:
        images = trial_images((channels, *sides), classes=classes, device=device)
        examine(model, images, classes=classes, name=f"{base}()")
    return model  # type: ignore[no-any-return]


def call_builder(reference: str, builder: Callable[..., Any], shape: tuple[int, int, int], classes: int) -> Any:
    """What a function of somebody's own builds for images of this shape (channels, height, width).

    It is called as builder(channels, size, classes); `size` is the side of a square, else (height, width).
    Raises `OwnPartError` if it raises anything.
    """
    channels, height, width = shape
    return call_own_part(reference, builder, channels, height if height == width else (height, width), classes)


def _cnn2(channels: int, sides: Sides, classes: int, norm: Norm, *, width: int = 16) -> nn.Module:
    return nn.Sequential(
        conv(channels, width, norm),
        nn.MaxPool2d(2),
        conv(width, 2 * width, norm),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (sides[0] // 4) * (sides[1] // 4), classes),
    )


def _cnn2_strided(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    """Two strided convolutions, the network of DP-SGD on MNIST (Papernot et al., AAAI 2021), normalised, with ReLU."""
    left = [side // 2 - 1 for side in sides]
    padding = 0 if min(left) >= 6 else 2  # below 14x14 no pixel is to spare
    height, width = ((side + 2 * padding) // 2 - 2 for side in left)
    return nn.Sequential(
        conv(channels, 16, norm, kernel=8, stride=2, padding=3),
        nn.MaxPool2d(2, 1),
        conv(16, 32, norm, kernel=4, stride=2, padding=padding),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * height * width, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def _cnn3(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        conv(channels, 16, norm),
        nn.MaxPool2d(2),
        conv(16, 32, norm),
        conv(32, 64, norm),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (sides[0] // 4) * (sides[1] // 4), classes),
    )


def _mlp(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *dense(channels * sides[0] * sides[1], (128, 64), classes, norm))


def _resnet8(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    height, width = ((side // 2 + 1) // 2 for side in sides)
    return nn.Sequential(
        conv(channels, 16, norm),
        nn.MaxPool2d(2),
        networks.BasicBlock(16, 16, 1, norm),
        networks.BasicBlock(16, 32, 1, norm),
        networks.BasicBlock(32, 64, 2, norm),
        nn.Flatten(),
        nn.Linear(64 * height * width, classes),
    )


ZOO: dict[str, Builder] = {
    "cnn2": _cnn2,
    "cnn2_strided": _cnn2_strided,
    "cnn3": _cnn3,
    "resnet8": _resnet8,
    "mlp": _mlp,
    "cnn2_wide": partial(_cnn2, width=32),
}

NETWORKS: Mapping[str, Builder] = {name: getattr(networks, name) for name in LITERATURE_MODELS}

FRONTS: Mapping[str, Builder] = {name: getattr(fronts, name) for name in FRONT_MODELS}

_BUILDERS: Mapping[str, Builder] = {**ZOO, **NETWORKS, **FRONTS}
