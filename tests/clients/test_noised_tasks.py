"""A learner in a federation with client-level noise: what it sends, and what it no longer sends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import LearningSettings, Metrics, Participant
from codream_clients.models.zoo import build
from codream_protocols.course import Task
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.starts import start_rule
from secure_codream.simulation.in_process import Simulation

SHAPE, CLASSES, BATCH = (1, 8, 8), 4, 6
DREAMS = np.random.default_rng(1).standard_normal((BATCH, *SHAPE), dtype=np.float32)
COURSE = CoDream(
    DreamSettings(rounds=1, steps=1, batch=BATCH, shape=SHAPE, classes=CLASSES, update_clip=0.05),
    start_rule("noise"),
    ClientPrivacy(epsilon=8.0, delta=1e-5, update_norm=4.0, logit_norm=4.0),
)


def learner(**options: Any) -> DreamLearner:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )
    settings = LearningSettings(local_steps=2, warm_up_epochs=1, distil_epochs=1, local_epochs=1)
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=0)
    return DreamLearner(Participant(settings, model, images, images, 0, torch.device("cpu")), **options)


@pytest.mark.parametrize("task", ["update", "logits"])
def test_blocks_are_those_of_the_spec_and_within_their_clips(task: str) -> None:
    spec = {spec.task: spec for spec in COURSE.specs(2)}[task]
    assert spec.noise is not None
    values = learner(weight=0.3).compute(Task(task, {"dreams": DREAMS}), spec)
    assert set(values) == {block.name for block in spec.blocks}
    for block in spec.blocks:
        assert np.size(values[block.name]) == block.length
        assert np.abs(values[block.name]).max() <= block.clip * (1 + 1e-6)


def test_weights_are_one_for_everybody() -> None:
    spec = {spec.task: spec for spec in COURSE.specs(2)}["update"]
    light, heavy = (learner(weight=weight).compute(Task("update", {"dreams": DREAMS}), spec) for weight in (0.1, 1.0))
    np.testing.assert_array_equal(light["dreams"], heavy["dreams"])


def test_a_noised_federation_asks_for_no_metrics_and_learns_all_the_same() -> None:
    heard: list[Metrics] = []
    asked: list[str] = []
    simulation = Simulation(COURSE, [learner(on_metrics=heard.append) for _ in range(3)], seed=1)
    simulation.run_epoch(lambda step: asked.append(step.task))
    assert asked == ["update", "logits"] and COURSE.epochs == 1
    assert len(heard) == 3 and heard[0].accuracy is not None
