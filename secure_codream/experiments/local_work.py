"""The work that every baseline does on a client's own images, and the rows that it reports.

One loop for all: SGD with the problem's settings, the same mini-batches (they follow from client, round and nothing
else, by the rule of `Participant`), balanced softmax or cross-entropy as `LearningSettings.balanced` says. What sets
an algorithm apart is an `Objective`, which turns a batch's plain loss into the loss that is minimised, or a
correction, which is added to the gradients. Without either, the loop is `train_local`, step by step.

Passes over local data: `warm_up_epochs` before the first round, and `LearningSettings.epochs_in` in each. A CoDream
client distils while its rivals go on with their own images, so all have `reference_epochs` in the end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from codream_clients.augmentation import augment_batch, augmentation_generator
from codream_clients.datasets import LabelledImages
from codream_clients.training import (
    Schedule,
    TrainingError,
    balanced_cross_entropy,
    batches_in_pass,
    judge_convergence,
    rate_factor,
    scheduled,
    sgd,
    shuffled_batches,
)
from secure_codream.experiments.problem import Problem, Row

OWN_DATA = 2  # the stage of training on own images in a participant's round
WARM_UP = 0


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


def stage_seed(problem: Problem, client: int, round: int, stage: int) -> int:
    """The seed of one stage of a client's round; round 0 is the warm-up."""
    sequence = np.random.SeedSequence([problem.client_seed(client), round, stage])
    return int(sequence.generate_state(1)[0])


def label_loss(problem: Problem, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Balanced softmax with class counts (K,), or plain cross-entropy, as the problem has it."""
    if problem.learning.balanced:
        return balanced_cross_entropy(logits, labels, counts)
    return functional.cross_entropy(logits, labels)


def warm_up(model: nn.Module, data: LabelledImages, problem: Problem, client: int) -> int:
    """Train in place before the first round; returns the steps taken."""
    return _train(
        model, data, problem, problem.learning.warm_up_epochs, stage_seed(problem, client, 0, WARM_UP), None, None
    )


def train_round(
    model: nn.Module,
    data: LabelledImages,
    problem: Problem,
    client: int,
    round: int,
    *,
    objective: Objective | None = None,
    correction: Sequence[torch.Tensor] | None = None,
) -> int:
    """Train in place for one round, from 1; returns the steps taken.

    Args:
        model: the client's; left in eval mode.
        data: its images.
        problem: the settings.
        client: whose work it is; it fixes the order of the images.
        round: of communication.
        objective: what is minimised; the plain loss unless given.
        correction: added to the gradients, one tensor for each of the model's parameters.

    Raises:
        TrainingError: fewer than two images, or a loss that is no longer finite.
    """
    epochs = problem.learning.epochs_in(round)
    seed = stage_seed(problem, client, round, OWN_DATA)
    return _train(model, data, problem, epochs, seed, objective, correction)


def _train(
    model: nn.Module,
    data: LabelledImages,
    problem: Problem,
    epochs: int,
    seed: int,
    objective: Objective | None,
    correction: Sequence[torch.Tensor] | None,
) -> int:
    if len(data) < 2:
        raise TrainingError(f"{len(data)} images; at least 2 are needed to train")
    settings, device = problem.learning, problem.device
    images, labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    counts = torch.from_numpy(data.class_counts.astype(np.float32)).to(device)
    model.to(device).train()
    optimiser = sgd(model, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    per_pass = batches_in_pass(len(data), settings.batch_size)
    rates = scheduled(optimiser, settings.schedule, epochs * per_pass)
    steps, variation = 0, augmentation_generator(seed)
    last_pass: deque[torch.Tensor] = deque(maxlen=per_pass)
    for chosen in shuffled_batches(len(data), epochs, settings.batch_size, seed):
        indices = chosen.to(device)
        seen = augment_batch(images[indices], data.augment, variation)
        logits = model(seen)
        plain = label_loss(problem, logits, labels[indices], counts)
        batch = Batch(indices, seen, logits, plain)
        loss = objective(batch) if objective is not None else plain
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if correction is not None:
            for parameter, extra in zip(model.parameters(), correction, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(extra)
        optimiser.step()
        rates.step()
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


class Stopwatch:
    """Makes rows, with the seconds since it was made.

    Args:
        clients: how many share the bytes.
    """

    def __init__(self, clients: int) -> None:
        self._clients, self._started = clients, time.perf_counter()

    def row(
        self,
        round: int,
        accuracies: Sequence[float],
        *,
        server: float | None = None,
        up: int = 0,
        down: int = 0,
        secure_steps: int = 0,
    ) -> Row:
        """A row; `up` and `down` are the bytes of all clients together."""
        return Row(
            round=round,
            accuracies=tuple(accuracies),
            server=server,
            bytes_up=up / self._clients,
            bytes_down=down / self._clients,
            secure_steps=secure_steps,
            seconds=time.perf_counter() - self._started,
        )
