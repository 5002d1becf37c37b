"""Feature statistics of a client's records for R_bn, through the Gaussian mechanism.

A model for private training has group norm, which stores no statistics. Here each record gives one vector: the mean
and the mean square of every channel at the input of every group norm. Vectors are clipped in L2, summed, noised, and
divided by a noisy count; mean and variance by channel follow. The bound of the clipping comes from public images (noise
of deviation 1) that go through the model, which is private already, so it tells nothing about the records.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.dreaming import ChannelStatistics, frozen
from codream_clients.models.passes import filled, in_parts
from codream_clients.privacy.noise import Stream

CLIP_TIMES_MEDIAN = 2.0
"""The bound is so many times the median norm over the public images."""
PUBLIC_IMAGES = 256
BATCH = 64
LEAST_VARIANCE = 1e-4


class StatisticsError(ValueError):
    """A model without the layers that are measured."""


def private_statistics(
    model: nn.Module,
    data: LabelledImages,
    *,
    count: float,
    noise_multiplier: float,
    stream: Stream,
    device: torch.device,
) -> ChannelStatistics:
    """Mean and variance (channels,) at each group norm of `model`, in the order of `model.modules()`.

    `count` is a private or public number of records, above 0; the sensitivity, the bound of the clipping, is taken from
    public images. Raises `StatisticsError` for a model without group norm.
    """
    layers = group_norms(model)
    if not layers:
        raise StatisticsError("the model has no group norm; feature statistics are taken at its inputs")
    shape = (PUBLIC_IMAGES, *data.shape)
    public = stream.normal(math.prod(shape)).reshape(shape).astype(np.float32)
    norms = np.linalg.norm(vectors_of(model, layers, public, device), axis=1)
    bound = float(CLIP_TIMES_MEDIAN * np.median(norms))
    vectors = vectors_of(model, layers, data.images, device)
    vectors[~np.isfinite(vectors).all(axis=1)] = 0.0  # no clipping bounds it, or the model fails at it
    clipped = vectors * np.minimum(1.0, bound / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
    total = clipped.sum(axis=0) + noise_multiplier * bound * stream.normal(vectors.shape[1])
    edges = np.cumsum([0, *(2 * layer.num_channels for layer in layers)])
    statistics = []
    for start, stop in pairwise(edges):
        mean, square = np.split(total[start:stop] / max(count, 1.0), 2)
        variance = np.maximum(square - mean**2, LEAST_VARIANCE)
        statistics.append((torch.from_numpy(mean).float(), torch.from_numpy(variance).float()))
    return statistics


def group_norms(model: nn.Module) -> list[nn.GroupNorm]:
    """The layers that are measured, in order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]


def vectors_of(
    model: nn.Module, layers: Sequence[nn.GroupNorm], images: NDArray[np.float32], device: torch.device
) -> NDArray[np.float64]:
    """Each record's channel means and mean squares at the inputs of `layers`: (N, 2 * all channels).

    NaN where the model fails at a record, passes a layer by, or gives it another number of rows than there are images:
    whose each is could not be told, and one record would move several.
    """
    inputs: dict[nn.Module, torch.Tensor] = {}

    def keep(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        places = given[0].flatten(start_dim=2) if given[0].ndim > 2 else given[0].unsqueeze(2)
        inputs[layer] = torch.cat([places.mean(dim=2), places.square().mean(dim=2)], dim=1)

    def measured(part: slice) -> NDArray[np.float32]:
        inputs.clear()  # what other records gave a layer is none of these
        model(filled(torch.from_numpy(images[part]), BATCH).to(device))
        found: NDArray[np.float32] = torch.cat([inputs[layer] for layer in layers], dim=1).cpu().numpy()
        if len(found) != BATCH:
            raise StatisticsError(f"{len(found)} rows at a group norm of {BATCH} images; one of each is needed")
        return found[: part.stop - part.start]

    none = np.full((1, sum(2 * layer.num_channels for layer in layers)), np.nan, dtype=np.float32)
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        with frozen(model), torch.inference_mode():
            parts = [none if one is None else one for _, one in in_parts(measured, len(images), BATCH)]
    finally:
        for handle in handles:
            handle.remove()
    return np.concatenate([none[:0], *parts]).astype(np.float64)
