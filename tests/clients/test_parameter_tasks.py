"""Learners of the parameter courses: what they send follows the papers, what they keep awaits the certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.local_work import displacement, stage_seed, train_epochs
from codream_clients.learning.participant import Metrics
from codream_clients.learning.settings import LearningSettings
from codream_clients.models.layouts import LayoutError, layout_of, read_vector, write_vector
from codream_clients.models.zoo import build
from codream_clients.parameter_learner import (
    AveragingLearner,
    ContrastiveLearner,
    ControlledLearner,
    ProximalLearner,
    contrastive_loss,
)
from codream_protocols.course import Task
from codream_protocols.courses.layouts import trained
from codream_protocols.courses.parameters import AveragingSettings, FedAvg, FedProx, Moon, Scaffold
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import VectorSpec
from secure_codream.simulation.in_process import Simulation

SHAPE, CLASSES, CPU = (1, 8, 8), 3, torch.device("cpu")
SETTINGS = LearningSettings(
    batch_size=8, lr=0.02, momentum=0.0, weight_decay=0.0, warm_up_epochs=0, distil_epochs=0, local_epochs=2
)


def images(seed: int = 0, count: int = 24) -> LabelledImages:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int64)
    pictures = rng.standard_normal((count, *SHAPE)).astype(np.float32) * 0.5
    for picture, label in zip(pictures, labels, strict=True):
        picture[0, 2 * label : 2 * label + 2] += 1.5
    return LabelledImages(pictures, labels, CLASSES)


def model(name: str = "mlp") -> nn.Module:
    return build(name, channels=1, size=8, classes=CLASSES, seed=0)


COURSES: dict[str, tuple[type[Any], type[Any], type[Any], dict[str, Any]]] = {
    "fedavg": (FedAvg, AveragingSettings, AveragingLearner, {}),
    "fedprox": (FedProx, AveragingSettings, ProximalLearner, {"mu": 0.1}),
    "moon": (Moon, AveragingSettings, ContrastiveLearner, {"mu": 1.0}),
    "scaffold": (Scaffold, AveragingSettings, ControlledLearner, {}),
}


def make(name: str, *, seed: int = 0, settings: LearningSettings = SETTINGS, steps: int = 1, **options: Any) -> Any:
    course_class, settings_class, learner_class, own = COURSES[name]
    course = course_class(settings_class(layout=layout_of(model()), rounds=2, steps=steps))
    learner = learner_class(course, model(), images(seed), settings, seed=seed, device=CPU, **{**own, **options})
    return course, learner


def start(course: Any) -> dict[str, Any]:
    return dict(course.start(bytes(range(32)), 0, None))


def work(learner: Any, course: Any, state: dict[str, Any]) -> dict[str, np.ndarray]:
    """A round's answer, as the first after the metrics."""
    specs = {spec.task: spec for spec in course.specs(2)}
    learner.compute(Task("metrics", {}), specs["metrics"])
    return dict(learner.compute(Task("parameters", state), specs["parameters"]))


@pytest.mark.parametrize("name", COURSES)
def test_blocks_are_those_of_the_spec_and_within_their_clips(name: str) -> None:
    course, learner = make(name, weight=0.5)
    values = work(learner, course, start(course))
    spec = {spec.task: spec for spec in course.specs(2)}["parameters"]
    assert set(values) == {block.name for block in spec.blocks}
    for block in spec.blocks:
        assert np.size(values[block.name]) == block.length
        assert np.abs(values[block.name]).max() <= block.clip
    assert values["weight"] == [0.5] and np.abs(values["weights"]).max() > 0


@pytest.mark.parametrize("name", COURSES)
def test_three_clients_learn_one_model_together(name: str) -> None:
    heard: list[Metrics] = []
    made = [make(name, seed=seed, test=images(9), on_metrics=heard.append, weight=0.9) for seed in range(3)]
    course = made[0][0]
    simulation = Simulation(course, [learner for _, learner in made], seed=3)
    figures: list[Any] = []
    for _ in range(course.epochs):
        simulation.run_epoch(lambda step: figures.append(course.figures(step.task, step.sums, 3)))
    vectors = [read_vector(learner.model, course.settings.layout) for _, learner in made]
    assert all(np.array_equal(vectors[0], vector) for vector in vectors)
    assert figures[-1]["accuracy"] > 0.8 and figures[-1]["tested"] == 72
    assert [metrics.rounds for metrics in heard] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_change_is_that_of_a_round_of_training_from_the_global_model() -> None:
    course, learner = make("fedavg", weight=0.5)
    state, layout = start(course), course.settings.layout
    twin = model()
    write_vector(twin, layout, state["weights"])
    train_epochs(twin, images(), SETTINGS, epochs=2, seed=stage_seed(0, 1, 2), device=CPU)
    values = work(learner, course, state)
    moved = course.absorb(state, 1, values, 1)["weights"]
    np.testing.assert_allclose(moved, read_vector(twin, layout), atol=1e-6)


def test_the_warm_up_belongs_to_the_first_rounds_work_and_tells_how_it_went() -> None:
    settings = LearningSettings(**{**vars(SETTINGS), "warm_up_epochs": 3})
    course, learner = make("fedavg", settings=settings, test=images(9))
    state, layout = start(course), course.settings.layout
    twin = model()
    write_vector(twin, layout, state["weights"])
    train_epochs(twin, images(), settings, epochs=3, seed=stage_seed(0, 0, 0), device=CPU)
    train_epochs(twin, images(), settings, epochs=2, seed=stage_seed(0, 1, 2), device=CPU)
    before = learner.warm_up_metrics
    assert before is None
    moved = course.absorb(state, 1, work(learner, course, state), 1)
    np.testing.assert_allclose(moved["weights"], read_vector(twin, layout), atol=1e-6)
    assert learner.warm_up_metrics.rounds == 0 and learner.warm_up_metrics.accuracy is not None
    learner.learn(1, {"weights": state["weights"]})
    first = work(learner, course, state)
    assert not np.array_equal(first["weights"], work(make("fedavg")[1], course, state)["weights"])  # round 2's order


def test_a_spring_keeps_clients_near_the_global_model() -> None:
    def distance(name: str, **options: Any) -> float:
        course, learner = make(name, **options)
        values = work(learner, course, start(course))
        return float(np.linalg.norm(values["weights"][: 64 * 128]))

    assert distance("fedprox", mu=0.0) == pytest.approx(distance("fedavg"))
    assert distance("fedprox", mu=10.0) < 0.7 * distance("fedavg")


def test_the_contrast_is_log_2_where_both_are_equally_near() -> None:
    same = torch.ones(4, 5)
    assert float(contrastive_loss(same, same, same, 0.5)) == pytest.approx(math.log(2))
    towards = torch.eye(4, 5)
    assert float(contrastive_loss(towards, towards, -towards, 0.5)) == pytest.approx(math.log1p(math.exp(-4)))


def test_moon_is_fedavg_in_the_first_round_and_no_longer_in_the_second() -> None:
    found = {}
    for name in ("fedavg", "moon"):
        course, learner = make(name)
        state = start(course)
        first = work(learner, course, state)
        state = {"weights": course.absorb(state, 1, first, 1)["weights"] + np.float32(0.1)}
        learner.learn(1, state)
        found[name] = first["weights"], work(learner, course, state)["weights"]
    np.testing.assert_allclose(found["moon"][0], found["fedavg"][0], atol=1e-5)
    assert not np.allclose(found["moon"][1], found["fedavg"][1], atol=1e-3)


def test_scaffolds_variate_is_the_mean_gradient_of_its_own_steps() -> None:
    """Option II of the paper, from the formula. The sum moves c by what c_i moved."""
    course, learner = make("scaffold")
    state, layout = start(course), trained(course.settings.layout)
    values = work(learner, course, state)
    after = course.absorb(state, 1, values, 1)
    twin = model()
    write_vector(twin, course.settings.layout, state["weights"])
    before = read_vector(twin, layout)
    steps = train_epochs(twin, images(), SETTINGS, epochs=2, seed=stage_seed(0, 1, 2), device=CPU)
    expected = (before - read_vector(twin, layout)) / (displacement(steps, 0.0) * SETTINGS.lr)
    np.testing.assert_allclose(after["variate"], expected, atol=1e-4)


def test_scaffolds_steps_follow_the_difference_of_the_variates() -> None:
    """For a client alone c_i = c after a certified round, and the correction vanishes; with another c it does not."""
    course, learner = make("scaffold")
    state = dict(course.absorb(start(course), 1, work(learner, course, start(course)), 1))
    learner.learn(1, state)
    alone = work(learner, course, state)
    plain_course, plain = make("fedavg")
    plain.recall(1, {"weights": state["weights"]})
    same = work(plain, plain_course, {"weights": state["weights"]})
    np.testing.assert_allclose(alone["weights"], same["weights"], atol=1e-5)
    pushed = work(learner, course, {**state, "variate": state["variate"] + np.float32(0.5)})
    steps, layout = 6, course.settings.layout
    moved = (pushed["weights"] - alone["weights"]).sum() / sum(math.prod(shape) for _, shape in trained(layout))
    assert moved == pytest.approx(-0.5 * steps * SETTINGS.lr, rel=0.5)


STAGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "moon": lambda state: {"weights": state["weights"] + np.float32(0.1)},
    "scaffold": lambda state: {**state, "weights": state["weights"] + np.float32(0.1)},
    "fedavg": lambda state: state,
}


@pytest.mark.parametrize("name", STAGED)
def test_what_a_client_keeps_of_an_epoch_counts_once_it_is_certified(name: str) -> None:
    """An epoch that was given up leaves no trace in what is sent next. Control: one that was certified does."""
    course, learner = make(name)
    state = start(course)
    first = work(learner, course, state)
    again = work(learner, course, state)
    for block in first:
        np.testing.assert_array_equal(first[block], again[block])
    learner.learn(1, {name: np.asarray(value) for name, value in state.items()})
    after = work(learner, course, STAGED[name](state))
    fresh_course, fresh = make(name)
    assert not np.array_equal(after["weights"], work(fresh, fresh_course, STAGED[name](state))["weights"])


def test_within_an_epoch_of_several_steps_each_goes_on_from_the_one_before() -> None:
    course, learner = make("scaffold", steps=2)
    state, specs = start(course), {spec.task: spec for spec in course.specs(2)}
    first = work(learner, course, state)
    state = dict(course.absorb(state, 1, first, 1))
    second = learner.compute(Task("parameters", state), specs["parameters"])
    state = dict(course.absorb(state, 2, second, 1))
    before = learner._kept.variate
    assert before is None  # nothing is certified yet
    learner.learn(1, state)
    assert learner._kept.rounds == 2 and learner._kept.variate is not None
    # c is the mean of all c_i: for a client alone, its own.
    np.testing.assert_allclose(learner._kept.variate, state["variate"], atol=1e-4)


def test_metrics_are_counts_of_the_global_model() -> None:
    course, learner = make("fedavg", test=images(9, 30))
    spec = {spec.task: spec for spec in course.specs(2)}["metrics"]
    assert not any(value.any() for value in learner.compute(Task("metrics", {}), spec).values())
    learner.learn(1, start(course))
    found = learner.compute(Task("metrics", {}), spec)
    assert found["tested"] == [30] and found["trained"] == [24]
    assert found["correct"] / 30 == learner.metrics.accuracy
    _, silent = make("fedavg", test=images(9, 30), tells_accuracy=False)
    silent.learn(1, start(course))
    assert not any(value.any() for value in silent.compute(Task("metrics", {}), spec).values())


def test_other_models_and_tasks_are_refused() -> None:
    course, learner = make("fedavg")
    with pytest.raises(LayoutError, match="course has"):
        AveragingLearner(course, model("cnn2"), images(), SETTINGS, seed=0, device=CPU)
    with pytest.raises(VectorRefused, match="task 'update'"):
        learner.compute(Task("update", {}), VectorSpec("update", course.specs(2)[0].blocks))
