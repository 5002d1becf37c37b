"""Every learning hyperparameter, declared without any tensor library."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, doc

from codream_protocols.courses.codream import Clip, ViewsBy
from codream_protocols.settings import MOST, Settings

Way = Literal["update", "gradient"]
Teacher = Literal["current", "trained", "warm-up"]
Schedule = Literal["constant", "cosine"]

_Weight = Annotated[float, Ge(0), Le(MOST)]
_Rate = Annotated[float, Gt(0), Le(MOST)]
_Count = Annotated[int, Ge(0), Le(1_000_000)]


class DreamError(ValueError):
    """Dreams cannot be made from such input."""


class DreamLoss(Settings):
    """`[learning.loss]`: weights of the dream loss."""

    alpha_preds: Annotated[_Weight, doc("of the predictions' entropy")] = 1.0
    alpha_bn: Annotated[_Weight, doc("of the distance to batch-norm statistics")] = 1.0
    alpha_tv: Annotated[_Weight, doc("of the total variation")] = 2.5e-5
    alpha_l2: Annotated[_Weight, doc("of the dreams' Euclidean norm")] = 3e-8
    alpha_target: Annotated[_Weight, doc("of the target classes' cross-entropy")] = 1.0


PRIVATE_DISTILLATION = {"distil_lr": 0.0025, "distil_noise": 0.0}
"""Where `[privacy]` charges the records: a distillation sees dreams alone then, and at the usual rate forgets what no
dream shows."""


def _by_privacy(name: str) -> str:
    return f"; {PRIVATE_DISTILLATION[name]:g} under `[privacy]` unless given, where dreams are all that is seen"


class Learning(Settings):
    """`[learning]`: how each client dreams, trains and learns from dreams.

    Training is SGD; each round has its distillation on the newest batches, then its training on own images.
    """

    local_steps: Annotated[int, Ge(1), Le(100_000), doc("Adam steps on the dreams in a secure step (way update)")] = 10
    dream_lr: Annotated[_Rate, doc("their rate")] = 0.1
    loss: Annotated[DreamLoss, doc("weights of the dream loss")] = DreamLoss()
    label_deviation: Annotated[
        _Weight, doc("deviation over the batch to which logits are calibrated; 0 leaves them as they are")
    ] = 0.0
    class_aware: Annotated[bool, doc("whether soft labels are weighted by the classes that a client has seen")] = True
    max_count: Annotated[int, Ge(1), doc("images of a class from which on its weight grows no more")] = 32
    prior: Annotated[_Rate, doc("weight of a class that a client has not seen")] = 0.05
    warm_up_epochs: Annotated[_Count, doc("epochs on own images before the first round")] = 60
    distil_epochs: Annotated[_Count, doc("epochs on dreams in a round")] = 20
    local_epochs: Annotated[_Count, doc("epochs on own images in a round")] = 10
    training_rounds: Annotated[_Count | None, doc("the first so many rounds train on own images; all unless given")] = (
        None
    )
    distil_every: Annotated[int, Ge(1), doc("every so many rounds there is a distillation")] = 1
    batch_size: Annotated[int, Ge(2), doc("images in a step on own images")] = 32
    distil_batch_size: Annotated[int, Ge(2), doc("dreams in a step of distillation")] = 64
    lr: Annotated[_Rate, doc("rate of SGD on own images")] = 0.02
    distil_lr: Annotated[_Rate, doc("rate of SGD on dreams" + _by_privacy("distil_lr"))] = 0.02
    schedule: Annotated[Schedule, doc("the rate on own images stays, or falls to 0 as a cosine")] = "constant"
    distil_schedule: Annotated[Schedule, doc("the same of the rate on dreams")] = "constant"
    held_back: Annotated[
        float,
        Ge(0),
        Le(0.5),
        doc(
            "share of a client's own images that are not trained on and judge each round, where it has 100 or more; 0 "
            "holds none back, as `[privacy]` does unless it is given (then of any number, and of no images in groups), "
            "and comparisons do"
        ),
    ] = 0.1
    distil_clip: Annotated[_Weight, doc("norm to which longer gradients of a distillation are cut; 0 cuts none")] = 5.0
    momentum: Annotated[float, Ge(0), Lt(1), doc("of SGD")] = 0.9
    weight_decay: Annotated[_Weight, doc("of SGD")] = 5e-4
    temperature: Annotated[_Rate, doc("of the soft labels in distillation")] = 4.0
    balanced: Annotated[bool, doc("whether own images are learnt with the balanced softmax, against label skew")] = True
    distil_noise: Annotated[
        _Weight, doc("deviation of Gaussian noise on the dreams in distillation" + _by_privacy("distil_noise"))
    ] = 0.3
    distil_shift: Annotated[_Count, doc("pixels by which each sight of a dream is moved at most in distillation")] = 0
    own_weight: Annotated[_Weight, doc("weight of the loss on own images in each step of distillation")] = 1.0
    own_statistics: Annotated[
        bool, doc("whether batch norm's statistics are measured anew on own images after each distillation")
    ] = False
    teacher: Annotated[
        Teacher,
        doc(
            "the model that makes and labels dreams: as it is, as its newest training on own images left it, or as the "
            "warm-up did"
        ),
    ] = "current"

    def distils_in(self, round: int) -> bool:
        """Whether a round, from 1, has its distillation."""
        return round % self.distil_every == 0

    def trains_in(self, round: int) -> bool:
        """Whether a round, from 1, has its training on own data."""
        return self.local_epochs > 0 and (self.training_rounds is None or round <= self.training_rounds)

    def epochs_in(self, round: int) -> int:
        """Epochs of a round, from 1: passes over dreams and over own data; own images beside the dreams are no pass."""
        return self.distil_epochs * self.distils_in(round) + self.local_epochs * self.trains_in(round)

    def epochs_in_all(self, rounds: int) -> int:
        """Epochs of a client in all: the warm-up, and those of every round."""
        return self.warm_up_epochs + sum(self.epochs_in(round) for round in range(1, rounds + 1))


class LearningSettings(Learning):
    """The same, with what `[dreams]` says of it."""

    way: Annotated[Way, doc("of sharing")] = "update"
    views: Annotated[int, Ge(0), doc("variations of each dream that are labelled beside it")] = 0
    views_by: Annotated[ViewsBy, doc("how they vary")] = "affine"
    logit_clip: Annotated[Clip, doc("bound of one logit")] = 30.0
    window: Annotated[int, Ge(1), doc("how many rounds' batches are learnt from")] = 10
