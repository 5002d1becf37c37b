"""A participant behind the tasks of CoDream's course: what it answers fits the specs, and how it learns."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import DreamShare, LearningSettings, Metrics, Participant
from codream_clients.models.zoo import build
from codream_clients.privacy.ledger import BudgetExceeded
from codream_protocols.course import Task
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.courses.contrast import CONTRAST, UNITS, contrast_values
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.starts import start_rule
from secure_codream.simulation.in_process import Simulation

SHAPE, CLASSES, BATCH = (1, 8, 8), 4, 6
SETTINGS = LearningSettings(local_steps=2, warm_up_epochs=1, distil_epochs=1, local_epochs=1)


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    rng = np.random.default_rng(0)
    return LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )


def participant(images: LabelledImages, test: LabelledImages | None = None, **changed: Any) -> Participant:
    torch.set_num_threads(1)
    settings = LearningSettings(**{**vars(SETTINGS), **changed})
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=0)
    return Participant(settings, model, images, test, 0, torch.device("cpu"))


def learner(images: LabelledImages, *, test: LabelledImages | None = None, **options: Any) -> DreamLearner:
    return DreamLearner(participant(images, test), **options)


def course(**changed: Any) -> CoDream:
    settings: dict[str, Any] = {"rounds": 2, "steps": 2, "batch": BATCH, "shape": SHAPE, "classes": CLASSES}
    return CoDream(DreamSettings(**{**settings, **changed}), start_rule("noise"))


def specs(**changed: Any) -> dict[str, VectorSpec]:
    return {spec.task: spec for spec in course(**changed).specs(2)}


@pytest.fixture
def dreams() -> np.ndarray:
    array = np.random.default_rng(1).standard_normal((BATCH, *SHAPE), dtype=np.float32)
    array.flags.writeable = False  # as a state is
    return array


def asked(name: str, dreams: np.ndarray) -> Task:
    return Task(name, {} if name == "metrics" else {"dreams": dreams})


def published(dreams: np.ndarray, labels: int = BATCH) -> dict[str, np.ndarray]:
    return {"dreams": dreams, "soft_labels": np.zeros((labels, CLASSES), np.float32)}


@pytest.mark.parametrize("task", ["update", "logits", "metrics"])
def test_blocks_are_those_of_the_spec_and_within_their_clips(
    images: LabelledImages, dreams: np.ndarray, task: str
) -> None:
    spec, able = specs()[task], learner(images, test=images, weight=0.7)
    able.learn(1, published(dreams))
    values = able.compute(asked(task, dreams), spec)
    assert set(values) == {block.name for block in spec.blocks}
    for block in spec.blocks:
        value = np.asarray(values[block.name])
        assert value.size == block.length
        assert np.isfinite(value).all() and np.abs(value).max() <= block.clip + 1e-6
    assert not dreams.flags.writeable


def test_everything_of_an_update_carries_the_secret_weight(dreams: np.ndarray) -> None:
    delta = np.full((BATCH, *SHAPE), 0.5, np.float32)
    delta[0] = -0.9
    fake: Any = SimpleNamespace(
        classes=CLASSES, dream_update=lambda given, extra, first: DreamShare(torch.from_numpy(delta), 1.2)
    )
    values = DreamLearner(fake, weight=0.25).compute(asked("update", dreams), specs(update_clip=0.6)["update"])
    assert values["weight"].tolist() == [0.25]
    np.testing.assert_allclose(values["dreams"], np.clip(delta, -0.6, 0.6) * 0.25)
    assert values["entropy"] == pytest.approx([1.2 * 0.25])
    assert values["clipped"] == pytest.approx([0.25 / BATCH])  # one dream of six lies beyond 0.6


def test_entropy_is_at_most_log_k(images: LabelledImages, dreams: np.ndarray) -> None:
    values = learner(images).compute(asked("update", dreams), specs()["update"])
    assert 0 <= values["entropy"][0] <= math.log(CLASSES)


def counts(able: DreamLearner) -> dict[str, int]:
    found = able.compute(Task("metrics", {}), specs()["metrics"])
    return {name: value.item() for name, value in found.items()}


def test_metrics_are_counts_of_images(images: LabelledImages, dreams: np.ndarray) -> None:
    """Fractions of test sets of different sizes can be told apart in one sum."""
    heard: list[Metrics] = []
    able = learner(images, test=images, on_metrics=heard.append)
    assert set(counts(able).values()) == {0}  # before anything is known
    able.learn(1, published(dreams))
    found = counts(able)
    assert found["tested"] == found["trained"] == 24
    assert found["correct"] / 24 == heard[0].accuracy and found["train_correct"] / 24 == heard[0].train_accuracy


def test_who_has_no_test_images_counts_none(images: LabelledImages, dreams: np.ndarray) -> None:
    able = learner(images)
    able.learn(1, published(dreams))
    found = counts(able)
    assert found["tested"] == found["correct"] == 0 and found["trained"] == 24


def test_private_training_tells_no_accuracy_on_its_own_images(images: LabelledImages, dreams: np.ndarray) -> None:
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=0)
    settings = LearningSettings(**{**vars(SETTINGS), "own_weight": 0.0})
    private = Participant(
        settings, model, images, images, 0, torch.device("cpu"), local_training=lambda model, data, epochs, seed: None
    )
    able = DreamLearner(private)
    able.learn(1, published(dreams))
    found = counts(able)
    assert found["train_correct"] == found["trained"] == 0 and found["tested"] == 24


def test_brightness_and_contrast_carry_the_secret_weight_and_are_not_told_of_private_images(
    images: LabelledImages, dreams: np.ndarray
) -> None:
    spec, task = specs(matched=True)[CONTRAST], Task(CONTRAST, {"dreams": dreams})
    found = DreamLearner(participant(images), weight=0.25).compute(task, spec)
    expected = contrast_values(images.images, 0.25)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    assert found["weight"] == 0.25 * UNITS and set(found) == {block.name for block in spec.blocks}
    model, settings = build("mlp", channels=1, size=8, classes=CLASSES, seed=0), {**vars(SETTINGS), "own_weight": 0.0}
    private = Participant(
        LearningSettings(**settings), model, images, None, 0, torch.device("cpu"), local_training=lambda *given: None
    )
    assert not any(value.any() for value in DreamLearner(private).compute(task, spec).values())


@pytest.mark.parametrize("tells", [False, True], ids=["not told", "control: told"])
def test_accuracies_stay_with_a_client_that_does_not_tell_them(
    images: LabelledImages, dreams: np.ndarray, tells: bool
) -> None:
    heard: list[Metrics] = []
    able = learner(images, test=images, tells_accuracy=tells, on_metrics=heard.append)
    able.learn(1, published(dreams))
    assert any(counts(able).values()) == tells
    assert heard[0].accuracy is not None  # its own folder has them


@pytest.mark.parametrize("certified", [0, 5])
def test_targets_go_on_with_each_epoch_alike_for_all(dreams: np.ndarray, certified: int) -> None:
    """Of 4 classes a batch of 3: the next begins where the last ended, also for one that only recalls."""
    firsts: list[int] = []

    def noted(given: np.ndarray, extra: object, first: int) -> DreamShare:
        firsts.append(first)
        return DreamShare(torch.zeros(given.shape), 0.0)

    fake: Any = SimpleNamespace(classes=CLASSES, dream_update=noted, recall=lambda *given: None)
    able = DreamLearner(fake, certified=certified)
    for number in range(certified + 1, certified + 4):
        able.compute(asked("update", dreams[:3]), specs(batch=3)["update"])
        able.recall(number, published(dreams[:3]))
    assert firsts == [3 * round % CLASSES for round in range(certified, certified + 3)]


class Listening:
    """A participant that writes down what it is to learn."""

    settings = LearningSettings()

    def __init__(self) -> None:
        self.heard: list[tuple[np.ndarray, np.ndarray]] = []
        self.recalled = 0

    def acquire(self, dreams: np.ndarray, soft_labels: np.ndarray, number: int, **how: object) -> Metrics:
        self.heard.append((dreams, soft_labels))
        return Metrics(rounds=1, accuracy=0.5, train_accuracy=1.0, distil_loss=0.0)

    def recall(self, dreams: np.ndarray, soft_labels: np.ndarray, number: int) -> None:
        self.recalled += 1


def test_half_way_dreams_come_in_one_array_with_the_final_ones(dreams: np.ndarray) -> None:
    fake: Any = Listening()
    both, labels = np.concatenate([dreams, dreams + 1]), np.ones((2 * BATCH, CLASSES), np.float32)
    DreamLearner(fake).learn(1, {"dreams": both, "soft_labels": labels})
    ((learnt, learnt_labels),) = fake.heard
    assert np.array_equal(learnt, both) and np.array_equal(learnt_labels, labels)
    assert learnt.flags.writeable


def test_nothing_is_learnt_from_metrics_alone_or_recalled_again(dreams: np.ndarray) -> None:
    fake, heard = Listening(), []  # type: ignore[var-annotated]
    able = DreamLearner(fake, on_metrics=heard.append)
    able.learn(3, {})
    able.recall(3, {})
    able.recall(1, published(dreams))
    assert fake.heard == heard == [] and fake.recalled == 1


def test_what_is_recalled_is_distilled_with_what_comes_next(images: LabelledImages, dreams: np.ndarray) -> None:
    """A client that starts again: the window holds what earlier processes learnt. Control: one without."""

    def weights(recalls: bool) -> torch.Tensor:
        able = DreamLearner(who := participant(images))
        if recalls:
            able.recall(1, published(dreams))
        able.learn(2, published(dreams + 1))
        return next(who.model.parameters()).detach().clone()

    assert not torch.equal(weights(True), weights(False))
    assert torch.equal(weights(False), weights(False))


@pytest.mark.parametrize("changed", [{"half_way": True}, {"views": 1}, {"way": "gradient", "optimiser": "adam"}])
def test_the_course_and_its_learners_fit_together(images: LabelledImages, changed: dict[str, Any]) -> None:
    shared = {name: value for name, value in changed.items() if name in ("views", "way")}
    who = [participant(images, images, **shared) for _ in range(3)]
    public = course(**changed)
    simulation = Simulation(public, [DreamLearner(one) for one in who], seed=1)
    for _ in range(public.epochs):
        simulation.run_epoch()
    assert [one.metrics.rounds for one in who if one.metrics] == [2, 2, 2]


def test_a_spent_budget_leaves_a_client_that_goes_on_dreaming(dreams: np.ndarray) -> None:
    """What is spent is for its own screen: the step's answer is as ever."""
    heard: list[Metrics] = []

    class Spent(Listening):
        counts = (1, 2, 0, 0)

        def acquire(self, dreams: np.ndarray, soft_labels: np.ndarray, number: int, **how: object) -> Metrics:
            raise BudgetExceeded("epsilon 3.21 is spent")

        def measure(self, *, number: int) -> Metrics:
            return Metrics(rounds=1, accuracy=0.5, train_accuracy=None, distil_loss=0.0)

    poor = DreamLearner(Spent(), on_metrics=heard.append)
    with pytest.raises(BudgetExceeded, match=r"3\.21"):
        poor.learn(1, published(dreams))
    assert [metrics.accuracy for metrics in heard] == [0.5]
    assert counts(poor)["correct"] == 1


def test_a_training_that_diverges_leaves_the_model_as_it_was(images: LabelledImages, dreams: np.ndarray) -> None:
    able = DreamLearner(who := participant(images))
    before = [weight.detach().clone() for weight in who.model.state_dict().values()]
    with pytest.raises(ValueError, match="loss became"):
        able.learn(1, published(np.full_like(dreams, 3e38)))
    assert all(torch.equal(*pair) for pair in zip(before, who.model.state_dict().values(), strict=True))


def test_unknown_task_is_refused(images: LabelledImages, dreams: np.ndarray) -> None:
    with pytest.raises(VectorRefused, match="task 'weights'"):
        learner(images).compute(asked("weights", dreams), VectorSpec("weights", (Block("x", 1, 1.0),)))
