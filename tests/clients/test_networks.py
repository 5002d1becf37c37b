"""The literature's networks: sizes, gradients, norms, and parameter counts against published ones."""

import pytest
import torch
from torch import nn

from codream_clients.learning.dreaming import FeatureStatistics
from codream_clients.models.names import LITERATURE_MODELS, SMALL_MODELS, UnknownModelError, model_mix, split_norm
from codream_clients.models.zoo import NETWORKS, ZOO, ModelShapeError, build

BATCH_NORM = nn.BatchNorm1d | nn.BatchNorm2d


def size_of(name, channels=3, size=32, classes=10, **options):
    model = build(name, channels=channels, size=size, classes=classes, seed=0, **options)
    return sum(weight.numel() for weight in model.parameters())


pytestmark = pytest.mark.usefixtures("one_thread")


def test_names_are_those_of_the_tables():
    assert set(ZOO) == set(SMALL_MODELS)
    assert set(NETWORKS) == set(LITERATURE_MODELS)


@pytest.mark.parametrize("name", LITERATURE_MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
@pytest.mark.parametrize("norm", ["", "_gn"])
def test_forward_and_backward(name, channels, size, norm):
    model = build(name + norm, channels=channels, size=size, classes=7, seed=0).train()
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(images)
    assert logits.shape == (2, 7)
    torch.autograd.backward(logits.square().sum())
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in model.parameters())
    found = {isinstance(layer, BATCH_NORM) for layer in model.modules() if isinstance(layer, BATCH_NORM | nn.GroupNorm)}
    assert found == {not norm}


@pytest.mark.parametrize("name", LITERATURE_MODELS)
@pytest.mark.parametrize(("channels", "size"), [(3, 8), (3, 28), (1, 32), (1, 11), (1, 24), (3, 64)])
def test_other_shapes(name, channels, size):
    model = build(name, channels=channels, size=size, classes=2, seed=0).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, channels, size, size)).shape == (1, 2)


# ResNets and VGG-11 (there with 2,752 biases in its convolutions) for CIFAR-10 in kuangliu/pytorch-cifar; WRN-16-1 and
# WRN-40-1 in Zagoruyko and Komodakis (0.2M and 0.6M); torchvision's MobileNetV2 with ten classes.
@pytest.mark.parametrize(
    ("name", "published", "off"),
    [
        ("resnet18", 11_173_962, 0),
        ("resnet34", 21_282_122, 0),
        ("vgg11", 9_231_114, 2752),
        ("wrn16_1", 175_066, 0),
        ("wrn40_1", 563_930, 0),
        ("mobilenetv2", 2_236_682, 0),
    ],
)
def test_parameter_counts_are_the_literatures(name, published, off):
    assert size_of(name) == published - off
    assert size_of(f"{name}_gn") == size_of(name)  # both norms have one scale and one shift a channel


def test_lenet_is_lenet_but_for_its_normalisation():
    norms, biases = 2 * (6 + 16 + 120 + 84), 6 + 16 + 120 + 84
    assert size_of("lenet", channels=1, size=28) == 61_706 + norms - biases
    assert size_of("lenet", channels=1, size=32) == 61_706 + norms - biases


def test_depths_are_those_of_the_papers():
    """Convolutions of 3x3: two a block and the stem; eight in VGG's configuration A."""
    for name, depth in [("resnet18", 17), ("resnet34", 33), ("vgg11", 8), ("wrn16_1", 13), ("wrn40_1", 37)]:
        model = build(name, channels=3, size=32, classes=10, seed=0)
        kernels = [layer.kernel_size for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        assert kernels.count((3, 3)) == depth, name


@pytest.mark.parametrize("name", LITERATURE_MODELS)
def test_group_norm_variants_mix_no_records(name):
    model = build(name, channels=1, size=8, classes=10, seed=0, norm="group").train()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-4)


@pytest.mark.parametrize("name", LITERATURE_MODELS)
def test_weights_come_from_the_seed_and_the_random_state_is_left_alone(name):
    def first(seed):
        model = build(name, channels=1, size=8, classes=10, seed=seed)
        return torch.cat([weight.detach().flatten()[:500] for weight in model.parameters()])

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = first(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first(1), one)
    assert not torch.equal(first(2), one)


@pytest.mark.parametrize("name", LITERATURE_MODELS)
def test_no_dropout_and_statistics_that_dreams_can_read(name):
    model = build(name, channels=1, size=8, classes=10, seed=0).eval()
    assert all(layer.p == 0 for layer in model.modules() if isinstance(layer, nn.Dropout))
    assert not any(getattr(layer, "inplace", False) for layer in model.modules() if not isinstance(layer, nn.Dropout))
    with FeatureStatistics(model) as statistics:
        model(torch.ones(2, 1, 8, 8, requires_grad=True))
        assert statistics.distance() > 0


def test_suffix_and_argument_are_one():
    same = build("resnet18_gn", channels=1, size=8, classes=2, seed=0).state_dict()
    other = build("resnet18", channels=1, size=8, classes=2, seed=0, norm="group").state_dict()
    assert all(torch.equal(same[key], other[key]) for key in other)
    assert split_norm("cnn2_gn") == ("cnn2", "group")
    assert split_norm("my_module:build_gn") == ("my_module:build_gn", None)


def test_names_and_mixes_that_do_not_exist():
    for name in ("resnet19", "resnet18_bn", "_gn", "", "resnet18_gn_gn"):
        with pytest.raises(UnknownModelError, match=r"allowed are cnn2, .*scattering_linear, each also with _gn"):
            build(name, channels=1, size=8, classes=2, seed=0)
    with pytest.raises(ModelShapeError):
        build("vgg11", channels=1, size=7, classes=2, seed=0)
    assert model_mix(["resnet18", "my:build"], 5) == ("resnet18", "my:build", "resnet18", "my:build", "resnet18")
    with pytest.raises(UnknownModelError, match="0 models for 3 clients"):
        model_mix([], 3)
    with pytest.raises(UnknownModelError, match="2 models for 1 clients"):
        model_mix(["cnn2", "cnn3"], 1)
    with pytest.raises(UnknownModelError, match="'cnn9'"):
        model_mix(["cnn2", "cnn9"], 4)
