"""What the zoo's networks are built of: normalisation by name, and a convolution and dense layers with it.

Batch norm (Ioffe and Szegedy, ICML 2015) has the running statistics that the dreams' regulariser R_bn reads; group norm
(Wu and He, ECCV 2018) mixes no records, which differential privacy needs.
"""

from collections.abc import Sequence
from math import gcd

from torch import nn

from codream_clients.models.names import Norm

Sides = tuple[int, int]
"""Height and width of an image."""

GROUPS = 8


def norm2d(width: int, norm: Norm) -> nn.Module:
    """Normalisation of (N, width, H, W); in 8 groups, or as many as divide both."""
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(gcd(GROUPS, width), width)


def norm1d(width: int, norm: Norm) -> nn.Module:
    """Normalisation of (N, width)."""
    return nn.BatchNorm1d(width) if norm == "batch" else nn.GroupNorm(gcd(GROUPS, width), width)


def conv(
    inputs: int, outputs: int, norm: Norm, *, kernel: int = 3, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """Convolution without bias, normalisation, ReLU; the padding keeps the size at stride 1 unless it is given."""
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2 if padding is None else padding, bias=False
        ),
        norm2d(outputs, norm),
        nn.ReLU(),
    )


def dense(inputs: int, widths: Sequence[int], classes: int, norm: Norm) -> list[nn.Module]:
    """Hidden layers of these widths, each without bias, with normalisation and ReLU; then one that gives logits."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width, bias=False), norm1d(width, norm), nn.ReLU()]
        inputs = width
    return [*layers, nn.Linear(inputs, classes)]


def he_initialise(model: nn.Module) -> nn.Module:
    """Kaiming-normal convolutions (He et al., ICCV 2015, fan out), which deep networks need; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
