"""The gate for models: mistakes that people make, each refused with its reason; what is right is taken as it is."""

import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from codream_clients.models.gate import ModelWarning, examine, require_own_weights, trial_images
from codream_clients.models.refusals import ModelRefused
from codream_clients.models.zoo import FRONTS, NETWORKS, ZOO, build
from tests.clients.own_models import CLASSES, GOOD, WRONG, Global, Own, WithSpare, forward, plain

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def try_out(model, shape=(1, 8, 8), classes=CLASSES):
    examine(model, trial_images(shape, classes=classes, device=CPU), classes=classes, name="mine:build()")


# -- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ZOO, *NETWORKS, *FRONTS])
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 2), ((3, 32, 32), 10)])
def test_the_zoo_passes(name, shape, classes):
    try_out(build(name, channels=shape[0], size=shape[1], classes=classes, seed=0), shape, classes)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "efficientnet_b0",
        "mnasnet0_5",
        "regnet_y_400mf",
    ],
)
def test_torchvisions_small_models_pass(name):
    torch.manual_seed(0)
    try_out(getattr(torchvision.models, name)(weights=None, num_classes=7), (3, 64, 64), 7)


@pytest.mark.parametrize("what", GOOD)
def test_what_is_unusual_and_right_is_taken(what):
    try_out(GOOD[what]())


def test_frozen_parts_are_taken_and_said():
    model = plain()
    model[0].requires_grad_(False)
    with pytest.warns(ModelWarning, match="2 of 4 weight tensors have requires_grad False; they are never trained"):
        try_out(model)


BOUNDED = {
    "a ReLU": (lambda: plain(nn.ReLU()), "its logits are never below 0, .*remove the ReLU at the end"),
    "a ReLU in front of a pooling": (
        lambda: torchvision.models.squeezenet1_1(weights=None, num_classes=CLASSES),
        "its logits are never below 0, .*remove the ReLU at the end",
    ),
    "a tanh": (lambda: plain(nn.Tanh()), "its logits are between -1 and 1, .*remove the tanh at the end"),
    "distances": (
        lambda: forward(lambda self, x: -(self.net(x) - 1).square()),
        "its logits are never above 0, .*let them take any value",
    ),
    "cosines": (GOOD["cosines"], "its logits are between -1 and 1, .*multiply them by 10"),
}


@pytest.mark.parametrize("what", BOUNDED)
def test_bounds_that_cost_accuracy_are_taken_and_said_once(what):
    make, words = BOUNDED[what]
    torch.manual_seed(0)
    with pytest.warns(ModelWarning, match=rf"^mine:build\(\): {words}") as said:
        try_out(make(), (3, 64, 64) if what.endswith("pooling") else (1, 8, 8))
    assert len(said) == 1


class Depth(Own):
    """A fifth of its passes in training leaves out a layer."""

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        x = self.net(x)
        return x if self.training and torch.rand(()) < 0.2 else x + self.more(x)


@pytest.mark.parametrize("make", [plain, Depth, *map(GOOD.get, ("a head of zeros", "a branch behind a gain of zero"))])
def test_what_is_as_people_mean_it_is_taken_without_a_word(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        try_out(make())


def test_weights_without_a_gradient_are_taken_and_said():
    with pytest.warns(ModelWarning, match="reaches 2 of 8 weight tensors, spare.weight, spare.bias; they are never"):
        try_out(WithSpare())


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_refused_with_its_reason(what):
    make, words = WRONG[what]
    with pytest.raises(ModelRefused, match=rf"^mine:build\(\): .*(?:{words})"):
        try_out(make())


# -- nothing is changed -------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Has batch norm and dropout, draws from every generator, changes attributes; fails if it is told to."""

    def __init__(self, fails):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout()
        self.head, self.fails, self.calls = nn.Linear(288, CLASSES), fails, 0

    def forward(self, x):
        torch.rand(3), np.random.rand(3), random.random()
        torch.set_grad_enabled(torch.is_grad_enabled())
        self.calls += 1
        if self.fails == "at once" or (self.fails == "in train mode" and self.training):
            torch.set_grad_enabled(False)
            raise KeyError("width")
        return self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


def everything(model):
    return [
        {name: value.tolist() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        [weight.grad.tolist() for weight in model.parameters() if weight.grad is not None],
        [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(),
        pickle.dumps(np.random.get_state()),
        random.getstate(),
        torch.is_grad_enabled(),
        model.calls,
        sorted(vars(model)),
    ]


@pytest.mark.parametrize("fails", ["never", "at once", "in train mode"])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_model_and_everything_around_it_is_as_it_was(fails, gradients):
    model = Restless(fails)
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.conv.register_forward_hook(lambda layer, given, output: None)
    with (
        torch.set_grad_enabled(gradients),
        pytest.warns(ModelWarning) if fails == "never" else pytest.raises(ModelRefused, match="KeyError: 'width'"),
    ):
        before = everything(model)
        try:
            try_out(model)
        finally:
            after = everything(model)
    assert before == after


def test_a_hook_that_writes_into_the_model_itself_leaves_nothing():
    model: Any = plain()
    model.register_buffer("mean", torch.zeros(8))

    def keep(layer, given, output):
        model.mean.copy_(output.detach().mean((0, 2, 3)))
        model.seen = output

    model[0].register_forward_hook(keep)
    try_out(model)
    assert not model.mean.any() and not hasattr(model, "seen")


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_images_are_noise_that_repeats_and_never_as_many_as_the_classes(classes):
    one, two = (trial_images((3, 4, 5), classes=classes, device=CPU) for _ in range(2))
    assert torch.equal(one, two) and one.shape[1:] == (3, 4, 5) and len(one) != classes


def test_a_refused_model_leaves_no_setting_of_torch_behind():
    def settings():
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(),
            torch.get_default_dtype(),
        )

    before = settings()
    with pytest.raises(ModelRefused, match="KeyError: 'width'"):
        try_out(Global())
    assert settings() == before == (1, False, False, torch.float32)


# -- models of a list ---------------------------------------------------------------------------------------------


def sharing(layer):
    one, two = plain(), plain()
    two[layer] = one[layer]
    return [plain(), one, two]


def sharing_buffers():
    models = [nn.Sequential(nn.BatchNorm2d(1), plain()) for _ in range(2)]
    models[1][0].running_mean = models[0][0].running_mean
    return models


def sharing_storage():
    one, two = plain(), plain()
    two.load_state_dict(one.state_dict(), assign=True)
    return [one, two]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (lambda: [plain()] * 3, "number 0 and number 1 are one object; each client needs its own"),
        (lambda: sharing(3), "number 1 and number 2 share the weights 3.weight"),
        (sharing_buffers, "number 0 and number 1 share the weights 0.running_mean"),
        (sharing_storage, "number 0 and number 1 share the weights 0.weight"),
    ],
    ids=["one model three times", "one layer", "running statistics", "loaded without a copy"],
)
def test_models_of_a_list_share_nothing(models, words):
    with pytest.raises(ModelRefused, match=words):
        require_own_weights(models())
    tied = plain()
    tied.again = tied[0]
    require_own_weights([plain(), plain(), tied, sharing(1)[1]])  # control: of their own, or without weights
