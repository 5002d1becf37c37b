"""One participant's learning, without any socket: what it computes between two messages.

A round of CoDream (arXiv 2402.15968): `dream_update` for every global step, `soft_labels` once the dreams are
done, `acquire` when the aggregated labels are back. The runner, the simulator and the tests call the same
object. The defaults are tuned for small data and label skew: the update way (fewest secure steps), balanced
softmax in local training, class-aware soft labels and target classes for the dreams. The paper's way is
`balanced=False, class_aware=False, own_weight=0, distil_noise=0` and a `DreamLoss` with `alpha_target=0`.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.acquisition import OwnImages, calibrated, distil, soft_label_share
from codream_clients.augmentation import with_views
from codream_clients.datasets import LabelledImages
from codream_clients.dreaming import ChannelStatistics, DreamLoss, ExtraTerm, dream_gradient, dream_update
from codream_clients.training import Schedule, evaluate, predict_logits, train_local

FloatArray = NDArray[np.float32]
Way = Literal["update", "gradient"]
Teacher = Literal["current", "trained", "warm-up"]
LocalTraining = Callable[[nn.Module, LabelledImages, int, int], None]
"""(model, data, epochs, seed): replaces `train_local`, for example by differentially private training."""


class LearningSettingsError(ValueError):
    """A learning setting is out of its range."""


@dataclass(frozen=True)
class LearningSettings:
    """Every learning hyperparameter of a participant. Raises `LearningSettingsError` for values out of range.

    Dreams: `way` of sharing; `local_steps` Adam steps at rate `dream_lr` (update way); `loss` weights.
    Soft labels: of each dream and of `views` variations of it (`augmentation.with_views`); logits `calibrated` to
    `label_deviation` over the batch (0: as they are) and clipped to [-logit_clip, logit_clip]; `class_aware` weights
    with the public `max_count` and `prior`. Training: `warm_up_epochs` at the start; each round `distil_epochs` at
    `temperature` on the newest `window` dream batches, in every `distil_every`-th round, then `local_epochs` on the own
    data, in the first `training_rounds` rounds (None: in all), with the `balanced` softmax or plain cross-entropy; SGD
    with `lr` (own data) or `distil_lr` (dreams), `momentum`, `weight_decay`. `schedule` and `distil_schedule`: the rate
    of each such training stays ("constant") or falls to 0 ("cosine").
    Options of distillation: Gaussian noise of deviation `distil_noise` on the dreams; each sight of a dream moved by up
    to `distil_shift` pixels; `own_weight` times the loss on own images in each step. `teacher`: the model as it is
    ("current"), or a copy of it as its newest training on own data left it ("trained": what was labelled before that
    leaves the window), or as the warm-up did ("warm-up"), makes and labels the dreams.
    """

    way: Way = "update"
    local_steps: int = 10
    dream_lr: float = 0.1
    loss: DreamLoss = field(default_factory=DreamLoss)
    views: int = 0
    logit_clip: float = 30.0
    label_deviation: float = 0.0
    class_aware: bool = True
    max_count: int = 32
    prior: float = 0.05
    warm_up_epochs: int = 60
    distil_epochs: int = 20
    local_epochs: int = 10
    training_rounds: int | None = None
    distil_every: int = 1
    batch_size: int = 32
    distil_batch_size: int = 64
    lr: float = 0.02
    distil_lr: float = 0.02
    schedule: Schedule = "constant"
    distil_schedule: Schedule = "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 4.0
    window: int = 10
    balanced: bool = True
    distil_noise: float = 0.3
    distil_shift: int = 0
    own_weight: float = 1.0
    teacher: Teacher = "current"

    def __post_init__(self) -> None:
        for name, choices in (
            ("way", Way),
            ("teacher", Teacher),
            ("schedule", Schedule),
            ("distil_schedule", Schedule),
        ):
            if getattr(self, name) not in get_args(choices):
                allowed = " or ".join(map(repr, get_args(choices)))
                raise LearningSettingsError(f"{name} is {getattr(self, name)!r}; {allowed} is allowed")
        for name in ("local_steps", "max_count", "window", "distil_every"):
            self._require(name, at_least=1)
        if self.training_rounds is not None:
            self._require("training_rounds", at_least=0)
        for name in ("batch_size", "distil_batch_size"):
            self._require(name, at_least=2)
        for name in (
            "views",
            "warm_up_epochs",
            "distil_epochs",
            "local_epochs",
            "weight_decay",
            "momentum",
            "distil_noise",
            "distil_shift",
            "label_deviation",
            "own_weight",
        ):
            self._require(name, at_least=0)
        for name in ("dream_lr", "logit_clip", "prior", "lr", "distil_lr", "temperature"):
            self._require(name, above=0)
        if self.momentum >= 1:
            raise LearningSettingsError(f"momentum is {self.momentum}; [0, 1) is allowed")

    def distils_in(self, round: int) -> bool:
        """Whether a round, from 1, has its distillation."""
        return round % self.distil_every == 0

    def trains_in(self, round: int) -> bool:
        """Whether a round, from 1, has its training on own data."""
        return self.local_epochs > 0 and (self.training_rounds is None or round <= self.training_rounds)

    def epochs_in(self, round: int) -> int:
        """Epochs of a round, from 1, distillation and training on own data together."""
        return self.distil_epochs * self.distils_in(round) + self.local_epochs * self.trains_in(round)

    def _require(self, name: str, *, at_least: float = -math.inf, above: float = -math.inf) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value >= at_least and value > above):
            bound = f"at least {at_least}" if math.isfinite(at_least) else f"above {above}"
            raise LearningSettingsError(f"{name} is {value}; a finite number {bound} is needed")


@dataclass(frozen=True, eq=False)
class DreamShare:
    """What a client contributes to one global step.

    `delta` (B, C, H, W) float32, not yet clipped: in the update way, how far the client moved the dreams
    (add the mean to the state); in the gradient way, B * dL/dx (descend along the mean with Adam, which is
    blind to the factor B; it brings the coordinates into the fixed-point range).
    `entropy`: mean entropy of the teacher at the dreams received, in nats, in [0, log K].
    """

    delta: FloatArray
    entropy: float


@dataclass(frozen=True, eq=False)
class SoftLabelShare:
    """Numerators (N, K) within +-logit_clip and denominators (K,) in (0, 1]; label = sum / sum."""

    numerators: FloatArray
    denominators: FloatArray


@dataclass(frozen=True)
class Metrics:
    """State of a participant after `rounds` rounds (0: warm-up only).

    `accuracy` on its test images (None without any) and `train_accuracy` on its own (None with a replaced local
    training, which may be private) lie in [0, 1];
    `distil_loss` is the last epoch's mean, in nats times T^2 (0 after the warm-up and in rounds without distillation).
    """

    rounds: int
    accuracy: float | None
    train_accuracy: float | None
    distil_loss: float


def distil_by_settings(
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
    """`distil` with the hyperparameters of `settings`; `epochs` replaces `distil_epochs`.

    As it stands it trains a student that sees nothing but the dreams; a participant adds noise and its own images.
    """
    return distil(
        model,
        batches,
        epochs=settings.distil_epochs if epochs is None else epochs,
        batch_size=settings.distil_batch_size,
        lr=settings.distil_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        temperature=settings.temperature,
        seed=seed,
        device=device,
        noise=noise,
        shift=settings.distil_shift,
        own=own,
        schedule=settings.distil_schedule,
    )


class Participant:
    """A client's teacher, its data and its sliding window of the FedDream dataset. Deterministic from `seed`.

    `model` is trained in place, on `device`. `test` may be None. `local_training` replaces the training on
    own data (warm-up included); `class_counts` (K,) replaces the label histogram wherever it is used, for
    example by one noised for differential privacy: not negative, and, unless local training is replaced too, above
    0 where there are labels. `feature_statistics` gives R_bn the statistics of a model whose group norms store none; it
    is asked once, after the warm-up.
    """

    def __init__(
        self,
        settings: LearningSettings,
        model: nn.Module,
        train: LabelledImages,
        test: LabelledImages | None,
        seed: int,
        device: torch.device,
        *,
        local_training: LocalTraining | None = None,
        class_counts: FloatArray | None = None,
        feature_statistics: Callable[[nn.Module], ChannelStatistics] | None = None,
    ) -> None:
        self.settings = settings
        self.model = model.to(device).eval()
        self._train = train
        self._test = test
        self._seed = seed
        self._device = device
        if local_training is not None and settings.own_weight > 0:
            raise LearningSettingsError(
                f"own_weight is {settings.own_weight} with a replaced local training; 0 is allowed, since distillation "
                "would use the own data past it"
            )
        self._teacher = self.model
        self._train_accuracy = local_training is None
        self._local_training = local_training or self._train_by_sgd
        self._feature_statistics = feature_statistics
        self._supplied: ChannelStatistics | None = None
        self._class_counts = train.class_counts.astype(np.float32) if class_counts is None else class_counts
        self._seen = self._class_counts > 0
        self._window: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=settings.window)
        self._rounds = 0
        self._metrics: Metrics | None = None

    @property
    def metrics(self) -> Metrics | None:
        """Newest metrics, or None before the warm-up."""
        return self._metrics

    @property
    def teacher(self) -> nn.Module:
        """What makes and labels the dreams; see `LearningSettings`."""
        return self._teacher

    def warm_up(self) -> Metrics:
        """Train on the own data for `warm_up_epochs`."""
        self._local_training(self.model, self._train, self.settings.warm_up_epochs, self._stage_seed(0))
        return self.begin()

    def begin(self) -> Metrics:
        """Take part with the model as it is: instead of `warm_up`, for one that has been trained before."""
        if self.settings.teacher != "current":
            self._teacher = copy.deepcopy(self.model)
        if self._feature_statistics is not None:
            self._supplied = self._feature_statistics(self.model)
        return self._measure(distil_loss=0.0)

    def dream_update(self, dreams: FloatArray, extra: ExtraTerm | None = None) -> DreamShare:
        """The teacher's contribution to one global step on `dreams` (B, C, H, W); see `DreamShare`."""
        settings = self.settings
        if settings.way == "update":
            delta, entropy = dream_update(
                self._teacher,
                dreams,
                settings.loss,
                settings.local_steps,
                settings.dream_lr,
                seen=self._seen,
                extra=extra,
                supplied=self._supplied,
            )
        else:
            gradient, entropy = dream_gradient(
                self._teacher, dreams, settings.loss, seen=self._seen, extra=extra, supplied=self._supplied
            )
            delta = gradient * np.float32(len(dreams))
        return DreamShare(delta, entropy)

    def soft_labels(self, dreams: FloatArray) -> SoftLabelShare:
        """The teacher's contribution to the soft labels of the finished `dreams` (B, C, H, W): N = (1 + views) * B."""
        settings = self.settings
        images = with_views(torch.from_numpy(dreams), settings.views).numpy()
        logits = predict_logits(self._teacher, images, self._device)
        if settings.label_deviation > 0:
            logits = calibrated(logits, settings.label_deviation)
        numerators, denominators = soft_label_share(
            np.clip(logits, -settings.logit_clip, settings.logit_clip),
            self._class_counts,
            self._train.classes,
            settings.class_aware,
            settings.max_count,
            settings.prior,
        )
        return SoftLabelShare(numerators, denominators)

    def acquire(self, dreams: FloatArray, soft_labels: FloatArray) -> Metrics:
        """Stage 3: add `dreams` (B, C, H, W) with aggregated logits (N, K), distil, train on the own data."""
        settings = self.settings
        self._rounds += 1
        self._window.append((dreams, soft_labels))
        distil_loss = self._distil() if settings.distils_in(self._rounds) else 0.0
        if settings.trains_in(self._rounds):
            self._local_training(self.model, self._train, settings.local_epochs, self._stage_seed(2))
            if settings.teacher == "trained":
                self._teacher = copy.deepcopy(self.model)
                self._window.clear()  # what it says from now on is better than what it said before
        return self._measure(distil_loss)

    def _distil(self) -> float:
        settings = self.settings
        return distil_by_settings(
            self.model,
            list(self._window),
            settings,
            seed=self._stage_seed(1),
            device=self._device,
            noise=settings.distil_noise,
            own=self._own_images() if settings.own_weight > 0 else None,
        )

    def _own_images(self) -> OwnImages:
        settings = self.settings
        counts = self._class_counts if settings.balanced else None
        return OwnImages(self._train, settings.own_weight, settings.batch_size, counts)

    def _train_by_sgd(self, model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
        settings = self.settings
        train_local(
            model,
            data,
            epochs=epochs,
            batch_size=settings.batch_size,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            balanced=settings.balanced,
            seed=seed,
            device=self._device,
            class_counts=self._class_counts,
            schedule=settings.schedule,
        )

    def _stage_seed(self, stage: int) -> int:
        sequence = np.random.SeedSequence([self._seed, self._rounds, stage])
        return int(sequence.generate_state(1)[0])

    def _measure(self, distil_loss: float) -> Metrics:
        self._metrics = Metrics(
            rounds=self._rounds,
            accuracy=None if self._test is None else evaluate(self.model, self._test, self._device),
            train_accuracy=evaluate(self.model, self._train, self._device) if self._train_accuracy else None,
            distil_loss=distil_loss,
        )
        return self._metrics
