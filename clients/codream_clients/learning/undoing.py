"""A learning that fails leaves the model that it was given, and no half of what it was doing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a ledger's errors come from here, and a ledger is read without torch
    from torch import nn


class TrainingRefused(RuntimeError):
    """A work on own images that may not be, and has not begun: what was learnt before it stays."""


@contextmanager
def undone_if_it_fails(model: nn.Module) -> Iterator[None]:
    """Whatever is raised inside, but `TrainingRefused`, leaves the model with the weights it had, in eval mode.

    Half-way weights would go on teaching the others, and no judge has seen them.
    """
    before = copy.deepcopy(model.state_dict())
    try:
        yield
    except TrainingRefused:
        raise
    except BaseException:
        model.load_state_dict(before)
        model.eval()
        raise
