"""What a step of DP-SGD through the ring takes of a client's records: the sum of their clipped, rounded gradients.

Each record takes part by itself, with one probability for all (Poisson sampling); its gradient is clipped to a
Euclidean norm and rounded to integers within a norm that is checked exactly (`codream_protocols.record_noise`). The
noise is not added here: the protocol does, also where all this fails.

One record more or less moves the sum by its own rounded vector and by nothing else. So as many images go through the
model in every pass (`models.passes`). A record whose gradient is not finite counts as zero, as in `training`; so does
one that the model fails at, and no other with it: a batch that fails is divided until the record stands alone. That
memory is wanting is of no record, and ends the step: the client sends noise alone, and its own log says why. What is
fixed in front of a model (`models.fronts`) gives each record its features once. Sampling, rounding, how images vary and
what layers draw come from a stream under a key of the operating system that is kept nowhere: after a restart all of it
is drawn anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from torch import nn
from torch.nn import functional

from codream_clients.data.augmentation import augment_batch
from codream_clients.data.datasets import LabelledImages
from codream_clients.models import refusals
from codream_clients.models.fronts import without_front
from codream_clients.models.passes import filled
from codream_clients.privacy.noise import Stream
from codream_clients.privacy.training import LAYOUT, require_rows
from codream_protocols.discrete_gaussian import Integers
from codream_protocols.encoding import StreamRounding
from codream_protocols.record_noise import RecordNoise, largest_square, round_records

PHYSICAL_BATCH = 64
"""Images that go through the model at a time, in every pass."""
ROUNDED_TOGETHER = 8
"""Gradients that are rounded at a time: what is drawn for so few stays in a processor's cache (a sixth of the time)."""
_SHRINK = 1 - 1e-6
"""A norm is found in single precision; what lies above the bound by its last bits would hardly ever be rounded."""


class RecordSums:
    """Sums of gradients over samples of one client's records.

    Args:
        model: whose trained parameters the gradients are of; read as it is at each call. A fixed front never changes.
        data: the records.
        rate: with which probability each takes part.
        stream: where all that is drawn comes from.
        device: where gradients are computed.
        records: the public number of records, see `without_front`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: LabelledImages,
        *,
        rate: float,
        stream: Stream,
        device: torch.device,
        records: int | None = None,
    ) -> None:
        model.to(device).to(memory_format=LAYOUT)
        images, self._labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
        still = data.augment == "none"
        self._model, self._images = without_front(model, images, records) if still else (model, images)
        self._augment, self._rate, self._stream, self._device = data.augment, rate, stream, device
        self._rounding = StreamRounding(stream.bytes)

    def draw(self, noise: RecordNoise) -> Integers:
        """One sample's sum: shape (d,), int64, in ring units; the parameters in the order of `parameters`."""
        chosen = np.flatnonzero(self._stream.uniform(len(self._images)) < self._rate)
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        total = np.zeros(sum(weight.numel() for weight in weights), dtype=np.int64)
        most, training = largest_square(noise, len(total)), self._model.training
        self._model.train()
        with self._stream.hidden_draws(self._device):
            try:
                for part in np.split(chosen, range(PHYSICAL_BATCH, len(chosen), PHYSICAL_BATCH)):
                    for gradients in self._gradients(weights, part):
                        for few in torch.split(gradients, ROUNDED_TOGETHER):
                            total += round_records(_scaled(few, noise), most, self._rounding).sum(axis=0)
            finally:
                self._model.train(training)
        return total

    def _gradients(self, weights: list[nn.Parameter], chosen: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """Of each record its gradient, in tensors (B, d); a record that the model fails at gives none."""
        if not len(chosen):
            return
        images = augment_batch(self._images[torch.from_numpy(chosen)], self._augment, self._stream.generator())
        found = None
        try:
            found = _record_gradients(
                self._model,
                weights,
                filled(images, PHYSICAL_BATCH),
                filled(self._labels[torch.from_numpy(chosen)], PHYSICAL_BATCH),
            )
        except Exception as error:  # whatever a model of one's own raises
            if not refusals.of_an_image(error):
                raise
        finally:
            self._model.zero_grad(set_to_none=True)
        if found is not None:
            yield found[: len(chosen)]
        elif len(chosen) > 1:  # behind the `except`: an error holds all tensors of its pass
            for half in np.array_split(chosen, 2):
                yield from self._gradients(weights, half)


@contextmanager
def _hooks(model: nn.Module) -> Iterator[None]:
    hooks = GradSampleHooks(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # images need no gradient
            yield
    finally:
        hooks.cleanup()
        for layer in model.modules():  # what a pass that failed half-way left there would be the next one's
            vars(layer).pop("activations", None)


def _record_gradients(
    model: nn.Module, weights: list[nn.Parameter], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The gradient of each record's cross-entropy, shape (B, d)."""
    with _hooks(model):
        losses = functional.cross_entropy(model(images), labels, reduction="none")
        torch.autograd.backward(losses.mean())
        found = [weight.grad_sample.flatten(1) for weight in weights]  # type: ignore[attr-defined]
        require_rows(found, len(images))
        return torch.cat(found, dim=1)


def _scaled(gradients: torch.Tensor, noise: RecordNoise) -> NDArray[np.float32]:
    """Clipped, in ring units, in place: shape (B, d); what is not finite is 0."""
    norms = gradients.norm(dim=1)
    gradients *= (noise.radius * _SHRINK / torch.clamp(norms, min=noise.norm))[:, None]
    gradients[~norms.isfinite()] = 0.0
    scaled: NDArray[np.float32] = gradients.cpu().numpy()
    return scaled
