"""Models whose first part is fixed and public, and whose rest alone is trained.

A record's gradient then follows from its features, so private training computes those once a record and not once a step
(`codream_clients.privacy`). Such features must owe nothing to anybody's records, or to public images alone: pretrained
weights are as private as what they were trained on (docs/privacy.md).
"""

import torch
from torch import nn

from codream_clients.models.layers import Sides
from codream_clients.models.names import Norm
from codream_clients.models.passes import filled, in_parts
from codream_clients.models.scattering import COEFFICIENTS, STRIDE, Scattering

MOST_FEATURES = 1 << 14
"""Numbers of a record's features that are kept, 64 KiB; of more, a step computes those of its own records.

Of one record, whatever their number: where the bound was of all together, one record more could have all others go
through the front in other numbers.
"""
MOST_KEPT = 2 << 30
"""Bytes of all features that are kept, by the public number of records; where there is none, this bounds nothing."""
PASS = 16
"""Images that go through a front at a time: maps of so few stay in a processor's cache, which halves the time."""
GROUPS = 27
"""Of channels, that a record's features are standardised in, by that record alone: Tramer and Boneh, appendix A."""


class FixedFront(nn.Module):
    """`head(front(images))`, of which `head` alone is trained; the front is in eval mode whatever the model is in.

    Args:
        front: images (N, C, H, W) -> features (N, ...); its weights are fixed from here on. In eval mode it must give
            an image the same features each time, whichever other images there are.
        head: features (N, ...) -> logits (N, K).
    """

    def __init__(self, front: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.front, self.head = front.requires_grad_(False).eval(), head

    def train(self, mode: bool = True) -> "FixedFront":
        """Sets the mode of the head."""
        super().train(mode)
        self.front.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = self.head(self.front(images))
        return logits


def without_front(model: nn.Module, images: torch.Tensor, records: int | None = None) -> tuple[nn.Module, torch.Tensor]:
    """What is trained, and what it is trained on: the head and each image's features, or model and images as they are.

    They stay as they are where there is no fixed front, where features are more than is kept, and where the front fails
    at blank images. Which of both it is follows from no image, nor from how many there are: one at which the front
    fails has features that are not numbers, as its gradient then is none, and takes no other with it.

    Args:
        model: whichever.
        images: (N, C, H, W), the same in every step.
        records: the public number of records, which N need not be; None where there is none.
    """
    if not isinstance(model, FixedFront):
        return model, images
    with torch.no_grad():
        try:
            blank = model.front(filled(images[:0], PASS))
        except Exception:  # whatever a front of one's own raises
            return model, images
        if blank[0].numel() > MOST_FEATURES or (records or 0) * blank[0].nbytes > MOST_KEPT:
            return model, images

        def features(part: slice) -> torch.Tensor:
            found: torch.Tensor = model.front(filled(images[part], PASS))
            return found[: part.stop - part.start]

        none = torch.full_like(blank[:1], torch.nan)
        found = [none if one is None else one for _, one in in_parts(features, len(images), PASS)]
        return model.head, torch.cat([none[:0], *found])


def scattering_linear(channels: int, sides: Sides, classes: int, norm: Norm) -> nn.Module:
    """Logistic regression on scattering features: 39,700 weights for 1x28x28 and ten classes; `norm` changes nothing.

    Features are standardised record by record, since means over a client's records would be of its records.
    """
    features = channels * COEFFICIENTS
    height, width = (-(-side // STRIDE) for side in sides)
    front = nn.Sequential(Scattering(), nn.GroupNorm(GROUPS, features, affine=False))
    return FixedFront(front, nn.Sequential(nn.Flatten(), nn.Linear(features * height * width, classes)))
