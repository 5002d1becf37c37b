"""The loop that all parameter courses share, and representations of whatever model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.local_work import NoLinearHead, displacement, head, stage_seed, train_epochs, watched
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import TrainingError
from codream_clients.models.layouts import (
    LayoutError,
    check_model_layout,
    layout_of,
    read_vector,
    split_vector,
    write_vector,
)
from codream_clients.models.zoo import build
from codream_protocols.courses.layouts import length_of

SHAPE, CLASSES, CPU = (1, 8, 8), 3, torch.device("cpu")
SETTINGS = LearningSettings(batch_size=8, lr=0.05)


def images(count: int = 24) -> LabelledImages:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    return LabelledImages(
        rng.standard_normal((count, *SHAPE)).astype(np.float32),
        rng.integers(0, CLASSES, count).astype(np.int64),
        CLASSES,
    )


def model(name: str = "cnn2") -> nn.Module:
    return build(name, channels=1, size=8, classes=CLASSES, seed=0)


def weights(one: nn.Module) -> np.ndarray:
    return read_vector(one, layout_of(one))


def test_an_objective_is_minimised_and_a_correction_is_added_to_the_gradient() -> None:
    plain, twice, corrected = model("mlp"), model("mlp"), model("mlp")
    options: dict[str, Any] = {"epochs": 1, "seed": 1, "device": CPU}
    settings = LearningSettings(batch_size=32, lr=0.05, momentum=0.0, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    train_epochs(plain, images(), settings, **options)
    train_epochs(twice, images(), settings, objective=lambda batch: 2 * batch.loss, **options)
    ones = {name: torch.ones_like(parameter) for name, parameter in corrected.named_parameters()}
    train_epochs(corrected, images(), settings, correction=ones, **options)
    for name, parameter in plain.named_parameters():
        move = parameter - before[name]
        torch.testing.assert_close(dict(twice.named_parameters())[name] - before[name], 2 * move)
        torch.testing.assert_close(dict(corrected.named_parameters())[name] - before[name], move - 0.05)


def test_a_single_image_is_refused() -> None:
    with pytest.raises(TrainingError, match="at least 2"):
        train_epochs(model(), images(1), SETTINGS, epochs=1, seed=0, device=CPU)


def test_displacement_is_how_far_a_constant_gradient_goes() -> None:
    for momentum in (0.0, 0.9):
        place = torch.zeros(1, requires_grad=True)
        optimiser = torch.optim.SGD([place], lr=1.0, momentum=momentum, nesterov=momentum > 0)
        for _ in range(7):
            place.grad = torch.ones(1)
            optimiser.step()
        assert displacement(7, momentum) == pytest.approx(-place.item())
    assert displacement(4, 0.0, "cosine") < displacement(4, 0.0)


def test_stage_seeds_differ() -> None:
    seeds = {stage_seed(client, round, stage) for client in range(3) for round in range(3) for stage in (0, 2)}
    assert len(seeds) == 18


@pytest.mark.parametrize("name", ["cnn2", "mlp", "resnet8", "lenet"])
def test_a_representation_is_what_goes_into_the_last_linear_layer(name: str) -> None:
    one = model(name).eval()
    seen = torch.from_numpy(images(4).images)
    with watched(one, CLASSES) as representation:
        logits = one(seen)
        torch.testing.assert_close(head(one, CLASSES)(representation()), logits)
        assert representation().shape[0] == 4 and representation().requires_grad


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(NoLinearHead, match="no linear layer"):
        head(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), 3)
    with pytest.raises(NoLinearHead, match="5 outputs"):
        head(nn.Linear(2, 5), 3)


@pytest.mark.parametrize("name", ["cnn2", "resnet8", "cnn2_gn"])
def test_a_model_is_one_vector_and_back(name: str) -> None:
    one, two = model(name), build(name, channels=1, size=8, classes=CLASSES, seed=9)
    layout = layout_of(one)
    vector = weights(one)
    assert vector.dtype == np.float32 and len(vector) == length_of(layout)
    assert not any("num_batches_tracked" in name for name, _ in layout)
    assert not np.array_equal(vector, weights(two))
    write_vector(two, layout, vector)
    assert np.array_equal(vector, weights(two))
    seen = torch.from_numpy(images(4).images)
    assert torch.equal(one.eval()(seen), two.eval()(seen))


def test_a_negative_running_variance_becomes_0() -> None:
    one = model()
    write_vector(one, layout_of(one), np.full(length_of(layout_of(one)), -1.0))
    state = one.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            assert (tensor == (0 if name.endswith("running_var") else -1)).all()


def test_another_layout_is_refused_and_the_difference_named() -> None:
    check_model_layout(model(), layout_of(model()))
    with pytest.raises(LayoutError, match=r"16, 1, 3, 3.*course has"):
        check_model_layout(model("cnn2"), layout_of(model("mlp")))
    with pytest.raises(LayoutError, match="nothing more"):
        check_model_layout(model(), layout_of(model())[:-1])
    with pytest.raises(LayoutError, match="shape"):
        split_vector(np.zeros(3), layout_of(model()), CPU)
