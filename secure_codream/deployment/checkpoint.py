"""A client's model on disk: its weights after the warm-up and after each round, to be used, and to go on from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from secure_codream.reports.files import write_whole

MAX_BYTES = 8 << 30


class CheckpointError(ValueError):
    """No weights to go on with, or another model's."""


def weights_bytes(state: Mapping[str, torch.Tensor], charter: str, *, certified: int = 0) -> bytes:
    """What a file of a model's `state_dict`, on the CPU, holds.

    Args:
        state: the weights.
        charter: digest of the charter that it was trained under.
        certified: how many certified epochs it has learnt.
    """
    buffer = io.BytesIO()
    weights = {name: tensor.detach().cpu() for name, tensor in state.items()}
    torch.save({"charter": charter, "certified": certified, "weights": weights}, buffer)
    return buffer.getvalue()


def write_weights(path: Path, model: nn.Module, charter: str, *, certified: int = 0) -> None:
    """Write `weights_bytes` in one piece."""
    write_whole(path, weights_bytes(model.state_dict(), charter, certified=certified))


def read_weights(path: Path, model: nn.Module, charter: str) -> int:
    """Put the weights of `path` into the model; never unpickles anything but tensors and text.

    Weights that were trained under another charter are refused: a private federation must not begin with what was
    trained without privacy.

    Returns:
        How many certified epochs they have learnt.

    Raises:
        CheckpointError: there are none, they are another model's or charter's, or no weights at all; the model is as
            it was.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no weights to go on with; start without it")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are allowed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["charter"] != charter:
            raise ValueError(f"trained under charter {found['charter'][:16]}…, this federation's is {charter[:16]}…")
        certified = int(found["certified"])
        if not all(torch.isfinite(tensor).all() for tensor in found["weights"].values()):
            raise ValueError("weights that are not finite")
        model.load_state_dict(found["weights"])
    except Exception as error:  # whatever a file that is none leads torch to raise
        model.load_state_dict(before)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{path}: {reason}; the weights of this client's own model and federation are needed; "
            "move it away to train anew"
        ) from error
    return certified
