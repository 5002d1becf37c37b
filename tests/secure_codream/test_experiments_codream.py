"""CoDream and CoDream-fast as algorithms of an experiment, through the secure sums of a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.datasets import load_digits_data
from codream_clients.generators import BETAS, adapt, fresh_image_generator, generate
from codream_clients.participant import LearningSettings, Teacher
from codream_server.optimisers import Adam
from secure_codream.config import AggregationTable, ConfigError, DreamsTable
from secure_codream.experiments.codream import CoDream, Kind
from secure_codream.experiments.codream_fast import GENERATOR, NOISE, CoDreamFast, FastClient, FastServer
from secure_codream.experiments.parameters import Layout
from secure_codream.experiments.problem import Problem, Row
from secure_codream.experiments.registry import ALGORITHMS, find

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
        dreams=DreamsTable(**{"steps": 2, "batch": BATCH, **dreams}),
        aggregation=AggregationTable(value_bits=value_bits),
        rounds=2,
        seed=3,
        device=torch.device("cpu"),
    )


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


# -- views ----------------------------------------------------------------


def test_views_cost_labels_and_no_images() -> None:
    plain, viewed = (list(CoDream().run(digits(views=views))) for views in (0, 3))
    assert [row.secure_steps for row in viewed] == [row.secure_steps for row in plain]
    labels = 3 * BATCH * 10
    assert 4 * labels <= (viewed[-1].bytes_down - plain[-1].bytes_down) / 2 < 4.4 * labels
    assert 2 * labels <= (viewed[-1].bytes_up - plain[-1].bytes_up) / 2 < 2.8 * labels
    assert viewed[-1].accuracies != plain[-1].accuracies


# -- dreams taken at half-way ---------------------------------------------


def test_half_way_dreams_take_a_step_and_downlink_more_each_round() -> None:
    plain, half = (list(CoDream().run(digits(half_way=half_way))) for half_way in (False, True))
    assert [row.secure_steps for row in plain] == [0, 4, 8]
    assert [row.secure_steps for row in half] == [0, 5, 10]
    images = 4 * BATCH * 64  # bytes of one batch: once more to be labelled, once more in the end
    labels = 4 * BATCH * 10
    more = (half[-1].bytes_down - plain[-1].bytes_down) / 2
    assert 2 * images + labels < more < 2.2 * (2 * images + labels)
    assert half[-1].accuracies != plain[-1].accuracies


@pytest.mark.parametrize(("kind", "steps"), [("independent", 3), ("noise", 2)])
def test_ablations_have_no_half_way(kind: Kind, steps: int) -> None:
    rows = list(CoDream(kind=kind).run(digits(half_way=True)))
    assert [row.secure_steps for row in rows] == [0, steps, 2 * steps]


def test_distadam_is_adam_under_the_authors_name() -> None:
    rows = []
    for optimiser in ("adam", "distadam"):
        problem = digits(way="gradient", optimiser=optimiser, server_lr=0.05)
        learning = dataclasses.replace(problem.learning, way="gradient")
        rows.append(timeless(list(CoDream().run(dataclasses.replace(problem, learning=learning)))))
    assert rows[0] == rows[1]


# -- CoDream-fast ---------------------------------------------


def test_fast_gives_the_same_rows_again_and_counts_its_steps() -> None:
    algorithm = dataclasses.replace(FAST, global_steps=2, adversarial_from=1)
    torch.manual_seed(1)  # global random state must not matter
    rows = list(algorithm.run(digits()))
    torch.manual_seed(2)
    assert timeless(rows) == timeless(list(algorithm.run(digits())))
    assert [row.round for row in rows] == [0, 1, 2]
    assert [row.secure_steps for row in rows] == [0, 2 * 3 + 1, 2 * (2 * 3 + 1)]
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
    problem = digits(value_bits=24)
    clients = [FastClient(FAST, problem, number, problem.fresh_model(0)) for number in range(3)]
    server = FastServer(dataclasses.replace(FAST, batches=1), problem, clients)
    noise = np.random.default_rng([problem.seed, 0, 0]).standard_normal((BATCH, FAST.noise), dtype=np.float32)
    generator = fresh_image_generator(FAST.noise, problem.test.shape, FAST.width, problem.seed)
    layout = Layout.of_parameters(generator)
    start, moved, weights = layout.read(generator), [], []
    for client in range(3):
        layout.write(generator, start)
        rates = {"lr": FAST.lr, "noise_lr": FAST.noise_lr}
        seen = problem.shards[client].class_counts > 0
        moved.append(
            adapt(generator, noise, problem.fresh_model(client), FAST.loss, steps=FAST.local_steps, seen=seen, **rates)
        )
        weights.append(layout.read(generator))
    reached = np.mean(weights, axis=0)
    layout.write(generator, reached)
    dreams, soft_labels = server.round()
    np.testing.assert_allclose(dreams, generate(generator, np.mean(moved, axis=0)), atol=2e-3)
    assert soft_labels.shape == (BATCH, 10) and np.isfinite(soft_labels).all()
    reptile = Adam(FAST.lr * FAST.local_steps, direction=1.0, betas=BETAS)
    expected = reptile.step(start, (reached - start).astype(np.float32))
    assert np.mean(np.abs(server._meta - expected) < 1e-3) > 0.99  # where nothing moved, the sign is rounding's


def test_soft_labels_are_the_class_aware_mean() -> None:
    problem = digits(value_bits=24)
    clients = [FastClient(FAST, problem, number, problem.fresh_model(0)) for number in range(3)]
    server = FastServer(FAST, problem, clients)
    dreams, soft_labels = server._dream(0)
    shares = [client.label([dreams]) for client in clients]
    numerators = np.sum([share["numerators"] for share in shares], axis=0).reshape(BATCH, 10)
    denominators = np.sum([share["denominators"] for share in shares], axis=0)
    np.testing.assert_allclose(soft_labels, numerators / denominators, atol=1e-2)


def test_a_clients_change_is_that_of_its_own_steps() -> None:
    problem = digits()
    client = FastClient(FAST, problem, 1, problem.fresh_model(0))
    generator = fresh_image_generator(FAST.noise, problem.test.shape, FAST.width, 9)
    weights = Layout.of_parameters(generator).read(generator)
    noise = np.random.default_rng(1).standard_normal((BATCH, FAST.noise), dtype=np.float32)
    change = client.shape([noise, weights])
    assert change[NOISE].shape == (BATCH * FAST.noise,) and change[GENERATOR].shape == weights.shape
    reach = 2 * FAST.local_steps
    assert 0 < np.abs(change[NOISE]).max() < reach * FAST.noise_lr
    assert 0 < np.abs(change[GENERATOR]).max() < reach * FAST.lr


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
    client = FastClient(dataclasses.replace(FAST, bn_momentum=0.0), problem, 0, problem.fresh_model(0))
    client.warm_up()
    generator = fresh_image_generator(FAST.noise, problem.test.shape, FAST.width, problem.seed)
    weights = Layout.of_parameters(generator).read(generator)
    noise = np.random.default_rng(0).standard_normal((BATCH, FAST.noise)).astype(np.float32)
    before = client.shape([noise, weights])
    client.learn([generate(generator, noise), np.zeros((BATCH, 10), dtype=np.float32)])
    after = client.shape([noise, weights])
    assert all(np.array_equal(before[name], after[name]) for name in before) is not moves
