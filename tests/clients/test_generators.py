"""The generator of dreams: what its steps do, term by term, and what they leave alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from codream_clients.learning.dreaming import DreamError, FeatureStatistics, StatisticsMemory, frozen
from codream_clients.learning.generators import (
    GeneratorLoss,
    ImageGenerator,
    adapt,
    adversarial_loss,
    fresh_image_generator,
    generate,
)
from codream_clients.models.zoo import build

SHAPE, NOISE, BATCH = (1, 8, 8), 6, 12
RATES: dict[str, Any] = {"steps": 8, "lr": 5e-3, "noise_lr": 1.5e-3}


def small(seed: int = 0) -> ImageGenerator:
    return fresh_image_generator(NOISE, SHAPE, 4, seed)


def teacher(seed: int = 0) -> torch.nn.Module:
    model = build("cnn2", channels=1, size=8, classes=4, seed=seed)
    model.train()
    with torch.no_grad():
        for step in range(20):  # running statistics of images that are not standardised
            model(1 + 2 * torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(step)))
    return model.eval()


class Halving(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / 2


def noise(batch: int = BATCH) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal((batch, NOISE), dtype=np.float32)


def distance(model: torch.nn.Module, images: np.ndarray[Any, Any]) -> float:
    with torch.no_grad(), frozen(model), FeatureStatistics(model) as statistics:
        model(torch.from_numpy(images.copy()))
        return float(statistics.distance())


# -- the generator ---------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 9, 11)])
def test_images_have_the_datas_shape_and_are_standardised(shape: tuple[int, int, int]) -> None:
    images = generate(fresh_image_generator(NOISE, shape, 4, 0), noise())
    assert images.shape == (BATCH, *shape) and images.dtype == np.float32
    assert np.allclose(images.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    assert np.allclose(images.std(axis=(0, 2, 3)), 1, atol=1e-2)


def test_parameters_are_the_whole_state_and_follow_from_the_seed() -> None:
    generator = small()
    assert set(generator.state_dict()) == {name for name, _ in generator.named_parameters()}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    same, other = small(), small(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), same.parameters(), strict=True))
    assert not torch.equal(generator.first.weight, other.first.weight)


# -- its steps ---------------------------------------------


def test_one_step_of_adam_moves_noise_and_weights_by_their_rates() -> None:
    generator = small()
    before = copy.deepcopy(generator)
    moved = adapt(generator, noise(), teacher(), GeneratorLoss(), steps=1, lr=5e-3, noise_lr=1.5e-3)
    step = np.abs(moved - noise())
    assert step.max() == pytest.approx(1.5e-3, rel=1e-2) and np.median(step) == pytest.approx(1.5e-3, rel=1e-2)
    weights = (generator.first.weight - before.first.weight).detach().abs()
    assert float(weights.max()) == pytest.approx(5e-3, rel=1e-2)


def test_steps_bring_the_images_nearer_to_the_teachers_statistics() -> None:
    model, generator = teacher(), small()
    before = distance(model, generate(generator, noise()))
    moved = adapt(generator, noise(), model, GeneratorLoss(alpha_preds=0.0, alpha_target=0.0), **{**RATES, "steps": 40})
    assert distance(model, generate(generator, moved)) < 0.8 * before


def test_target_term_brings_dreams_to_classes_that_the_teacher_has_seen() -> None:
    model, seen = teacher(), np.array([True, True, False, True])
    targets = np.arange(BATCH) % 4
    hits = []
    for weight in (0.0, 5.0):
        generator = small()
        loss = GeneratorLoss(alpha_preds=0.0, alpha_bn=0.1, alpha_target=weight)
        moved = adapt(generator, noise(), model, loss, **{**RATES, "steps": 60}, seen=seen)
        with torch.no_grad():
            logits = model(torch.tensor(generate(generator, moved))).numpy()
        right = (logits.argmax(axis=1) == targets)[seen[targets]]
        hits.append(right.mean())
    assert hits[1] > hits[0] + 0.3


def test_steps_are_deterministic_and_leave_teacher_student_and_noise_as_they_are() -> None:
    model, student, given = teacher(), teacher(1).train(), noise()
    states = [copy.deepcopy(one.state_dict()) for one in (model, student)]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = small()
        moved = adapt(generator, given, model, GeneratorLoss(), **RATES, student=student)
        results.append((moved, generate(generator, moved)))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert np.array_equal(given, noise()) and student.training and not model.training
    for one, state in zip((model, student), states, strict=True):
        assert all(torch.equal(one.state_dict()[name], value) for name, value in state.items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in one.parameters())


def test_adversarial_term_counts_only_where_teacher_and_student_agree() -> None:
    taught = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    learnt = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    p, q = taught.softmax(dim=1)[0], learnt.softmax(dim=1)[0]
    by_hand = -float((p * (p / q).log()).sum()) / 3  # the second disagrees, the third is known already
    assert float(adversarial_loss(taught, learnt)) == pytest.approx(by_hand)


def test_adversarial_term_leads_to_what_the_student_does_not_know() -> None:
    model, losses = teacher(), []
    student = torch.nn.Sequential(copy.deepcopy(model), Halving())  # less sure, but always of the same mind
    for weight in (0.0, 10.0):
        generator = small()
        loss = GeneratorLoss(alpha_preds=0.0, alpha_target=0.0, alpha_bn=0.01, alpha_adv=weight)
        moved = adapt(generator, noise(64), model, loss, **{**RATES, "steps": 30}, student=student)
        images = torch.tensor(generate(generator, moved))
        with torch.no_grad():
            losses.append(float(adversarial_loss(model(images), student(images))))
    assert losses[1] < losses[0] < 0


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (noise(1), {}),
        (noise().astype(np.float64), {}),
        (np.full((3, NOISE), np.nan, np.float32), {}),
        (noise(), {"steps": 0}),
        (noise(), {"lr": 0.0}),
        (noise(), {"noise_lr": -1.0}),
    ],
)
def test_what_cannot_be_is_refused(given: np.ndarray[Any, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(DreamError, match="needed"):
        adapt(small(), given, teacher(), GeneratorLoss(), **{**RATES, **changes})


def test_weights_sizes_and_momentum_are_checked() -> None:
    with pytest.raises(DreamError, match="alpha_bn is -1"):
        GeneratorLoss(alpha_bn=-1.0)
    with pytest.raises(DreamError, match="width=0"):
        fresh_image_generator(NOISE, SHAPE, 0, 0)
    with pytest.raises(DreamError, match=r"momentum is 1\.0; \[0, 1\)"):
        StatisticsMemory(1.0)


# -- the memory of feature statistics ---------------------------------------------


def test_memory_mixes_the_past_in_by_hand() -> None:
    layer, memory = torch.nn.BatchNorm1d(1), StatisticsMemory(0.9)

    def blend(mean: float, variance: float) -> list[float]:
        return [float(one) for one in memory.blend(layer, torch.tensor([mean]), torch.tensor([variance]))]

    assert blend(1.0, 2.0) == [1.0, 2.0], "nothing has been remembered yet"
    assert blend(3.0, 4.0) == [3.0, 4.0]
    memory.remember()  # of the newest
    assert blend(13.0, 14.0) == pytest.approx([0.9 * 3 + 1.3, 0.9 * 4 + 1.4])
    memory.remember()
    assert blend(0.0, 0.0) == pytest.approx([0.9 * 4.0, 0.9 * 5.0])


def test_distance_with_a_memory_is_that_of_the_mixture() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1)).eval()
    first, second = torch.full((2, 1, 2, 2), 4.0), torch.full((2, 1, 2, 2), 8.0)
    memory = StatisticsMemory(0.75)
    found = []
    for images in (first, second):
        with FeatureStatistics(model, memory) as statistics:
            model(images)
            found.append(float(statistics.distance()))
        memory.remember()
    # running mean 0 and variance 1; constant images have variance 0, so each distance is |mean| + 1
    assert found == pytest.approx([4 + 1, 0.75 * 4 + 0.25 * 8 + 1])


def test_memory_without_momentum_changes_nothing() -> None:
    given, results = noise(), []
    for memory in (None, StatisticsMemory(0.0)):
        generator, model, moved = small(), teacher(), given
        for _ in range(2):
            moved = adapt(generator, moved, model, GeneratorLoss(), **RATES, memory=memory)
        results.append(moved)
    without, with_memory = results
    np.testing.assert_allclose(without, with_memory, atol=1e-5)
