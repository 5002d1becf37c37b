"""Every learning hyperparameter of a participant, without any tensor library.

A charter names them all with their defaults, so that server and clients know them where no torch is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

Way = Literal["update", "gradient"]
Teacher = Literal["current", "trained", "warm-up"]
Schedule = Literal["constant", "cosine"]


class DreamError(ValueError):
    """Dreams cannot be made from such input or settings."""


@dataclass(frozen=True)
class DreamLoss:
    """Weights of the dream loss, each finite and at least 0."""

    alpha_preds: float = 1.0
    alpha_bn: float = 1.0
    alpha_tv: float = 2.5e-5
    alpha_l2: float = 3e-8
    alpha_target: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise DreamError(f"{name} is {value}; a finite number of at least 0 is needed")


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
