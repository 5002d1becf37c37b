"""The FedDream dataset: finished dreams with their soft labels, a sliding window of the newest batches.

It is made of sums alone, so the server may keep it; each batch is one `.npz` with `dreams` (B, C, H, W) and
`soft_labels`, the aggregated logits, both float32: (B, K), or with V views of each dream ((1 + V) * B, K), those of the
dreams first.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Batch = tuple[Floats, Floats]


class FedDreamDataset:
    """The window, in memory and, if a folder is given, every batch on disk.

    Args:
        window: how many batches are kept in memory.
        folder: where batches are written as `round-NNN.npz`; None keeps them in memory only.
    """

    def __init__(self, window: int, folder: Path | None = None) -> None:
        self._batches: deque[Batch] = deque(maxlen=window)
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, round_number: int, dreams: Floats, soft_labels: Floats) -> None:
        """Append a finished batch; the oldest leaves when the window is full."""
        self._batches.append((dreams, soft_labels))
        if self._folder is not None:
            path = self._folder / f"round-{round_number:03d}.npz"
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez_compressed(file, dreams=dreams, soft_labels=soft_labels)
            partial.replace(path)  # a reader never sees half a file

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The window, oldest first."""
        return tuple(self._batches)


def read_batches(folder: Path) -> list[Batch]:
    """All batches of a folder, in the order of their rounds."""
    batches = []
    for path in sorted(folder.glob("round-*.npz")):
        with np.load(path, allow_pickle=False) as data:
            batches.append((data["dreams"], data["soft_labels"]))
    return batches
