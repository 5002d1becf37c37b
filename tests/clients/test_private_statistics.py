import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.learning.dreaming import DreamError, DreamLoss, FeatureStatistics, dream_update
from codream_clients.models.zoo import build
from codream_clients.privacy import statistics as module
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.statistics import StatisticsError, group_norms, private_statistics, vectors_of

CPU = torch.device("cpu")


def images(count=300, scale=1.0, seed=5):
    rng = np.random.default_rng(seed)
    return LabelledImages(
        (scale * rng.standard_normal((count, 1, 8, 8))).astype(np.float32), rng.integers(0, 10, count), 10
    )


def measure(model, data, noise=0.0, count=None, seed=0):
    return private_statistics(
        model,
        data,
        count=len(data) if count is None else count,
        noise_multiplier=noise,
        stream=NoiseSource(seed).stream(0),
        device=CPU,
    )


def flat(statistics):
    return torch.cat([part for pair in statistics for part in pair])


@pytest.mark.parametrize("name", ["cnn2_gn", "mlp_gn", "resnet8_gn"])
def test_without_noise_they_are_those_that_r_bn_measures(name):
    model, data = build(name, channels=1, size=8, classes=10, seed=0), images()
    supplied = measure(model, data)
    with FeatureStatistics(model, supplied=supplied) as statistics, torch.no_grad():
        model(torch.from_numpy(data.images))
        assert float(statistics.distance()) < 2e-3
        model(torch.from_numpy(images(scale=3.0).images))
        assert float(statistics.distance()) > 0.5  # control: other images are told apart


@pytest.mark.parametrize(("times", "bounded"), [(2.0, True), (1e9, False)], ids=["clipped", "control: not clipped"])
def test_one_record_counts_for_no_more_than_the_bound(monkeypatch, times, bounded):
    monkeypatch.setattr(module, "CLIP_TIMES_MEDIAN", times)
    model, data = build("cnn2_gn", channels=1, size=8, classes=10, seed=0), images()
    outlier = images(1, scale=1000.0, seed=6)
    more = pool([data, outlier])
    moved = flat(measure(model, more, count=300)) - flat(measure(model, data, count=300))
    assert (float(moved.abs().max()) < 0.1) is bounded


def test_what_one_record_gave_a_layer_is_no_others():
    """The second of these batches passes its layer by."""

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(1, 1, affine=False)

        def forward(self, x):
            return self.norm(x) if bool((x > 0).any()) else x

    model, several = Skips(), images(2 * module.BATCH).images
    several[module.BATCH :] = -1
    found = vectors_of(model, group_norms(model), several, CPU)
    assert np.isfinite(found[: module.BATCH]).all() and np.isnan(found[module.BATCH :]).all()


def test_a_record_gives_one_row():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(1, 1, affine=False)

        def forward(self, x):
            return self.norm(x.reshape(2 * len(x), 1, 4, 8))

    model = Halves()
    assert np.isnan(vectors_of(model, group_norms(model), images(3).images, CPU)).all()


@pytest.mark.parametrize("defended", [True, False], ids=["left out", "control: let through"])
def test_a_record_whose_features_are_not_finite_does_not_give_itself_away(monkeypatch, defended):
    if not defended:
        monkeypatch.setattr(np, "isfinite", np.ones_like)
    model, data = build("cnn2_gn", channels=1, size=8, classes=10, seed=0), images()
    largest = np.finfo(np.float32).max
    more = pool([data, LabelledImages(np.full_like(data.images[:1], largest), data.labels[:1], 10)])
    with np.errstate(invalid="ignore", over="ignore"):
        moved = flat(measure(model, more, count=300)) - flat(measure(model, data, count=300))
    assert torch.isfinite(moved).all().item() is defended
    assert not defended or float(moved.abs().max()) < 1e-6


def test_a_record_that_a_model_fails_at_counts_as_zero():
    model, data = build("cnn2_gn", channels=1, size=8, classes=10, seed=0), images(100)
    alone = flat(measure(model, data))

    def fails(layer, given):
        if (given[0] > 90).any():
            raise ValueError("such a pixel")

    model.register_forward_pre_hook(fails)
    found = flat(measure(model, pool([data, images(1, scale=1000.0, seed=6)]), count=100))
    assert torch.allclose(found, alone, atol=1e-6)


def test_one_record_more_changes_no_pass_of_the_others():
    model, seen = build("mlp_gn", channels=1, size=8, classes=10, seed=0), []
    model.register_forward_pre_hook(lambda layer, given: seen.append(len(given[0])))
    measure(model, images(module.BATCH + 1))
    assert seen == [module.BATCH] * len(seen) and len(seen) == module.PUBLIC_IMAGES // module.BATCH + 2


def test_noise_is_in_proportion_and_repeats_from_its_generator():
    model, data = build("cnn2_gn", channels=1, size=8, classes=10, seed=0), images()
    exact = flat(measure(model, data))
    small, large = ((flat(measure(model, data, noise=noise)) - exact).abs().mean() for noise in (1.0, 10.0))
    assert 5 < float(large / small) < 20
    assert torch.equal(flat(measure(model, data, noise=1.0)), flat(measure(model, data, noise=1.0)))


def test_dreams_follow_supplied_statistics_and_wrong_ones_are_refused():
    model = build("cnn2_gn", channels=1, size=8, classes=10, seed=0)
    supplied, noise = measure(model, images()), 3 * images(16, seed=9).images
    loss = DreamLoss(alpha_bn=10.0)
    alone = dream_update(model, noise, loss, 5, 0.1)[0].numpy()
    guided = dream_update(model, noise, loss, 5, 0.1, supplied=supplied)[0].numpy()
    assert not np.allclose(alone, guided)

    def distance(x):
        with FeatureStatistics(model, supplied=supplied) as statistics, torch.no_grad():
            model(torch.from_numpy(x))
            return float(statistics.distance())

    assert distance(noise + guided) < distance(noise + alone)
    with pytest.raises(DreamError, match="statistics of 1 layers; the model has 2 group norms"):
        FeatureStatistics(model, supplied=supplied[:1])


def test_model_without_group_norm_is_refused():
    with pytest.raises(StatisticsError, match="no group norm"):
        measure(build("cnn2", channels=1, size=8, classes=10, seed=0), images(10))
