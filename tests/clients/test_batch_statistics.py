"""Batch norm's statistics measured anew: by batches of even size, in a random order, and never half-way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.learning.batch_statistics import BATCH, measure_statistics
from codream_clients.models.fronts import FixedFront
from codream_clients.models.zoo import build

CPU = torch.device("cpu")


def noise(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).standard_normal((count, 1, 8, 8)).astype(np.float32)


def norm() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(1)).eval()


@pytest.mark.parametrize("count", [2, BATCH + 1, 2 * BATCH + 1])
def test_no_batch_is_a_single_image(count: int) -> None:
    """Batch norm on flat features cannot take one."""
    model = build("mlp", channels=1, size=8, classes=10, seed=0)
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm1d)]
    assert norms
    momenta = [one.momentum for one in norms]
    measure_statistics(model, noise(count), 0, CPU)
    assert [one.momentum for one in norms] == momenta and None not in momenta and not model.training


def test_a_small_rest_counts_for_no_more_than_its_images() -> None:
    """Two bright images behind 256: in a batch of their own they would be half of the mean."""
    images = noise(BATCH + 2)
    images[BATCH:] += 100.0
    model = norm()
    measure_statistics(model, images, 0, CPU)
    assert float(model.state_dict()["0.running_mean"]) == pytest.approx(float(images.mean()), rel=1e-4)


def test_images_that_come_class_by_class_have_the_variance_of_all() -> None:
    """Control: one batch a class has the variance within the classes alone."""
    images = noise(2 * BATCH)
    images[BATCH:] += 10.0
    model = norm()
    measure_statistics(model, images, 0, CPU)
    assert float(model.state_dict()["0.running_var"]) == pytest.approx(float(images.var()), rel=0.05)
    assert float(images.var()) > 10 * float(images[:BATCH].var())


def test_the_order_follows_from_the_seed() -> None:
    def measured(seed: int) -> dict[str, torch.Tensor]:
        model = norm()
        measure_statistics(model, noise(2 * BATCH), seed, CPU)
        return model.state_dict()

    assert all(torch.equal(*pair) for pair in zip(measured(1).values(), measured(1).values(), strict=True))
    assert not torch.equal(measured(1)["0.running_var"], measured(2)["0.running_var"])


class Frozen(nn.Sequential):
    """A body that its owner keeps in eval mode, as is usual."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self


@pytest.mark.parametrize("fixed", [FixedFront, nn.Sequential])
def test_a_fixed_front_keeps_its_statistics(fixed: Any) -> None:
    """Control: those of the head are measured, and of both where both are trained."""
    body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    body[0].load_state_dict({**body[0].state_dict(), "running_mean": torch.ones(1), "running_var": 4 * torch.ones(1)})
    front = body if fixed is FixedFront else Frozen(*body)
    model = fixed(front, nn.BatchNorm1d(64))
    measure_statistics(model, noise(BATCH), 0, CPU)
    kept: Any = front[0]
    assert float(kept.running_mean) == 1 and float(kept.running_var) == 4 and kept.momentum == 0.1
    head: Any = list(model.children())[-1]
    assert float(head.running_mean.abs().min()) > 0
    both = nn.Sequential(*body)
    measure_statistics(both, noise(BATCH), 0, CPU)
    assert abs(float(both.state_dict()["0.running_mean"])) < 0.1


def test_a_norm_without_running_statistics_stays_without() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1))
    measure_statistics(model, noise(BATCH), 0, CPU)
    assert "0.running_mean" not in model.state_dict() and float(model.state_dict()["1.running_var"]) > 0.5


def test_a_model_that_fails_keeps_its_momenta_and_its_mode() -> None:
    class Failing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), Failing()).eval()
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_statistics(model, noise(4), 0, CPU)
    found: Any = model[0]
    assert found.momentum == 0.3 and not model.training
