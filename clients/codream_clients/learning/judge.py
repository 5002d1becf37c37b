"""A judge of one client's model: its own images that were not trained on, asked after the warm-up and each round.

Distillation can fail (a rate, labels that are wrong for this client), and a round must not take in silence what the
client had. So the judge keeps the best weights so far. A model that gets fewer held-back images right than those did,
by more than one standard error of that share, is worse than they are: with fewer it may be chance, and a client that
turned back at each small fall would hardly learn from the others. The comparison is with the best of all rounds, so
that small falls do not add up.

A client with too few images to hold some back is judged by those that it trains on, and they can only tell of a
collapse: of what the best weights had beyond a guess, in the mean over its classes, less than half is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
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
        recall: mean over the classes that there are of the share of each that it gets right.
        loss: mean cross-entropy in nats; decides where counts tie.
    """

    correct: int
    images: int
    recall: float
    loss: float

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.images

    @property
    def standard_error(self) -> float:
        """Of the accuracy; with one more image right and one wrong (Laplace), so that it is 0 for none."""
        share = (self.correct + 1) / (self.images + 2)
        return math.sqrt(share * (1 - share) / self.images)


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a model.

    Attributes:
        score: the model's.
        best: the best one's, this model's with the others.
        best_round: of which round that is; 0 is the warm-up.
        worse: whether the model is worse than the best weights before it.
    """

    score: Score
    best: Score
    best_round: int
    worse: bool


class Judge:
    """Judges, and keeps the best weights.

    Args:
        images: what it judges by, at least one.
        device: where models are.
        held_back: whether nothing was trained on them.
    """

    def __init__(self, images: LabelledImages, device: torch.device, *, held_back: bool) -> None:
        self.held_back = held_back
        self._images, self._device = images, device
        self._classes = int(np.count_nonzero(images.class_counts))
        self._best: Score | None = None
        self._weights: Weights = {}
        self._round = 0

    @property
    def images(self) -> int:
        """How many it judges by."""
        return len(self._images)

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
        if self._best is None or (score.correct, -score.loss) > (self._best.correct, -self._best.loss):
            self._best, self._round = score, round
            self._weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return Verdict(score, self._best, self._round, worse)

    def restore(self, model: nn.Module) -> None:
        """Give a model the best weights."""
        model.load_state_dict(dict(self._weights))

    def _worse(self, score: Score, best: Score) -> bool:
        if self.held_back:
            return score.accuracy < best.accuracy - best.standard_error
        guess = 1 / self._classes if self._classes > 1 else 0.0
        return best.recall > guess and score.recall - guess < (best.recall - guess) / 2

    def _score(self, model: nn.Module) -> Score:
        logits, labels = (
            predict_logits(model, self._images.images, self._device).astype(np.float64),
            self._images.labels,
        )
        right = logits.argmax(axis=1) == labels
        top = logits.max(axis=1)
        losses = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        counts = self._images.class_counts
        recalls = np.bincount(labels[right], minlength=len(counts))[counts > 0] / counts[counts > 0]
        return Score(int(right.sum()), len(labels), float(recalls.mean()), float(losses.mean()))
