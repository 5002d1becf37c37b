"""One participant's learning, without any socket: what it computes between two messages.

A round of CoDream (arXiv 2402.15968): `dream_update` for every global step, `soft_labels` once the dreams are
done, `acquire` when the aggregated labels are back. The runner, the simulator and the tests call the same
object. The defaults are tuned for small data and label skew: the update way (fewest secure steps), balanced
softmax in local training, class-aware soft labels and target classes for the dreams. The paper's way is
`balanced=False, class_aware=False, own_weight=0, distil_noise=0` and a `DreamLoss` with `alpha_target=0`.
"""

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.augmentation import with_views
from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.batch_statistics import measure_statistics
from codream_clients.learning.distillation import OwnImages, calibrated, distil, soft_label_share
from codream_clients.learning.dreaming import ChannelStatistics, ExtraTerm, dream_gradient, dream_update
from codream_clients.learning.judge import Judge, Verdict
from codream_clients.learning.local_work import stage_seed, train_epochs
from codream_clients.learning.settings import LearningSettings as LearningSettings
from codream_clients.learning.training import evaluate, predict_logits
from codream_clients.learning.undoing import undone_if_it_fails
from codream_clients.learning.votes import votes_of
from codream_protocols.courses.contrast import contrast_values
from codream_protocols.settings import SettingsError

FloatArray = NDArray[np.float32]
Distillation = Callable[..., float]
"""What learns from dreams and their labels, called as `distil` is."""
LocalTraining = Callable[[nn.Module, LabelledImages, int, int], None]
"""(model, data, epochs, seed): replaces `train_epochs`, for example by differentially private training."""


@dataclass(frozen=True, eq=False)
class DreamShare:
    """What a client contributes to one global step.

    `moved` (B, C, H, W) float32, on the teacher's device, not yet clipped: in the update way, how far the client moved
    the dreams (add the mean to the state); in the gradient way, B * dL/dx (descend along the mean with Adam, which is
    blind to the factor B; it brings the coordinates into the fixed-point range).
    `entropy`: mean entropy of the teacher at the dreams received, in nats, in [0, log K].
    """

    moved: torch.Tensor
    entropy: float

    @property
    def delta(self) -> FloatArray:
        """`moved`, fetched."""
        return np.asarray(self.moved.cpu().numpy(), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class SoftLabelShare:
    """Numerators (N, K) within +-logit_clip and denominators (K,) in (0, 1]; label = sum / sum."""

    numerators: FloatArray
    denominators: FloatArray


@dataclass(frozen=True)
class Metrics:
    """State of a participant after `rounds` rounds (0: warm-up only).

    `accuracy` on its `tested` test images (None without any) and `train_accuracy` on its own (None with a replaced
    local training, which may be private) lie in [0, 1];
    `distil_loss` is the last epoch's mean, in nats times T^2 (0 after the warm-up and in rounds without distillation).

    Of its judge (`judge.Judge`; None and False without one): `judged_by` is how many images judge, `held_accuracy` how
    many of them were right after this round's training, `held_recall` the mean of that over the classes, and
    `best_accuracy` and `best_recall` those of the best weights so far, of `best_round` (0: warm-up). `worse` says that
    the round left a model that is worse, `rolled_back` that it has the best weights again; the other figures are then
    theirs. `held_back` is False where the images
    that judge were trained on, for want of more.
    """

    rounds: int
    accuracy: float | None
    train_accuracy: float | None
    distil_loss: float
    tested: int = 0
    judged_by: int = 0
    held_back: bool = False
    held_accuracy: float | None = None
    held_recall: float | None = None
    best_accuracy: float | None = None
    best_recall: float | None = None
    best_round: int | None = None
    worse: bool = False
    rolled_back: bool = False


def measured(
    model: nn.Module,
    train: LabelledImages | None,
    test: LabelledImages | None,
    device: torch.device,
    *,
    rounds: int,
    distil_loss: float = 0.0,
    verdict: Verdict | None = None,
    rolled_back: bool = False,
) -> Metrics:
    """The metrics of a model as it is, on its own images and on test images where there are some to look at."""
    judged: dict[str, Any] = {}
    if verdict is not None:
        judged = {
            "judged_by": verdict.score.images,
            "held_back": verdict.held_back,
            "held_accuracy": verdict.score.accuracy,
            "held_recall": verdict.score.recall,
            "best_accuracy": verdict.best.accuracy,
            "best_recall": verdict.best.recall,
            "best_round": verdict.best_round,
            "worse": verdict.worse,
        }
    return Metrics(
        rounds=rounds,
        accuracy=None if test is None else evaluate(model, test, device),
        train_accuracy=None if train is None else evaluate(model, train, device),
        distil_loss=distil_loss,
        tested=0 if test is None else len(test),
        rolled_back=rolled_back,
        **judged,
    )


@dataclass(frozen=True, eq=False)
class Teacher:
    """What makes and labels a client's dreams, where that is another than its model as it is.

    Attributes:
        model: with the weights it teaches with.
        since: the epoch that left them, as the federation counts; what was labelled up to it is learnt from no more.
    """

    model: nn.Module
    since: int


class Participant:
    """A client's teacher, its data and its sliding window of the FedDream dataset. Deterministic from `seed`.

    `model` is trained in place, on `device`. `test` may be None. `local_training` replaces the training on
    own data (warm-up included); `class_counts` (K,) replaces the label histogram wherever it is used, for
    example by one noised for differential privacy: not negative, and, unless local training is replaced too, above
    0 where there are labels. `feature_statistics` gives R_bn the statistics of a model whose group norms store none; it
    is asked once, after the warm-up. `judge` looks at the model after each round; one that is worse gets the best
    weights back if `rolls_back`, and if not, they are only kept, as they must be where the judge looks at records
    without noise and what answers others must not depend on them.
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
        judge: Judge | None = None,
        rolls_back: bool = True,
    ) -> None:
        self.settings = settings
        self.model = model.to(device).eval()
        self._train = train
        self._test = test
        self._seed = seed
        self._device = device
        if local_training is not None and settings.own_weight > 0:
            raise SettingsError(
                f"own_weight is {settings.own_weight} with a replaced local training; 0 is allowed, since distillation "
                "would use the own data past it"
            )
        if local_training is not None and settings.own_statistics:
            raise SettingsError(
                "own_statistics is true with a replaced local training; false is allowed, since the statistics of the "
                "own data would go past it"
            )
        self._teacher, self._since = self.model, 0
        self._judge, self._rolls_back = judge, rolls_back
        self._train_accuracy = local_training is None
        self._local_training = local_training or self._train_by_sgd
        self._feature_statistics = feature_statistics
        self._supplied: ChannelStatistics | None = None
        self._class_counts = train.class_counts.astype(np.float32) if class_counts is None else class_counts
        self._seen = self._class_counts > 0
        self._told: tuple[float, dict[str, NDArray[np.float64]]] | None = None
        self._window: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=settings.window)
        self._rounds = self._paid = 0  # of all rounds, those that a ledger has counted in earlier processes
        self._metrics: Metrics | None = None

    @property
    def metrics(self) -> Metrics | None:
        """Newest metrics, or None before the warm-up."""
        return self._metrics

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The newest metrics as counts of images: test images right, of how many; own images right, of how many.

        0 of 0 where there are none, where they are private, and before the warm-up.
        """
        found = self._metrics
        tested = 0 if found is None or found.accuracy is None or self._test is None else len(self._test)
        trained = 0 if found is None or found.train_accuracy is None else len(self._train)
        correct = round(found.accuracy * tested) if found is not None and found.accuracy is not None else 0
        train_correct = round((found.train_accuracy or 0.0) * trained) if found is not None else 0
        return correct, tested, train_correct, trained

    @property
    def held_counts(self) -> tuple[int, int]:
        """Of the images that are held back, how many the model as it is gets right, of how many; 0 of 0 without any."""
        found = self._metrics
        if found is None or not found.held_back:
            return 0, 0
        share = found.best_accuracy if found.rolled_back else found.held_accuracy
        return round((share or 0.0) * found.judged_by), found.judged_by

    @property
    def judge(self) -> Judge | None:
        """What judges its rounds."""
        return self._judge

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def classes(self) -> int:
        """K."""
        return self._train.classes

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which classes (K,) it has images of, as far as its histogram says."""
        return self._seen

    @property
    def teacher(self) -> nn.Module:
        """What makes and labels the dreams; see `LearningSettings`."""
        return self._teacher

    def warm_up(self) -> Metrics:
        """Train on the own data for `warm_up_epochs`."""
        self._local_training(self.model, self._train, self.settings.warm_up_epochs, self._stage_seed(0))
        return self.begin()

    def begin(self, number: int = 0, teacher: Teacher | None = None) -> Metrics:
        """Take part with the model as it is, after `number` rounds: instead of `warm_up`, for one trained before.

        `teacher`: the one that an earlier process had then; unless given, the model as it is becomes it, or stays it.
        """
        if teacher is not None:
            self._teacher, self._since = teacher.model.to(self._device).eval(), teacher.since
        elif self.settings.teacher != "current":
            self._teacher = copy.deepcopy(self.model)
        if self._feature_statistics is not None:
            self._supplied = self._feature_statistics(self.model)
        return self.measure(number=number)

    def dream_update(self, dreams: FloatArray, extra: ExtraTerm | None = None, *, first: int = 0) -> DreamShare:
        """The teacher's contribution to one global step on `dreams` (B, C, H, W); see `DreamShare`.

        `first`: the class that the first dream is to be of, see `dreaming.target_loss`.
        """
        settings = self.settings
        if settings.way == "update":
            moved, entropy = dream_update(
                self._teacher,
                dreams,
                settings.loss,
                settings.local_steps,
                settings.dream_lr,
                seen=self._seen,
                first=first,
                extra=extra,
                supplied=self._supplied,
            )
        else:
            gradient, entropy = dream_gradient(
                self._teacher, dreams, settings.loss, seen=self._seen, first=first, extra=extra, supplied=self._supplied
            )
            moved = gradient * len(dreams)
        return DreamShare(moved, entropy)

    def contrast(self, weight: float) -> dict[str, NDArray[np.float64]]:
        """What is told of its images' brightness and contrast, see `contrast_values`.

        Zeros where local training is replaced: a private one's images are told of through its mechanisms alone. The
        images stay as they are, and so does what is told of them at a weight: it is reckoned once.
        """
        if self._told is None or self._told[0] != weight:
            self._told = weight, contrast_values(self._train.images, weight if self._train_accuracy else 0.0)
        return self._told[1]

    def soft_labels(self, dreams: FloatArray) -> SoftLabelShare:
        """The teacher's contribution to the soft labels of the finished `dreams` (B, C, H, W): N = (1 + views) * B."""
        settings = self.settings
        images = with_views(torch.from_numpy(dreams), settings.views, settings.views_by).numpy()
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

    def votes(self, dreams: FloatArray) -> FloatArray:
        """One vote for each of `dreams` (B, C, H, W) and its views, (N, K); class-aware, of classes it has seen."""
        images = with_views(torch.from_numpy(dreams), self.settings.views, self.settings.views_by).numpy()
        seen = self._seen if self.settings.class_aware else None
        return votes_of(predict_logits(self._teacher, images, self._device), seen)

    def acquire(
        self,
        dreams: FloatArray,
        soft_labels: FloatArray,
        number: int | None = None,
        *,
        distillation: Distillation = distil,
    ) -> Metrics:
        """Stage 3: add `dreams` (B, C, H, W) with their labels (N, K), distil, train on the own data, and judge.

        `distillation` is what those labels are learnt by: of logits the usual one.

        `number`: of the round, in what is said of it; unless given, as many as were learnt and recalled here.
        Raises `TrainingError` if a training diverges. The model is then what it was before, and whatever else is
        raised: but with a `TrainingRefused` it is as the dreams have made it. The batch is in the window in any case.
        """
        settings = self.settings
        self._rounds += 1
        self._window.append((dreams, soft_labels))
        trains = settings.trains_in(self._rounds - self._paid)
        with undone_if_it_fails(self.model):
            distil_loss = self._distil(distillation) if settings.distils_in(self._rounds) else 0.0
            if trains:
                self._local_training(self.model, self._train, settings.local_epochs, self._stage_seed(2))
            metrics = self.measure(distil_loss, number=number)
        if trains and settings.teacher == "trained" and not metrics.rolled_back:
            self._teacher = copy.deepcopy(self.model)
            self._window.clear()  # what it says from now on is better than what it said before
        return metrics

    def recall(self, dreams: FloatArray, soft_labels: FloatArray, number: int) -> None:
        """A batch of round `number` that an earlier process has learnt from; nothing is trained.

        It joins the window, unless the teacher has been trained since. Its round counts, for which rounds train and
        distil. Where local training is replaced, by private training above all, the ledger has counted its training,
        and `training_rounds` is what is left of them.
        """
        if number > self._since:
            self._window.append((dreams, soft_labels))
        self._rounds += 1
        self._paid += not self._train_accuracy

    def measure(self, distil_loss: float = 0.0, *, number: int | None = None) -> Metrics:
        """Judge the model as it is after round `number`, roll it back if it is worse, and measure it."""
        verdict, rolled_back = None, False
        if self._judge is not None:
            verdict = self._judge.judge(self.model, self._rounds if number is None else number)
            if rolled_back := verdict.worse and self._rolls_back:
                self._judge.restore(self.model)
        self._metrics = measured(
            self.model,
            self._train if self._train_accuracy else None,
            self._test,
            self._device,
            rounds=self._rounds,
            distil_loss=distil_loss,
            verdict=verdict,
            rolled_back=rolled_back,
        )
        return self._metrics

    def _distil(self, distillation: Distillation) -> float:
        settings = self.settings
        loss = distillation(
            self.model,
            list(self._window),
            settings,
            seed=self._stage_seed(1),
            device=self._device,
            noise=settings.distil_noise,
            own=self._own_images() if settings.own_weight > 0 else None,
        )
        if settings.own_statistics:
            measure_statistics(self.model, self._train.images, self._stage_seed(3), self._device)
        return loss

    def _own_images(self) -> OwnImages:
        settings = self.settings
        counts = self._class_counts if settings.balanced else None
        return OwnImages(self._train, settings.own_weight, settings.batch_size, counts)

    def _train_by_sgd(self, model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
        counts = self._class_counts
        train_epochs(model, data, self.settings, epochs=epochs, seed=seed, device=self._device, class_counts=counts)

    def _stage_seed(self, stage: int) -> int:
        return stage_seed(self._seed, self._rounds, stage)
