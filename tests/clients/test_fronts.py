"""Fixed public features in front of a small head: the scattering transform, and what private training makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.models import fronts
from codream_clients.models.fronts import FixedFront
from codream_clients.models.gate import ModelWarning, examine, trial_images
from codream_clients.models.names import FRONT_MODELS, split_norm
from codream_clients.models.refusals import ModelRefused
from codream_clients.models.scattering import COEFFICIENTS, Scattering
from codream_clients.models.zoo import FRONTS, build
from codream_clients.privacy import training
from codream_clients.privacy.gate import examine_private
from codream_clients.privacy.noise import KEY_BYTES, Stream
from codream_clients.privacy.plan import GradSampleMode, PrivacySettings, plan_privacy

CPU = torch.device("cpu")
PUBLISHED = json.loads((Path(__file__).parent / "scattering_vectors.json").read_text())

pytestmark = pytest.mark.usefixtures("one_thread")


def waves(side: int) -> torch.Tensor:
    """(1, 1, side, side), the picture of the published numbers."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    picture = torch.sin(0.9 * row + 0.4 * column) + torch.cos(0.05 * row * column) + ((row - 30) ** 2 + column < 400)
    return picture.float()[None, None]


def images_of(shape: tuple[int, ...], count: int = 40) -> LabelledImages:
    random = np.random.default_rng(0)
    return LabelledImages(random.standard_normal((count, *shape), dtype=np.float32), random.integers(0, 4, count), 4)


def scattering(channels: int = 1, size: int = 8) -> FixedFront:
    model = build("scattering_linear", channels=channels, size=size, classes=4, seed=0)
    assert isinstance(model, FixedFront)
    return model


def test_the_coefficients_are_those_of_kymatio() -> None:
    found = Scattering()(waves(64))[0, :, 6:10, 6:10].flatten()
    published = torch.tensor(PUBLISHED["coefficients"])
    assert len(published) == COEFFICIENTS * 16
    assert (found - published).norm() < 1e-3 * published.norm()
    channels = zip(found.split(16), published.split(16), strict=True)
    assert all((one - two).norm() < 0.01 * two.norm() + 5e-4 for one, two in channels)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 14)])
def test_images_of_every_form_have_features_and_gradients(shape: tuple[int, ...]) -> None:
    images = torch.zeros(2, *shape).requires_grad_()  # at a modulus of 0, too
    features = Scattering()(images)
    assert features.shape == (2, COEFFICIENTS * shape[0], -(-shape[1] // 4), -(-shape[2] // 4))
    model = build("scattering_linear", channels=shape[0], size=shape[1:], classes=4, seed=0)
    torch.autograd.backward(model(images)[:, 0].sum())
    assert images.grad is not None and torch.isfinite(images.grad).all()


def test_both_gates_take_it_and_dreams_get_gradients() -> None:
    images = trial_images((1, 8, 8), classes=4, device=CPU)
    examine(scattering(), images, classes=4)
    examine_private(scattering(), images, classes=4, name="scattering_linear")


def test_the_front_has_nothing_to_train_sum_or_save() -> None:
    model = scattering()
    assert [*model.state_dict()] == ["head.1.weight", "head.1.bias"]
    assert all(weight.requires_grad for weight in model.parameters())


def test_features_are_of_their_record_alone() -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = scattering(3, 32).front(images)
    assert torch.allclose(features[:1], scattering(3, 32).front(images[:1]), atol=1e-5)
    assert float(features.mean()) == pytest.approx(0, abs=1e-4)
    assert float(features.std()) == pytest.approx(1, abs=0.1)


def test_names_that_need_no_suffix_are_private_ones() -> None:
    assert set(FRONTS) == set(FRONT_MODELS)
    assert split_norm("scattering_linear") == split_norm("scattering_linear_gn") == ("scattering_linear", "group")


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_features_computed_once_train_as_features_computed_each_step(
    monkeypatch: pytest.MonkeyPatch, mode: GradSampleMode
) -> None:
    data = images_of((1, 8, 8))
    settings = PrivacySettings(epsilon=8.0, batch_size=16, lr=0.5, mode=mode)
    asked = []

    def trained() -> torch.Tensor:
        model = scattering()
        model.front.register_forward_hook(lambda layer, given, features: asked.append(len(features)))
        plan = plan_privacy(settings, records=len(data), rounds=0)
        stream = Stream(bytes(KEY_BYTES))
        training.private_sgd(model, data, plan=plan, steps=6, class_counts=None, stream=stream, device=CPU)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    once = trained()
    assert asked == [fronts.PASS] * 4  # blank ones, 40 images, and 8 more blank ones
    asked.clear()
    monkeypatch.setattr(fronts, "MOST_FEATURES", 0)
    assert torch.allclose(trained(), once, atol=1e-5)
    assert len(asked) == 7  # one pass said how large they are


def test_whether_features_are_kept_hangs_on_one_records_and_not_on_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else with one record more, all others would go through the front in other numbers."""
    model = scattering()
    of_one = model.front(torch.zeros(1, 1, 8, 8)).numel()
    for most, kept in ((of_one, True), (of_one - 1, False)):
        monkeypatch.setattr(fronts, "MOST_FEATURES", most)
        for count in (0, 1, 40):
            network, given = fronts.without_front(model, torch.zeros(count, 1, 8, 8))
            assert (network is model.head, len(given)) == (kept, count)


def test_features_of_many_records_are_not_kept_by_their_public_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 images in colours would take 3 GB. Control: how many there are decides nothing."""
    model = scattering()
    monkeypatch.setattr(fronts, "MOST_KEPT", 100 * model.front(torch.zeros(1, 1, 8, 8)).nbytes)
    for records, kept in ((100, True), (101, False), (None, True)):
        for count in (1, 99, 102):
            network, _ = fronts.without_front(model, torch.zeros(count, 1, 8, 8), records)
            assert (network is model.head) == kept


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_training_bears_a_record_that_the_front_fails_at(mode: GradSampleMode) -> None:
    """An error would tell that it is there: it counts as zero, as one does whose gradient is not finite."""

    class Fails(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if (images > 90).any():
                raise ValueError("such a pixel")
            return images

    def trained(pixel: float) -> torch.Tensor:
        data = images_of((1, 8, 8))
        data.images[-1, 0, 0, 0] = pixel
        torch.manual_seed(0)
        model = FixedFront(Fails(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
        settings = PrivacySettings(epsilon=8.0, batch_size=40, mode=mode)
        plan = plan_privacy(settings, records=len(data), rounds=0)
        stream = Stream(bytes(KEY_BYTES))
        training.private_sgd(model, data, plan=plan, steps=2, class_counts=None, stream=stream, device=CPU)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    assert torch.equal(trained(99.0), trained(np.nan))
    assert not torch.equal(trained(99.0), trained(0.0))


def test_images_that_vary_have_no_features_once_and_for_all() -> None:
    data = images_of((1, 8, 8))
    varied = LabelledImages(data.images, data.labels, data.classes, "shift")
    model = scattering()
    seen = []
    model.front.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    plan = plan_privacy(PrivacySettings(epsilon=8.0, batch_size=40), records=len(data), rounds=0)
    stream = Stream(bytes(KEY_BYTES))
    training.private_sgd(model, varied, plan=plan, steps=2, class_counts=None, stream=stream, device=CPU)
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])


def test_a_front_of_ones_own_is_fixed_and_one_that_mixes_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images - images.mean(0)

    images = trial_images((1, 8, 8), classes=4, device=CPU)

    def with_front(front: nn.Module) -> FixedFront:
        return FixedFront(front, nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))

    with pytest.warns(ModelWarning, match="never trained"):
        examine_private(with_front(nn.Conv2d(1, 1, 3, padding=1)), images, classes=4, name="own")
    model = with_front(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout()))
    assert not any(weight.requires_grad for weight in model.front.parameters())
    assert not model.train().front.training and model.head.training
    with pytest.raises(ModelRefused, match="the others"):
        examine_private(with_front(Centred()), images, classes=4, name="own")
