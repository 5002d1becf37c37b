"""The adaptive student: every client's own, from certified batches alone, in that client's own dream loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.augmentation import with_views
from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.dreaming import entropy
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.student import AdaptiveTerm, Student, adaptive_student
from codream_clients.learning.training import TrainingError
from codream_clients.models.zoo import build
from codream_protocols.course import Task
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.starts import start_rule
from secure_codream.simulation.in_process import DreamFederation

SHAPE, CLASSES, BATCH, CPU = (1, 8, 8), 3, 6, torch.device("cpu")
DREAMS = np.random.default_rng(1).standard_normal((BATCH, *SHAPE), dtype=np.float32)
LABELS = np.eye(CLASSES, dtype=np.float32)[np.arange(BATCH) % CLASSES] * 10


def student(**changed: Any) -> Student:
    torch.set_num_threads(1)
    return adaptive_student(SHAPE, CLASSES, **{"seed": 5, "window": 2, "views_by": "affine", "device": CPU, **changed})


def weights(one: Student) -> torch.Tensor:
    return torch.cat([weight.detach().reshape(-1) for weight in one.model.parameters()])


def uncertain(one: Student) -> float:
    return float(entropy(one.model(torch.from_numpy(DREAMS))).detach())


def test_all_clients_begin_and_go_on_with_the_same_student() -> None:
    first, second, other = student(), student(), student(seed=6)
    assert torch.equal(weights(first), weights(second)) and not torch.equal(weights(first), weights(other))
    for one in (first, second):
        one.learn(1, DREAMS, LABELS)
    assert torch.equal(weights(first), weights(second))


def test_it_learns_what_the_labels_say() -> None:
    one = student()
    before = uncertain(one)
    assert not one.learnt
    one.learn(1, DREAMS, LABELS)
    assert one.learnt
    assert (one.model(torch.from_numpy(DREAMS)).argmax(1).numpy() == LABELS.argmax(1)).all()
    assert uncertain(one) < before


def test_an_epoch_is_learnt_once_however_many_clients_share_it() -> None:
    one = student()
    one.learn(3, DREAMS, LABELS)
    after = weights(one)
    one.learn(3, DREAMS, -LABELS)
    one.learn(2, DREAMS, -LABELS)
    assert torch.equal(weights(one), after)
    one.learn(4, DREAMS, -LABELS)  # control
    assert not torch.equal(weights(one), after)


def test_it_learns_from_the_window_alone() -> None:
    """Two students whose windows hold the same in the end differ by what they began with, and not by more."""
    settings = LearningSettings(distil_epochs=1, window=1)
    one = Student(build("mlp", channels=1, size=8, classes=CLASSES, seed=0), settings, 0, CPU)
    one.learn(1, DREAMS, LABELS)
    assert len(one._window) == 1
    one.learn(2, DREAMS + 1, LABELS)
    assert len(one._window) == 1 and np.array_equal(one._window[0][0], DREAMS + 1)


def test_views_are_learnt_with_their_labels() -> None:
    one = student()
    one.learn(1, DREAMS, np.concatenate([LABELS, LABELS]))
    assert one.learnt


def test_views_are_those_that_the_labels_were_given_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each CutMix view of a dream has another image's label where an affine one is made in its place."""
    made: list[str] = []
    usual = with_views

    def noted(images: torch.Tensor, views: int, by: Any) -> torch.Tensor:
        made.append(by)
        return usual(images, views, by)

    monkeypatch.setattr("codream_clients.learning.distillation.with_views", noted)
    settings = DreamSettings(
        rounds=1, steps=1, batch=BATCH, shape=SHAPE, classes=CLASSES, views=1, views_by="cutmix", adaptive_weight=1.0
    )
    views = {"views": 1, "views_by": "cutmix"}
    federation = DreamFederation([participant(**views) for _ in range(3)], CoDream(settings, start_rule("noise")))
    federation.round()
    assert made == ["cutmix"] * 4  # the student's, and three clients'


def test_a_learning_that_fails_leaves_the_student_as_it_was() -> None:
    one = student()
    one.learn(1, DREAMS, LABELS)
    before = weights(one)
    with pytest.raises(TrainingError, match="distillation loss"):
        one.learn(2, np.full_like(DREAMS, 3e38), LABELS)
    assert torch.equal(weights(one), before) and not one.model.training


def test_the_term_counts_from_its_round_on_and_never_before_something_is_learnt() -> None:
    term = AdaptiveTerm(one := student(), 2.0, first_round=3)
    assert term.term(5) is None
    one.learn(1, DREAMS, LABELS)
    assert term.term(2) is None
    added = term.term(3)
    assert added is not None
    images = torch.from_numpy(DREAMS)
    assert float(added(images)) == float(-2.0 * entropy(one.model(images)))


def participant(**changed: Any) -> Participant:
    rng = np.random.default_rng(0)
    images = LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )
    settings = LearningSettings(
        **{"local_steps": 10, "warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 0, "dream_lr": 0.05, **changed}
    )
    return Participant(settings, build("mlp", channels=1, size=8, classes=CLASSES, seed=1), images, None, 0, CPU)


def test_a_client_with_the_term_moves_dreams_to_where_the_student_knows_less() -> None:
    """Control: the same client without it. No student is sent, and the server takes no step of its own."""
    one = student()
    one.learn(1, DREAMS, LABELS)
    spec = CoDream(
        DreamSettings(rounds=1, steps=1, batch=BATCH, shape=SHAPE, classes=CLASSES, update_clip=9.0),
        start_rule("noise"),
    ).specs(2)[1]

    def moved(adaptive: AdaptiveTerm | None) -> float:
        able = DreamLearner(participant(), adaptive=adaptive)
        able.recall(1, {})
        change = able.compute(Task("update", {"dreams": DREAMS}), spec)["dreams"]
        return float(entropy(one.model(torch.from_numpy((DREAMS + change.reshape(DREAMS.shape)).astype(np.float32)))))

    assert moved(AdaptiveTerm(one, 20.0, 1)) > 2 * moved(None)
    assert moved(AdaptiveTerm(one, 20.0, 2)) == moved(None)  # not yet


def test_a_learner_trains_its_student_from_what_is_certified() -> None:
    one = student()
    able = DreamLearner(participant(), adaptive=AdaptiveTerm(one, 1.0))
    able.learn(1, {})
    assert not one.learnt
    able.learn(2, {"dreams": DREAMS, "soft_labels": LABELS})
    twin = student()
    twin.learn(2, DREAMS, LABELS)
    assert torch.equal(weights(one), weights(twin))


def test_the_student_learns_an_epoch_that_its_client_fails_at() -> None:
    """Else this client's copy, and with it its term, leaves those of the others."""
    one = student()
    able = DreamLearner(who := participant(), adaptive=AdaptiveTerm(one, 1.0))

    def failing(*given: Any, **how: Any) -> Any:
        raise RuntimeError("out of memory")

    who.acquire = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        able.learn(1, {"dreams": DREAMS, "soft_labels": LABELS})
    twin = student()
    twin.learn(1, DREAMS, LABELS)
    assert torch.equal(weights(one), weights(twin))
