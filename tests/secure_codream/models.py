"""A small model of the zoo, and what its file says of it."""

from __future__ import annotations

from torch import nn

from codream_clients.models.zoo import build
from secure_codream.deployment.description import Description

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


def small_model(seed: int = 0) -> nn.Module:
    """The model that `DESCRIBED` names."""
    return build("mlp", channels=1, size=8, classes=10, seed=seed)
