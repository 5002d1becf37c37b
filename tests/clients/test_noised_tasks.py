"""A learner in a federation with client-level noise: what it sends, and what it no longer sends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.datasets import LabelledImages
from codream_clients.models import build
from codream_clients.participant import LearningSettings, Metrics, Participant
from codream_clients.tasks import DreamLearner
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.tasks import (
    LEARN,
    LOGITS,
    METRICS,
    UPDATE,
    bare_update_spec,
    learn_spec,
    logits_spec,
    metrics_spec,
    update_spec,
)
from codream_protocols.vectors import encode_vector
from secure_codream.threats.federation import Federation

SHAPE, CLASSES, BATCH = (1, 8, 8), 4, 6
DREAMS = np.random.default_rng(1).standard_normal((BATCH, *SHAPE), dtype=np.float32)
LABELS = np.zeros((BATCH, CLASSES), np.float32)


def learner(**options: Any) -> DreamLearner:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )
    settings = LearningSettings(local_steps=2, warm_up_epochs=1, distil_epochs=1, local_epochs=1)
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=0)
    return DreamLearner(
        Participant(settings, model, images, images, 0, torch.device("cpu")), shape=SHAPE, classes=CLASSES, **options
    )


@pytest.mark.parametrize("task", [UPDATE, LOGITS, LEARN])
def test_blocks_are_those_of_the_spec_and_within_their_clips(task: str) -> None:
    spec = {
        UPDATE: bare_update_spec(BATCH * 64, 0.05),
        LOGITS: logits_spec(BATCH, CLASSES, 30.0),
        LEARN: learn_spec(),
    }[task]
    arrays = [DREAMS, LABELS] if task == LEARN else [DREAMS]
    values = learner(noised=True, weight=0.3).compute(task, arrays, [block.clip for block in spec.blocks])
    assert set(values) == {block.name for block in spec.blocks}
    for block in spec.blocks:
        assert np.size(values[block.name]) == block.length
        assert np.abs(values[block.name]).max() <= block.clip * (1 + 1e-6)


def test_weights_are_one_for_everybody() -> None:
    light, heavy = (learner(noised=True, weight=weight).compute(UPDATE, [DREAMS], [1.0]) for weight in (0.1, 1.0))
    np.testing.assert_array_equal(light["dreams"], heavy["dreams"])


def test_learning_is_answered_by_a_constant_and_its_figures_stay_with_the_client() -> None:
    heard: list[Metrics] = []
    values = learner(noised=True, on_metrics=heard.append).compute(LEARN, [DREAMS, LABELS], [1.0])
    assert values == {"done": np.ones(1)}
    assert heard[0].accuracy is not None


def test_learning_needs_its_labels() -> None:
    with pytest.raises(VectorRefused):
        learner(noised=True).compute(LEARN, [DREAMS], [1.0])


@pytest.mark.parametrize("spec", [update_spec(BATCH * 64, CLASSES, 1.0), metrics_spec()], ids=[UPDATE, METRICS])
def test_figures_that_a_server_asks_for_all_the_same(spec: Any) -> None:
    """Weight, entropy and clipped fraction are not computed, so they cannot be encoded; metrics are the policy's to
    refuse (see `client_policy`). The control is a learner without noise, which gives both."""
    plan = Federation(3, specs=(spec,)).plan
    clips = [block.clip for block in spec.blocks]
    arrays = [DREAMS, LABELS] if spec.task == METRICS else [DREAMS]
    rounding = np.random.default_rng(0)
    encode_vector(plan, 0, clips, learner().compute(spec.task, arrays, clips), rounding)
    values = learner(noised=True).compute(spec.task, arrays, clips)
    if spec.task == UPDATE:
        with pytest.raises(LocalProtocolError, match="blocks"):
            encode_vector(plan, 0, clips, values, rounding)
