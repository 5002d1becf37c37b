"""The baselines of an experiment: each does what its paper says, on the same loop, through the same secure sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from codream_clients.datasets import Augment, load_digits_data
from codream_clients.models import build
from codream_clients.participant import LearningSettings
from codream_clients.references import reference_epochs
from codream_clients.training import Schedule, scheduled, train_local
from codream_protocols.errors import UnsafePlan, VectorRefused
from secure_codream.config import AggregationTable, DreamsTable
from secure_codream.experiments import isolated
from secure_codream.experiments.avgkd import AvgKD, averaged_targets, model_bytes
from secure_codream.experiments.centralised import Centralised
from secure_codream.experiments.fedavg import MODEL, AveragingClient, FedAvg
from secure_codream.experiments.fedgen import (
    Draw,
    FedGen,
    GeneratingClient,
    GeneratorSettings,
    diversity_loss,
    fresh_generator,
    train_generator,
    without_rounding,
)
from secure_codream.experiments.fedprox import FedProx, ProximalClient
from secure_codream.experiments.isolated import Isolated
from secure_codream.experiments.local_work import (
    OWN_DATA,
    Batch,
    displacement,
    stage_seed,
    train_round,
    warm_up,
)
from secure_codream.experiments.moon import ContrastiveClient, Moon, contrastive_loss
from secure_codream.experiments.parameters import (
    PARAMETERS,
    Layout,
    LayoutError,
    MixedArchitectures,
    ParameterLearner,
    SecureMean,
    Work,
    peaks,
)
from secure_codream.experiments.problem import Algorithm, Problem, Row
from secure_codream.experiments.representations import NoLinearHead, head, watched
from secure_codream.experiments.scaffold import CONTROLS, ControlledClient, Scaffold

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
        dreams=DreamsTable(),
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
    assert [row.secure_steps for row in rows] == ([0, 1, 2] if algorithm in AVERAGING else [0, 0, 0])


@pytest.mark.parametrize("algorithm", AVERAGING, ids=by_name)
def test_all_clients_use_the_global_model(algorithm: Algorithm) -> None:
    before, *after = algorithm.run(digits())
    assert before.server is None and before.bytes_up == before.bytes_down == 0
    for row in after:
        assert set(row.accuracies) == {row.server}


@pytest.mark.parametrize("algorithm", AVERAGING, ids=by_name)
def test_parameters_of_mixed_architectures_are_not_averaged(algorithm: Algorithm) -> None:
    with pytest.raises(MixedArchitectures, match=f"{algorithm.name}: found models cnn2, cnn3, mlp; allowed: one"):
        next(iter(algorithm.run(digits(("cnn2", "cnn3", "mlp")))))


@pytest.mark.parametrize("algorithm", ALONE, ids=by_name)
def test_others_take_mixed_architectures(algorithm: Algorithm) -> None:
    rows = list(algorithm.run(digits(("cnn2", "cnn3", "mlp"))))
    assert rows[-1].server is None and len(set(rows[-1].accuracies)) > 1


@pytest.mark.parametrize("augment", ["none", "shift"])
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "plain"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_without_an_objective_the_loop_is_train_local(balanced: bool, augment: Augment, schedule: Schedule) -> None:
    problem = digits(balanced=balanced, schedule=schedule)
    settings, shard = problem.learning, dataclasses.replace(problem.shards[2], augment=augment)
    ours, reference = problem.fresh_model(2), problem.fresh_model(2)
    train_round(ours, shard, problem, 2, 5)
    train_local(
        reference,
        shard,
        epochs=settings.distil_epochs + settings.local_epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        balanced=balanced,
        seed=stage_seed(problem, 2, 5, OWN_DATA),
        device=problem.device,
        schedule=schedule,
    )
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_passes_over_local_data_are_a_codream_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, steps = digits(), 0

    def counting(train: Any) -> Any:
        def counted(*arguments: Any) -> int:
            nonlocal steps
            steps += train(*arguments)
            return 0

        return counted

    monkeypatch.setattr(isolated, "warm_up", counting(warm_up))
    monkeypatch.setattr(isolated, "train_round", counting(train_round))
    list(Isolated().run(problem))
    batches = sum(math.ceil(size / problem.learning.batch_size) for size in SIZES)
    assert steps == reference_epochs(problem.learning, problem.rounds) * batches


# -- parameters as vectors ---------------------------------------------


@pytest.mark.parametrize("model", ["cnn2", "resnet8", "mlp"])
def test_a_layout_writes_what_it_has_read(model: str) -> None:
    first, second = (build(model, channels=1, size=8, classes=10, seed=seed) for seed in (1, 2))
    first(torch.randn(4, 1, 8, 8))  # moves the running statistics
    layout = Layout.of_state(first)
    layout.write(second, layout.read(first))
    for name, tensor in first.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(second.state_dict()[name], tensor)
        else:
            assert int(tensor) == 1 and int(second.state_dict()[name]) == 0, "integer buffers stay"
    assert layout.length == sum(tensor.numel() for tensor in first.state_dict().values() if tensor.is_floating_point())
    with pytest.raises(LayoutError, match="allowed"):
        layout.write(second, np.zeros(3, dtype=np.float32))


def test_a_running_variance_never_becomes_negative() -> None:
    model = build("cnn2", channels=1, size=8, classes=10, seed=0)
    layout = Layout.of_state(model)
    layout.write(model, np.full(layout.length, -0.001))
    assert all((layer.running_var >= 0).all() for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    assert float(next(model.parameters()).detach().max()) < 0


# -- the secure mean ---------------------------------------------


def plain_mean(problem: Problem, changes: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    weights = np.array([len(shard) for shard in problem.shards], dtype=np.float64)
    return np.average(np.stack(changes).astype(np.float64), axis=0, weights=weights)


def grid(layout: Layout, scales: np.ndarray[Any, Any], value_bits: int) -> np.ndarray[Any, Any]:
    """Bound of the mean's rounding: one grid step for each client, and the same for the sum of the weights."""
    step = 2 / (2**value_bits - 1) * len(SIZES) * max(SIZES) / sum(SIZES)
    return 1.01 * step * np.repeat(scales, layout.sizes)


def test_secure_fedavg_is_the_plain_average_within_rounding() -> None:
    problem = digits(rounds=3)
    secure, plain = ([AveragingClient(problem, client) for client in range(3)] for _ in range(2))
    for client in secure + plain:
        client.warm_up()
    layout = secure[0].layout
    mean = SecureMean(problem, {MODEL: layout}, [client.work for client in secure])
    state, largest = layout.read(problem.fresh_model(0)), []
    for _ in range(problem.rounds):
        scales = mean.scales
        changes = [np.asarray(client.work([state])[MODEL]) for client in plain]
        expected, found = plain_mean(problem, changes), mean.exchange([state])[MODEL]
        error = np.abs(found - expected)
        # The weights' sum is rounded too: a relative error on top.
        assert (error <= grid(layout, scales, 16) + 1e-4 * np.abs(expected)).all()
        assert max(peaks(layout, change).max() for change in changes) > 1e-3, "the clients have learnt something"
        largest.append(error.max())
        state = (state + expected).astype(np.float32)
    assert largest[1] < largest[0] / 4, "scales follow the changes"
    with pytest.raises(AssertionError):  # control: a coarse ring is not within this bound
        coarse = digits(value_bits=4)
        clients = [AveragingClient(coarse, client) for client in range(3)]
        changes = [np.asarray(AveragingClient(coarse, client).work([state])[MODEL]) for client in range(3)]
        found = SecureMean(coarse, {MODEL: layout}, [client.work for client in clients]).exchange([state])[MODEL]
        assert (np.abs(found - plain_mean(coarse, changes)) <= grid(layout, mean.scales, 16)).all()


def test_secure_fedavg_reaches_the_plain_averages_accuracy() -> None:
    fine, default = (list(FedAvg().run(digits(value_bits=bits)))[-1] for bits in (24, 16))
    assert fine.server is not None and default.server is not None
    assert abs(fine.server - default.server) <= 0.01


def test_a_change_beyond_the_scale_widens_it_at_once() -> None:
    problem, layout = digits(), Layout(("small", "large"), ((2,), (2,)), (1.0, 1.0))
    change = np.array([0.001, -0.001, 5.0, -5.0], dtype=np.float32)
    mean = SecureMean(problem, {"both": layout}, [lambda public: {"both": change}] * 3)
    first = mean.exchange([])["both"]
    assert np.abs(first[2:]).max() < 5, "clipped"
    for _ in range(3):
        narrow, wide = mean.scales
        last = mean.exchange([])["both"]
    assert np.allclose(last, change, rtol=1e-3)
    assert narrow < 0.01 and 5 < wide < 50
    assert mean.secure_steps == 4


def test_weights_are_the_numbers_of_images() -> None:
    problem, layout = digits(), Layout.of_vector("own", 3, 1.0)
    units = np.eye(3, dtype=np.float32)
    mean = SecureMean(problem, {"own": layout}, [lambda public, row=row: {"own": row} for row in units])
    assert np.allclose(mean.exchange([])["own"], np.array(SIZES) / sum(SIZES), atol=1e-3)


def test_a_learner_refuses_what_it_does_not_know() -> None:
    learner = ParameterLearner({"own": Layout.of_vector("own", 2, 1.0)}, lambda public: {"own": np.zeros(2)}, 1.0)
    good = np.ones(1, dtype=np.float32)
    assert set(learner.compute(PARAMETERS, [good], [1.0] * 3)) == {"own", "peaks", "weight"}
    for task, arrays in [("logits", [good]), (PARAMETERS, []), (PARAMETERS, [-good]), (PARAMETERS, [np.ones(2)])]:
        with pytest.raises(VectorRefused):
            learner.compute(task, arrays, [1.0] * 3)


def test_two_clients_cannot_be_averaged_safely() -> None:
    problem = digits()
    pair = dataclasses.replace(problem, shards=problem.shards[:2], models=problem.models[:2])
    with pytest.raises(UnsafePlan, match="found"):
        list(FedAvg().run(pair))


def test_bytes_grow_with_the_model_and_scaffold_sends_twice() -> None:
    sent, sizes = {}, {}
    for model in ("cnn2", "resnet8"):
        problem = digits((model,) * 3, rounds=1)
        sizes[model] = Layout.of_state(problem.fresh_model(0)).length
        sent[model] = list(FedAvg().run(problem))[-1]
    larger = sizes["resnet8"] / sizes["cnn2"]
    assert larger > 5
    for way in ("bytes_up", "bytes_down"):
        assert getattr(sent["resnet8"], way) / getattr(sent["cnn2"], way) == pytest.approx(larger, rel=0.25)
    twice = list(Scaffold().run(digits(("resnet8",) * 3, rounds=1)))[-1]
    assert twice.bytes_up / sent["resnet8"].bytes_up == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "moon", "fedgen"])
def test_none_is_fedavg_under_another_name(name: str) -> None:
    problem, settings = digits(), GeneratorSettings(steps=5)
    plain, generator = AveragingClient(problem, 0), fresh_generator(problem, settings)
    start, parameters = plain.layout.read(plain.model), Layout.of_parameters(plain.model).length
    even = np.full(10, 0.1, dtype=np.float32)
    clients: dict[str, tuple[Work, list[np.ndarray[Any, Any]]]] = {
        "fedprox": (ProximalClient(problem, 0, 0.1).work, []),
        "scaffold": (ControlledClient(problem, 0).work, [np.zeros(parameters, dtype=np.float32)]),
        "moon": (ContrastiveClient(problem, 0, 0.1, 0.5).work, []),
        "fedgen": (GeneratingClient(problem, 0, settings).work, [Layout.of_state(generator).read(generator), even]),
    }
    work, more = clients[name]
    first, second = ((plain.work([start])[MODEL], work([start, *more])[MODEL]) for _ in range(2))
    assert np.allclose(*first, atol=1e-4) == (name != "fedprox"), "all but the spring set in with the second round"
    assert np.abs(second[0] - second[1]).max() > 1e-3


# -- FedProx ---------------------------------------------


def test_fedprox_without_a_spring_is_fedavg() -> None:
    assert timeless(list(FedProx(mu=0.0).run(digits()))) == timeless(list(FedAvg().run(digits())))


def test_fedprox_stays_nearer_to_the_global_model() -> None:
    problem, moved = digits(), []
    for mu in (0.0, 1.0, 10.0):
        client = ProximalClient(problem, 0, mu)
        change = client.work([client.layout.read(client.model)])[MODEL]
        trained = [name in dict(client.model.named_parameters()) for name in client.layout.names]
        moved.append(float(np.square(change[np.repeat(trained, client.layout.sizes)]).sum()))
    assert moved[0] > moved[1] > moved[2] > 0


# -- SCAFFOLD ---------------------------------------------


def test_the_servers_control_variate_is_the_mean_of_the_clients() -> None:
    problem = digits(rounds=3)
    clients = [ControlledClient(problem, client) for client in range(3)]
    model = problem.fresh_model(0)
    groups = {MODEL: Layout.of_state(model), CONTROLS: Layout.of_parameters(model)}
    mean = SecureMean(problem, groups, [client.work for client in clients])
    state, control = groups[MODEL].read(model), np.zeros(groups[CONTROLS].length, dtype=np.float32)
    allowed = np.zeros(groups[CONTROLS].length)
    for _ in range(problem.rounds):
        allowed += grid(groups[CONTROLS], mean.scales[len(groups[MODEL].names) :], 16)
        change = mean.exchange([state, control])
        state = (state + change[MODEL]).astype(np.float32)
        control = (control + change[CONTROLS]).astype(np.float32)
        expected = plain_mean(problem, [client.control for client in clients])
        assert (np.abs(control - expected) <= allowed + 1e-3 * np.abs(expected)).all()
        assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_displacement_is_what_the_optimiser_does_under_a_constant_gradient(
    steps: int, momentum: float, schedule: Schedule
) -> None:
    place = nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([place], lr=0.1, momentum=momentum, nesterov=momentum > 0)
    rates = scheduled(optimiser, schedule, steps)
    for _ in range(steps):
        place.grad = torch.ones(())
        optimiser.step()
        rates.step()
    assert displacement(steps, momentum, schedule) == pytest.approx(-float(place.detach()) / 0.1, rel=1e-5)


def test_a_corrections_mean_is_added_to_every_gradient() -> None:
    problem = digits()
    corrected, plain = problem.fresh_model(0), problem.fresh_model(0)
    steps = train_round(plain, problem.shards[0], problem, 0, 1)
    zero = [torch.zeros_like(parameter) for parameter in corrected.parameters()]
    assert train_round(corrected, problem.shards[0], problem, 0, 1, correction=zero) == steps
    assert all(torch.equal(a, b) for a, b in zip(corrected.parameters(), plain.parameters(), strict=True))
    pushed = problem.fresh_model(0)
    train_round(pushed, problem.shards[0], problem, 0, 1, correction=[tensor + 1 for tensor in zero])
    assert all((a < b).all() for a, b in zip(pushed.parameters(), plain.parameters(), strict=True))


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
    average = list(FedAvg().run(digits()))
    mute = list(FedGen(settings=GeneratorSettings(steps=2, alpha=0.0)).run(digits()))
    assert average[-1].server is not None and mute[-1].server is not None
    assert abs(average[-1].server - mute[-1].server) <= 0.01  # rounding differs
    assert mute[-1].bytes_up > average[-1].bytes_up


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
