"""The literature's networks for small images, under their usual names.

    lenet         LeNet-5 (LeCun et al., 1998) with ReLU, max pooling and normalisation
    vgg11         configuration A of Simonyan and Zisserman (ICLR 2015), one linear layer as is usual for CIFAR
    resnet18, 34  He et al. (CVPR 2016), with the 3x3 stem, stride 1 and no pooling, that is usual for CIFAR
    wrn16_1, 40_1 wide residual networks of depth 16 and 40, width 1 (Zagoruyko and Komodakis, BMVC 2016)
    mobilenetv2   torchvision's (Sandler et al., CVPR 2018), with strides for 32x32 instead of 224x224

They were made for 32x32 and take all sides from 8 on: pooling stops when one pixel is left. None has dropout, so
that training is fixed by the order of the images alone.
"""

from functools import partial

import torch
from torch import nn

from codream_clients.models.layers import Sides, conv, dense, he_initialise, norm2d
from codream_clients.models.names import Norm

_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)  # None: pooling


def lenet(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    """LeNet-5: 61,706 parameters for 1x28x28 and ten classes in the original; normalisation adds a few."""
    first_padding = 2 if min(sides) <= 28 else 0  # the original pads 28x28 to 32x32
    left = [(side + 2 * first_padding - 4) // 2 for side in sides]
    second_padding = 2 if min(left) < 10 else 0  # below 24x24 no pixel is to spare
    height, width = ((side + 2 * second_padding - 4) // 2 for side in left)
    return nn.Sequential(
        conv(channels, 6, norm, kernel=5, padding=first_padding),
        nn.MaxPool2d(2),
        conv(6, 16, norm, kernel=5, padding=second_padding),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *dense(16 * height * width, (120, 84), classes, norm),
    )


def vgg11(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    """Eight convolutions and one linear layer: 9.2 million parameters."""
    layers: list[nn.Module] = []
    width, side = channels, min(sides)
    for outputs in _VGG11:
        if outputs is not None:
            layers.append(conv(width, outputs, norm))
            width = outputs
        elif side > 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return he_initialise(nn.Sequential(*layers, *head))


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut (He et al., CVPR 2016, figure 2): (N, inputs, H, W) -> (N, outputs, ...)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(inputs, outputs, norm, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm2d(outputs, norm),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm2d(outputs, norm))
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Sides are divided by the stride, rounded up."""
        return torch.relu(self.branch(inputs) + self.shortcut(inputs))


def _resnet(blocks: tuple[int, ...], channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = [conv(channels, 64, norm)]
    width = 64
    for stage, count in enumerate(blocks):
        for number in range(count):
            outputs = 64 * 2**stage
            layers.append(BasicBlock(width, outputs, 2 if stage > 0 and number == 0 else 1, norm))
            width = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return he_initialise(nn.Sequential(*layers, *head))


resnet18 = partial(_resnet, (2, 2, 2, 2))
"""11.2 million parameters."""
resnet34 = partial(_resnet, (3, 4, 6, 3))
"""21.3 million parameters."""


class _WideBlock(nn.Module):
    """Normalisation and ReLU before each convolution (He et al., ECCV 2016); the shortcut starts after the first."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Sequential(norm2d(inputs, norm), nn.ReLU())
        self.branch = nn.Sequential(
            conv(inputs, outputs, norm, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        active = self.first(inputs)
        kept = inputs if self.shortcut is None else self.shortcut(active)
        return torch.add(kept, self.branch(active))


def _wide_resnet(depth: int, widen: int, channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    width = 16
    for stage in range(3):
        for number in range((depth - 4) // 6):
            outputs = 16 * widen * 2**stage
            layers.append(_WideBlock(width, outputs, 2 if stage > 0 and number == 0 else 1, norm))
            width = outputs
    head = [norm2d(width, norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return he_initialise(nn.Sequential(*layers, *head))


wrn16_1 = partial(_wide_resnet, 16, 1)
"""0.18 million parameters."""
wrn40_1 = partial(_wide_resnet, 40, 1)
"""0.56 million parameters."""


def mobilenetv2(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    """Torchvision's MobileNetV2 at width 1 with three halvings instead of five: 2.2 million parameters."""
    from torchvision.models import MobileNetV2

    strides = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model: nn.Module = MobileNetV2(
        num_classes=classes,
        inverted_residual_setting=strides,
        norm_layer=partial(norm2d, norm=norm),
        dropout=0.0,
    )
    stem = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
    model.get_submodule("features.0").register_module("0", stem)  # the stem at full size
    he_initialise(stem)
    for module in model.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # in place, activations would break the hooks of per-sample gradients
    return model
