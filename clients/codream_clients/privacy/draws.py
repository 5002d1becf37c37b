"""What a model draws while it is trained: numbers for each record, or one that decides for a whole batch.

A number for the whole batch may switch on what mixes records, in one step of a thousand: no trial of a few steps would
see it. So every operation of torch that draws is looked at while a pass of `BATCH` images runs, and what it draws must
have an axis along which records are counted, as dropout and stochastic depth by record have. Python's and numpy's
generators draw what is no tensor: they must stay where they are.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

BATCH = 11
"""A size of batch that few other axes share."""


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what is drawn for a whole batch: operation and shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shared: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            name = func.overloadpacket.__name__
            first = drawn[0] if isinstance(drawn, tuple) else drawn
            if name == "randperm" or not any(side and side % BATCH == 0 for side in first.shape):
                self.shared.append(f"torch's {name.strip('_')} of shape {tuple(first.shape)}")
        return drawn


@contextmanager
def shared_draws() -> Iterator[Callable[[], list[str]]]:
    """While it lasts, one pass of `BATCH` images; the function that it gives names what was drawn for all of them."""
    python, arrays = random.getstate(), _numpy_state()
    with _Draws() as draws:
        yield lambda: [
            *(["Python's random"] if random.getstate() != python else []),
            *(["numpy.random"] if _numpy_state() != arrays else []),
            *dict.fromkeys(draws.shared),
        ]


def _numpy_state() -> tuple[bytes, int]:
    state = np.random.get_state(legacy=False)["state"]
    return state["key"].tobytes(), state["pos"]
