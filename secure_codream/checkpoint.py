"""A client's model on disk: its weights after the warm-up and after each round, to be used, and to go on from."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from secure_codream.records import write_whole

MAX_BYTES = 8 << 30


class CheckpointError(ValueError):
    """No weights to go on with, or another model's."""


def write_weights(path: Path, model: nn.Module, recipe: str) -> None:
    """Write the model's `state_dict`, on the CPU, and the recipe it was trained by, in one piece."""
    buffer = io.BytesIO()
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    torch.save({"recipe": recipe, "weights": weights}, buffer)
    write_whole(path, buffer.getvalue())


def read_weights(path: Path, model: nn.Module, recipe: str) -> None:
    """Put the weights of `path` into the model; never unpickles anything but tensors and text.

    Weights that were trained by another recipe are refused: a private federation must not begin with what was trained
    without privacy.

    Raises:
        CheckpointError: there are none, they are another model's or recipe's, or no weights at all; the model is as it
            was.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no weights to go on with; start without --resume")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are allowed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["recipe"] != recipe:
            raise ValueError(f"trained by recipe {found['recipe'][:16]}, this federation's is {recipe[:16]}")
        if not all(torch.isfinite(tensor).all() for tensor in found["weights"].values()):
            raise ValueError("weights that are not finite")
        model.load_state_dict(found["weights"])
    except Exception as error:
        model.load_state_dict(before)
        raise CheckpointError(
            f"{path}: {str(error).splitlines()[0]}; the weights of this client's own model and federation are needed; "
            "start without --resume to train it anew"
        ) from error
