"""A model and data of your own, named in configuration files.

    # client.toml
    model = "own_parts:build"
    [data]
    source = "own_parts:load"

The module must be importable where `secure-codream` is started (the current folder is).
"""

import numpy as np
from torch import nn


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Any nn.Module from (N, channels, size, size) to logits (N, classes); batch norm helps the dreams."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 16, classes),
    )


def linear(channels: int, size: int, classes: int) -> nn.Module:
    """Logistic regression on pixels: what is left to learn from few images, or from votes under noise."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))


def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(train, test), each (images (N, C, H, W) float32, labels (N,) int64)."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    images = rng.normal(size=(200, 1, 8, 8)).astype(np.float32)
    images[np.arange(200), 0, labels % 8, labels // 2] += 4.0  # each class has one bright pixel
    return (images[:100], labels[:100]), (images[100:], labels[100:])
