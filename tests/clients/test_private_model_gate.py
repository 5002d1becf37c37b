"""The gate for private training: whose gradient hangs on another's record, or is not the one that is clipped."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.models.gate import trial_images
from codream_clients.models.refusals import ModelRefused
from codream_clients.models.zoo import FRONTS, NETWORKS, ZOO, build
from codream_clients.privacy.gate import BOTH, _without_noise, examine_private, modes_of
from codream_clients.privacy.noise import KEY_BYTES, Stream
from codream_clients.privacy.plan import PrivacySettings
from codream_clients.privacy.training import private_sgd
from tests.clients.own_models import CLASSES, GHOST_WRONG, PRIVATE_GOOD, PRIVATE_WRONG, WRONG, grouped, plain

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore::codream_clients.models.gate.ModelWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def try_out(model, modes=BOTH, shape=(1, 8, 8), classes=CLASSES, name="mine:build", **more):
    images = trial_images(shape, classes=classes, device=CPU)
    examine_private(model, images, classes=classes, name=name, modes=modes, **more)


@pytest.mark.parametrize("name", [*ZOO, *NETWORKS, *FRONTS])
def test_the_zoo_with_group_norm_passes_in_both_modes(name):
    try_out(build(f"{name}_gn", channels=1, size=8, classes=CLASSES, seed=0), name=f"{name}_gn")


@pytest.mark.parametrize("name", ["cnn2", "mlp", "resnet8", "lenet", "cnn2_strided"])
def test_batch_norm_is_refused_and_the_variant_with_group_norm_named(name):
    with pytest.raises(ModelRefused, match=rf"^{name}: found BatchNorm.*take {name}_gn"):
        try_out(build(name, channels=1, size=8, classes=CLASSES, seed=0), name=name)


@pytest.mark.parametrize("what", PRIVATE_GOOD)
def test_what_keeps_records_apart_is_taken(what):
    try_out(PRIVATE_GOOD[what]())


@pytest.mark.parametrize("what", PRIVATE_WRONG)
def test_what_private_training_cannot_bound_is_refused(what):
    make, words = PRIVATE_WRONG[what]
    with pytest.raises(ModelRefused, match=f"^mine:build: .*(?:{words})"):
        try_out(make())


@pytest.mark.parametrize("what", GHOST_WRONG)
def test_ghost_clipping_takes_no_weight_that_is_used_twice(what):
    make, words = GHOST_WRONG[what]
    with pytest.raises(ModelRefused, match=words):
        try_out(make(), ("ghost",))
    try_out(make(), ("hooks",))  # control


@pytest.mark.parametrize("what", ["a tuple", "a softmax", "attention over the batch", "the same behind a gain of zero"])
def test_what_is_refused_elsewhere_is_refused_here(what):
    with pytest.raises(ModelRefused, match=WRONG[what][1]):
        try_out(WRONG[what][0]())


def test_feature_statistics_need_group_norm():
    try_out(grouped(), statistics=True)
    try_out(plain())
    with pytest.raises(ModelRefused, match="found no group norm, at whose inputs statistics_share"):
        try_out(plain(), statistics=True)


class Patches(nn.Module):
    """Quarters of an image go through a fixed front as images of their own."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4, affine=False))
        self.front.requires_grad_(False)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, x):
        quarters = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(x) * 4, 1, 4, 4)
        return self.head(self.front(quarters).reshape(len(x), -1))


def test_each_image_has_one_gradient():
    """Of several, each would be clipped by itself; that all but one are zero, a trial cannot know for all images."""

    class FirstPatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x):
            quarters = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(x) * 4, 16)
            return self.head(quarters).reshape(len(x), 4, CLASSES)[:, 0]

    with pytest.raises(ModelRefused, match="found 8 gradients of a weight for 2 images"):
        try_out(FirstPatch(), ("hooks",))
    with pytest.raises(ModelRefused, match="the first step of private training, mode 'ghost'"):
        try_out(FirstPatch(), ("ghost",))
    alone = LabelledImages(trial_images((1, 8, 8), classes=CLASSES, device=CPU)[:1].numpy(), np.zeros(1, int), CLASSES)
    for mode in BOTH:  # of one image, its loss meets the norms of all its rows
        with pytest.raises(ModelRefused, match="found 4 gradients of a weight for 1 images"):
            private_sgd(
                FirstPatch(),
                alone,
                plan=_without_noise(1, 1.0, mode),
                steps=1,
                class_counts=None,
                stream=Stream(bytes(KEY_BYTES)),
                device=CPU,
            )


def test_feature_statistics_need_one_row_of_each_image_at_a_group_norm():
    """Else one record would move several clipped vectors, and the noise be too little."""
    try_out(Patches())
    with pytest.raises(ModelRefused, match="not one row for each image"):
        try_out(Patches(), statistics=True)


def test_auto_may_take_either_mode():
    modes = {mode: modes_of(PrivacySettings(epsilon=1.0, mode=mode)) for mode in ("hooks", "ghost", "auto")}
    assert modes == {"hooks": ("hooks",), "ghost": ("ghost",), "auto": BOTH}


@pytest.mark.parametrize("make", [grouped, PRIVATE_WRONG["a weight past its layer"][0]], ids=["taken", "refused"])
def test_the_model_is_as_it_was(make):
    model, random = make().eval(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with nullcontext() if make is grouped else pytest.raises(ModelRefused):
        try_out(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(layer.training or layer._forward_hooks or layer._backward_hooks for layer in model.modules())
    assert not any(hasattr(weight, "grad_sample") or weight.grad is not None for weight in model.parameters())
