"""Dreams that start from pictures start on the scale of the clients' images, where charter or comparison know it."""

import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from codream_clients.data.datasets import DIGITS_MEAN, DIGITS_STD, LabelledImages, load_digits_data
from codream_clients.data.pixels import Scale
from codream_clients.learning.settings import LearningSettings
from codream_protocols.courses.codream import Dreams
from codream_protocols.starts import PICTURES
from secure_codream.configuration.courses import make_course, public_images
from secure_codream.configuration.federation import AggregationTable, FederationConfig
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.exposure import remarks
from secure_codream.experiments.problem import Problem

MEAN, STD = 0.1307, 0.3081


def starts(start: str, **task: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    tables = {"task": {"shape": (1, 28, 28), "classes": 10, **task}, "dreams": {"start": start, "batch": 16}}
    config: FederationConfig = check("config.toml", FederationConfig, tables)
    return public_images(config)


def test_a_charter_with_a_scale_starts_on_it() -> None:
    for start in ("strokes", "shapes"):
        plain, scaled = starts(start), starts(start, mean=(MEAN,), std=(STD,))
        assert plain.min() >= -1 and plain.max() <= 1 < scaled.max()
        np.testing.assert_allclose(scaled, ((plain + 1) / 2 - MEAN) / STD, atol=2e-6)


def test_noise_stays_as_it_is() -> None:
    np.testing.assert_array_equal(starts("noise"), starts("noise", mean=(MEAN,), std=(STD,)))


def test_photographs_have_the_contrast_that_they_are_drawn_together_from() -> None:
    pytest.importorskip("sklearn")
    config = {"task": {"shape": (3, 32, 32), "classes": 10}, "dreams": {"start": "photos", "batch": 256}}
    crops = public_images(check("config.toml", FederationConfig, config))
    assert crops.std(axis=(1, 2, 3)).mean() / 2 == pytest.approx(PICTURES["photos"], rel=0.3)


@pytest.mark.parametrize("start", [name for name in PICTURES if name != "photos"])
def test_a_comparison_starts_on_the_scale_of_its_images(start: str) -> None:
    images = LabelledImages(np.zeros((4, 1, 8, 8), np.float32), np.arange(4) % 2, 2, scale=Scale((MEAN,), (STD,)))
    problem = Problem(
        shards=(images,) * 3,
        test=images,
        models=("mlp",) * 3,
        learning=LearningSettings(),
        dreams=Dreams(start=start, batch=16),
        aggregation=AggregationTable(),
        rounds=1,
        seed=0,
        device=torch.device("cpu"),
    )
    config = problem.federation("codream")
    assert (config.task.mean, config.task.std) == ((MEAN,), (STD,))
    begun = make_course(config).start(bytes(32), 0, None)["dreams"]
    low, high = (0 - MEAN) / STD, (1 - MEAN) / STD
    assert begun.min() >= low - 1e-5 and 1 < begun.max() <= high + 1e-5


def test_strokes_are_of_the_contrast_of_digits_then() -> None:
    train, _ = load_digits_data(seed=0)
    config: FederationConfig = check(
        "config.toml",
        FederationConfig,
        {
            "task": {"shape": (1, 8, 8), "classes": 10, "mean": (DIGITS_MEAN,), "std": (DIGITS_STD,)},
            "dreams": {"start": "strokes", "batch": 256},
        },
    )
    found = public_images(config)
    assert abs(found.std() - train.images.std()) < 0.25 and abs(found.min() - train.images.min()) < 1e-3


@pytest.mark.parametrize(("means", "deviations"), [(3, 1), (1, 3), (2, 2)])
def test_a_scale_of_two_forms_is_refused_before_anybody_starts(means: int, deviations: int) -> None:
    task = {"shape": (3, 8, 8), "classes": 2, "mean": (0.5,) * means, "std": (0.5,) * deviations}
    with pytest.raises(ConfigError, match=f"{means} means and {deviations} deviations; 1 or 3 of both are allowed"):
        check("config.toml", FederationConfig, {"task": task})


@pytest.mark.parametrize("start", PICTURES)
def test_whoever_signs_pictures_without_a_scale_is_told(start: str) -> None:
    def said(dreams: dict[str, Any], tables: dict[str, Any] | None = None, **task: Any) -> str:
        return told({"start": start, **dreams}, tables, **task)

    assert f"{start} that dreams start from lie in [-1, 1]" in said({})
    for well in (said({}, mean=(MEAN,), std=(STD,)), said({"matched": True}), said({"start": "noise"})):
        assert "[-1, 1]" not in well
    ring = said({"matched": True}, RING)  # which matches nothing
    assert f"{start} that models are handed down on lie in [-1, 1]" in ring and "matched" not in ring
    assert "[-1, 1]" not in said({}, RING, mean=(MEAN,), std=(STD,)) + said({}, {"federation": {"course": "fedavg"}})


# -- starts that a bound cuts, or that cannot be made ---------------------------------------------

RING = {
    "federation": {"course": "dp-sgd"},
    "dp_sgd": {
        "epsilon": 8.0,
        "delta": 1e-4,
        "sample_rate": 0.2,
        "batch_size": 8.0,
        "steps": 5,
        "layout": [["w", [3]]],
    },
}


def config_of(dreams: dict[str, Any], tables: dict[str, Any] | None = None, **task: Any) -> FederationConfig:
    content = {"task": {"shape": (1, 8, 8), "classes": 2, **task}, "dreams": dreams, **(tables or {})}
    found: FederationConfig = check("config.toml", FederationConfig, content)
    return found


def told(dreams: dict[str, Any], tables: dict[str, Any] | None = None, **task: Any) -> str:
    """What is said to whoever signs."""
    return "\n".join(remarks(config_of(dreams, tables, **task)))


@pytest.mark.parametrize("start", ["strokes", "shapes"])
def test_a_scale_on_which_every_start_is_cut_to_one_value_is_refused(start: str) -> None:
    far = {"mean": (10.0,), "std": (0.01,)}
    with pytest.raises(ConfigError, match=rf"pixel_bound: found 10, to which all values of start '{start}', -[35]"):
        make_course(config_of({"start": start}, **far))
    enough = make_course(config_of({"start": start, "pixel_bound": 1000}, **far)).start(bytes(32), 0, None)["dreams"]
    assert enough.min() < enough.max()
    make_course(config_of({"start": start}, RING, **far))  # control: nothing is cut there


def test_whoever_signs_is_told_that_starts_are_cut_and_what_keeps_them() -> None:
    usual = {"mean": (MEAN,), "std": (STD,)}
    said = told({"start": "strokes", "pixel_bound": 1.0}, **usual)
    assert re.search(
        r"[123]\d% of the values of strokes that dreams start from lie beyond pixel_bound = 1 and are cut to it: "
        r"pixel_bound = 3 under \[dreams\] keeps them",
        said,
    )
    assert "pixel_bound" in told({"start": "noise", "pixel_bound": 1.0}, **usual)
    dark = {"mean": (0.1,), "std": (0.02,)}  # whose pictures are drawn together
    for well in (told({"start": "strokes", "pixel_bound": 3.0}, **usual), told({"start": "strokes"}, **dark)):
        assert "pixel_bound" not in well


def test_a_deviation_of_less_than_a_grey_level_is_refused() -> None:
    config_of({}, mean=(0.5,), std=(1 / 255,))
    for std in (0.0039, 1e-300):
        with pytest.raises(
            ConfigError, match=rf"task.std.0: found {std}; input should be greater than or equal to 0.0039"
        ):
            config_of({}, mean=(0.5,), std=(std,))


@pytest.mark.parametrize(
    ("dreams", "shape", "words"),
    [
        ({"start": "photos", "photographs": "00" * 32}, (3, 8, 8), "allowed: digest 000000"),
        ({"start": "photos"}, (3, 600, 700), "photograph 0 of 427 x 640 pixels"),
        ({"batch": 65_536}, (3, 100, 100), "choose a smaller batch"),
    ],
)
def test_what_models_are_handed_down_on_is_made_before_they_are_trained(
    dreams: dict[str, Any], shape: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_course(config_of(dreams, RING, shape=shape))
    make_course(config_of({**dreams, "photographs": None, "batch": 2}, RING, shape=(3, 8, 8)))  # control


def test_one_number_is_for_all_channels_and_other_forms_are_named() -> None:
    def task(**scale: Any) -> Any:
        return check("config.toml", FederationConfig, {"task": {"shape": (3, 8, 8), "classes": 2, **scale}}).task

    assert (task(mean=0.5, std=0.25).mean, task(mean=0.5, std=[0.25]).std) == ((0.5,), (0.25,))
    with pytest.raises(ConfigError, match=r"task\.mean: found 'dark'; a list is needed"):
        task(mean="dark", std=0.25)
    with pytest.raises(ConfigError, match=r"task\.mean: found True; a list is needed"):
        task(mean=True, std=0.25)
