"""Averaging of parameters: initial weights, the weighted mean, clips, statistics and control variates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codream_protocols.course import fingerprint
from codream_protocols.courses.layouts import check_layout, initial_weights, length_of, trained
from codream_protocols.courses.parameters import AveragingSettings, FedAvg, Moon, Scaffold
from codream_protocols.errors import LocalProtocolError
from codream_protocols.settings import SettingsError
from tests.protocols.courses.walk import LAYOUT

SEED = bytes(range(32))
LENGTH = 24 + 3 * 5 + 12


def added(shares: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(share[name] for share in shares) for name in shares[0]}


def settings(**changed: Any) -> AveragingSettings:
    return AveragingSettings(**{"layout": LAYOUT, "rounds": 2, **changed})


def test_initial_weights_are_those_of_the_layers() -> None:
    weights = initial_weights(LAYOUT, SEED)
    parts = dict(zip((name for name, _ in LAYOUT), np.split(weights, [24, 27, 30, 33, 36, 39]), strict=True))
    assert weights.shape == (LENGTH,) == (length_of(LAYOUT),)
    assert weights.dtype == np.float32
    assert (np.abs(parts["conv.weight"]) <= 8**-0.5).all()
    assert (np.abs(parts["head.weight"]) <= 3**-0.5).all()
    assert len(set(parts["conv.weight"])) == 24
    for name, value in (("norm.weight", 1), ("norm.running_var", 1), ("norm.running_mean", 0), ("conv.bias", 0)):
        assert (parts[name] == value).all()


def test_initial_weights_are_uniform_and_follow_the_seed_and_the_name_alone() -> None:
    weights = initial_weights((("a", (200, 100)),), SEED) * 10
    assert weights.mean() == pytest.approx(0, abs=0.02)
    assert weights.std() == pytest.approx(3**-0.5, rel=0.02)
    assert np.array_equal(initial_weights(LAYOUT[-1:], SEED), initial_weights(LAYOUT, SEED)[-12:])
    assert not np.array_equal(weights, initial_weights((("b", (200, 100)),), SEED) * 10)
    assert not np.array_equal(weights, initial_weights((("a", (200, 100)),), bytes(32)) * 10)
    with pytest.raises(LocalProtocolError, match="seed"):
        initial_weights(LAYOUT[:1], b"short")


def test_initial_weights_stay_as_they_were_pinned() -> None:
    pinned = "afddb1203bd3e03be8e56f70606983b8"
    assert fingerprint({"weights": initial_weights(LAYOUT, SEED)}).hex()[:32] == pinned


def test_the_mean_change_is_weighted_by_what_nobody_tells() -> None:
    course = FedAvg(settings(server_lr=0.5))
    state = course.start(SEED, 0, None)
    source = np.random.default_rng(1)
    changes, weights = source.uniform(-0.2, 0.2, (3, LENGTH)), [1.0, 0.5, 0.25]
    sums = added([course.share({"weights": change}, weight) for change, weight in zip(changes, weights, strict=True)])
    found = course.absorb(state, 1, sums, 3)["weights"]
    assert found == pytest.approx(state["weights"] + 0.5 * np.average(changes, axis=0, weights=weights), abs=1e-6)
    assert course.figures("parameters", sums, 3) == {"clipped": 0.0}


def test_a_change_beyond_the_clip_is_cut_to_it_and_counted() -> None:
    course = FedAvg(settings(clip=0.1, statistic_clip=2.0))
    state = course.start(SEED, 0, None)
    shares = [course.share({"weights": np.full(LENGTH, 1.0)}, 1.0) for _ in range(3)]
    moved = course.absorb(state, 1, added(shares), 3)["weights"] - state["weights"]
    assert moved[:33] == pytest.approx(np.full(33, 0.1), abs=1e-6)
    assert moved[33:39] == pytest.approx(np.ones(6))
    assert course.figures("parameters", added(shares), 3)["clipped"] == pytest.approx((LENGTH - 6) / LENGTH)


def test_a_running_variance_is_never_negative() -> None:
    course = FedAvg(settings())
    share = course.share({"weights": np.full(LENGTH, -5.0)}, 1.0)
    found = course.absorb(course.start(SEED, 0, None), 1, share, 1)["weights"]
    assert (found[36:39] == 0).all()
    assert not np.signbit(found[36:39]).any()
    assert (found[33:36] == -5).all()


def test_weights_stay_within_their_bounds() -> None:
    course = FedAvg(settings(bound=0.1, statistic_bound=2.0))
    state = course.start(SEED, 0, None)
    for _ in range(2):
        assert np.abs(np.delete(state["weights"], range(33, 39))).max() <= np.float32(0.1)
        assert np.abs(state["weights"][33:39]).max() <= 2
        state = course.absorb(state, 1, course.share({"weights": np.full(LENGTH, -5.0)}, 1.0), 1)


def test_rounds_go_on_from_what_was_learnt() -> None:
    course = FedAvg(settings(steps=2))
    weights = np.arange(LENGTH, dtype=np.float32)
    assert course.schedule(0) == (0, 1, 1)
    assert course.schedule(2) == (0,)
    for certified in (1, 2):
        state = course.start(SEED, certified, {"weights": weights})
        assert np.array_equal(course.publication(state)["weights"], weights)


def test_relatives_sum_the_same() -> None:
    moon, average = Moon(settings()), FedAvg(settings())
    assert moon.specs(3) == average.specs(3)
    assert fingerprint(moon.start(SEED, 0, None)) == fingerprint(average.start(SEED, 0, None))


def test_scaffold_sums_variates_of_the_parameters_beside_the_weights() -> None:
    course = Scaffold(AveragingSettings(layout=LAYOUT, rounds=1, server_lr=0.5))
    state = course.start(SEED, 0, None)
    assert length_of(trained(LAYOUT)) == LENGTH - 6 == len(state["variate"])
    assert not state["variate"].any()
    shares = [
        course.share({"weights": np.full(LENGTH, change), "variate": np.full(LENGTH - 6, -change)}, weight)
        for change, weight in ((0.2, 1.0), (0.4, 0.25))
    ]
    following = course.absorb(state, 1, added(shares), 2)
    assert following["weights"] == pytest.approx(state["weights"] + 0.12, abs=1e-6)
    assert following["variate"] == pytest.approx(np.full(LENGTH - 6, -0.24), abs=1e-6)
    again = course.start(SEED, 1, course.publication(following))
    assert fingerprint(again) == fingerprint(following)


@pytest.mark.parametrize(
    "layout",
    [
        (),
        (("a", (2,)), ("a", (3,))),
        (("a", (0,)),),
        (("norm.num_batches_tracked", ()),),
    ],
)
def test_a_layout_that_is_no_vector_is_refused(layout: Any) -> None:
    with pytest.raises(SettingsError, match="layout"):
        check_layout(layout)


@pytest.mark.parametrize("changed", [{"rounds": 0}, {"steps": 0}, {"clip": 0.0}, {"bound": 1e9}, {"server_lr": -1.0}])
def test_settings_of_averaging_out_of_range_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="allowed"):
        settings(**changed)


def test_settings_of_scaffold_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match="variate_clip"):
        AveragingSettings(layout=LAYOUT, rounds=1, variate_clip=0.0)
    with pytest.raises(SettingsError, match="parameter"):
        Scaffold(AveragingSettings(layout=LAYOUT[4:5], rounds=1))
