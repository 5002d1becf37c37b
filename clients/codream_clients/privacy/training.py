"""Differentially private local training: DP-SGD (Abadi et al., CCS 2016) by Opacus.

In each step every record takes part with probability `sample_rate` (Poisson sampling, which the accountants assume);
its gradient is clipped to the L2 norm `max_grad_norm`; the sum gets Gaussian noise, and is divided by the expected
batch size, never the actual one, which would tell how many took part. Large batches go through the model in parts; what
is fixed in front of it (`models.fronts`) gives each record its features once, and the rest is trained on those.

With several views (augmentation multiplicity: De et al., 2022, arXiv 2204.13650) a record's gradient is the mean of
those of variations of its image, and is clipped as one: what a record moves stays what it was. The model that comes of
it may be the mean of the iterates (`averaged`), which are all accounted for as if everybody saw them.

The loss is the balanced softmax of `training`, with the noisy histogram: of the records it sees each one's own image
and label alone, so a record's gradient depends on no other record. A gradient that is not finite counts as zero: no
clipping bounds it, and the failure that it causes would tell that its record is there. So does that of a record which
the model fails at, and no other with it: a part of a batch that fails is divided until the record stands alone. That
memory is wanting is of no record, and ends the training. How images vary, and what layers draw, comes from the source
of the noise too: who knew those draws, which go to records by their place in a batch, would see one record more or less
shift those of all behind it. Classes that the histogram calls unseen count as one image, since a record may be of one.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn
from torch.nn import functional
from torch.optim import SGD

from codream_clients.data.augmentation import augment_batch
from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.training import ConvergenceWarning, TrainingError
from codream_clients.models import refusals
from codream_clients.models.fronts import without_front
from codream_clients.privacy.averaged import Averaged
from codream_clients.privacy.noise import KEY_BYTES, NoiseSource, Stream
from codream_clients.privacy.plan import WARM_UP, GradSampleMode, PrivacyPlan, round_purpose, rounds_trained
from codream_clients.privacy.releases import Iterates, Release, Releases

LEAST_COUNT = 1.0
LAYOUT = torch.contiguous_format
"""Opacus cuts images into patches as if channels lay apart: otherwise it clips by the norms of other gradients."""


class RecordsFailed(ConvergenceWarning):
    """The model raises an error at some records, which were left out; said to their own site alone."""


class PrivateTraining:
    """A `LocalTraining` of a participant: the warm-up first, unless it is done, then a round with each call.

    Rounds go on counting where those that earlier processes have paid for end.

    Args:
        plan: the noise, and what each call costs.
        class_counts: the noisy histogram, (K,); None takes plain cross-entropy.
        releases: where charges are reserved. The warm-up is kept there, so that it is never paid for twice, and what
            any training has reached, so that one that was cut off goes on.
        noise: where noise, sampling and the images' variation come from.
        device: where to train.
        warmed_up: whether the model has had its warm-up, in an earlier process.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        class_counts: NDArray[np.float32] | None,
        releases: Releases,
        noise: NoiseSource,
        device: torch.device,
        *,
        warmed_up: bool = False,
    ) -> None:
        self._plan, self._class_counts, self._releases = plan, class_counts, releases
        self._noise, self._device = noise, device
        self._warmed_up, self._rounds = warmed_up, rounds_trained(releases.spent)

    def __call__(self, model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
        """Train in place for n / batch_size steps an epoch; nothing follows from `seed`.

        Raises whatever `Releases` raises when the budget is spent: then the model is as it was. Raises `TrainingError`
        if weights are no longer finite.
        """
        number = 0
        if self._warmed_up:
            number = self._rounds = self._rounds + 1
        self._warmed_up = True
        charge = self._plan.training(epochs, round_purpose(number) if number else WARM_UP)
        if charge is None:
            return

        first, times = "", 0

        def failed(said: str) -> None:
            nonlocal first, times
            first, times = first or said, times + 1

        def train(iterates: Iterates) -> Release:
            if self._plan.settings.mode == "auto":
                self._plan = with_mode(self._plan, faster_mode(model, self._plan, data, self._device))
            network = copy.deepcopy(model)  # which nobody sees before its release is on the disk, or written down
            averaged = Averaged(network, self._plan.settings.averaging)
            done, reached = iterates.last()
            if reached is not None:
                averaged.go_on(dict(reached))

            def after(steps: int) -> None:
                averaged.take(done + steps)
                iterates.reached(done + steps, averaged.reached)

            private_sgd(
                network,
                data,
                plan=self._plan,
                steps=charge.steps - done,
                class_counts=self._class_counts,
                stream=self._noise.stream(number),
                device=self._device,
                after=after,
                failed=failed,
            )
            return averaged.model()

        model.load_state_dict(self._releases.run(charge, train) if number else self._releases.once(charge, train))
        model.to(self._device).eval()
        if times:
            with warnings.catch_warnings():
                warnings.simplefilter("always", RecordsFailed)  # never an error, whose end others would see
                warnings.warn(
                    f"the model fails at records ({first}), {times} times in this training; each counted as "
                    "zero, and nobody else is told",
                    RecordsFailed,
                    stacklevel=2,
                )


def with_mode(plan: PrivacyPlan, mode: GradSampleMode) -> PrivacyPlan:
    """The plan with that way to the same gradients."""
    return replace(plan, settings=replace(plan.settings, mode=mode))


def faster_mode(model: nn.Module, plan: PrivacyPlan, like: LabelledImages, device: torch.device) -> GradSampleMode:
    """Which of "hooks" and "ghost" takes less time here, tried on noise of the images' form: no record is looked at."""
    shape = (min(plan.settings.physical_batch, plan.settings.batch_size), *like.shape)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    trial = LabelledImages(noise, np.zeros(len(noise), dtype=np.int64), like.classes)

    def seconds(mode: GradSampleMode) -> float:
        network, tried = copy.deepcopy(model), replace(with_mode(plan, mode), sample_rate=1.0)
        started = time.perf_counter()
        private_sgd(
            network, trial, plan=tried, steps=1, class_counts=None, stream=Stream(bytes(KEY_BYTES)), device=device
        )
        return time.perf_counter() - started

    modes: tuple[GradSampleMode, ...] = ("hooks", "ghost")
    return min(modes, key=lambda mode: min(seconds(mode) for _ in range(3)))  # the first time warms up


def private_sgd(
    model: nn.Module,
    data: LabelledImages,
    *,
    plan: PrivacyPlan,
    steps: int,
    class_counts: NDArray[np.float32] | None,
    stream: Stream,
    device: torch.device,
    after: Callable[[int], object] = lambda steps: None,
    failed: Callable[[str], object] | None = None,
) -> None:
    """`steps` steps of DP-SGD in place; reserves nothing. Raises `TrainingError` for weights that are not finite.

    The plan's mode is "hooks" or "ghost". From `stream` come the choice of records, the noise, how images vary, and
    what layers draw. `after` is called with the number of steps that are done; `failed` with the text of what the model
    raises at a record, which then counts as zero: without it, as where a model is tried, that is raised. So is always
    what is of no record, as that memory is wanting.
    """
    settings = plan.settings
    images, labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    log_counts = _log_counts(class_counts, data.classes).to(device)
    model.to(device).to(memory_format=LAYOUT).train()
    network = model
    if data.augment == "none":
        # How many records the rate was chosen for: nobody is told how many there are.
        network, images = without_front(model, images, round(settings.batch_size / plan.sample_rate))
    ghost = settings.mode == "ghost"

    def attached() -> GradSampleHooks:
        if ghost:
            return GradSampleHooksFastGradientClipping(network, max_grad_norm=settings.max_grad_norm)
        return GradSampleHooks(network)

    hooks = attached()
    optimiser = (_GhostSteps if ghost else _Steps)(
        SGD(network.parameters(), lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=settings.max_grad_norm,
        expected_batch_size=settings.batch_size,
    )
    optimiser.stream = stream

    def backward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Each record's gradient, of views (B, views, ...), into the optimiser; returns whose are finite, (B,)."""
        logits = network(inputs.flatten(0, 1)) + log_counts
        losses = functional.cross_entropy(logits, targets.repeat_interleave(settings.views), reduction="none")
        if ghost:
            DPTensorFastGradientClipping(hooks, optimiser, losses).backward()
            norms: torch.Tensor = hooks.per_sample_gradient_norms
            require_rows([norms], len(losses))  # one image's loss would be weighed by each of several, and those added
            return norms.isfinite()
        torch.autograd.backward(losses.mean())
        require_rows(optimiser.grad_samples, len(losses))
        if settings.views > 1:  # one gradient a record, before anything is clipped: the bound is a record's
            for weight, found in zip(optimiser.params, optimiser.grad_samples, strict=True):
                weight.grad_sample = found.view(*inputs.shape[:2], *weight.shape).mean(1)
        return torch.stack([part.flatten(1).sum(1) for part in optimiser.grad_samples]).isfinite().all(0)

    def gradients(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """What `backward` does, without the records whose gradients are not finite."""
        while len(inputs):
            finite = backward(inputs, targets)
            if finite.all():
                return
            optimiser.zero_grad(set_to_none=True)
            inputs, targets = inputs[finite], targets[finite]
        _no_gradients(optimiser, ghost=ghost)

    def add_up(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Clip each record's gradient, and add it to the step's sum."""
        nonlocal hooks
        try:
            gradients(inputs, targets)
        except Exception as error:  # whatever a model of one's own raises
            if failed is None or not refusals.of_an_image(error):
                raise
            said = refusals.failed(error)
        else:
            optimiser.signal_skip_step(True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            return
        # Behind the `except`: an error holds all tensors of its pass, and what comes after it would hold the error.
        hooks.cleanup()  # what a pass that failed half-way left there would be the next one's
        for layer in network.modules():
            for left in ("activations", "max_batch_len"):
                vars(layer).pop(left, None)
        hooks = attached()
        optimiser.original_optimizer.zero_grad(set_to_none=True)
        if len(inputs) > 1:
            for half in zip(inputs.tensor_split(2), targets.tensor_split(2), strict=True):
                add_up(*half)
        else:
            failed(said)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # images need no gradient
            for step in range(steps):
                # Each record by itself (Poisson). A step in which none takes part still gets its noise: that there was
                # none is not to be seen.
                chosen = torch.from_numpy(np.flatnonzero(stream.uniform(len(data)) < plan.sample_rate)).to(device)
                parts = torch.split(chosen, max(1, settings.physical_batch // settings.views))
                for part in parts:
                    with stream.hidden_draws(device):
                        several = images[part].repeat_interleave(settings.views, dim=0)
                        views = augment_batch(several, data.augment, stream.generator())
                        add_up(views.view(len(part), settings.views, *images.shape[1:]), labels[part])
                _no_gradients(optimiser, ghost=ghost)
                optimiser.signal_skip_step(False)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                after(step + 1)
    finally:
        hooks.cleanup()
        model.eval()
    if not all(torch.isfinite(weight).all() for weight in model.parameters()):
        raise TrainingError(f"the weights are no longer finite with lr={settings.lr}; choose a smaller learning rate")


def require_rows(gradients: Sequence[torch.Tensor], images: int) -> None:
    """Each image has one gradient of each weight: with several, its record would be clipped as several.

    Raises:
        ModelRefused: another number of rows.
    """
    for found in gradients:
        if len(found) != images:
            raise refusals.ModelRefused(
                f"found {len(found)} gradients of a weight for {images} images, as where patches go through a layer as "
                "images; one for each is clipped: leave the batch's axis as it is"
            )


class _SecretNoise:
    """In place of the noise that Opacus draws from torch: the stream's, added in double precision and rounded once."""

    stream: Stream

    def add_noise(self: Any) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm
        for weight in self.params:
            summed = weight.summed_grad
            if deviation:
                noise = torch.from_numpy(self.stream.normal(summed.numel())).view(summed.shape)
                summed = (summed.cpu().double() + deviation * noise).to(summed.device, summed.dtype)
            weight.grad = summed.view_as(weight)


class _Steps(_SecretNoise, DPOptimizer):  # type: ignore[misc]
    pass


class _GhostSteps(_SecretNoise, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    pass


def _log_counts(class_counts: NDArray[np.float32] | None, classes: int) -> torch.Tensor:
    """What the balanced softmax adds to the logits, (K,); zeros for plain cross-entropy."""
    if class_counts is None:
        return torch.zeros(classes)
    counts = torch.from_numpy(class_counts).clamp(min=LEAST_COUNT)
    return (counts / counts.sum()).log()


def _no_gradients(optimiser: DPOptimizer, *, ghost: bool) -> None:
    """What `backward` leaves for a batch of no records; in ghost mode that is no `grad_sample`."""
    for weight in optimiser.params:
        weight.grad = torch.zeros_like(weight)
        weight.grad_sample = None if ghost else torch.zeros(0, *weight.shape, device=weight.device)
