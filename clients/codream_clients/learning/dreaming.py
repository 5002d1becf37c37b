"""Knowledge extraction: a frozen teacher shapes noise into dreams (CoDream, arXiv 2402.15968, stage 1).

The loss of one teacher f on dreams x is
    alpha_preds * entropy(softmax(f(x))) + alpha_bn * R_bn(x) + alpha_tv * TV(x) + alpha_l2 * ||x||,
with R_bn the distance between the batch's feature statistics and those that the batch-norm layers have stored
(DeepInversion, Yin et al., CVPR 2020). To it comes, as in DeepInversion, alpha_target * the cross-entropy of f(x_b)
to a class, here the public class (f + b) mod K, and only where the teacher has seen it: without it the dreams crowd
into the classes that the federation has most of; 0 switches it off, as in CoDream. The first class f goes on from
round to round where the last batch ended, so that every class gets dreams also where a batch has fewer than K. A
client shares either the gradient dL/dx ("gradient": the server runs Adam on the sum) or how far `local_steps` Adam
steps on a copy have moved it ("update": the server averages). The teacher is in eval mode; its parameters and running
statistics stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.optim.adam import adam

from codream_clients.learning.settings import DreamError as DreamError
from codream_clients.learning.settings import DreamLoss as DreamLoss

Dreams = NDArray[np.float32]
ExtraTerm = Callable[[torch.Tensor], torch.Tensor]
"""A further loss term: dreams (B, C, H, W) -> scalar, for example an adaptive term of a public student."""


Seen = NDArray[np.bool_]
"""Which classes (K,) a teacher has seen."""


ChannelStatistics = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Mean and variance (channels,) at the input of each group norm of a model, in the order of `modules()`."""


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean entropy of softmax(logits), logits (B, K), in nats: a scalar in [0, log K]."""
    log_probabilities = torch.log_softmax(logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """DeepInversion's image prior on a batch (B, C, H, W): a scalar, at least 0.

    The Euclidean norms over the whole batch of the differences between neighbours, horizontal, vertical and
    along both diagonals, added up.
    """
    differences = (
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:, :] - images[:, :, :-1, :],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    )
    return torch.stack([_norm(difference) for difference in differences]).sum()


def l2_norm(images: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of an image, averaged over the batch (B, C, H, W). A scalar, at least 0."""
    norms: torch.Tensor = torch.linalg.vector_norm(images.flatten(start_dim=1), dim=1)
    return norms.mean()


def first_target(rounds: int, batch: int, classes: int) -> int:
    """The target class of the first of `batch` dreams after so many rounds: where the round before ended."""
    return rounds * batch % classes


def target_loss(logits: torch.Tensor, seen: Seen | None, first: int = 0) -> torch.Tensor:
    """Cross-entropy of logits (B, K) to the public target classes (first + b) mod K, a scalar in nats, at least 0.

    The softmax runs over the classes that the teacher has seen, (K,) with at least one True (None: all), and
    dreams whose target it has not seen count 0 in the mean over B: it has no opinion of them.
    """
    targets = (first + torch.arange(len(logits), device=logits.device)) % logits.shape[1]
    if seen is None:
        return functional.cross_entropy(logits, targets)
    known = torch.from_numpy(seen).to(logits.device)
    losses = functional.cross_entropy(logits.masked_fill(~known, -torch.inf), targets, reduction="none")
    return losses[known[targets]].sum() / len(logits)


class StatisticsMemory:
    """Feature statistics of earlier batches, so that R_bn may ask of many batches what it cannot ask of one.

    With it, R_bn measures momentum * past + (1 - momentum) * now, and the past follows by the same rule (Fang et al.,
    "Up to 100x faster data-free knowledge distillation", AAAI 2022; momentum in [0, 1), 0 forgets everything). One
    batch need not show all of a teacher's data. Belongs to one model. Raises `DreamError` for another momentum.
    """

    def __init__(self, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise DreamError(f"momentum is {momentum}; [0, 1) is allowed")
        self._momentum = momentum
        self._past: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self._newest: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def copy(self) -> "StatisticsMemory":
        """The same memory, to be kept or thrown away apart from this one."""
        twin = StatisticsMemory(self._momentum)
        twin._past, twin._newest = dict(self._past), dict(self._newest)
        return twin

    def blend(self, layer: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's statistics with the past's in them, each (channels,); before the first `remember`, as they are."""
        self._newest[layer] = (mean.detach(), variance.detach())
        if layer not in self._past:
            return mean, variance
        old_mean, old_variance = self._past[layer]
        return self._mixed(old_mean, mean), self._mixed(old_variance, variance)

    def remember(self) -> None:
        """A batch is done: its newest statistics become part of the past."""
        for layer, (mean, variance) in self._newest.items():
            old_mean, old_variance = self._past.get(layer, (mean, variance))
            self._past[layer] = (self._mixed(old_mean, mean), self._mixed(old_variance, variance))

    def _mixed(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return self._momentum * old + (1 - self._momentum) * new


class FeatureStatistics:
    """While entered, hooks on all batch-norm layers of a model (1d and 2d) that have running statistics.

    After a forward pass `distance()` is R_bn = sum over layers of ||running_var - var(x)|| +
    ||running_mean - mean(x)||, with x the layer's input and the biased variance over batch and places.
    A layer that ran more than once counts with its last input. Without such layers R_bn is 0. A `memory` mixes
    earlier batches' statistics into var(x) and mean(x). `supplied` statistics, on the model's device, make the group
    norms take part, which store none themselves; raises `DreamError` unless there is a pair for each.
    """

    def __init__(
        self, model: nn.Module, memory: StatisticsMemory | None = None, supplied: ChannelStatistics | None = None
    ) -> None:
        self._memory = memory
        self._wanted: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {
            layer: (layer.running_mean, layer.running_var)
            for layer in model.modules()
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
            and layer.running_mean is not None
            and layer.running_var is not None
        }
        if supplied is not None:
            groups = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
            if len(supplied) != len(groups):
                raise DreamError(f"statistics of {len(supplied)} layers; the model has {len(groups)} group norms")
            self._wanted.update(zip(groups, supplied, strict=True))
        self._distances: dict[nn.Module, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "FeatureStatistics":
        self._handles = [layer.register_forward_pre_hook(self._measure) for layer in self._wanted]
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._distances = {}

    def distance(self) -> torch.Tensor:
        """R_bn of the newest forward pass, a scalar. Raises `DreamError` if a layer has not run yet."""
        if len(self._distances) < len(self._wanted):
            raise DreamError(
                f"{len(self._distances)} of {len(self._wanted)} normalisation layers have run; "
                "call the model inside the context before distance()"
            )
        return torch.stack(list(self._distances.values())).sum() if self._distances else torch.zeros(())

    def _measure(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        wanted_mean, wanted_variance = self._wanted[layer]
        features: torch.Tensor = inputs[0]
        axes = range(features.ndim)
        places = [axis for axis in axes if axis != 1]
        count = features.numel() // features.shape[1]
        # Deviations from the wanted mean: exact where the dreams come close, and, with sums instead of
        # torch.var_mean, two to three times as fast.
        deviations = features - wanted_mean.view([-1 if axis == 1 else 1 for axis in axes])
        shift = deviations.sum(dim=places) / count
        variance = deviations.square().sum(dim=places) / count - shift.square()
        if self._memory is not None:
            mean, variance = self._memory.blend(layer, wanted_mean + shift, variance)
            shift = mean - wanted_mean
        self._distances[layer] = _norm(wanted_variance - variance) + _norm(shift)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without parameter gradients; modes and gradient flags return afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def dream_gradient(
    model: nn.Module,
    dreams: Dreams,
    loss: DreamLoss,
    *,
    seen: Seen | None = None,
    first: int = 0,
    extra: ExtraTerm | None = None,
    supplied: ChannelStatistics | None = None,
) -> tuple[torch.Tensor, float]:
    """The gradient dL/dx (B, C, H, W) of one teacher's loss at `dreams`, on its device; its mean entropy there in nats.

    `seen` (K,) and `first`: see `target_loss`; `supplied`: see `FeatureStatistics`.
    Raises `DreamError` unless dreams are finite float32 of four axes.
    """
    state = _on_device(model, dreams).requires_grad_(True)
    with frozen(model), FeatureStatistics(model, supplied=supplied) as statistics:
        value, uncertainty = _dream_loss(model, state, loss, statistics, seen, first, extra)
        (gradient,) = torch.autograd.grad(value, state)
    return gradient, uncertainty


def dream_update(
    model: nn.Module,
    dreams: Dreams,
    loss: DreamLoss,
    local_steps: int,
    lr: float,
    *,
    seen: Seen | None = None,
    first: int = 0,
    extra: ExtraTerm | None = None,
    supplied: ChannelStatistics | None = None,
) -> tuple[torch.Tensor, float]:
    """How far `local_steps` steps of a fresh Adam (rate `lr`) move a copy of `dreams`: (B, C, H, W), on its device.

    The second value is the teacher's mean entropy in nats at `dreams` as they came. `seen` (K,): see
    `target_loss`; `supplied`: see `FeatureStatistics`.
    Raises `DreamError` unless dreams are finite float32 of four axes, local_steps >= 1 and lr > 0.
    """
    if local_steps < 1 or not lr > 0:
        raise DreamError(f"local_steps={local_steps}, lr={lr}; needed are at least 1 and above 0")
    start = _on_device(model, dreams)
    state = start.clone().requires_grad_(True)
    moments, taken = (torch.zeros_like(start), torch.zeros_like(start)), torch.zeros(())
    first_uncertainty: float | None = None
    with frozen(model), FeatureStatistics(model, supplied=supplied) as statistics:
        for _ in range(local_steps):
            value, uncertainty = _dream_loss(model, state, loss, statistics, seen, first, extra)
            first_uncertainty = uncertainty if first_uncertainty is None else first_uncertainty
            (gradient,) = torch.autograd.grad(value, state)
            _adam_step(state, gradient, moments, taken, lr)
    assert first_uncertainty is not None  # noqa: S101 (local_steps >= 1)
    return state.detach() - start, first_uncertainty


@torch.no_grad()
def _adam_step(
    state: torch.Tensor,
    gradient: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    taken: torch.Tensor,
    lr: float,
) -> None:
    """A step of `torch.optim.Adam`, whose class would load torch's compiler first (see `training.Descent`)."""
    first, second = moments
    adam(
        [state],
        [gradient],
        [first],
        [second],
        [],
        [taken],
        lr=lr,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
    )


def _dream_loss(
    model: nn.Module,
    state: torch.Tensor,
    loss: DreamLoss,
    statistics: FeatureStatistics,
    seen: Seen | None,
    first: int,
    extra: ExtraTerm | None,
) -> tuple[torch.Tensor, float]:
    logits = model(state)
    uncertainty = entropy(logits)
    value = (
        loss.alpha_preds * uncertainty
        + loss.alpha_bn * statistics.distance().to(state.device)
        + loss.alpha_tv * total_variation(state)
        + loss.alpha_l2 * l2_norm(state)
    )
    if loss.alpha_target > 0:
        value = value + loss.alpha_target * target_loss(logits, seen, first)
    if extra is not None:
        value = value + extra(state)
    return value, float(uncertainty.detach())


def _norm(values: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(values)
    return norm


def _on_device(model: nn.Module, dreams: Dreams) -> torch.Tensor:
    if dreams.ndim != 4 or dreams.dtype != np.float32 or not np.isfinite(dreams).all():
        raise DreamError(f"dreams are {dreams.dtype} of shape {dreams.shape}; finite float32 (B, C, H, W) are needed")
    device = next(model.parameters()).device
    return torch.tensor(dreams, device=device)
