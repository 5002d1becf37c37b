"""TensorBoard event files of a comparison: one folder for each cell, a scalar for each row.

`accuracy/clients`, `accuracy/worst_client`, `accuracy/server`, `bytes/up`, `bytes/down` and `secure_steps`, by round.
Folders are `tensorboard/<partition>/<algorithm>/seed-<n>`; writing one again replaces it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.cell import CellRecord


class MissingTensorBoard(ConfigError):
    """Event files need a package that is not there."""

    def __init__(self) -> None:
        super().__init__(
            "--tensorboard: found no tensorboard; install it with `pip install tensorboard`, or leave the option out"
        )


def require_tensorboard() -> Any:
    """The writer's class.

    Raises:
        MissingTensorBoard: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingTensorBoard from error
    return SummaryWriter


def write_events(folder: Path, record: CellRecord) -> Path | None:
    """Write a cell's rows under `folder`; returns the cell's own folder, or None for one that measured bytes alone."""
    if record.measure == "communication":
        return None
    parts = (re.sub(r"[^A-Za-z0-9._-]+", "-", name) for name in (record.partition, record.algorithm))
    own = folder.joinpath(*parts, f"seed-{record.seed}")
    shutil.rmtree(own, ignore_errors=True)
    writer = require_tensorboard()(log_dir=str(own))
    try:
        for row in record.rows:
            scalars = {
                "accuracy/clients": fmean(row.accuracies),
                "accuracy/worst_client": min(row.accuracies),
                "accuracy/server": row.server,
                "bytes/up": row.bytes_up,
                "bytes/down": row.bytes_down,
                "secure_steps": row.secure_steps,
            }
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, row.round)
    finally:
        writer.close()
    return own
