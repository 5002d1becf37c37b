"""A small model of the zoo, its file, and what that says of it."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from torch import nn

from codream_clients.models.zoo import build
from secure_codream.deployment.checkpoint import checkpoint_bytes
from secure_codream.deployment.description import Description, Standardisation
from secure_codream.deployment.files import MODEL
from secure_codream.reports.files import write_whole
from secure_codream.use.model import OpenedModel, open_model

DESCRIBED = Description(
    written_by="a test",
    model="mlp",
    code=None,
    federation="federation",
    client="alice",
    course="codream",
    charter="ab" * 32,
    shape=(1, 8, 8),
    classes=10,
    class_names=None,
    standardisation=None,
    resized=False,
    private=False,
)
HALF = replace(DESCRIBED, standardisation=Standardisation((0.5,), (0.25,)))


def small_model(seed: int = 0) -> nn.Module:
    """The model that `DESCRIBED` names."""
    return build("mlp", channels=1, size=8, classes=10, seed=seed)


def write_checkpoint(path: Path, model: nn.Module, description: Description) -> None:
    """Write a model's file in one piece, as a client does."""
    write_whole(path, checkpoint_bytes(model, description))


def opened(folder: Path, description: Description = HALF, **options: str) -> OpenedModel:
    """A small model, in a folder that is made where there is none; `options` are those of `open_model`."""
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder / MODEL, small_model(1), description)
    return open_model(folder, device="cpu", **options)
