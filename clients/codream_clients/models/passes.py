"""As many images in every pass through a model, blank ones among them.

A library adds up in another order where a batch has another size. So one image more could change the last bits of what
a model says of others; and at weights that somebody chose for it, last bits decide.
"""

from collections.abc import Iterator

import torch


def filled(images: torch.Tensor, size: int) -> torch.Tensor:
    """The images (N, ...) with zeros behind them: (`size`, ...)."""
    return torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])


def in_passes(images: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """All of (N, ...), in order, each pass filled."""
    return (filled(part, size) for part in torch.split(images, size) if len(part))
