"""What judges a client's rounds: when a model is worse, what is kept, and who gets it back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.judge import Judge, SeenScore
from codream_clients.learning.participant import LearningSettings, Metrics, Participant

CPU = torch.device("cpu")


class Rule(nn.Module):
    """Says class 0 below a threshold and class 1 above."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        above = images.flatten(1).mean(1) - self.threshold
        return torch.stack([-above, above], 1)


class Wide(Rule):
    """The same, among three classes of which it never says the last."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        two = super().forward(images)
        return torch.cat([two, torch.full((len(two), 1), -1e6)], 1)


def images(below: int = 50, above: int = 50) -> LabelledImages:
    """Brightness 0.5 to n - 0.5: of class 0 first."""
    brightness = np.arange(below + above, dtype=np.float32) + 0.5
    return LabelledImages(brightness.reshape(-1, 1, 1, 1), np.repeat([0, 1], [below, above]).astype(np.int64), 2)


def judge(data: LabelledImages | None = None, *, held_back: bool = True) -> Judge:
    return Judge(data or images(), CPU, held_back=held_back)


def test_a_score_by_hand() -> None:
    score = judge(images(2, 2)).judge(Rule(1.0), 0).score
    assert isinstance(score, SeenScore)
    assert (score.correct, score.images) == (3, 4) and score.recall == pytest.approx(0.75)
    by_hand = np.mean([math.log1p(math.exp(2 * margin)) for margin in (-0.5, 0.5, -1.5, -2.5)])
    assert score.loss == pytest.approx(by_hand, rel=1e-6)
    assert score.standard_error == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 4))
    assert score.recall_error == pytest.approx(math.sqrt((0.75 * 0.25 + 0.5 * 0.5) / 2) / 2)
    assert SeenScore(4, 4, 1.0, 0.0, 0.0).standard_error > 0


def test_worse_is_more_than_one_standard_error_below_the_best() -> None:
    """Of 100 images the best gets 90 right; a standard error is about 3."""
    able = judge()
    assert not able.judge(Rule(60.0), 0).worse
    assert not able.judge(Rule(62.0), 1).worse, "two fewer may be chance"
    assert able.judge(Rule(64.0), 2).worse, "small falls do not add up"
    assert not able.judge(Rule(55.0), 3).worse and able.best_round == 3


def test_a_rare_class_that_is_given_up_is_worse_although_more_images_are_right() -> None:
    """150 images of one class and 4 of the other: the accuracy rises from 0.94 to 0.97 as the rare class is lost."""
    able = judge(images(150, 4))
    before = able.judge(Rule(140.0), 0).score
    after = able.judge(Rule(154.0), 1)
    assert before.correct == 144 and before.recall == pytest.approx(0.5 + 70 / 150)
    assert after.score.correct == 150 > before.correct and after.score.recall == 0.5
    assert after.worse and after.best_round == 0


def test_fewer_right_images_are_no_worse_where_the_classes_fare_clearly_better() -> None:
    """90 images of one class and 10 of the other; a standard error of their mean is about 8 points."""
    able = judge(images(90, 10))
    able.judge(Rule(100.0), 0)  # 0.90, and 0.5 in the mean over the classes
    found = able.judge(Rule(78.0), 1)  # 0.88, and 0.93
    assert not found.worse and found.best_round == 1
    able = judge(images(90, 10))
    able.judge(Rule(98.0), 0)  # 0.92, and 0.60
    assert able.judge(Rule(20.0), 1).worse  # 0.30, and 0.61: hardly better, and most is lost


def test_images_that_lack_a_class_of_the_task_tell_of_a_collapse_alone() -> None:
    """They cannot see what a model learns of the class from the others, only what it costs."""
    there = images()
    able = judge(LabelledImages(there.images, there.labels, 3))
    assert not able.sees_all and judge().sees_all
    able.judge(Wide(50.0), 0)
    assert not able.judge(Wide(70.0), 1).worse and able.best_round == 0
    assert able.judge(Wide(90.0), 2).worse  # a recall of 0.6, less than half way from a guess, 0.5, to 1


def test_what_is_worse_is_never_the_best() -> None:
    able = judge(images(90, 10))
    able.judge(Rule(100.0), 0)  # no image of the rare class is right: 0.90, and 0.5 in the mean over the classes
    found = able.judge(Rule(80.0), 1)  # 0.90 again, and 0.94
    assert not found.worse and found.best_round == 1
    assert able.judge(Rule(75.0), 2).worse and able.best_round == 1  # 0.85


def test_the_best_is_kept_by_count_and_then_by_loss_and_given_back() -> None:
    able, model = judge(), Rule(50.0)
    able.judge(model, 0)
    first = able.weights
    with torch.no_grad():
        model.threshold.fill_(50.3)  # as many right, with a loss that is a little higher
    able.judge(model, 1)
    assert able.weights is first and able.best_round == 0
    able.restore(model)
    assert model.threshold.item() == 50.0


@pytest.mark.parametrize(
    ("below", "above", "threshold", "worse"),
    [(60, 540, 60.0, False), (60, 540, 300.0, False), (60, 540, 1e6, True), (540, 60, 1e6, True), (100, 0, -1.0, True)],
)
def test_images_that_were_trained_on_tell_of_a_collapse_alone(
    below: int, above: int, threshold: float, worse: bool
) -> None:
    """An answer that is the same for all images is one, also where it is right for nine tenths of them."""
    able = judge(images(below, above), held_back=False)
    assert not able.judge(Rule(float(below)), 0).worse
    assert able.judge(Rule(threshold), 1).worse == worse


SETTINGS = LearningSettings(distil_epochs=0, own_weight=0.0)


def federated(*, able: Judge | None, rolls_back: bool = True, teacher: str = "current") -> tuple[Participant, Metrics]:
    """A participant whose first round ruins its model, after a warm-up that leaves it as it is."""

    def train(model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
        if epochs == SETTINGS.local_epochs:
            model.load_state_dict({"threshold": torch.tensor(1e6)})

    settings: Any = LearningSettings(**{**vars(SETTINGS), "teacher": teacher})
    who = Participant(
        settings, Rule(50.0), images(), images(), 0, CPU, local_training=train, judge=able, rolls_back=rolls_back
    )
    who.warm_up()
    return who, who.acquire(np.zeros((2, 1, 1, 1), np.float32), np.zeros((2, 2), np.float32))


def threshold(model: nn.Module) -> float:
    return float(model.state_dict()["threshold"])


@pytest.mark.parametrize("teacher", ["current", "trained"])
def test_a_round_that_ruins_a_model_is_rolled_back(teacher: str) -> None:
    """Control: without a judge the model stays ruined, as it did in silence."""
    who, metrics = federated(able=judge(), teacher=teacher)
    assert metrics.worse and metrics.rolled_back and metrics.held_back
    assert (metrics.judged_by, metrics.held_accuracy, metrics.best_accuracy, metrics.best_round) == (100, 0.5, 1.0, 0)
    assert metrics.accuracy == 1.0, "what is told is of the model as it is now"
    assert threshold(who.model) == threshold(who.teacher) == 50.0
    ruined, unjudged = federated(able=None, teacher=teacher)
    assert threshold(ruined.model) == threshold(ruined.teacher) == 1e6 and not unjudged.worse


def test_what_answers_is_never_rolled_back_where_the_judge_may_not_decide_it() -> None:
    """As under `[privacy]`: a judge that looks at records without noise keeps a copy, and nothing that is sent changes.

    Control: a roll-back changes the labels that are sent.
    """
    dreams = np.array([10.0, 90.0], np.float32).reshape(-1, 1, 1, 1)

    def sent(able: Judge | None, rolls_back: bool) -> np.ndarray:
        who, _ = federated(able=able, rolls_back=rolls_back)
        return who.soft_labels(dreams).numerators

    kept = judge()
    assert np.array_equal(sent(kept, False), sent(None, True))
    assert float(kept.weights["threshold"]) == 50.0
    assert not np.array_equal(sent(judge(), True), sent(None, True))
    _, metrics = federated(able=judge(), rolls_back=False)
    assert metrics.worse and not metrics.rolled_back and metrics.accuracy == 0.5


def test_a_round_is_named_by_the_federations_number() -> None:
    who, _ = federated(able=None)
    who = Participant(SETTINGS, Rule(40.0), images(), None, 0, CPU, local_training=lambda *given: None, judge=judge())
    who.begin(7)
    metrics = who.measure(number=8)
    assert metrics.best_round == 7 and not metrics.worse
