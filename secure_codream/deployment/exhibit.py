"""For a demonstration on one machine: a client that keeps one plain encoded vector in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol
from codream_protocols.course import Array


class ExhibitingClient(ClientProtocol):
    """`ClientProtocol` that writes what it encodes in one step to `path`, before it is masked.

    Args:
        path: an `.npz` in the client's own folder.
        at: (epoch, step).
        arguments: as for `ClientProtocol`.
    """

    def __init__(self, path: Path, at: tuple[int, int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._path, self._at = path, at

    def _encode(self, plan: Plan, step: int, values: Mapping[str, Array] | None) -> tuple[Array, int]:
        vector, replaced = super()._encode(plan, step, values)
        if (plan.offer.epoch, step) == self._at:
            np.savez_compressed(self._path, plain=vector, modulus_bits=plan.modulus_bits(step), top=plan.top(step))
        return vector, replaced
