"""Classifiers whose architectures differ, since CoDream exchanges dreams and never weights.

All take images (N, channels, height, width) and give logits (N, classes), for sides from 8 (digits) over 28
(MNIST) to 32 (CIFAR-10), square or not. All have normalisation layers: batch norm, whose running statistics the dreams'
regulariser R_bn reads (DeepInversion, Yin et al., CVPR 2020), or group norm (Wu and He, ECCV 2018), which
differential privacy needs because it mixes no records.
`ZOO` are small ones for small data, `resnet8` after He et al., CVPR 2016; `NETWORKS` are the literature's
(`networks`). A user's own function, `my_module:build`, stands wherever a name does (`own_parts`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import torch
from torch import nn

from codream_clients.models import networks
from codream_clients.models.layers import Sides, conv, dense
from codream_clients.models.names import LITERATURE_MODELS, Norm, UnknownModelError, split_norm
from codream_clients.own_parts import OwnPartError, call_own_part, is_reference

__all__ = ["NETWORKS", "ZOO", "ModelShapeError", "Norm", "OwnPartError", "UnknownModelError", "build", "check_model"]

Builder = Callable[[int, Sides, int, Norm], nn.Module]
"""(channels, (height, width), classes, norm) -> a model."""


class ModelShapeError(ValueError):
    """The zoo's models cannot take such images or classes."""


def build(name: str, *, channels: int, size: int | Sides, classes: int, seed: int, norm: Norm = "batch") -> nn.Module:
    """A freshly initialised model, on the CPU: (N, channels, height, width) -> logits (N, classes).

    `name` is one of `ZOO` or `NETWORKS`, with `_gn` at its end for group norm whatever `norm` says, or
    module:function, which is called as function(channels, size, classes) and RUNS THAT MODULE'S CODE.
    `size` is the side of a square, or (height, width), which an own function gets only where they differ.
    The weights depend on `seed` and the other arguments alone, as far as an own function draws from torch's
    global generator; the global random state stays as it was.
    Raises `UnknownModelError` for any other name; `ModelShapeError` unless channels >= 1, sides >= 8,
    classes >= 2 and norm is "batch" or "group"; `OwnPartError` for an own function that fails or whose model
    does not do what is needed, see `check_model`.
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
            network = (ZOO.get(base) or NETWORKS[base])(channels, sides, classes, norm)
            # Pooling and batch norm run 1.5 times as fast on a CPU where channels lie beside each other. Opacus, which
            # takes group norm alone, cannot read gradients of such a layout.
            return network.to(memory_format=torch.channels_last) if norm == "batch" else network
        model = call_own_part(base, channels, sides[0] if sides[0] == sides[1] else sides, classes)
        check_model(model, channels=channels, size=sides, classes=classes, name=f"{base}()", norm=norm)
        return model  # type: ignore[no-any-return]


def check_model(model: object, *, channels: int, size: Sides, classes: int, name: str, norm: Norm = "batch") -> None:
    """Check by one forward pass of zeros (2, channels, *size) that `model` can take part.

    The pass is in eval mode, where the model lies; it changes neither weights nor statistics.
    Raises `OwnPartError`, which names the model, unless it is an nn.Module with weights to train whose logits
    are finite floats of shape (2, classes) with gradients that reach the images, and, for norm "group", that
    has no batch norm; the text says what came and what is needed.
    """
    if not isinstance(model, nn.Module):
        raise OwnPartError(f"{name} returned {type(model).__name__}; a torch.nn.Module is needed")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise OwnPartError(f"{name}: the model has no weights to train; at least one parameter is needed")
    if norm == "group" and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise OwnPartError(f"{name}: the model has batch norm; group norm was asked for, which mixes no records")
    training = model.training
    images = torch.zeros(2, channels, *size, device=weights[0].device, requires_grad=True)
    try:
        logits = model.eval()(images)
    except Exception as error:
        raise OwnPartError(
            f"{name}: the model failed on images of shape {tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor):
        raise OwnPartError(f"{name}: the model gave {type(logits).__name__}; one tensor of logits is needed")
    if tuple(logits.shape) != (2, classes) or not logits.is_floating_point():
        raise OwnPartError(
            f"{name}: for images of shape {tuple(images.shape)} the model gave {logits.dtype} of shape "
            f"{tuple(logits.shape)}; floating-point logits of shape (2, {classes}) are needed"
        )
    if not torch.isfinite(logits).all():
        raise OwnPartError(f"{name}: for images of zeros the model gave logits that are not finite")
    if not logits.requires_grad or torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is None:
        raise OwnPartError(f"{name}: no gradient reaches the images through the model; dreams are made along it")


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
