"""Dreams from a generator: G(z) instead of free pixels, so that a few local steps are enough.

Fang et al., "Up to 100x faster data-free knowledge distillation", AAAI 2022: what images of one data set have in common
is learnt once, by a generator that all batches share, and a batch needs a few steps of Adam on its noise z and on a
copy of the generator, from where the meta-generator has brought it. CoDream-fast (Singh et al., arXiv 2402.15968)
shares these steps: every client takes them against its own teacher, and the changes of z and of G are averaged.

The loss of one teacher f on x = G(z) is
    alpha_preds * entropy(softmax(f(x))) + alpha_target * target(f(x)) + alpha_bn * R_bn(x) + alpha_adv * adversarial,
R_bn with a memory over batches (`StatisticsMemory`). The adversarial term looks for images that a student, which has
learnt from dreams alone, does not yet see as the teacher does: minus KL(f || student), counted only where both name the
same class, so that images do not become such that nobody knows them. The target term (see `target_loss`) is not in
CoDream; weight 0 leaves it out.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.learning.dreaming import (
    DreamError,
    Dreams,
    FeatureStatistics,
    Seen,
    StatisticsMemory,
    entropy,
    frozen,
    target_loss,
)

Noise = NDArray[np.float32]
"""z of a batch, (B, Z)."""
BETAS = (0.5, 0.999)
"""Adam's, of the clients' steps and of the meta-generator's, as Fang et al. have them."""


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """Weights of the terms, each finite and at least 0.

    Of alpha_preds and alpha_adv the defaults are CoDream-fast's; of the others those of `DreamLoss`, which suit small
    and skewed data. CoDream-fast's are alpha_target=0, alpha_bn=10.
    """

    alpha_preds: float = 0.5
    alpha_target: float = 1.0
    alpha_bn: float = 1.0
    alpha_adv: float = 1.33

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise DreamError(f"{name} is {value}; a finite number of at least 0 is needed")


class ImageGenerator(nn.Module):
    """z (B, Z) -> standardised images (B, C, H, W): one linear layer, then two times nearest neighbours and 3x3.

    All batch norms use the batch's own statistics, so its parameters are its whole state; the last one, which has no
    parameters, gives every channel mean 0 and variance 1, as standardised data have.
    """

    def __init__(self, noise: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, size = shape
        self._start = (2 * width, math.ceil(height / 4), math.ceil(size / 4))
        self._sizes = ((math.ceil(height / 2), math.ceil(size / 2)), (height, size))
        self.first = nn.Linear(noise, math.prod(self._start))
        self.blocks = nn.ModuleList([_block(2 * width, 2 * width), _block(2 * width, width)])
        self.start_norm = nn.BatchNorm2d(2 * width, track_running_stats=False)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of noise (B, Z), B at least 2."""
        out = self.start_norm(self.first(noise).view(-1, *self._start))
        for block, size in zip(self.blocks, self._sizes, strict=True):
            out = block(functional.interpolate(out, size=size))
        images: torch.Tensor = self.norm(self.last(out))
        return images


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs, track_running_stats=False),
        nn.LeakyReLU(0.2, inplace=True),
    )


def fresh_image_generator(noise: int, shape: tuple[int, int, int], width: int, seed: int) -> ImageGenerator:
    """A generator, on the CPU, whose weights follow from `seed`; the global random state stays as it was.

    Raises `DreamError` unless noise and width are at least 1.
    """
    if noise < 1 or width < 1:
        raise DreamError(f"noise={noise}, width={width}; each must be at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ImageGenerator(noise, shape, width)


def generate(generator: ImageGenerator, noise: Noise) -> Dreams:
    """G(z), (B, C, H, W), of `noise` (B, Z)."""
    with torch.inference_mode():
        images = generator(torch.tensor(noise, device=next(generator.parameters()).device))
    return np.asarray(images.cpu().numpy(), dtype=np.float32)


def adversarial_loss(taught: torch.Tensor, learnt: torch.Tensor) -> torch.Tensor:
    """Minus KL(teacher || student) in nats, the mean over B, where both agree; both logits (B, K). At most 0."""
    teacher, student = torch.log_softmax(taught, dim=1), torch.log_softmax(learnt, dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1)
    agree = taught.argmax(dim=1) == learnt.argmax(dim=1)
    return -(divergence * agree).mean()


def adapt(
    generator: ImageGenerator,
    noise: Noise,
    teacher: nn.Module,
    loss: GeneratorLoss,
    *,
    steps: int,
    lr: float,
    noise_lr: float,
    seen: Seen | None = None,
    first: int = 0,
    memory: StatisticsMemory | None = None,
    student: nn.Module | None = None,
) -> Noise:
    """Bring a copy of `noise` (B, Z), which is returned, and `generator`, in place, nearer to what `teacher` knows.

    `steps` steps of a fresh Adam, rate `lr` for the generator and `noise_lr` for the noise; on the generator's device.
    `seen` (K,) and `first`: see `target_loss`. `memory` is asked, and told of the last batch. Without `student` there
    is no adversarial term. Teacher and student stay as they are.
    Raises `DreamError` unless noise is finite float32 (B, Z) with B >= 2, steps >= 1 and the rates are above 0.
    """
    if noise.ndim != 2 or len(noise) < 2 or noise.dtype != np.float32 or not np.isfinite(noise).all():
        raise DreamError(f"noise is {noise.dtype} of shape {noise.shape}; finite float32 (2 or more, Z) is needed")
    if steps < 1 or not (lr > 0 and noise_lr > 0):
        raise DreamError(f"steps={steps}, lr={lr}, noise_lr={noise_lr}; needed are at least 1, above 0 and above 0")
    weights = list(generator.parameters())
    state = torch.tensor(noise, device=weights[0].device, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": [state], "lr": noise_lr}]
    optimiser = torch.optim.Adam(groups, lr=lr, betas=BETAS)
    with ExitStack() as stack:
        for model in (teacher, student):
            if model is not None:
                stack.enter_context(frozen(model))
        statistics = stack.enter_context(FeatureStatistics(teacher, memory))
        for _ in range(steps):
            images = generator(state)
            logits = teacher(images)
            value = loss.alpha_preds * entropy(logits) + loss.alpha_bn * statistics.distance().to(state.device)
            if loss.alpha_target > 0:
                value = value + loss.alpha_target * target_loss(logits, seen, first)
            if student is not None and loss.alpha_adv > 0:
                value = value + loss.alpha_adv * adversarial_loss(logits, student(images))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimiser.step()
    if memory is not None:
        memory.remember()
    return np.asarray(state.detach().cpu().numpy(), dtype=np.float32)
