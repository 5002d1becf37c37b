"""CoDream-fast's learner: it makes the images itself, sends changes of z and G, and stages what it remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.generator_learner import GeneratorLearner, generator_layout, make_generator
from codream_clients.learning.generators import generate
from codream_clients.learning.participant import LearningSettings, Metrics, Participant
from codream_clients.learning.student import Student
from codream_clients.models.layouts import LayoutError, write_vector
from codream_clients.models.zoo import build
from codream_clients.privacy.ledger import BudgetExceeded
from codream_protocols.course import Task
from codream_protocols.courses.generator import CoDreamFast, GeneratorSettings
from codream_protocols.courses.layouts import length_of
from codream_protocols.errors import VectorRefused
from codream_protocols.settings import SettingsError
from secure_codream.simulation.in_process import Simulation

SHAPE, CLASSES, BATCH, NOISE, WIDTH, CPU = (1, 8, 8), 3, 6, 5, 4, torch.device("cpu")
LAYOUT = generator_layout(SHAPE, NOISE, WIDTH)
COURSE = CoDreamFast(
    GeneratorSettings(
        layout=LAYOUT, rounds=2, batch=BATCH, classes=CLASSES, batches=2, local_steps=2, noise=NOISE, lr=0.01
    )
)
SPECS = {spec.task: spec for spec in COURSE.specs(2)}


def participant(seed: int = 0, **changed: Any) -> Participant:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    images = LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )
    settings = LearningSettings(**{"warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 1, **changed})
    model = build("cnn2", channels=1, size=8, classes=CLASSES, seed=seed)
    return Participant(settings, model, images, images, seed, CPU)


def learner(who: Participant | None = None, **options: Any) -> GeneratorLearner:
    return GeneratorLearner(COURSE, who or participant(), **{"shape": SHAPE, "width": WIDTH, **options})


def state() -> dict[str, np.ndarray]:
    found = COURSE.start(bytes(range(32)), 0, None)
    return {"generator": found["generator"], "noise": found["noise"]}


def fresh_student() -> Student:
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=3)
    return Student(model, LearningSettings(distil_epochs=1), 0, CPU)


def test_the_layout_is_that_of_the_generator() -> None:
    assert len(dict(LAYOUT)) == len(LAYOUT) and length_of(LAYOUT) == sum(
        weight.numel() for weight in make_generator(SHAPE, NOISE, WIDTH).parameters()
    )
    assert generator_layout(SHAPE, NOISE) != LAYOUT


@pytest.mark.parametrize("task", ["metrics", "generator", "logits"])
def test_blocks_are_those_of_the_spec_and_within_their_clips(task: str) -> None:
    values = learner().compute(Task(task, {} if task == "metrics" else state()), SPECS[task])
    assert set(values) == {block.name for block in SPECS[task].blocks}
    for block in SPECS[task].blocks:
        assert np.size(values[block.name]) == block.length
        assert np.isfinite(values[block.name]).all() and np.abs(values[block.name]).max() <= block.clip


def test_three_clients_learn_the_images_that_all_make_alike() -> None:
    heard: list[Metrics] = []
    who = [participant(seed) for seed in range(3)]
    shared = fresh_student()
    learners = [learner(one, student=shared, adversarial_from=1, on_metrics=heard.append) for one in who]
    simulation, asked = Simulation(COURSE, learners, seed=2), []
    for _ in range(COURSE.epochs):
        publication = simulation.run_epoch(lambda step: asked.append(step.task))
    assert asked == [*["metrics", *["generator", "logits"] * 2] * 2, "metrics"]
    assert len(heard) == 6 and shared.learnt
    windows = [one._window[-1] for one in who]
    assert windows[0][0].shape == (2 * BATCH, *SHAPE) and windows[0][1].shape == (2 * BATCH, CLASSES)
    for images, labels in windows[1:]:
        np.testing.assert_allclose(images, windows[0][0], atol=1e-5)
        assert np.array_equal(labels, windows[0][1])
    assert set(publication) == {"meta", "first", "second", "decays"}


def test_logits_are_of_the_images_that_weights_and_noise_give() -> None:
    who = participant()
    values = learner(who).compute(Task("logits", state()), SPECS["logits"])
    generator = make_generator(SHAPE, NOISE, WIDTH)
    write_vector(generator, LAYOUT, state()["generator"])
    expected = who.soft_labels(generate(generator, state()["noise"]))
    np.testing.assert_array_equal(values["numerators"], expected.numerators)


def test_the_memory_of_statistics_counts_once_an_epoch_is_certified() -> None:
    """As SCAFFOLD's variates: an epoch that was given up leaves no trace. Control: one that was certified does."""
    able = learner()

    def moved() -> np.ndarray:
        able.compute(Task("metrics", {}), SPECS["metrics"])
        return able.compute(Task("generator", state()), SPECS["generator"])["generator"].copy()

    first = moved()
    able.compute(Task("generator", {**state(), "noise": state()["noise"] * 3}), SPECS["generator"])
    assert np.array_equal(moved(), first)
    able.compute(Task("generator", {**state(), "noise": state()["noise"] * 3}), SPECS["generator"])
    able.learn(1, {})
    assert not np.array_equal(moved(), first)


def test_the_adversarial_term_counts_from_its_round_on() -> None:
    """The student has learnt of the teacher itself, so that both name the same class, and the term is not 0."""
    generator, who = make_generator(SHAPE, NOISE, WIDTH), participant()
    write_vector(generator, LAYOUT, state()["generator"])
    images = generate(generator, state()["noise"])
    student = Student(
        build("mlp", channels=1, size=8, classes=CLASSES, seed=3), LearningSettings(distil_epochs=60), 0, CPU
    )
    student.learn(1, images, who.soft_labels(images).numerators * 20)

    def moved(**options: Any) -> np.ndarray:
        able = learner(**options)
        able.recall(1, {})
        return np.array(able.compute(Task("generator", state()), SPECS["generator"])["generator"])

    assert not np.array_equal(moved(student=student, adversarial_from=1), moved())
    assert np.array_equal(moved(student=student, adversarial_from=2), moved())
    assert np.array_equal(moved(student=fresh_student(), adversarial_from=0), moved())  # it has learnt nothing yet


def test_a_spent_budget_leaves_a_client_that_goes_on_and_a_student_that_learns() -> None:
    heard: list[Metrics] = []
    who, shared = participant(), fresh_student()

    def spent(dreams: Any, soft_labels: Any, number: Any = None, **how: Any) -> Any:
        raise BudgetExceeded("epsilon 3.21 is spent")

    who.acquire = spent  # type: ignore[method-assign]
    able = learner(who, on_metrics=heard.append, student=shared)
    found = COURSE.start(bytes(range(32)), 0, None)
    published = {
        "generators": found["generator"][None],
        "noises": found["noise"][None],
        "soft_labels": np.zeros((BATCH, CLASSES), np.float32),
    }
    with pytest.raises(BudgetExceeded):
        able.learn(1, published)
    assert len(heard) == 1 and shared.learnt
    able.recall(1, published)
    assert len(who._window) == 1


def test_other_generators_views_and_tasks_are_refused() -> None:
    with pytest.raises(LayoutError):
        learner(width=WIDTH + 1)
    with pytest.raises(SettingsError, match="views is 1"):
        learner(participant(views=1))
    with pytest.raises(VectorRefused, match="task 'update'"):
        learner().compute(Task("update", {}), SPECS["logits"])
