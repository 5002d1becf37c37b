"""A small zoo of classifiers whose architectures differ, since CoDream exchanges dreams and never weights.

All take images (N, channels, size, size) and give logits (N, classes), for sizes from 8 (digits) over 28
(MNIST) to 32 (CIFAR-10). All have normalisation layers: batch norm, whose running statistics the dreams'
regulariser R_bn reads (DeepInversion, Yin et al., CVPR 2020), or group norm (Wu and He, ECCV 2018), which
differential privacy needs because it mixes no records. `resnet8` follows He et al., CVPR 2016.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Norm = Literal["batch", "group"]
_GROUPS = 8  # divides every width below


class UnknownModelError(ValueError):
    """No model of that name is in the zoo."""


class ModelShapeError(ValueError):
    """The zoo's models cannot take such images or classes."""


def build(name: str, *, channels: int, size: int, classes: int, seed: int, norm: Norm = "batch") -> nn.Module:
    """A freshly initialised model of the zoo, on the CPU: (N, channels, size, size) -> logits (N, classes).

    The weights depend on `seed` and the other arguments alone; the global random state stays as it was.
    Raises `UnknownModelError` for a name outside `ZOO`, and `ModelShapeError` unless channels >= 1,
    size >= 8, classes >= 2 and norm is "batch" or "group".
    """
    if name not in ZOO:
        raise UnknownModelError(f"unknown model {name!r}; allowed are {', '.join(sorted(ZOO))}")
    if channels < 1 or size < 8 or classes < 2 or norm not in ("batch", "group"):
        raise ModelShapeError(
            f"channels={channels}, size={size}, classes={classes}, norm={norm!r}; needed are channels >= 1, "
            "size >= 8, classes >= 2, norm 'batch' or 'group'"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ZOO[name](channels, size, classes, norm)


def _norm2d(width: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(_GROUPS, width)


def _norm1d(width: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm1d(width) if norm == "batch" else nn.GroupNorm(_GROUPS, width)


def _conv(inputs: int, outputs: int, norm: Norm, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        _norm2d(outputs, norm),
        nn.ReLU(),
    )


def _cnn2(channels: int, size: int, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        _conv(channels, 16, norm),
        nn.MaxPool2d(2),
        _conv(16, 32, norm),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, classes),
    )


def _cnn2_wide(channels: int, size: int, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        _conv(channels, 32, norm, kernel=5, stride=2),
        _conv(32, 64, norm),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * ((size + 1) // 4) ** 2, classes),
    )


def _cnn3(channels: int, size: int, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        _conv(channels, 16, norm),
        nn.MaxPool2d(2),
        _conv(16, 32, norm),
        _conv(32, 64, norm),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (size // 4) ** 2, classes),
    )


def _mlp(channels: int, size: int, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 128, bias=False),
        _norm1d(128, norm),
        nn.ReLU(),
        nn.Linear(128, 64, bias=False),
        _norm1d(64, norm),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


class _Residual(nn.Module):
    """Two convolutions around a shortcut (He et al., CVPR 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(inputs, outputs, norm, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            _norm2d(outputs, norm),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), _norm2d(outputs, norm))
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(inputs) + self.shortcut(inputs))


def _resnet8(channels: int, size: int, classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        _conv(channels, 16, norm),
        nn.MaxPool2d(2),
        _Residual(16, 16, 1, norm),
        _Residual(16, 32, 1, norm),
        _Residual(32, 64, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


ZOO: dict[str, Callable[[int, int, int, Norm], nn.Module]] = {
    "cnn2": _cnn2,
    "cnn3": _cnn3,
    "resnet8": _resnet8,
    "mlp": _mlp,
    "cnn2_wide": _cnn2_wide,
}
