"""CoDream-fast as a course: what is asked in which order, and how generator, noise and labels come about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codream_protocols.course import State
from codream_protocols.courses.generator import CoDreamFast, GeneratorSettings
from codream_protocols.settings import SettingsError

SEED = bytes(range(32))
LAYOUT = (("first.weight", (3, 4)), ("first.bias", (3,)))


def settings(**changed: Any) -> GeneratorSettings:
    known = {"layout": LAYOUT, "rounds": 2, "batch": 2, "classes": 3, "batches": 2, "noise": 4}
    return GeneratorSettings(**{**known, **changed})


COURSE = CoDreamFast(settings())
CHANGE = {"generator": np.full(15, 3 * 0.01), "noise": np.full(8, 3 * 0.002)}
LABELS = {"numerators": np.full(6, 3.0), "denominators": np.full(3, 1.5)}


def rounds(course: CoDreamFast, certified: int, last: Any) -> list[State]:
    states = [course.start(SEED, certified, last)]
    for step, kind in enumerate(course.schedule(certified)):
        sums: Any = {"generator": CHANGE, "logits": LABELS, "metrics": {}}[course.specs(3)[kind].task]
        states.append(course.absorb(states[-1], step, sums, 3))
    return states


def test_each_batch_is_moved_and_then_labelled() -> None:
    course = CoDreamFast(settings(global_steps=2))
    tasks = [course.specs(3)[kind].task for kind in course.schedule(0)]
    assert tasks == ["metrics", *["generator", "generator", "logits"] * 2]
    assert sorted(course.task(course.start(SEED, 0, None), 1).arrays) == ["generator", "noise"]


def test_generator_and_noise_follow_the_mean_of_the_clients() -> None:
    before, after = rounds(COURSE, 0, None)[1:3]
    assert after["generator"] == pytest.approx(before["generator"] + 0.01, abs=1e-6)
    assert after["noise"] == pytest.approx(before["noise"] + 0.002, abs=1e-6)
    assert np.array_equal(before["meta"], after["meta"])


def test_a_batch_starts_from_the_meta_generator_and_from_noise_of_its_own() -> None:
    states = rounds(COURSE, 0, None)
    first, second = states[1], states[3]
    # Adam's first step is its rate, lr x local_steps, whatever the distance.
    assert second["meta"] == pytest.approx(first["meta"] + 0.025, abs=1e-5)
    assert np.array_equal(second["generator"], second["meta"])
    assert not np.array_equal(first["noise"], second["noise"])
    assert abs(float(first["noise"].mean())) < 2


def test_what_is_published_is_a_recipe_for_the_images_and_the_next_start() -> None:
    states = rounds(COURSE, 0, None)
    published = COURSE.publication(states[-1])
    assert published["generators"].shape == (2, 15)
    assert published["noises"].shape == (2, 2, 4)
    assert published["soft_labels"].shape == (4, 3)
    assert (published["soft_labels"] == 2).all()
    assert np.array_equal(published["generators"][0], states[2]["generator"])
    following = COURSE.start(SEED, 1, published)
    assert np.array_equal(following["generator"], published["meta"])
    assert np.array_equal(following["decays"], published["decays"])
    closing = COURSE.publication(rounds(COURSE, 2, published)[-1])
    assert sorted(closing) == ["decays", "first", "meta", "second"]


@pytest.mark.parametrize("changed", [{"batch": 1}, {"noise": 2000}, {"lr": 0.0}, {"batches": 0}, {"layout": ()}])
def test_settings_of_the_generator_out_of_range_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        settings(**changed)
