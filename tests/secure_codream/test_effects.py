"""What each algorithm says that it does not go by is held against its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.learning.settings import DreamLoss, Learning, LearningSettings
from codream_protocols.courses.codream import Dreams
from codream_protocols.settings import declared
from secure_codream.configuration.federation import AggregationTable
from secure_codream.experiments.effects import DREAMS, LEARNING, OWN_IMAGES, GoesBy, effective
from secure_codream.experiments.problem import FROM_DREAMS, Problem, Row
from secure_codream.experiments.registry import ALGORITHMS, Entry, find

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::codream_clients.learning.training.ConvergenceWarning")
BASE: dict[str, Any] = {"steps": 2, "batch": 8}
OTHERS: tuple[dict[str, Any], ...] = (
    {
        "start": "strokes",
        "steps": 4,
        "half_way": True,
        "batch": 6,
        "views_by": "cutmix",
        "matched": True,
        "way": "gradient",
        "optimiser": "adam",
        "server_lr": 0.5,
        "update_clip": 0.01,
        "update_bits": 12,
        "logit_clip": 1.0,
        "pixel_bound": 0.5,
        "window": 1,
        "adaptive_weight": 9.0,
        "adaptive_from": 1,
    },
    {"views": 2, "label_by": "votes"},
)
"""Other dreams than usual; the second do not go with the first."""
OTHER_LEARNING: dict[str, Any] = {
    "local_steps": 3,
    "dream_lr": 0.5,
    "loss": DreamLoss(alpha_tv=1.0, alpha_target=0.0),
    "label_deviation": 6.0,
    "class_aware": False,
    "max_count": 2,
    "prior": 1.0,
    "warm_up_epochs": 3,
    "distil_epochs": 4,
    "local_epochs": 2,
    "training_rounds": 1,
    "distil_every": 2,
    "batch_size": 7,
    "distil_batch_size": 5,
    "lr": 0.1,
    "distil_lr": 0.2,
    "schedule": "cosine",
    "distil_schedule": "cosine",
    "held_back": 0.5,
    "distil_clip": 0.01,
    "momentum": 0.1,
    "weight_decay": 0.1,
    "temperature": 1.0,
    "balanced": False,
    "distil_noise": 2.0,
    "distil_shift": 2,
    "own_weight": 3.0,
    "own_statistics": True,
    "teacher": "warm-up",
}
PRIVACY = {"epsilon": 8.0, "delta": 1e-3, "batch_size": 8, "warm_up_epochs": 1}
SMALL: Mapping[str, dict[str, Any]] = {
    "codream-fast": {"batches": 1, "local_steps": 2, "noise": 8, "width": 4},
    "dp-sgd": {"table": {"epsilon": 8.0, "delta": 1e-3, "sample_rate": 0.5, "batch_size": 10.0, "steps": 2}},
    **{f"{method}-dp": {"privacy": PRIVACY} for method in ("codream", "isolated", "centralised")},
}
MIXED = "cnn2_gn", "mlp", "cnn2_gn"


def entry_of(name: str) -> Entry:
    return find(name, SMALL.get(name))


def rows(name: str, dreams: Mapping[str, Any], learning: Mapping[str, Any], models: tuple[str, ...]) -> list[Row]:
    train, test = load_digits_data(seed=0)
    made = Dreams(**{**BASE, **dreams})
    usual = {"local_steps": 2, "warm_up_epochs": 2, "distil_epochs": 1, "local_epochs": 1, "own_weight": 1.0}
    settings = LearningSettings(**{**usual, **learning}, **{key: getattr(made, key) for key in FROM_DREAMS})
    problem = Problem(
        shards=tuple(train.subset(np.arange(start, start + 20)) for start in (0, 100, 200)),
        test=test.subset(np.arange(100)),
        models=models,
        learning=settings,
        dreams=made,
        aggregation=AggregationTable(),
        rounds=2,
        seed=3,
        device=torch.device("cpu"),
    )
    return [replace(row, seconds=0.0) for row in entry_of(name).make().run(problem)]


@cache
def usual_rows(name: str, models: tuple[str, ...]) -> list[Row]:
    return rows(name, {}, {}, models)


def said(name: str, models: tuple[str, ...]) -> GoesBy:
    return effective(entry_of(name).make(), Dreams(**BASE), models)


ALIKE = ("cnn2_gn",) * 3
TOLD_ELSEWHERE = {
    "codream-noise": {"optimiser", "way"},  # what an optimiser keeps is in the state that seeds the next start
    "codream-fast": {"label_by"},  # its course refuses votes, a comparison's too
}
COSTLY = {"fedprox", "scaffold", "moon", "fedgen", "isolated-dp", "centralised-dp"}
"""They say the same as FedAvg, and as each other."""
CASES = [
    pytest.param(
        name, models, marks=[pytest.mark.exhaustive] if name in COSTLY else [], id=f"{name}, {len(set(models))}"
    )
    for name, models in [*((name, ALIKE) for name in ALGORITHMS), ("dp-sgd", MIXED)]
]


@pytest.mark.parametrize(("name", "models"), CASES)
def test_what_an_algorithm_does_not_go_by_leaves_its_rows(name: str, models: tuple[str, ...]) -> None:
    goes_by = said(name, models)
    learning = {key: value for key, value in OTHER_LEARNING.items() if key not in goes_by.learning}
    assert "held_back" in learning, "no comparison goes by it"
    changed = False
    for others in OTHERS:
        allowed = {*goes_by.dreams, *TOLD_ELSEWHERE.get(name, ())}
        dreams = {key: value for key, value in others.items() if key not in allowed}
        if dreams or not changed:
            assert rows(name, dreams, learning, models) == usual_rows(name, models)
            changed = True


@pytest.mark.parametrize("key", sorted(OWN_IMAGES))
def test_whatever_training_on_own_images_goes_by_changes_rows(key: str) -> None:
    assert rows("isolated", {}, {key: OTHER_LEARNING[key]}, ALIKE) != usual_rows("isolated", ALIKE)


def test_there_is_another_value_for_every_setting() -> None:
    usual = asdict(Learning())
    assert set(OTHER_LEARNING) == {setting.name for setting in declared(Learning)} == LEARNING | {"held_back"}
    assert all(usual[key] != value for key, value in OTHER_LEARNING.items())
    assert {key for others in OTHERS for key in others} == DREAMS - {"photographs"}, "which the start `photos` needs"


def test_every_algorithm_says_what_it_goes_by_and_own_code_may_go_by_all() -> None:
    assert all(hasattr(entry_of(name).make(), "goes_by") for name in ALGORITHMS)
    assert effective(object(), Dreams(), ("mlp",)) == GoesBy(DREAMS, LEARNING | {"held_back"})
    assert all(said(name, ALIKE).dreams <= DREAMS and said(name, ALIKE).learning <= LEARNING for name in ALGORITHMS)
