"""Knowledge aggregation and acquisition: soft labels, and distillation from the FedDream dataset.

Stage 2 of CoDream (arXiv 2402.15968): the soft label of a dream is the mean of the clients' logits on it.
Class-aware labels (not in the paper) weigh client i's logit for class c by w_ic = n_ic + prior, so that a client
speaks up where it has seen data: label_c = sum_i w_ic z_ic / sum_i w_ic. A small prior lets one image of a rare
class outweigh the guesses of all who have none, and keeps the division defined. For a class that it has not seen a
client puts in its lowest logit: its own is held down by nothing, since balanced softmax leaves the class out, and
where nobody has seen a class, such logits can be the highest, so that all dreams are labelled with it. Numerators
(B, K) and denominators (K,) are coordinates of one secure sum, so the server sees totals per class and no client's
histogram.
A label may stand for more than the dream: with views (`augmentation.with_views`) its variations are labelled too, and
labels are ((1 + V) * B, K), those of the dreams first.
Stage 3 (i): each client distils the dreams and their labels by KL at temperature T (Hinton et al., 2015); options
add noise to the dreams, move them by a few pixels (an image's class stays, and so does a dream's label), and add the
client's own images to each step.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.data.augmentation import augment_batch, augmentation_generator, shift_batch, with_views
from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import (
    Descent,
    TrainingError,
    balanced_cross_entropy,
    batches_in_pass,
    shuffled_batches,
    warn_at_chance,
)

FloatArray = NDArray[np.float32]
ALIKE = 1e-3
"""Labels whose mean says this much of them, in nats of KL, leave nothing to learn."""


class AcquisitionError(ValueError):
    """Soft labels or dreams do not fit together."""


def calibrated(logits: FloatArray, deviation: float) -> FloatArray:
    """Logits (B, K), those of each class moved and scaled to mean 0 and the given deviation over the batch.

    A teacher that has seen little but one class has logits for it that are high for every image, and others' knowledge
    drowns in a weighted mean of such logits. What counts in a mean is then which images a teacher finds more like a
    class than others. A class whose logits do not vary gets 0. Not in the paper.
    """
    spread = logits.std(axis=0)
    scale = np.where(spread > 1e-6, deviation / np.maximum(spread, 1e-6), 0.0)
    return np.asarray((logits - logits.mean(axis=0)) * scale, dtype=np.float32)


def soft_label_share(
    logits: FloatArray,
    counts: NDArray[np.int64] | FloatArray,
    classes: int,
    class_aware: bool,
    max_count: int,
    prior: float = 0.05,
) -> tuple[FloatArray, FloatArray]:
    """One client's share of the soft labels: numerators (B, K) and denominators (K,), both float32.

    `logits` (B, K) are the client's plain logits on the dreams, `counts` (K,) its images of each class, at
    least 0. Class-aware, the weight of class c is (min(n_c, max_count) + prior) / (max_count + prior), in
    (0, 1]; otherwise it is 1. Numerators are weights times logits, denominators the weights; for a class without
    images the logit is the lowest of those with some. `max_count` and `prior` are public and the same for all
    clients; max_count bounds what a client can weigh, and sets how fine the weights are after encoding.
    Raises `AcquisitionError` if the shapes do not fit, counts are negative, max_count is below 1 or the prior
    is not above 0.
    """
    if logits.ndim != 2 or logits.shape[1] != classes or counts.shape != (classes,):
        raise AcquisitionError(
            f"logits of shape {logits.shape} and counts of shape {counts.shape}; (B, {classes}) and "
            f"({classes},) are needed"
        )
    if max_count < 1 or not prior > 0 or not (counts >= 0).all():
        raise AcquisitionError(
            f"max_count={max_count}, prior={prior}, counts={counts.tolist()}; needed are max_count >= 1, "
            "prior > 0 and counts >= 0"
        )
    weights = np.ones(classes, dtype=np.float32)
    if class_aware:
        seen: NDArray[np.bool_] = np.greater(counts, 0)
        if seen.any():
            logits = np.where(seen, logits, logits[:, seen].min(axis=1, keepdims=True)).astype(np.float32)
        weights = ((np.minimum(counts, max_count) + prior) / (max_count + prior)).astype(np.float32)
    return (logits * weights).astype(np.float32), weights


@dataclass(frozen=True, eq=False)
class OwnImages:
    """A client's own images beside the dreams: each step adds `weight` times the cross-entropy of `batch_size` of them.

    `class_counts` (K,) makes it balanced softmax (see `balanced_cross_entropy`); None leaves plain cross-entropy.
    They vary as `data.augment` says.
    """

    data: LabelledImages
    weight: float
    batch_size: int
    class_counts: FloatArray | None

    def loss(self, model: nn.Module, draws: torch.Generator, device: torch.device) -> torch.Tensor:
        """The weighted loss of one random batch; `draws` picks it, with replacement."""
        chosen = torch.randint(len(self.data), (self.batch_size,), generator=draws).numpy()
        images = augment_batch(torch.from_numpy(self.data.images[chosen]), self.data.augment, draws)
        logits = model(images.to(device))
        labels = torch.from_numpy(self.data.labels[chosen]).to(device)
        if self.class_counts is None:
            return self.weight * functional.cross_entropy(logits, labels)
        return self.weight * balanced_cross_entropy(logits, labels, torch.from_numpy(self.class_counts).to(device))


@dataclass(frozen=True)
class Learnt:
    """The mean losses of the last pass over the dreams: of all that was minimised, and of the dreams; no pass, 0."""

    loss: float
    of_dreams: float


def learn_from_dreams(
    model: nn.Module,
    batches: Sequence[tuple[FloatArray, FloatArray]],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: LearningSettings,
    *,
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    noise: float = 0.0,
    own: OwnImages | None = None,
) -> Learnt:
    """Train `model` in place on dreams and what their labels say; it is moved to `device` and left in eval mode.

    Each batch is (dreams (B, C, H, W), labels ((1 + V) * B, K)), with V views of each dream. Gradients whose norm is
    above `settings.distil_clip` are shortened to it; 0 shortens none. The first can be a hundred times those that
    follow, since others' labels contradict what the model is sure of: such steps leave a model that says the same of
    every image.

    Args:
        model: the client's.
        batches: the dreams, at least one batch.
        loss_of: the mean loss of logits (B, K) under labels (B, K), a scalar.
        settings: rates, sizes of batches, and by how many pixels dreams are moved.
        seed: of the order, the noise and the moves.
        device: where to.
        epochs: passes, in place of `settings.distil_epochs`.
        noise: deviation of the Gaussian noise that every sight of a dream gets.
        own: adds a loss on own images to each step.

    Raises:
        AcquisitionError: no batch, or labels that do not fit their dreams.
        TrainingError: a loss that is no longer finite.
    """
    if not batches:
        raise AcquisitionError("the FedDream dataset is empty; finish one dream batch before distilling")
    for dreams, labels in batches:
        if labels.ndim != 2 or not len(labels) or len(labels) % len(dreams):
            raise AcquisitionError(
                f"dreams of shape {dreams.shape} with soft labels of shape {labels.shape}; ({len(dreams)}, K) is "
                "needed, or with views a multiple of it"
            )
    images = torch.cat(
        [
            with_views(torch.from_numpy(dreams).to(device), len(labels) // len(dreams) - 1, settings.views_by)
            for dreams, labels in batches
        ]
    )
    targets = torch.from_numpy(np.concatenate([labels for _, labels in batches])).to(device)
    epochs = settings.distil_epochs if epochs is None else epochs
    model.to(device).train()
    draws, variation = torch.Generator().manual_seed(seed), augmentation_generator(seed)
    per_pass = batches_in_pass(len(images), settings.distil_batch_size)
    descent = Descent(
        model,
        lr=settings.distil_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.distil_schedule,
        steps=epochs * per_pass,
    )
    losses, of_dreams = deque[torch.Tensor](maxlen=per_pass), deque[torch.Tensor](maxlen=per_pass)
    for batch in shuffled_batches(len(images), epochs, settings.distil_batch_size, seed):
        chosen = batch.to(device)
        seen = shift_batch(images[chosen], settings.distil_shift, variation)
        if noise > 0:
            seen = seen + noise * torch.randn(seen.shape, generator=draws).to(device)
        loss = loss_of(model(seen), targets[chosen])
        of_dreams.append(loss.detach())
        if own is not None:
            loss = loss + own.loss(model, draws, device)
        losses.append(loss.detach())
        descent.backward(loss)
        if settings.distil_clip > 0:
            descent.shorten(settings.distil_clip)
        descent.step()
    model.eval()
    if not losses:
        return Learnt(0.0, 0.0)
    last = Learnt(*(float(torch.stack(list(each)).mean()) for each in (losses, of_dreams)))
    if not math.isfinite(last.loss):
        raise TrainingError(
            f"the distillation loss became {last.loss} with distil_lr={settings.distil_lr}; choose a smaller rate"
        )
    return last


def distil(
    model: nn.Module,
    batches: Sequence[tuple[FloatArray, FloatArray]],
    settings: LearningSettings,
    *,
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    noise: float = 0.0,
    own: OwnImages | None = None,
) -> float:
    """Train `model` in place on dreams and their aggregated logits; see `learn_from_dreams`.

    Returns the last epoch's mean loss, 0 without one. The loss is the mean over dreams and views of
    T^2 * KL(softmax(label / T) || softmax(f(image) / T)). As it stands a student is trained that sees nothing but the
    dreams; a participant adds noise and its own images. Warns with `ConvergenceWarning` if the last pass over the
    dreams ends no better than the mean label would as the answer to all of them.
    """
    temperature = settings.temperature

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        told = torch.log_softmax(logits / temperature, dim=1)
        return temperature**2 * functional.kl_div(
            told, torch.softmax(labels / temperature, dim=1), reduction="batchmean"
        )

    learnt = learn_from_dreams(
        model, batches, loss_of, settings, seed=seed, device=device, epochs=epochs, noise=noise, own=own
    )
    targets = torch.softmax(torch.from_numpy(np.concatenate([labels for _, labels in batches])) / temperature, dim=1)
    spread = functional.kl_div(targets.mean(0).log().expand_as(targets), targets, reduction="batchmean").item()
    if spread > ALIKE:
        warn_at_chance("distillation", learnt.of_dreams, temperature**2 * spread, settings.distil_lr)
    return learnt.loss
