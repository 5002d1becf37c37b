"""The server's step on the dreams, against steps by hand and against torch."""

from __future__ import annotations

import numpy as np
import pytest

from codream_server.optimisers import Adam, Average, make_optimiser
from codream_server.settings import DreamSettings, SettingsError


def settings(way: str, optimiser: str, server_lr: float = 0.5) -> DreamSettings:
    return DreamSettings(
        rounds=1, steps=1, batch=2, shape=(1, 2, 2), classes=3, way=way, optimiser=optimiser, server_lr=server_lr
    )


def test_average_adds_the_mean_times_its_rate() -> None:
    dreams, mean = np.ones((1, 1, 1, 2), np.float32), np.array([[[[2.0, -4.0]]]], np.float32)
    following = Average(0.5).step(dreams, mean)
    assert following.tolist() == [[[[2.0, -1.0]]]]
    assert following.dtype == np.float32
    assert dreams.tolist() == [[[[1.0, 1.0]]]]  # the state given is not changed


def test_adams_first_steps_by_hand() -> None:
    """Step 1 moves by the rate against the sign; step 2 with g = 2, then -1: m and v as in the paper's algorithm 1."""
    adam = Adam(0.1, direction=-1.0)
    state = adam.step(np.zeros(2, np.float32), np.array([2.0, -3.0], np.float32))
    assert state == pytest.approx([-0.1, 0.1], rel=1e-5)
    first = 0.9 * 0.1 * 2 + 0.1 * -1
    second = 0.999 * 0.001 * 4 + 0.001 * 1
    expected = -0.1 - 0.1 * (first / (1 - 0.9**2)) / (np.sqrt(second / (1 - 0.999**2)) + 1e-8)
    assert adam.step(state, np.array([-1.0, 0.0], np.float32))[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "direction"), [(("gradient", "adam"), 1.0), (("update", "fedadam"), -1.0)])
def test_adam_and_fedadam_are_torchs_adam(kind: tuple[str, str], direction: float) -> None:
    """The gradient way descends; FedAdam takes the mean update for a pseudo-gradient that points the other way."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    ours = rng.standard_normal((2, 1, 2, 2), dtype=np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(ours.copy()))
    reference = torch.optim.Adam([theirs], lr=0.5)
    optimiser = make_optimiser(settings(*kind))
    for _ in range(25):
        mean = rng.standard_normal(ours.shape, dtype=np.float32)
        ours = optimiser.step(ours, mean)
        theirs.grad = torch.from_numpy(direction * mean)
        reference.step()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_distadam_is_adam_on_the_mean_gradient_by_hand() -> None:
    """As the authors write it: rate / (1 - b1^t) times m, over sqrt(v) / sqrt(1 - b2^t) + eps; lr 0.05, three steps."""
    optimiser, dreams = make_optimiser(settings("gradient", "distadam", 0.05)), np.ones((1, 1, 1, 1), np.float32)
    by_client = [(3.0, -1.0), (0.5, 0.5), (-4.0, 0.0)]  # gradients of two clients in each step
    expected, first, second = 1.0, 0.0, 0.0
    for step, gradients in enumerate(by_client, start=1):
        mean = sum(gradients) / 2
        first = 0.9 * first + 0.1 * mean
        second = 0.999 * second + 0.001 * mean**2
        expected -= 0.05 / (1 - 0.9**step) * first / (np.sqrt(second) / np.sqrt(1 - 0.999**step) + 1e-8)
        dreams = optimiser.step(dreams, np.full((1, 1, 1, 1), mean, np.float32))
        assert dreams.item() == pytest.approx(expected, abs=1e-6)
    assert 0.9 < dreams.item() < 1.0  # the first two steps descend by 0.05 and less, the third turns back


def test_each_batch_of_dreams_has_a_fresh_optimiser() -> None:
    first, second = (make_optimiser(settings("gradient", "adam")) for _ in range(2))
    first.step(np.zeros(1, np.float32), np.full(1, 9.0, np.float32))
    assert second.step(np.zeros(1, np.float32), np.ones(1, np.float32)) == pytest.approx([-0.5], rel=1e-5)


@pytest.mark.parametrize(
    ("way", "optimiser"), [("update", "adam"), ("update", "distadam"), ("gradient", "average"), ("other", "average")]
)
def test_way_and_optimiser_must_fit(way: str, optimiser: str) -> None:
    with pytest.raises(SettingsError, match="allowed: update with average or fedadam, gradient with adam or distadam"):
        settings(way, optimiser)
