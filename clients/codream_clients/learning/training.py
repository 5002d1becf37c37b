"""Local training on a client's own labelled images, and evaluation.

Balanced softmax (Ren et al., NeurIPS 2020; logit adjustment, Menon et al., ICLR 2021): the loss is the
cross-entropy of z_c + log(n_c / n), so the plain logits z learn p(x | c) and not the client's own label
frequencies. Classes that the client has never seen (n_c = 0) are left out of the sum: nothing pushes them
down, and local training does not unlearn what the dreams taught. Evaluation uses the plain logits.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.optim.sgd import sgd

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.settings import Schedule as Schedule

AT_CHANCE = 0.95  # of the loss of a guess: one pass's mean is noisy


class TrainingError(ValueError):
    """Training cannot start with such data or settings, or it has diverged."""


class ConvergenceWarning(UserWarning):
    """A training has ended no better than a guess: it took rates that are too high, or too few steps."""


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, class_counts: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits (B, K) + log(class_counts / sum), a scalar in nats.

    `class_counts` (K,) are non-negative; a class with count 0 takes no part, so no label may be of it
    (the loss would be infinite).
    """
    return functional.cross_entropy(logits + (class_counts / class_counts.sum()).log(), labels)


def judge_convergence(last_pass: Sequence[torch.Tensor], class_counts: NDArray[np.int64], lr: float) -> None:
    """Look at the losses of a training's last pass over images with `class_counts` (K,), in nats; none: no training.

    A model that knows nothing but how frequent the classes are has the entropy of these frequencies as its loss, with
    the balanced softmax as with the cross-entropy. Steps that are too long often end there, at a loss that is finite.
    Raises `TrainingError` for a last loss that is not. Warns with `ConvergenceWarning` where the mean is not 5 % below
    the guess's; images of a single class need no learning.
    """
    if not last_pass:
        return
    if not torch.isfinite(last_pass[-1]):
        raise TrainingError(f"the loss became {last_pass[-1].item()} with lr={lr}; choose a smaller learning rate")
    shares = class_counts[class_counts > 0] / class_counts.sum()
    guess = -float((shares * np.log(shares)).sum())
    if len(shares) > 1:
        warn_at_chance("training", torch.stack(list(last_pass)).mean().item(), guess, lr)


def warn_at_chance(work: str, loss: float, guess: float, lr: float) -> None:
    """Warn with `ConvergenceWarning` where a loss is not 5 % below that of an answer which ignores the images."""
    if loss > AT_CHANCE * guess:
        warnings.warn(
            f"a {work} with lr={lr} ended no better than a guess; a smaller rate or more steps may help",
            ConvergenceWarning,
            stacklevel=4,
        )


@contextmanager
def convergence_warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """While it is open, `tell` gets the text of each `ConvergenceWarning`; other warnings go where they went."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConvergenceWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, ConvergenceWarning):
                tell(str(message))
            else:
                usual(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the rate is multiplied by in a step, from 0, of a training of `steps` steps.

    "constant": 1. "cosine": from 1 down to 0 along half a cosine (Loshchilov and Hutter, ICLR 2017, without restarts).
    """
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * min(step, steps) / max(steps, 1))) / 2


class Descent:
    """SGD over a model's parameters, with Nesterov momentum if `momentum` is above 0, along a schedule of rates.

    What `torch.optim.SGD` computes, bit for bit, by its functional form: the class loads torch's compiler first, which
    takes as long as to load torch, and every process of a federation would.

    Args:
        model: whose parameters; a frozen one, or one without a gradient, stays as it is.
        lr: rate of the first step.
        momentum: in [0, 1).
        weight_decay: at least 0.
        schedule: see `rate_factor`.
        steps: how many there will be; of no matter to a constant rate.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: Schedule = "constant",
        steps: int = 0,
    ) -> None:
        self._weights = list(model.parameters())
        self._buffers: list[torch.Tensor | None] = [None] * len(self._weights)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._schedule: Schedule = schedule
        self._steps, self._done = steps, 0

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss in place of those of the step before."""
        for weight in self._weights:
            weight.grad = None
        torch.autograd.backward(loss)

    def shorten(self, longest: float) -> None:
        """Cut a gradient over all parameters whose Euclidean norm is above `longest` to it."""
        nn.utils.clip_grad_norm_(self._weights, longest)

    @torch.no_grad()
    def step(self) -> None:
        """Down the gradients, and along the rates."""
        moved = [number for number, weight in enumerate(self._weights) if weight.grad is not None]
        buffers = [self._buffers[number] for number in moved]
        sgd(
            [self._weights[number] for number in moved],
            [gradient for weight in self._weights if (gradient := weight.grad) is not None],
            buffers,
            lr=self._lr * rate_factor(self._schedule, self._done, self._steps),
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            nesterov=self._momentum > 0,
            dampening=0.0,
            maximize=False,
        )
        for number, buffer in zip(moved, buffers, strict=True):
            self._buffers[number] = buffer
        self._done += 1


def shuffled_batches(count: int, epochs: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Index batches of `epochs` passes over `count` items, each pass in a new order drawn from `seed`.

    A pass has as few batches of at most `batch_size` as there can be, of sizes that differ by one at most: a small
    rest would have batch norm follow the statistics of a few images, which can spoil a whole training. No batch holds
    a single item, on which batch norm cannot train; where it must, one holds `batch_size` + 1.
    Raises `TrainingError` unless batch_size >= 2 and epochs >= 0.
    """
    if batch_size < 2 or epochs < 0:
        raise TrainingError(f"batch_size={batch_size}, epochs={epochs}; needed are at least 2 and at least 0")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from torch.tensor_split(order, batches_in_pass(count, batch_size))


def batches_in_pass(count: int, batch_size: int) -> int:
    """How many batches a pass of `shuffled_batches` has."""
    return max(1, min(-(-count // batch_size), count // 2))


def predict_logits(
    model: nn.Module, images: NDArray[np.float32], device: torch.device, batch_size: int = 512
) -> NDArray[np.float32]:
    """Plain logits (N, K) of `images` (N, C, H, W), in batches; moves the model to `device`, in eval mode."""
    model.to(device).eval()
    with torch.inference_mode():
        parts = [model(part.to(device)).cpu() for part in torch.split(torch.from_numpy(images), batch_size)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def evaluate(model: nn.Module, data: LabelledImages, device: torch.device) -> float:
    """Share of `data` that the plain logits get right, in [0, 1]. Raises `TrainingError` if there is none."""
    if len(data) == 0:
        raise TrainingError("no images to evaluate on; give at least one")
    return float((predict_logits(model, data.images, device).argmax(axis=1) == data.labels).mean())
