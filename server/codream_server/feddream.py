"""The FedDream dataset: finished dreams with their soft labels, a sliding window of the newest batches.

It is made of sums alone, so the server may keep it; each batch is one `.npz` with `dreams` (B, C, H, W) and
`soft_labels`, the aggregated logits, both float32: (B, K), or with V views of each dream ((1 + V) * B, K), those of the
dreams first.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Batch = tuple[Floats, Floats]


class FedDreamDataset:
    """The window, in memory and, if a folder is given, every batch on disk.

    Args:
        window: how many batches are kept in memory.
        write: keeps a file whole, or raises OSError: called with `batch_name` and the content; None keeps no files.
    """

    def __init__(self, window: int, write: Callable[[str, bytes], object] | None = None) -> None:
        self._batches: deque[Batch] = deque(maxlen=window)
        self._write = write

    def add(self, round_number: int, dreams: Floats, soft_labels: Floats) -> None:
        """Append a finished batch; the oldest leaves when the window is full. May be called again after an OSError."""
        if self._write is not None:
            content = io.BytesIO()
            np.savez_compressed(content, dreams=dreams, soft_labels=soft_labels)
            self._write(batch_name(round_number), content.getvalue())
        self._batches.append((dreams, soft_labels))

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The window, oldest first."""
        return tuple(self._batches)


def batch_name(round_number: int) -> str:
    """The file of a round's batch."""
    return f"round-{round_number:03d}.npz"


def read_batches(folder: Path) -> list[Batch]:
    """All batches of a folder, in the order of their rounds."""
    batches = []
    for path in sorted(folder.glob("round-*.npz")):
        with np.load(path, allow_pickle=False) as data:
            batches.append((data["dreams"], data["soft_labels"]))
    return batches
