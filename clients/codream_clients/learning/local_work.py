"""The work on a client's own images that every course asks for.

One loop for all: SGD with the settings of `LearningSettings`, mini-batches that follow from the client's seed and the
round alone, balanced softmax or cross-entropy. What sets an algorithm apart is an `Objective`, which turns a batch's
plain loss into the loss that is minimised, or a correction, which is added to the gradients.

A CoDream client passes over dreams while its rivals go on with their own images: in each round they make
`LearningSettings.epochs_in` passes, so that all have as many in the end. The own images that a distillation sees beside
the dreams (`own_weight`) are in no count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.data.augmentation import augment_batch, augmentation_generator
from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.settings import LearningSettings, Schedule
from codream_clients.learning.training import (
    Descent,
    TrainingError,
    balanced_cross_entropy,
    batches_in_pass,
    judge_convergence,
    rate_factor,
    shuffled_batches,
)

WARM_UP, OWN_DATA = 0, 2
"""Stages of a participant's round: seeds are those of `Participant`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One mini-batch on its way through the model.

    Attributes:
        indices: which of the client's images, (B,).
        images: as the model sees them, varied if the data are to be augmented, (B, C, H, W).
        logits: (B, K), with gradient.
        loss: the plain loss, a scalar in nats.
    """

    indices: torch.Tensor
    images: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor


Objective = Callable[[Batch], torch.Tensor]
Correction = Mapping[str, torch.Tensor]
"""Parameter's name -> what is added to its gradient."""


def stage_seed(seed: int, round: int, stage: int) -> int:
    """The seed of one stage of a client's round; round 0 is the warm-up."""
    return int(np.random.SeedSequence([seed, round, stage]).generate_state(1)[0])


def label_loss(
    settings: LearningSettings, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Balanced softmax with class counts (K,), or plain cross-entropy, as the settings have it."""
    if settings.balanced:
        return balanced_cross_entropy(logits, labels, counts)
    return functional.cross_entropy(logits, labels)


def train_epochs(
    model: nn.Module,
    data: LabelledImages,
    settings: LearningSettings,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    class_counts: NDArray[np.float32] | None = None,
    objective: Objective | None = None,
    correction: Correction | None = None,
) -> int:
    """Train in place for `epochs` passes of SGD, with Nesterov momentum if it is above 0; returns the steps taken.

    Args:
        model: the client's; left in eval mode, on `device`.
        data: its images.
        settings: rates, sizes of batches and loss.
        epochs: passes.
        seed: of the order of the images, and of how they vary.
        device: where to.
        class_counts: (K,) of the balanced softmax, above 0 where there are labels: a histogram noised for privacy, say;
            the data's own unless given.
        objective: what is minimised; the plain loss unless given.
        correction: added to the gradients.

    Raises:
        TrainingError: fewer than two images (batch norm needs two), a label whose class count is not positive, or a
            loss that is no longer finite.

    Warns with `ConvergenceWarning`, see `judge_convergence`.
    """
    if len(data) < 2:
        raise TrainingError(f"{len(data)} images; at least 2 are needed to train")
    found = data.class_counts.astype(np.float32) if class_counts is None else class_counts
    if settings.balanced and (found.shape != (data.classes,) or (found[np.unique(data.labels)] <= 0).any()):
        raise TrainingError(
            f"class counts {found.tolist()} for {data.classes} classes; one each is needed, "
            "above 0 for every class that the data holds"
        )
    images, labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    counts = torch.from_numpy(found.astype(np.float32)).clamp(min=0).to(device)
    model.to(device).train()
    per_pass = batches_in_pass(len(data), settings.batch_size)
    descent = Descent(
        model,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        steps=epochs * per_pass,
    )
    steps, variation = 0, augmentation_generator(seed)
    last_pass: deque[torch.Tensor] = deque(maxlen=per_pass)
    for chosen in shuffled_batches(len(data), epochs, settings.batch_size, seed):
        indices = chosen.to(device)
        seen = augment_batch(images[indices], data.augment, variation)
        logits = model(seen)
        plain = label_loss(settings, logits, labels[indices], counts)
        loss = plain if objective is None else objective(Batch(indices, seen, logits, plain))
        descent.backward(loss)
        if correction is not None:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(correction[name])
        descent.step()
        last_pass.append(plain.detach())
        steps += 1
    model.eval()
    judge_convergence(last_pass, data.class_counts, settings.lr)
    return steps


def displacement(steps: int, momentum: float, schedule: Schedule = "constant") -> float:
    """How far SGD with Nesterov momentum and rate 1 goes in `steps` steps of a constant gradient of 1, from rest."""
    velocity = total = 0.0
    for step in range(steps):
        velocity = momentum * velocity + 1.0
        total += rate_factor(schedule, step, steps) * (1.0 + momentum * velocity if momentum > 0 else 1.0)
    return total


class NoLinearHead(ValueError):
    """The model does not end in a linear layer with one output for each class."""


def head(model: nn.Module, classes: int) -> nn.Linear:
    """The last linear layer of the model, as it was registered; its input is the model's representation of an image.

    Raises:
        NoLinearHead: there is none, or it does not give `classes` logits.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != classes:
        found = f"a last linear layer with {linear[-1].out_features} outputs" if linear else "no linear layer"
        raise NoLinearHead(f"{type(model).__name__}: found {found}; allowed: one that gives {classes} logits")
    return linear[-1]


@contextmanager
def watched(model: nn.Module, classes: int) -> Iterator[Callable[[], torch.Tensor]]:
    """While open, the call gives the representation (B, D) of the model's newest forward pass, with its gradient."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        caught[:] = [inputs[0].flatten(1)]

    handle = head(model, classes).register_forward_pre_hook(catch)
    try:
        yield lambda: caught[0]
    finally:
        handle.remove()
