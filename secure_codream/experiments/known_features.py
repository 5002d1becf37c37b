"""What a fixed front has given for an image, kept for all cells of a process: they deal out the same images.

A front gives an image the same features each time (`codream_clients.models.fronts`), and a scattering transform takes
longer than all else that a linear head needs. Images that gradients are asked of, as dreams are, go through it as ever.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from codream_clients.models.fronts import PASS, FixedFront
from codream_clients.models.passes import in_passes

MOST_KNOWN = 1 << 29
"""Numbers of all features together that are kept, 2 GiB."""
_KNOWN: dict[tuple[str, bytes], torch.Tensor] = {}
"""Name of a model, digest of an image -> its features."""


def with_known_features(model: nn.Module, name: str) -> nn.Module:
    """The model; a fixed front is asked once for an image, whichever models of that name it is in front of."""
    if isinstance(model, FixedFront):
        model.front = _KnownFeatures(model.front, name)
    return model


class _KnownFeatures(nn.Module):
    def __init__(self, front: nn.Module, name: str) -> None:
        super().__init__()
        self._front, self._name = front, name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.requires_grad or images.device.type != "cpu" or not len(images):
            return self._front(images)  # type: ignore[no-any-return]
        keys = [(self._name, _digest(image)) for image in images]
        new = [place for place, key in enumerate(keys) if key not in _KNOWN]
        if not new:
            return torch.stack([_KNOWN[key] for key in keys])
        with torch.no_grad():  # no last bit hangs on what other cells have asked for
            features = torch.cat([self._front(part) for part in in_passes(images[new], PASS)])
        found = {keys[place]: one.clone() for place, one in zip(new, features, strict=False)}
        given = torch.stack([found[key] if key in found else _KNOWN[key] for key in keys])
        if (len(_KNOWN) + len(found)) * given[0].numel() <= MOST_KNOWN:
            _KNOWN.update(found)
        return given


def _digest(image: torch.Tensor) -> bytes:
    content = image.numpy()
    return hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).digest()
