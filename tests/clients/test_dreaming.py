import copy
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.learning import dreaming
from codream_clients.learning.dreaming import (
    DreamError,
    DreamLoss,
    FeatureStatistics,
    entropy,
    first_target,
    frozen,
    l2_norm,
    target_loss,
    total_variation,
)
from codream_clients.models.zoo import ZOO, build
from codream_protocols.settings import SettingsError

ALL_TERMS = DreamLoss(alpha_preds=1.0, alpha_bn=0.7, alpha_tv=0.01, alpha_l2=0.02, alpha_target=0.5)
ONLY = {"alpha_preds": 0.0, "alpha_bn": 0.0, "alpha_tv": 0.0, "alpha_l2": 0.0, "alpha_target": 0.0}
SEEN = np.array([True, False, True, True])


def dream_gradient(*arguments, **options):
    """As an array, with the entropy."""
    gradient, uncertainty = dreaming.dream_gradient(*arguments, **options)
    return gradient.numpy(), uncertainty


def dream_update(*arguments, **options):
    """The same."""
    moved, uncertainty = dreaming.dream_update(*arguments, **options)
    return moved.numpy(), uncertainty


def noise(count=6, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)


def teacher(name="cnn2", classes=4):
    """A model whose running statistics are not those of a fresh one."""
    model = build(name, channels=1, size=8, classes=classes, seed=3).train()
    with torch.no_grad():
        model(torch.from_numpy(noise(32, seed=9)) * 2 + 1)
    return model.eval()


def test_entropy_in_closed_form():
    assert entropy(torch.zeros(3, 8)).item() == pytest.approx(math.log(8), rel=1e-6)
    assert entropy(torch.tensor([[100.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)
    share = np.array([0.7, 0.2, 0.1])
    expected = -(share * np.log(share)).sum() / 2 + math.log(3) / 2
    logits = torch.tensor(np.stack([np.log(share) + 5, np.zeros(3)]))
    assert entropy(logits).item() == pytest.approx(expected, rel=1e-6)


def test_total_variation_in_closed_form():
    assert total_variation(torch.full((2, 3, 5, 5), 4.0)).item() == 0
    ramp = torch.arange(4.0).repeat(4, 1)[None, None]  # rises by 1 a column
    # 12 horizontal neighbours and 9 on each diagonal differ by 1, vertical ones not at all.
    assert total_variation(ramp).item() == pytest.approx(math.sqrt(12) + 3 + 3, rel=1e-6)
    board = (torch.arange(4)[:, None] + torch.arange(4)[None]).remainder(2).float()[None, None]
    assert total_variation(board).item() == pytest.approx(2 * math.sqrt(12), rel=1e-6)


def test_l2_is_the_mean_norm_of_an_image():
    images = torch.stack([torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2)])
    assert l2_norm(images).item() == pytest.approx(3.0)


def test_target_loss_by_hand_asks_a_teacher_for_seen_classes_only():
    logits = torch.tensor([[1.0, 9.0, 2.0], [0.0, 5.0, 0.0], [1.0, -3.0, 3.0], [2.0, 1.0, 1.0]])
    everything = -torch.log_softmax(logits, 1)[torch.arange(4), torch.tensor([0, 1, 2, 0])].mean()
    assert target_loss(logits, None).item() == pytest.approx(everything.item(), rel=1e-6)
    # Class 1 unseen: the softmax runs over classes 0 and 2, and dream 1 (target 1) counts 0.
    by_hand = (math.log(1 + math.e) + 0 + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 4
    assert target_loss(logits, np.array([True, False, True])).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.BatchNorm1d(3)])
def test_feature_statistics_by_hand(layer):
    layer = copy.deepcopy(layer).eval()
    layer.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([1.0, 4.0, 0.25]))
    shape = (5, 3, 4, 4) if isinstance(layer, nn.BatchNorm2d) else (5, 3)
    features = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3
    flat = np.moveaxis(features, 1, 0).reshape(3, -1)
    expected = np.linalg.norm(layer.running_var.numpy() - flat.var(axis=1)) + np.linalg.norm(
        layer.running_mean.numpy() - flat.mean(axis=1)
    )
    with FeatureStatistics(nn.Sequential(layer)) as statistics:
        layer(torch.from_numpy(features))
        assert statistics.distance().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_r_bn_adds_up_all_layers_and_removes_its_hooks(name):
    model = teacher(name)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    inputs = {}
    taps = [layer.register_forward_pre_hook(lambda at, given: inputs.update({at: given[0]})) for layer in layers]
    with FeatureStatistics(model) as statistics:
        model(torch.from_numpy(noise()))
        found = statistics.distance().item()
    for tap in taps:
        tap.remove()
    assert not any(layer._forward_pre_hooks for layer in layers)
    expected = 0.0
    for layer in layers:
        variance, mean = torch.var_mean(inputs[layer].transpose(0, 1).flatten(1), dim=1, correction=0)
        assert layer.running_var is not None and layer.running_mean is not None
        expected += ((layer.running_var - variance).norm() + (layer.running_mean - mean).norm()).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_r_bn_is_zero_on_the_batch_that_made_the_statistics():
    layer = nn.BatchNorm2d(1, momentum=1.0)
    batch = torch.from_numpy(noise(64))
    layer(batch)
    layer.running_var.mul_((batch.numel() - 1) / batch.numel())  # torch stores the unbiased variance
    layer.eval()
    with FeatureStatistics(layer) as statistics:
        layer(batch)
        assert statistics.distance().item() == pytest.approx(0, abs=1e-5)


def test_r_bn_of_a_model_without_batch_norm_is_zero_and_reading_it_too_early_an_error():
    with FeatureStatistics(nn.Linear(2, 2)) as statistics:
        assert statistics.distance().item() == 0
    with FeatureStatistics(teacher()) as statistics, pytest.raises(DreamError, match="0 of 2"):
        statistics.distance()


@pytest.mark.parametrize("name", ["cnn2", "mlp"])
def test_the_gradient_against_finite_differences(name):
    model, dreams = teacher(name), noise()
    gradient, uncertainty = dream_gradient(model, dreams, ALL_TERMS, seen=SEEN)
    assert gradient.shape == dreams.shape
    assert gradient.dtype == np.float32
    exact = copy.deepcopy(model).double()

    def value(images):
        """The loss once more, written out from its definition, in double precision."""
        state, distance = torch.from_numpy(images), []

        def measure(layer, given):
            variance, mean = torch.var_mean(given[0].transpose(0, 1).flatten(1), dim=1, correction=0)
            distance.append((layer.running_var - variance).norm() + (layer.running_mean - mean).norm())

        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        taps = [m.register_forward_pre_hook(measure) for m in exact.modules() if isinstance(m, norms)]
        with torch.no_grad():
            logits = exact(state)
        for tap in taps:
            tap.remove()
        share = torch.softmax(logits, 1)
        parts = (
            1.0 * -(share * share.log()).sum(1).mean(),
            0.7 * sum(distance),
            0.01 * total_variation(state),
            0.02 * state.flatten(1).norm(dim=1).mean(),
            0.5 * target_loss(logits, SEEN),
        )
        return float(sum(parts))

    # Along the gradient the slope is its norm; along random directions the inner product.
    rng, step = np.random.default_rng(4), 1e-5
    directions = [gradient / np.linalg.norm(gradient), *rng.standard_normal((3, *dreams.shape)) / 10]
    for direction in directions:
        start, move = dreams.astype(np.float64), step * direction.astype(np.float64)
        slope = (value(start + move) - value(start - move)) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=2e-4)
    with torch.no_grad():
        assert uncertainty == pytest.approx(entropy(model(torch.from_numpy(dreams))).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("alpha_l2", lambda x: x / np.linalg.norm(x.reshape(len(x), -1), axis=1)[:, None, None, None] / len(x)),
        ("alpha_preds", None),
    ],
)
def test_each_weight_switches_its_own_term(term, expected):
    model, dreams = teacher(), noise()
    nothing, _ = dream_gradient(model, dreams, DreamLoss(**ONLY))
    assert not nothing.any()
    gradient, _ = dream_gradient(model, dreams, DreamLoss(**(ONLY | {term: 1.0})))
    assert gradient.any()
    if expected is not None:
        assert np.allclose(gradient, expected(dreams), atol=1e-6)


def test_an_extra_term_is_added_to_the_loss():
    model, dreams = teacher(), noise()
    gradient, _ = dream_gradient(model, dreams, DreamLoss(**ONLY), extra=lambda x: 3 * x.sum())
    assert np.allclose(gradient, 3)


def test_the_first_adam_step_moves_each_coordinate_by_lr_against_the_gradient():
    model, dreams = teacher(), noise()
    gradient, before = dream_gradient(model, dreams, ALL_TERMS, seen=SEEN)
    delta, uncertainty = dream_update(model, dreams, ALL_TERMS, 1, 0.05, seen=SEEN)
    clear = np.abs(gradient) > 1e-4  # Adam's epsilon blurs smaller ones
    assert clear.mean() > 0.9
    assert np.allclose(delta[clear], -0.05 * np.sign(gradient[clear]), atol=1e-4)
    assert uncertainty == pytest.approx(before, rel=1e-6)


def test_an_update_is_torchs_adam_without_its_compiler(monkeypatch):
    state = torch.tensor(noise(), requires_grad=True)
    optimiser = torch.optim.Adam([state], lr=0.1)
    for _ in range(4):
        state.grad = torch.from_numpy(dream_gradient(teacher(), state.detach().numpy(), DreamLoss())[0])
        optimiser.step()
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    moved, _ = dream_update(teacher(), noise(), DreamLoss(), 4, 0.1)
    assert np.array_equal(moved, state.detach().numpy() - noise())


def test_updates_lower_the_loss_that_they_follow():
    model, dreams = teacher(), noise(16)
    delta, before = dream_update(model, dreams, DreamLoss(**(ONLY | {"alpha_preds": 1.0})), 60, 0.1)
    _, after = dream_gradient(model, dreams + delta, ALL_TERMS)
    assert after < 0.7 * before


@pytest.mark.parametrize("first", [0, 3])
def test_targets_draw_the_dreams_to_their_classes(first):
    model, dreams = teacher(), noise(16)
    delta, _ = dream_update(model, dreams, DreamLoss(**(ONLY | {"alpha_target": 1.0})), 30, 0.1, first=first)
    with torch.no_grad():
        reached = model(torch.from_numpy(dreams + delta)).argmax(1)
    assert (reached == (first + torch.arange(16)) % 4).float().mean() > 0.8


@pytest.mark.parametrize(("batch", "classes"), [(2, 9), (5, 10), (10, 10), (64, 9), (128, 10), (7, 200)])
def test_every_class_is_a_target_as_soon_and_as_often_as_can_be(batch, classes):
    """Also where a batch has fewer dreams than there are classes."""
    targets = []
    for rounds in range(-(-classes // batch)):
        targets += [(first_target(rounds, batch, classes) + b) % classes for b in range(batch)]
    counts = np.bincount(targets, minlength=classes)
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_teacher_is_unchanged(name):
    model = teacher(name).train()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    dreams = noise()
    kept = dreams.copy()
    dream_update(model, dreams, ALL_TERMS, 3, 0.1)
    dream_gradient(model, dreams, ALL_TERMS)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert np.array_equal(dreams, kept)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_frozen_restores_modes_after_an_error():
    model = teacher().train()
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not model.training
        _ = 1 / 0
    assert model.training


def test_dreaming_is_deterministic():
    model, dreams = teacher("resnet8"), noise()
    one, two = (dream_update(model, dreams, ALL_TERMS, 5, 0.1)[0] for _ in range(2))
    assert np.array_equal(one, two)


def test_errors_say_what_is_wrong():
    model = teacher()
    with pytest.raises(DreamError, match="float64"):
        dream_gradient(model, noise().astype(np.float64), ALL_TERMS)
    with pytest.raises(DreamError, match="B, C, H, W"):
        dream_gradient(model, noise()[0], ALL_TERMS)
    with pytest.raises(DreamError, match="finite"):
        dream_gradient(model, np.full_like(noise(), np.inf), ALL_TERMS)
    with pytest.raises(DreamError, match="local_steps=0"):
        dream_update(model, noise(), ALL_TERMS, 0, 0.1)
    for value in (-1.0, float("nan")):
        with pytest.raises(SettingsError, match="alpha_bn"):
            DreamLoss(alpha_bn=value)
