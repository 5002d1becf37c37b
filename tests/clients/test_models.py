import pytest
import torch
from torch import nn

from codream_clients.models.zoo import NETWORKS, ZOO, ModelShapeError, UnknownModelError, build


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 11), (1, 28), (3, 32)])
def test_every_model_takes_every_size(name, channels, size):
    model = build(name, channels=channels, size=size, classes=7, seed=0)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", [*sorted(ZOO), *NETWORKS])
@pytest.mark.parametrize("sides", [(8, 13), (28, 20)])
def test_every_model_takes_rectangles(name, sides):
    model = build(name, channels=1, size=sides, classes=5, seed=0).eval()
    assert model(torch.zeros(2, 1, *sides)).shape == (2, 5)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_group_norm_variants_mix_no_records(name):
    model = build(name, channels=1, size=8, classes=10, seed=0, norm="group")
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules())
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.train()(images)[:1], model(images[:1]), atol=1e-5)


def test_architectures_differ():
    sizes = {sum(p.numel() for p in build(n, channels=1, size=8, classes=10, seed=0).parameters()) for n in ZOO}
    assert len(sizes) == len(ZOO) == 6


def test_weights_come_from_the_seed_and_the_global_random_state_is_left_alone():
    def first(seed):
        return torch.cat([p.flatten() for p in build("cnn2", channels=1, size=8, classes=10, seed=seed).parameters()])

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = first(1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert torch.equal(first(1), one)
    assert not torch.equal(first(2), one)


def test_an_unknown_name_is_refused_with_those_allowed():
    with pytest.raises(UnknownModelError, match="cnn2, cnn2_strided, cnn2_wide, cnn3, mlp, resnet8"):
        build("vgg", channels=1, size=8, classes=10, seed=0)


@pytest.mark.parametrize("wrong", [{"size": 7}, {"channels": 0}, {"classes": 1}, {"norm": "layer"}])
def test_shapes_that_no_model_takes_are_refused(wrong):
    with pytest.raises(ModelShapeError, match="needed"):
        build("cnn2", **({"channels": 1, "size": 8, "classes": 10, "seed": 0} | wrong))
