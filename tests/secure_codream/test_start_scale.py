"""Dreams that start from pictures start on the scale of the clients' images, where charter or comparison know it."""

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
    def said(dreams: dict[str, Any], **task: Any) -> str:
        tables = {"task": {"shape": (1, 8, 8), "classes": 2, **task}, "dreams": {"start": start, **dreams}}
        config: FederationConfig = check("config.toml", FederationConfig, tables)
        return "\n".join(remarks(config))

    assert f"{start} that dreams start from lie in [-1, 1]" in said({})
    for well in (said({}, mean=(MEAN,), std=(STD,)), said({"matched": True}), said({"start": "noise"})):
        assert "[-1, 1]" not in well
