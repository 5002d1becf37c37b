"""As many images in every pass through a model, blank ones among them.

A library adds up in another order where a batch has another size. So one image more could change the last bits of what
a model says of others; and at weights that somebody chose for it, last bits decide.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from codream_clients.models import refusals

Result = TypeVar("Result")


def filled(images: torch.Tensor, size: int) -> torch.Tensor:
    """The images (N, ...) with zeros behind them: (`size`, ...)."""
    return torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])


def in_passes(images: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """All of (N, ...), in order, each pass filled."""
    return (filled(part, size) for part in torch.split(images, size) if len(part))


def in_parts(work: Callable[[slice], Result], count: int, size: int) -> Iterator[tuple[slice, Result | None]]:
    """What `work` gives for parts of `count` images, in order; none has more than `size`.

    Where it fails, each half is asked for, and of one image that it fails at comes None: such a one takes no other with
    it. Raises what is of no image (`refusals.of_an_image`).
    """
    for start in range(0, count, size):
        yield from _by_halves(work, slice(start, min(start + size, count)))


def _by_halves(work: Callable[[slice], Result], part: slice) -> Iterator[tuple[slice, Result | None]]:
    try:
        found = work(part)
    except Exception as error:  # whatever a model of one's own raises
        if not refusals.of_an_image(error):
            raise
    else:
        yield part, found
        return
    # Behind the `except`: an error holds all tensors of its pass.
    if part.stop - part.start == 1:
        yield part, None
        return
    middle = (part.start + part.stop + 1) // 2
    yield from _by_halves(work, slice(part.start, middle))
    yield from _by_halves(work, slice(middle, part.stop))
