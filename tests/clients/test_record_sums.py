"""What a step takes of a client's records: one record more or less moves it by its own rounded gradient alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from codream_clients.data.datasets import LabelledImages
from codream_clients.models import fronts
from codream_clients.models.fronts import FixedFront
from codream_clients.models.passes import filled
from codream_clients.models.zoo import build
from codream_clients.privacy import record_sums
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.record_sums import RecordSums
from codream_protocols.encoding import StreamRounding
from codream_protocols.record_noise import RecordNoise, clamped, largest_square, make_record_noise

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rounding to the nearest, so that two runs differ by what is tried alone."""
    monkeypatch.setattr(StreamRounding, "random", lambda self, size: np.full(size, 0.5))
    yield


def images(count: int = 12, seed: int = 0) -> LabelledImages:
    source = np.random.default_rng(seed)
    pixels = source.standard_normal((count, 1, 8, 8)).astype(np.float32)
    return LabelledImages(pixels, source.integers(0, 10, count), 10)


def network() -> nn.Module:
    return build("mlp_gn", channels=1, size=8, classes=10, seed=0)


def noise_for(model: nn.Module, bound: float = 64.0) -> RecordNoise:
    return make_record_noise(0.3, sum(weight.numel() for weight in model.parameters()), 1.0, 3, bound)


def sums(model: nn.Module, data: LabelledImages, rate: float = 1.0, seed: int | None = 7) -> RecordSums:
    return RecordSums(model, data, rate=rate, stream=NoiseSource(seed).stream(0), device=CPU)


def test_the_sum_is_that_of_each_records_own_clipped_gradient() -> None:
    model, data = network(), images()
    noise = noise_for(model)
    wanted = np.zeros(sum(weight.numel() for weight in model.parameters()))
    for image, label in zip(data.images, data.labels, strict=True):
        loss = functional.cross_entropy(model.train()(torch.from_numpy(image)[None]), torch.tensor([label]))
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([part.flatten() for part in parts]).numpy()
        wanted = wanted + gradient * min(1.0, noise.norm / float(np.linalg.norm(gradient)))
    model.eval()
    found = sums(model, data).draw(noise) * noise.norm / noise.radius
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
    assert not model.training and all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("bound", [1.0, 64.0])
def test_neighbouring_sets_differ_by_no_more_than_noise_is_made_for(nearest: None, bound: float) -> None:
    """One record more, the last: all others are rounded alike, and what is left is its own."""
    model = network()
    noise = noise_for(model, bound)
    for scale in (1.0, 1e3, 1e-3):
        data = images(9)
        data.images[-1] *= scale
        with_it = clamped(sums(model, data).draw(noise), noise)
        without = clamped(sums(model, data.subset(np.arange(8))).draw(noise), noise)
        moved = float(np.square(with_it - without).sum()) ** 0.5
        assert 0 < moved <= largest_square(noise, len(with_it)) ** 0.5 + 1e-3 * noise.radius


def test_a_record_that_is_not_finite_or_that_fails_takes_no_other_with_it(nearest: None) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if (batch > 90).any():
                raise ValueError("such a pixel")
            return self.inner(batch)  # type: ignore[no-any-return]

    model, data = Fails(), images(9)
    noise = noise_for(model)
    without = sums(model, data.subset(np.arange(8))).draw(noise)
    for pixel in (99.0, np.nan, np.inf):
        data.images[-1, 0, 0, 0] = pixel
        found = sums(model, data).draw(noise)
        assert np.array_equal(found, without)


def test_memory_that_is_wanting_ends_a_step_and_a_records_error_is_not_kept() -> None:
    raised, outlived = list[Any](), list[object]()

    class Wanting(MemoryError):
        pass

    class Odd(KeyError):
        pass

    class Fails(nn.Module):
        error: type[Exception] = Wanting

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if (batch > 90).any():
                outlived.extend(error() for error in raised)
                raise self.seen()
            return self.inner(batch)  # type: ignore[no-any-return]

        def seen(self) -> Exception:
            error = self.error()
            raised.append(weakref.ref(error))
            return error

    model, data = Fails(), images(9)
    data.images[3, 0, 0, 0] = 99.0
    with pytest.raises(MemoryError):
        sums(model, data).draw(noise_for(model))
    model.error = Odd
    sums(model, data).draw(noise_for(model))
    assert len(raised) == 5 and not any(outlived)


def test_features_are_computed_once_and_change_no_sum(nearest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = images(40), list[int]()
    model = build("scattering_linear", channels=1, size=8, classes=10, seed=0)
    assert isinstance(model, FixedFront)
    model.front.register_forward_hook(lambda layer, given, features: asked.append(len(features)))
    noise = noise_for(model)
    source = sums(model, data, rate=0.5)
    features = len(asked)
    found = [source.draw(noise) for _ in range(2)]
    assert features == len(asked) == 4 and all(step.any() for step in found)
    with torch.no_grad():
        next(model.head.parameters()).mul_(4.0)  # what is trained is read at each call
    assert not np.array_equal(sums(model, data, rate=0.5).draw(noise), found[0])
    with torch.no_grad():
        next(model.head.parameters()).div_(4.0)
    monkeypatch.setattr(fronts, "MOST_KEPT", 0)
    asked.clear()
    whole = RecordSums(model, data, rate=0.5, stream=NoiseSource(7).stream(0), device=CPU, records=1)
    assert len(asked) == 1, "one pass said how large they are"
    for step in found:
        assert np.abs(whole.draw(noise) - step).max() <= 1  # of some thousand: the last bits of a front


def test_a_record_that_a_front_fails_at_takes_no_other_with_it(nearest: None) -> None:
    class Fails(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if (batch > 90).any():
                raise ValueError("such a pixel")
            return batch * 2

    model, data = FixedFront(Fails(), network()), images(9)
    noise = noise_for(model)
    without = sums(model, data.subset(np.arange(8))).draw(noise)
    for pixel in (99.0, np.nan):
        data.images[-1, 0, 0, 0] = pixel
        assert np.array_equal(sums(model, data).draw(noise), without)


def test_a_record_that_a_front_fails_at_leaves_others_features_as_they_are() -> None:
    """Where it alone had all go through the front at each step, in other numbers, it would change others' last bits."""
    passes = list[int]()

    class Fails(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            passes.append(len(batch))
            if (batch > 90).any():
                raise ValueError("such a pixel")
            return batch * 2

    model, data = FixedFront(Fails(), network()), images(40)
    data.images[20, 0, 0, 0] = 99.0
    source = sums(model, data)
    features = len(passes)
    source.draw(noise_for(model))
    assert len(passes) == features > 4 and {*passes} == {fronts.PASS}


def test_samples_are_poisson_and_never_the_same_again() -> None:
    model, data = network(), images(40)
    noise, taken = noise_for(model), []
    usual = filled

    def counted(chosen: Any, size: int) -> Any:
        taken.extend([len(chosen)] if chosen.ndim > 1 else [])
        return usual(chosen, size)

    patch = pytest.MonkeyPatch()
    patch.setattr(record_sums, "filled", counted)
    source = sums(model, data, rate=0.25, seed=None)
    drawn = [source.draw(noise).tobytes() for _ in range(40)]
    again = sums(model, data, rate=0.25, seed=None).draw(noise).tobytes()  # as after a restart
    patch.undo()
    assert len({*drawn, again}) == 41
    assert 6 < np.mean(taken) < 14 and len(set(taken)) > 4


@pytest.mark.parametrize("count", [1, record_sums.PHYSICAL_BATCH, record_sums.PHYSICAL_BATCH + 1])
def test_as_many_images_go_through_the_model_in_every_pass(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other numbers a library adds up in another order, so that one record would change others' gradients."""
    model, seen = network(), []
    usual = record_sums._record_gradients

    def looked_at(model: Any, weights: Any, images: Any, labels: Any) -> Any:
        seen.append((len(images), len(labels)))
        return usual(model, weights, images, labels)

    monkeypatch.setattr(record_sums, "_record_gradients", looked_at)
    sums(model, images(count)).draw(noise_for(model))
    assert seen == [(record_sums.PHYSICAL_BATCH,) * 2] * len(seen) and seen


def test_a_step_without_records_is_nothing() -> None:
    model = network()
    assert not sums(model, images(3), rate=1e-9).draw(noise_for(model)).any()
