"""The baselines of an experiment: each does what its paper says, on the same loop, through the same secure sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from codream_clients.data.datasets import load_digits_data
from codream_clients.learning.local_work import Batch, NoLinearHead, displacement, head, watched
from codream_clients.learning.settings import LearningSettings, Schedule
from codream_clients.learning.training import Descent, convergence_warnings_to
from codream_clients.models.layouts import layout_of
from codream_clients.models.zoo import build
from codream_clients.parameter_learner import (
    AveragingLearner,
    ContrastiveLearner,
    ControlledLearner,
    ProximalLearner,
    contrastive_loss,
)
from codream_protocols.course import Array, Arrays, Publication, Task
from codream_protocols.courses.codream import Dreams
from codream_protocols.courses.layouts import length_of, trained
from codream_protocols.courses.parameters import PARAMETERS, VARIATE, WEIGHTS
from codream_protocols.courses.parameters import FedAvg as AveragingCourse
from codream_protocols.specs import VectorSpec
from secure_codream.configuration.federation import AggregationTable
from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.algorithms import isolated, own_images
from secure_codream.experiments.algorithms.avgkd import AvgKD, averaged_targets, model_bytes
from secure_codream.experiments.algorithms.centralised import Centralised
from secure_codream.experiments.algorithms.fedavg import FedAvg
from secure_codream.experiments.algorithms.fedgen import (
    Draw,
    FedGen,
    GeneratingLearner,
    GeneratorSettings,
    diversity_loss,
    fresh_generator,
    train_generator,
    without_rounding,
)
from secure_codream.experiments.algorithms.fedprox import FedProx
from secure_codream.experiments.algorithms.isolated import Isolated
from secure_codream.experiments.algorithms.moon import Moon
from secure_codream.experiments.algorithms.own_images import train_round, warm_up
from secure_codream.experiments.algorithms.scaffold import Scaffold
from secure_codream.experiments.algorithms.secure_mean import MixedArchitectures, averaging_course, averaging_learners
from secure_codream.experiments.problem import Algorithm, Problem, Row
from secure_codream.simulation.in_process import Simulation

torch.set_num_threads(1)
SIZES = (40, 30, 20)
AVERAGING: list[Algorithm] = [FedAvg(), FedProx(), Scaffold(), Moon(), FedGen(settings=GeneratorSettings(steps=5))]
ALONE: list[Algorithm] = [Isolated(), Centralised(), AvgKD()]


def by_name(algorithm: Algorithm) -> str:
    return algorithm.name


def digits(
    models: Sequence[str] = ("cnn2",) * 3,
    *,
    balanced: bool = True,
    schedule: Schedule = "constant",
    rounds: int = 2,
    value_bits: int = 16,
) -> Problem:
    """Three clients with 40, 30 and 20 digits, of which the last knows five classes only."""
    train, test = load_digits_data(seed=0)
    few = np.flatnonzero(train.labels >= 5)[-SIZES[2] :]
    shards = (train.subset(np.arange(SIZES[0])), train.subset(np.arange(100, 100 + SIZES[1])), train.subset(few))
    return Problem(
        shards=shards,
        test=test.subset(np.arange(200)),
        models=tuple(models),
        learning=LearningSettings(
            warm_up_epochs=4, distil_epochs=2, local_epochs=2, batch_size=16, balanced=balanced, schedule=schedule
        ),
        dreams=Dreams(),
        aggregation=AggregationTable(value_bits=value_bits),
        rounds=rounds,
        seed=3,
        device=torch.device("cpu"),
    )


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


# -- all of them ---------------------------------------------


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "plain"])
@pytest.mark.parametrize("algorithm", AVERAGING + ALONE, ids=by_name)
def test_two_rounds_give_the_same_rows_again(algorithm: Algorithm, balanced: bool) -> None:
    problem = digits(balanced=balanced)
    torch.manual_seed(1)  # global random state must not matter
    rows = list(algorithm.run(problem))
    torch.manual_seed(2)
    assert timeless(rows) == timeless(list(algorithm.run(problem)))
    assert [row.round for row in rows] == [0, 1, 2]
    assert all(len(row.accuracies) == 3 and all(0 <= value <= 1 for value in row.accuracies) for row in rows)
    # Each round begins with the metrics, and the last one closes with them.
    assert [row.secure_steps for row in rows] == ([0, 2, 5] if algorithm in AVERAGING else [0, 0, 0])


@pytest.mark.parametrize("algorithm", AVERAGING, ids=by_name)
def test_all_clients_use_the_global_model(algorithm: Algorithm) -> None:
    before, *after = algorithm.run(digits())
    assert before.server is None and before.bytes_up == before.bytes_down == 0
    for row in after:
        assert set(row.accuracies) == {row.server}


def test_without_a_warm_up_the_first_row_is_of_the_initial_weights() -> None:
    problem = digits(rounds=1)
    problem = dataclasses.replace(problem, learning=dataclasses.replace(problem.learning, warm_up_epochs=0))
    first, last = FedAvg().run(problem)
    assert len(set(first.accuracies)) == 1 and 0 < first.accuracies[0] < last.accuracies[0]


@pytest.mark.parametrize("algorithm", AVERAGING, ids=by_name)
def test_parameters_of_mixed_architectures_are_not_averaged(algorithm: Algorithm) -> None:
    with pytest.raises(MixedArchitectures, match=f"{algorithm.name}: found models cnn2, cnn3, mlp; allowed: one"):
        next(iter(algorithm.run(digits(("cnn2", "cnn3", "mlp")))))


@pytest.mark.parametrize("algorithm", ALONE, ids=by_name)
def test_others_take_mixed_architectures(algorithm: Algorithm) -> None:
    rows = list(algorithm.run(digits(("cnn2", "cnn3", "mlp"))))
    assert rows[-1].server is None and len(set(rows[-1].accuracies)) > 1


def test_passes_over_local_data_are_a_codream_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, steps = digits(), 0

    def counting(train: Any) -> Any:
        def counted(*arguments: Any) -> int:
            nonlocal steps
            steps += train(*arguments)
            return 0

        return counted

    monkeypatch.setattr(own_images, "warm_up", counting(warm_up))
    monkeypatch.setattr(isolated, "train_round", counting(train_round))
    list(Isolated().run(problem))
    batches = sum(math.ceil(size / problem.learning.batch_size) for size in SIZES)
    assert steps == problem.learning.epochs_in_all(problem.rounds) * batches


# -- the secure mean ---------------------------------------------


class Remembering:
    """A learner that remembers what it was asked and what it answered."""

    def __init__(self, learner: AveragingLearner) -> None:
        self.learner = learner
        self.asked: list[Arrays] = []
        self.sent: list[Mapping[str, Array]] = []

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        values = self.learner.compute(task, spec)
        if task.name == PARAMETERS:
            self.asked.append(task.arrays)
            self.sent.append(values)
        return values

    def learn(self, number: int, publication: Publication) -> None:
        self.learner.learn(number, publication)


def remembered(
    problem: Problem, course: AveragingCourse, kind: Any, **options: Any
) -> tuple[list[Publication], list[Remembering]]:
    """Run all rounds: what was published after each, and the learners."""
    learners = [Remembering(learner) for learner in averaging_learners(problem, course, kind, **options)]
    simulation = Simulation(course, learners, aggregation=problem.sums, seed=problem.seed)
    return [simulation.run_epoch() for _ in range(problem.rounds)], learners


def plain_mean(learners: Sequence[Remembering], round: int, name: str) -> Array:
    """The weighted mean of what the clients sent, in units of the clips."""
    total = np.sum([np.float64(learner.sent[round][name]) for learner in learners], axis=0)
    return np.asarray(total / np.sum([learner.sent[round]["weight"] for learner in learners]))


def rounding(value_bits: int) -> float:
    """Bound of the mean's rounding, in units of the clips: a grid step for each client, and for the sum of weights."""
    return 1.01 * 2 / ((1 << value_bits) - 1) * len(SIZES) * max(SIZES) / sum(SIZES)


@pytest.mark.parametrize("bits", [16, 24])
def test_secure_fedavg_is_the_plain_average_within_rounding(bits: int) -> None:
    problem = digits(rounds=3, value_bits=bits)
    course = averaging_course(problem, "fedavg")
    published, learners = remembered(problem, course, AveragingLearner)
    for round, publication in enumerate(published):
        before = np.float64(learners[0].asked[round][WEIGHTS])
        assert all(np.array_equal(learner.asked[round][WEIGHTS], before) for learner in learners)
        expected = plain_mean(learners, round, WEIGHTS) * course._clips[WEIGHTS]
        error = np.abs(publication[WEIGHTS] - before - expected) / course._clips[WEIGHTS]
        single = np.abs(before) * 2**-23 + 1e-7  # states hold single precision
        assert (error <= rounding(bits) + 1e-4 * np.abs(expected) + single).all()
        assert np.abs(expected).max() > 1e-3, "the clients have learnt something"
        assert all(learner.sent[round]["clipped"][0] < 0.01 for learner in learners)
    with pytest.raises(AssertionError):  # control: a coarse ring is not within this bound
        coarse = digits(rounds=1, value_bits=4)
        (publication,), learners = remembered(coarse, averaging_course(coarse, "fedavg"), AveragingLearner)
        moved = (publication[WEIGHTS] - learners[0].asked[0][WEIGHTS]) / course._clips[WEIGHTS]
        assert (np.abs(moved - plain_mean(learners, 0, WEIGHTS)) <= rounding(16) + 1e-4).all()


def test_secure_fedavg_reaches_the_plain_averages_accuracy() -> None:
    """Another ring is another charter, and so another start: by chance that moves it by some images of a hundred."""
    fine, default, coarse = (list(FedAvg().run(digits(value_bits=bits)))[-1].server or 0.0 for bits in (24, 16, 4))
    assert abs(fine - default) < 0.15 and coarse < default - 0.4  # control: too coarse to learn by


def test_weights_are_the_numbers_of_images() -> None:
    problem = digits(rounds=1)
    _, learners = remembered(problem, averaging_course(problem, "fedavg"), AveragingLearner)
    assert [float(learner.sent[0]["weight"][0]) for learner in learners] == [size / max(SIZES) for size in SIZES]


def test_two_clients_cannot_be_averaged_safely() -> None:
    problem = digits()
    pair = dataclasses.replace(problem, shards=problem.shards[:2], models=problem.models[:2])
    with pytest.raises(ConfigError, match="found 2 clients; 3 or more are needed"):
        list(FedAvg().run(pair))


def test_bytes_grow_with_the_model_and_scaffold_sends_twice() -> None:
    sent, sizes = {}, {}
    for model in ("cnn2", "resnet8"):
        problem = digits((model,) * 3, rounds=1)
        sizes[model] = length_of(layout_of(problem.fresh_model(0)))
        sent[model] = list(FedAvg().run(problem))[-1]
    more = sizes["resnet8"] - sizes["cnn2"]
    assert sizes["resnet8"] > 5 * sizes["cnn2"]
    for way in ("bytes_up", "bytes_down"):  # a ring element has 16 bits and two more for three clients
        grown = getattr(sent["resnet8"], way) - getattr(sent["cnn2"], way)
        assert grown == pytest.approx(more * 18 / 8, rel=0.01)
    twice = list(Scaffold().run(digits(("resnet8",) * 3, rounds=1)))[-1]
    parameters = length_of(trained(layout_of(digits(("resnet8",) * 3).fresh_model(0))))
    assert twice.bytes_up - sent["resnet8"].bytes_up == pytest.approx(parameters * 18 / 8, rel=0.01)


@pytest.mark.parametrize(("clip", "told"), [(1.0, False), (1e-3, True)])
@pytest.mark.parametrize("algorithm", [FedAvg, FedProx, Scaffold, Moon], ids=lambda algorithm: str(algorithm.name))
def test_clips_that_are_too_small_are_told_of(algorithm: Any, clip: float, told: bool) -> None:
    said: list[str] = []
    with convergence_warnings_to(said.append):
        list(algorithm(clip=clip).run(digits(rounds=1)))
    assert any("were clipped in" in text for text in said) is told


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "moon", "fedgen"])
def test_none_is_fedavg_under_another_name(name: str) -> None:
    problem, settings = digits(), GeneratorSettings(steps=5)

    def learner(name: str) -> tuple[Any, AveragingLearner]:
        if name == "fedgen":
            course: AveragingCourse = FedGen(settings=settings).course(problem)
            made: Any = {"generator": lambda: fresh_generator(problem, settings), "generating": settings}
            return course, averaging_learners(problem, course, GeneratingLearner, **made)[0]
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {
            "fedavg": (AveragingLearner, {}),
            "fedprox": (ProximalLearner, {"mu": 0.1}),
            "scaffold": (ControlledLearner, {}),
            "moon": (ContrastiveLearner, {"mu": 0.1, "temperature": 0.5}),
        }
        kind, options = kinds[name]
        course = averaging_course(problem, name)
        return course, averaging_learners(problem, course, kind, **options)[0]

    changes = []
    for which in ("fedavg", name):
        course, client = learner(which)
        state, found = course.start(bytes(32), 0, None), []
        spec = course.specs(2)[1]
        for _ in range(2):
            found.append(client.compute(Task(PARAMETERS, state), spec)[WEIGHTS])
        changes.append(found)
    first, second = zip(*changes, strict=True)
    assert np.allclose(first[0], first[1], atol=1e-4) == (name != "fedprox"), (
        "all but the spring set in with the second round"
    )
    assert np.abs(second[0] - second[1]).max() > 1e-3


# -- FedProx ---------------------------------------------


def test_fedprox_without_a_spring_is_fedavg() -> None:
    assert timeless(list(FedProx(mu=0.0).run(digits()))) == timeless(list(FedAvg().run(digits())))


def test_fedprox_stays_nearer_to_the_global_model() -> None:
    problem, moved = digits(rounds=1), []
    for mu in (0.0, 1.0, 10.0):
        course = averaging_course(problem, "fedprox")
        _, learners = remembered(problem, course, ProximalLearner, mu=mu)
        change = learners[0].sent[0][WEIGHTS]
        names = {name for name, _ in trained(course.settings.layout)}
        parts = [np.full(math.prod(shape), name in names) for name, shape in course.settings.layout]
        moved.append(float(np.square(change[np.concatenate(parts)]).sum()))
    assert moved[0] > moved[1] > moved[2] > 0


# -- SCAFFOLD ---------------------------------------------


def test_the_common_control_variate_is_the_mean_of_the_clients() -> None:
    problem = digits(rounds=3)
    published, learners = remembered(problem, averaging_course(problem, "scaffold"), ControlledLearner)
    weights = np.array(SIZES, dtype=np.float64)
    allowed = 0.0
    for round, publication in enumerate(published):
        own = [np.zeros_like(publication[VARIATE], dtype=np.float64) for _ in learners]
        for earlier in range(round + 1):  # the sum of its changes is a client's own variate
            for variate, learner in zip(own, learners, strict=True):
                variate += learner.sent[earlier][VARIATE] / learner.sent[earlier]["weight"] * 4.0  # the usual clip
        expected = np.average(np.stack(own), axis=0, weights=weights)
        allowed += rounding(16) * 4.0
        assert (np.abs(publication[VARIATE] - expected) <= allowed + 1e-3 * np.abs(expected)).all()
        assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_displacement_is_what_the_optimiser_does_under_a_constant_gradient(
    steps: int, momentum: float, schedule: Schedule
) -> None:
    place = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(place.weight)
    descent = Descent(place, lr=0.1, momentum=momentum, weight_decay=0.0, schedule=schedule, steps=steps)
    for _ in range(steps):
        descent.backward(place.weight.sum())
        descent.step()
    assert displacement(steps, momentum, schedule) == pytest.approx(-float(place.weight.detach()) / 0.1, rel=1e-5)


# -- MOON ---------------------------------------------


def test_moons_loss_by_hand() -> None:
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    positive = torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    negative = torch.tensor([[-3.0, -4.0], [5.0, 0.0]])
    # cosines: 24/25 and -1; 0 and 1
    first = -math.log(math.exp(0.96 / 0.5) / (math.exp(0.96 / 0.5) + math.exp(-1 / 0.5)))
    second = -math.log(math.exp(0.0) / (math.exp(0.0) + math.exp(1 / 0.5)))
    assert float(contrastive_loss(z, positive, negative, 0.5)) == pytest.approx((first + second) / 2, rel=1e-5)
    assert float(contrastive_loss(z, negative, negative, 0.5)) == pytest.approx(math.log(2), rel=1e-6)


def test_moon_is_fedavg_in_the_first_round_and_without_weight() -> None:
    average, contrast = list(FedAvg().run(digits())), list(Moon(mu=5.0).run(digits()))
    assert timeless(average)[:2] == timeless(contrast)[:2]
    assert timeless(list(Moon(mu=0.0).run(digits()))) == timeless(average)


@pytest.mark.parametrize("name", ["cnn2", "resnet8", "mlp"])
def test_the_representation_is_the_input_of_the_head(name: str) -> None:
    model = build(name, channels=1, size=8, classes=10, seed=0).eval()
    images = torch.randn(5, 1, 8, 8)
    with watched(model, 10) as representation:
        logits = model(images)
        assert torch.allclose(head(model, 10)(representation()), logits, atol=1e-6)
    with pytest.raises(NoLinearHead, match="10 outputs; allowed: one that gives 7"):
        head(model, 7)
    with pytest.raises(NoLinearHead, match="no linear layer"):
        head(nn.Conv2d(1, 1, 1), 10)


# -- FedGen ---------------------------------------------


def test_the_generator_learns_what_the_head_recognises() -> None:
    problem, settings = digits(), GeneratorSettings(steps=150)
    model = problem.fresh_model(0)
    train_round(model, problem.shards[0], problem, 0, 1)
    classifier, generator = head(model, 10), fresh_generator(problem, settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    even = np.full(10, 0.1, dtype=np.float32)

    def recognised() -> tuple[float, float]:
        noise, labels = Draw(even, settings.noise, 9, problem.device)(500)
        with torch.no_grad():
            logits = classifier(generator(noise, labels))
        return float((logits.argmax(dim=1) == labels).float().mean()), float(functional.cross_entropy(logits, labels))

    (_, worse), draw = recognised(), Draw(even, settings.noise, 1, problem.device)
    train_generator(generator, classifier, np.zeros(10, dtype=np.float32), draw, settings)
    assert recognised()[0] < 0.5, "control: a client without a voice teaches it no label"
    train_generator(generator, classifier, np.ones(10, dtype=np.float32), draw, settings)
    share, loss = recognised()
    assert share > 0.95 and loss < worse / 3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_diversity_by_hand_and_where_all_are_alike() -> None:
    noise = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    made = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    # two of four pairs differ: |z - z'|^2 mean 2, |r - r'| mean 1
    assert float(diversity_loss(noise, made)) == pytest.approx(math.exp(-1.0), rel=1e-5)
    assert float(diversity_loss(noise, made[:1].repeat(2, 1))) == pytest.approx(1.0)


def test_pooled_label_shares_lose_the_roundings_noise() -> None:
    assert np.allclose(without_rounding(np.array([0.5, 0.4999, 2e-5, -1e-5])), [0.5, 0.5, 0, 0], atol=1e-4)
    assert without_rounding(np.array([0.9, 0.1])).sum() == pytest.approx(1)


def test_fedgen_without_weight_is_fedavg_with_more_bytes() -> None:
    """Their starts differ, as their charters do; from one start they take the same steps."""
    problem, settings = digits(), GeneratorSettings(steps=2, alpha=0.0)
    mute, plain = FedGen(settings=settings).course(problem), averaging_course(problem, "fedavg")
    made: Any = {"generator": lambda: fresh_generator(problem, settings), "generating": settings}
    learners = (
        averaging_learners(problem, mute, GeneratingLearner, **made)[0],
        averaging_learners(problem, plain, AveragingLearner)[0],
    )
    state = mute.start(bytes(32), 0, None)
    for _ in range(2):
        first, second = (
            learner.compute(Task(PARAMETERS, state), course.specs(2)[1])[WEIGHTS]
            for learner, course in zip(learners, (mute, plain), strict=True)
        )
        assert np.allclose(first, second, atol=1e-6)
    average, generating = list(FedAvg().run(problem))[-1], list(FedGen(settings=settings).run(problem))[-1]
    assert generating.bytes_up > average.bytes_up and generating.bytes_down > average.bytes_down


def test_fedgens_pooled_label_shares_are_the_clients_mean() -> None:
    problem, settings = digits(), GeneratorSettings(steps=1)
    made: Any = {"generator": lambda: fresh_generator(problem, settings), "generating": settings}
    published, _ = remembered(problem, FedGen(settings=settings).course(problem), GeneratingLearner, **made)
    expected = np.sum([shard.class_counts for shard in problem.shards], axis=0) / sum(SIZES)
    for publication in published:
        np.testing.assert_allclose(publication["labels"], expected, atol=2e-4)


# -- AvgKD ---------------------------------------------


def test_avgkd_targets_are_the_mean_of_label_and_opinions() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([2, 0])
    opinions = torch.randn(2, 4, 3).softmax(dim=2)  # two others, four images
    chosen = torch.tensor([3, 1])
    plain = functional.cross_entropy(logits, labels)
    batch = Batch(chosen, torch.zeros(2, 1, 8, 8), logits, plain)
    targets = (functional.one_hot(labels, 3) + opinions[0][chosen] + opinions[1][chosen]) / 3
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(averaged_targets(opinions)(batch)) == pytest.approx(float(expected), rel=1e-5)


def test_avgkd_counts_whole_models() -> None:
    problem = digits(("cnn2", "cnn3", "mlp"))
    sizes = [model_bytes(problem.fresh_model(client)) for client in range(3)]
    last = list(AvgKD().run(problem))[-1]
    assert last.bytes_up == pytest.approx(2 * sum(sizes) / 3)
    assert last.bytes_down == pytest.approx(2 * 2 * sum(sizes) / 3)
    assert last.secure_steps == 0
