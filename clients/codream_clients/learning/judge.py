"""A judge of one client's model: its own images that were not trained on, asked after the warm-up and each round.

Distillation can fail (a rate, labels that are wrong for this client), and a round must not take in silence what the
client had. So the judge keeps the best weights so far. A model is worse where fewer held-back images are right than
were, by more than one standard error of that share: with less it may be chance, and a client that turned back at each
small fall would hardly learn from the others. The same goes for the mean over the classes, since a model that gives a
rare class up loses few images by it; where that mean has risen by more than its standard error, fewer right images are
what a model pays that is less partial to frequent classes. The comparison is with the most of all rounds that were not
worse, so that small falls do not add up; the best has the highest mean of both.

Two kinds of images can only tell of a collapse: of what the best weights had beyond a guess, in the mean over their
classes, less than half is left. Those of a client with too few to hold some back, which it trains on; and those that
lack a class of the task: what a model learns of that class from the others they cannot see, only what it costs theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.training import predict_logits

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Score:
    """How a model fares with the images of a judge.

    Attributes:
        correct: how many it gets right.
        images: of how many.
        recall: mean over the classes that there are of the share of each that it gets right; None where nobody knows.
    """

    correct: int
    images: int
    recall: float | None

    @property
    def accuracy(self) -> float:
        """In [0, 1]; 0 of no images."""
        return self.correct / self.images if self.images else 0.0


@dataclass(frozen=True)
class SeenScore(Score):
    """The same where the images themselves are looked at.

    Attributes:
        recall_error: the standard error of `recall`.
        loss: mean cross-entropy in nats; decides where all else ties.
    """

    recall: float
    recall_error: float
    loss: float

    @property
    def standard_error(self) -> float:
        """Of the accuracy; with one more image right and one wrong (Laplace), so that it is 0 for none."""
        return math.sqrt(float(_variance(np.array(self.correct), np.array(self.images))))

    @property
    def value(self) -> tuple[float, float]:
        """What the best has most of."""
        return (self.accuracy + self.recall) / 2, -self.loss


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a model.

    Attributes:
        score: the model's.
        best: the best one's, this model's with the others.
        best_round: of which round that is; 0 is the warm-up.
        worse: whether the model is worse than what there was before it.
        held_back: whether nothing was trained on the images that judge.
    """

    score: Score
    best: Score
    best_round: int
    worse: bool
    held_back: bool


class Judge:
    """Judges, and keeps the best weights.

    Args:
        images: what it judges by, at least one.
        device: where models are.
        held_back: whether nothing was trained on them.
    """

    def __init__(self, images: LabelledImages, device: torch.device, *, held_back: bool) -> None:
        self.held_back = held_back
        self.data, self._device = images, device
        self._classes = int(np.count_nonzero(images.class_counts))
        self._best: SeenScore | None = None
        self._accuracy = self._recall = 0.0  # less than this is worse
        self._weights: Weights = {}
        self._round = 0

    @property
    def images(self) -> int:
        """How many it judges by."""
        return len(self.data)

    @property
    def weights(self) -> Weights:
        """The best so far; empty before the first judgement. Another mapping whenever there are better ones."""
        return self._weights

    @property
    def best_round(self) -> int:
        """Of which round they are."""
        return self._round

    def judge(self, model: nn.Module, round: int) -> Verdict:
        """Judge a model as it stands after a round; weights that are the best so far are kept."""
        score = self._score(model)
        worse = self._best is not None and self._worse(score, self._best)
        if not worse:
            self._accuracy = max(self._accuracy, score.accuracy - score.standard_error)
            self._recall = max(self._recall, score.recall - score.recall_error)
        if self._best is None or (score.value > self._best.value and not worse):
            self._best = score
            self._keep(model, round)
        return Verdict(score, self._best, self._round, worse, self.held_back)

    def restore(self, model: nn.Module) -> None:
        """Give a model the best weights."""
        model.load_state_dict(dict(self._weights))

    @property
    def sees_all(self) -> bool:
        """Whether its images are of all the task's classes."""
        return self._classes == self.data.classes

    def _keep(self, model: nn.Module, round: int) -> None:
        """As the best there is."""
        self._round = round
        self._weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def _worse(self, score: SeenScore, best: SeenScore) -> bool:
        if self.held_back and self.sees_all:
            fairer = score.recall - score.recall_error > best.recall
            return score.recall < self._recall or (score.accuracy < self._accuracy and not fairer)
        guess = 1 / self._classes if self._classes > 1 else 0.0
        return best.recall > guess and score.recall - guess < (best.recall - guess) / 2

    def _score(self, model: nn.Module) -> SeenScore:
        logits = predict_logits(model, self.data.images, self._device).astype(np.float64)
        labels = self.data.labels
        right = logits.argmax(axis=1) == labels
        top = logits.max(axis=1)
        losses = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        counts = self.data.class_counts
        there = counts > 0
        found, counts = np.bincount(labels[right], minlength=len(counts))[there], counts[there]
        return SeenScore(
            correct=int(right.sum()),
            images=len(labels),
            recall=float((found / counts).mean()),
            recall_error=float(np.sqrt(_variance(found, counts).sum()) / len(counts)),
            loss=float(losses.mean()),
        )


def _variance(right: NDArray[np.integer[Any]], images: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Of a share of images that are right; with one more right and one wrong (Laplace), so that it is 0 for none."""
    share = (right + 1) / (images + 2)
    variance: NDArray[np.float64] = share * (1 - share) / images
    return variance
