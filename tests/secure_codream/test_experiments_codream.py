"""CoDream and CoDream-fast as algorithms of an experiment, through the secure sums of a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.generator_learner import make_generator
from codream_clients.learning.generators import adapt, generate
from codream_clients.learning.settings import LearningSettings, Teacher
from codream_clients.learning.student import Student
from codream_clients.learning.training import convergence_warnings_to
from codream_clients.models.layouts import read_vector, write_vector
from codream_protocols.course import Task
from codream_protocols.courses.codream import CoDream as CoDreamCourse
from codream_protocols.courses.codream import Dreams
from codream_protocols.courses.generator import GENERATOR
from codream_protocols.courses.numbers import adam, fresh_moments
from codream_protocols.server import StepFinished
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import AggregationTable
from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.algorithms.codream import CoDream, Kind
from secure_codream.experiments.algorithms.codream_fast import CoDreamFast
from secure_codream.experiments.algorithms.private import PrivateCoDream
from secure_codream.experiments.problem import Problem, Row
from secure_codream.experiments.registry import ALGORITHMS, USUAL_PRIVACY, find
from secure_codream.simulation.in_process import DreamFederation, Simulation

torch.set_num_threads(1)
BATCH, FAST = 12, CoDreamFast(batches=2, local_steps=2, noise=8, width=4)


def digits(
    models: Sequence[str] = ("cnn2", "mlp", "cnn2"),
    *,
    value_bits: int = 16,
    teacher: Teacher = "current",
    **dreams: Any,
) -> Problem:
    """Three clients with 30, 20 and 10 digits."""
    train, test = load_digits_data(seed=0)
    shards = tuple(train.subset(np.arange(start, start + size)) for start, size in ((0, 30), (100, 20), (200, 10)))
    return Problem(
        shards=shards,
        test=test.subset(np.arange(100)),
        models=tuple(models),
        learning=LearningSettings(
            local_steps=2,
            warm_up_epochs=2,
            distil_epochs=1,
            local_epochs=1,
            batch_size=16,
            views=dreams.get("views", 0),
            teacher=teacher,
        ),
        dreams=Dreams(**{"steps": 2, "batch": BATCH, **dreams}),
        aggregation=AggregationTable(value_bits=value_bits),
        rounds=2,
        seed=3,
        device=torch.device("cpu"),
    )


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


# -- CoDream ---------------------------------------------


def test_codream_gives_the_same_rows_again() -> None:
    torch.manual_seed(1)  # global random state must not matter
    rows = list(CoDream().run(digits()))
    torch.manual_seed(2)
    assert timeless(rows) == timeless(list(CoDream().run(digits())))
    other = list(CoDream().run(dataclasses.replace(digits(), seed=4)))
    assert other[-1].accuracies != rows[-1].accuracies


def test_metrics_begin_each_round_and_close_the_last() -> None:
    rows = list(CoDream().run(digits()))
    assert [row.round for row in rows] == [0, 1, 2]
    assert [row.secure_steps for row in rows] == [0, 4, 4 + 4 + 1]
    assert rows[0].bytes_up == rows[0].bytes_down == 0 < rows[1].bytes_up
    assert rows[2].bytes_up > 2 * rows[1].bytes_up, "the closing metrics are counted too"
    assert rows[0].server is None and all(row.server is not None for row in rows[1:])


@pytest.mark.parametrize("aggregation", [{"mode": "resilient"}, {"suite": "chacha20"}])
def test_how_sums_are_made_changes_costs_and_next_to_nothing_else(aggregation: dict[str, Any]) -> None:
    problem = dataclasses.replace(digits(), aggregation=AggregationTable(**aggregation))
    assert problem.sums.mode == aggregation.get("mode", "lockstep")
    rows = list(CoDream().run(problem))
    assert [row.secure_steps for row in rows] == [0, 4, 9]


def test_the_adaptive_term_changes_the_dreams_once_the_student_has_learnt() -> None:
    made = []
    for weight in (0.0, 5.0):
        problem = digits(adaptive_weight=weight)
        course = make_course(problem.federation("codream"))
        assert isinstance(course, CoDreamCourse)
        federation = DreamFederation(CoDream()._participants(problem), course, seed=3)
        federation.warm_up()
        federation.round()
        federation.round()
        made.append([dreams for dreams, _ in federation.batches])
    (first, second), (same, other) = made
    assert np.array_equal(first, same), "there is no student in the first round"
    assert np.abs(second - other).max() > 0.1


def test_what_a_comparison_shares_binds_no_algorithm_that_has_no_use_for_it() -> None:
    """Images as they are have no adaptive term, private clients tell no brightness, and a generator needs no start."""
    problem = digits(adaptive_weight=1.0, matched=True, start="strokes", views=2)
    noise = CoDream(kind="noise")._ablated(problem)
    assert (noise.dreams.steps, noise.dreams.adaptive_weight, noise.dreams.matched) == (0, 0.0, True)
    make_course(noise.federation("codream"))
    assert not PrivateCoDream(privacy=USUAL_PRIVACY)._ablated(problem).dreams.matched
    assert FAST.course(problem).settings.batch == problem.dreams.batch


# -- views ----------------------------------------------------------------


def test_views_cost_labels_and_no_images() -> None:
    plain, viewed = (list(CoDream().run(digits(views=views))) for views in (0, 3))
    assert [row.secure_steps for row in viewed] == [row.secure_steps for row in plain]
    labels = 3 * BATCH * 10 * 2.25  # bytes: a ring element has 16 bits and two more for three clients
    for way in ("bytes_up", "bytes_down"):
        more = (getattr(viewed[-1], way) - getattr(plain[-1], way)) / 2
        assert labels <= more < 1.1 * labels
    assert viewed[-1].accuracies != plain[-1].accuracies


# -- dreams taken at half-way ---------------------------------------------


def test_half_way_dreams_take_a_step_of_labels_more_each_round() -> None:
    plain, half = (list(CoDream().run(digits(half_way=half_way))) for half_way in (False, True))
    assert [row.secure_steps for row in plain] == [0, 4, 9]
    assert [row.secure_steps for row in half] == [0, 5, 11]
    labels = (BATCH * 10 + 10) * 2.25
    for way in ("bytes_up", "bytes_down"):
        more = (getattr(half[-1], way) - getattr(plain[-1], way)) / 2
        assert labels < more < 2.5 * labels, "sums go out, and no images"
    assert half[-1].accuracies != plain[-1].accuracies


@pytest.mark.parametrize(("kind", "steps"), [("independent", 3), ("noise", 2)])
def test_ablations_have_no_half_way(kind: Kind, steps: int) -> None:
    rows = list(CoDream(kind=kind).run(digits(half_way=True)))
    assert [row.secure_steps for row in rows] == [0, steps, 2 * steps + 1]


# -- what the clip cuts -----------------------------------------------------


def test_dreams_made_alone_may_move_as_far_as_those_made_together() -> None:
    """Two local steps of 0.1 stay below a clip of 0.25; ten of them at once do not, nor need they."""
    together = digits(steps=5, update_clip=0.25)
    alone = CoDream(kind="independent")._ablated(together)
    assert (alone.dreams.steps, alone.learning.local_steps, alone.dreams.update_clip) == (1, 10, 1.25)
    assert CoDream(kind="independent")._ablated(digits(update_clip=1e6)).dreams.update_clip == 1e6
    for kind in ("dreams", "independent"):
        said: list[str] = []
        with convergence_warnings_to(said.append):
            list(CoDream(kind=kind).run(dataclasses.replace(together, rounds=1)))
        assert not [text for text in said if "clipped" in text]


def test_updates_that_are_clipped_are_told_of() -> None:
    said: list[str] = []
    with convergence_warnings_to(said.append):
        list(CoDream().run(dataclasses.replace(digits(update_clip=0.05), rounds=1)))
    told = "updates of dreams were clipped in more than 1% of their coordinates; a larger [dreams] update_clip may help"
    assert said.count(told) == 2, "once for each update"


# -- CoDream-fast ---------------------------------------------


def test_fast_gives_the_same_rows_again_and_counts_its_steps() -> None:
    algorithm = dataclasses.replace(FAST, global_steps=2, adversarial_from=1)
    torch.manual_seed(1)  # global random state must not matter
    rows = list(algorithm.run(digits()))
    torch.manual_seed(2)
    assert timeless(rows) == timeless(list(algorithm.run(digits())))
    assert [row.round for row in rows] == [0, 1, 2]
    assert [row.secure_steps for row in rows] == [0, 1 + 2 * 3, 2 * (1 + 2 * 3) + 1]
    assert rows[0].server is None and all(0 <= row.server <= 1 for row in rows[1:] if row.server is not None)
    assert rows[0].bytes_up == 0 < rows[1].bytes_up < rows[2].bytes_up
    without = list(FAST.run(digits()))
    assert timeless(rows[:1]) == timeless(without[:1]) and rows[-1].accuracies != without[-1].accuracies


def test_fast_traffic_follows_the_generators_size_and_not_the_models() -> None:
    def sent(models: Sequence[str], width: int) -> tuple[float, float]:
        problem = dataclasses.replace(digits(models), rounds=1)
        row = list(dataclasses.replace(FAST, width=width).run(problem))[-1]
        return row.bytes_up, row.bytes_down

    small, large, wide = sent(["cnn2"] * 3, 4), sent(["resnet8"] * 3, 4), sent(["cnn2"] * 3, 16)
    parameters = [
        sum(weight.numel() for weight in digits([model] * 3).fresh_model(0).parameters())
        for model in ("cnn2", "resnet8")
    ]
    assert parameters[1] > 5 * parameters[0]
    assert large == small
    assert wide[0] > 2 * small[0] and wide[1] > 2 * small[1]


def test_secure_batch_is_the_plain_one_within_rounding() -> None:
    """One batch by hand: the mean of the clients' steps, evenly weighed, the dreams, and Reptile's step."""
    problem = dataclasses.replace(digits(("cnn2",) * 3, value_bits=24), rounds=1)
    algorithm = dataclasses.replace(FAST, batches=1)
    course, participants = algorithm.course(problem), algorithm.participants(problem)
    student = Student(problem.fresh_model(0), problem.learning, 0, problem.device)
    learners = [algorithm.learner(problem, course, participant, student) for participant in participants]
    asked: list[Task] = []
    compute = learners[0].compute

    def noted(task: Task, spec: Any) -> Any:
        asked.append(task)
        return compute(task, spec)

    learners[0].compute = noted  # type: ignore[method-assign]
    simulation = Simulation(course, learners, aggregation=problem.sums, seed=3)
    steps: list[StepFinished] = []
    found = simulation.run_epoch(steps.append)

    start = next(task.arrays for task in asked if task.name == GENERATOR)
    layout, generator = course.settings.layout, make_generator(problem.test.shape, FAST.noise, FAST.width)
    moved, weights = [], []
    for client in range(3):
        write_vector(generator, layout, start["generator"])
        rates = {"lr": FAST.lr, "noise_lr": FAST.noise_lr}
        seen = problem.shards[client].class_counts > 0
        noise = np.array(start["noise"])
        moved.append(
            adapt(generator, noise, problem.fresh_model(client), FAST.loss, steps=FAST.local_steps, seen=seen, **rates)
        )
        weights.append(read_vector(generator, layout))
    reached = np.mean(weights, axis=0)
    np.testing.assert_allclose(found["generators"][0], reached, atol=1e-5)
    np.testing.assert_allclose(found["noises"][0], np.mean(moved, axis=0), atol=1e-5)
    towards = np.float64(reached) - start["generator"]
    move, _ = adam(fresh_moments(towards.shape), towards, FAST.lr * FAST.local_steps, (0.5, 0.999))
    close = np.abs(found["meta"] - (start["generator"] + move)) < 1e-3
    assert np.mean(close) > 0.99  # where nothing moved, the sign is rounding's

    write_vector(generator, layout, found["generators"][0])
    dreams = generate(generator, np.array(found["noises"][0]))
    fresh = algorithm.participants(problem)  # as they were before they learnt
    shares = [participant.soft_labels(dreams) for participant in fresh]
    numerators = np.sum([share.numerators for share in shares], axis=0)
    denominators = np.sum([share.denominators for share in shares], axis=0)
    np.testing.assert_allclose(found["soft_labels"], numerators / denominators, atol=1e-2)
    assert [step.task for step in steps] == ["metrics", "generator", "logits"]


def test_registry_knows_it_with_options_and_refuses_wrong_ones() -> None:
    made = find("codream-fast", {"batches": 3, "student": "mlp"}).make()
    assert made == CoDreamFast(batches=3, student="mlp") and made.name == "codream-fast"
    assert not ALGORITHMS["codream-fast"].one_architecture
    for options in ({"batches": 0}, {"lr": -1.0}, {"bn_momentum": 1.0}, {"alpha_bn": -1.0}, {"steps": 3}):
        with pytest.raises(ConfigError, match="codream_fast"):
            find("codream-fast", options).make()


@pytest.mark.parametrize(("teacher", "moves"), [("warm-up", False), ("current", True)])
def test_the_generator_follows_the_teacher_that_labels(teacher: Teacher, moves: bool) -> None:
    problem = digits(teacher=teacher)
    algorithm = dataclasses.replace(FAST, bn_momentum=0.0)
    course, participant = algorithm.course(problem), algorithm.participants(problem)[0]
    student = Student(problem.fresh_model(0), problem.learning, 0, problem.device)
    client = algorithm.learner(problem, course, participant, student)
    participant.warm_up()
    task = course.task(course.start(bytes(32), 0, None), 1)
    before = client.compute(task, course.specs(3)[1])
    participant.acquire(np.zeros((BATCH, *problem.test.shape), np.float32), np.zeros((BATCH, 10), np.float32))
    after = client.compute(task, course.specs(3)[1])
    assert all(np.array_equal(before[name], after[name]) for name in before) is not moves
