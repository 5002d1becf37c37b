"""A participant behind the three tasks: what it answers fits the specs that clients and server share."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from codream_clients.datasets import LabelledImages  # noqa: E402 - needs torch
from codream_clients.ledger import BudgetExceeded  # noqa: E402
from codream_clients.models import build  # noqa: E402
from codream_clients.participant import DreamShare, LearningSettings, Metrics, Participant  # noqa: E402
from codream_clients.tasks import DreamLearner  # noqa: E402
from codream_protocols.errors import VectorRefused  # noqa: E402
from codream_protocols.plan import VectorSpec  # noqa: E402
from codream_protocols.tasks import (  # noqa: E402
    LOGITS,
    METRIC_NAMES,
    METRICS,
    UPDATE,
    logits_spec,
    metrics_spec,
    update_spec,
)

SHAPE, CLASSES, BATCH = (1, 8, 8), 4, 6
SETTINGS = LearningSettings(local_steps=2, warm_up_epochs=1, distil_epochs=1, local_epochs=1)


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    rng = np.random.default_rng(0)
    return LabelledImages(
        rng.standard_normal((24, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, 24).astype(np.int64), CLASSES
    )


def learner(images: LabelledImages, *, test: LabelledImages | None = None, **options: Any) -> DreamLearner:
    model = build("mlp", channels=1, size=8, classes=CLASSES, seed=0)
    participant = Participant(SETTINGS, model, images, test, 0, torch.device("cpu"))
    return DreamLearner(participant, shape=SHAPE, classes=CLASSES, **options)


@pytest.fixture
def dreams() -> np.ndarray:
    array = np.random.default_rng(1).standard_normal((BATCH, *SHAPE), dtype=np.float32)
    array.flags.writeable = False  # as it comes from the wire
    return array


def specs() -> dict[str, VectorSpec]:
    return {
        UPDATE: update_spec(BATCH * 64, CLASSES, 1.0),
        LOGITS: logits_spec(BATCH, CLASSES, 30.0),
        METRICS: metrics_spec(),
    }


@pytest.mark.parametrize("task", [UPDATE, LOGITS, METRICS])
def test_blocks_are_those_of_the_spec_and_within_their_clips(
    images: LabelledImages, dreams: np.ndarray, task: str
) -> None:
    arrays = [dreams, np.zeros((BATCH, CLASSES), np.float32)] if task == METRICS else [dreams]
    spec = specs()[task]
    values = learner(images, test=images, weight=0.7).compute(task, arrays, [block.clip for block in spec.blocks])
    assert set(values) == {block.name for block in spec.blocks}
    for block in spec.blocks:
        value = np.asarray(values[block.name])
        assert value.size == block.length
        assert np.isfinite(value).all() and np.abs(value).max() <= block.clip + 1e-6
    assert not dreams.flags.writeable


def test_everything_of_an_update_carries_the_secret_weight(dreams: np.ndarray) -> None:
    delta = np.full((BATCH, *SHAPE), 0.5, np.float32)
    delta[0] = -0.9
    participant: Any = SimpleNamespace(dream_update=lambda given: DreamShare(delta, 1.2))
    values = DreamLearner(participant, shape=SHAPE, weight=0.25).compute(UPDATE, [dreams], (0.6, 1.0, 2.0, 1.0))
    assert values["weight"].tolist() == [0.25]
    np.testing.assert_allclose(values["dreams"], np.clip(delta, -0.6, 0.6) * 0.25)
    assert values["entropy"] == pytest.approx([1.2 * 0.25])
    assert values["clipped"] == pytest.approx([0.25 / BATCH])  # one dream of six lies beyond 0.6


def test_entropy_is_at_most_log_k(images: LabelledImages, dreams: np.ndarray) -> None:
    values = learner(images).compute(UPDATE, [dreams], (1.0, 1.0, 2.0, 1.0))
    assert 0 <= values["entropy"][0] <= math.log(CLASSES)


def test_metrics_say_whether_there_are_test_images(images: LabelledImages, dreams: np.ndarray) -> None:
    heard: list[Metrics] = []
    arrays = [dreams, np.zeros((BATCH, CLASSES), np.float32)]
    without = learner(images, on_metrics=heard.append).compute(METRICS, arrays, (1.0,))["metrics"]
    figures = dict(zip(METRIC_NAMES, without, strict=True))
    assert figures["tested"] == 0 and figures["accuracy"] == 0
    assert heard[0].accuracy is None and heard[0].train_accuracy == figures["train_accuracy"]
    with_test = learner(images, test=images, on_metrics=heard.append).compute(METRICS, arrays, (1.0,))["metrics"]
    figures = dict(zip(METRIC_NAMES, with_test, strict=True))
    assert figures["tested"] == 1 and figures["accuracy"] == heard[1].accuracy


@pytest.mark.parametrize("tells", [False, True], ids=["not told", "control: told"])
def test_accuracies_stay_with_a_client_that_does_not_tell_them(
    images: LabelledImages, dreams: np.ndarray, tells: bool
) -> None:
    heard: list[Metrics] = []
    silent = learner(images, test=images, tells_accuracy=tells, on_metrics=heard.append)
    sent = silent.compute(METRICS, [dreams, np.zeros((BATCH, CLASSES), np.float32)], (1.0,))["metrics"]
    assert sent.any() == tells and len(sent) == len(METRIC_NAMES)
    assert heard[0].accuracy is not None  # its own folder has them


def test_half_way_dreams_come_in_one_array_with_the_final_ones(dreams: np.ndarray) -> None:
    heard: list[tuple[np.ndarray, np.ndarray]] = []

    class Listening:
        settings = LearningSettings()

        def acquire(self, dreams: np.ndarray, soft_labels: np.ndarray) -> Metrics:
            heard.append((dreams, soft_labels))
            return Metrics(rounds=1, accuracy=0.5, train_accuracy=1.0, distil_loss=0.0)

    both, labels = np.concatenate([dreams, dreams + 1]), np.ones((2 * BATCH, CLASSES), np.float32)
    DreamLearner(Listening(), shape=SHAPE, classes=CLASSES).compute(METRICS, [both, labels], (1.0,))  # type: ignore[arg-type]
    ((learnt, learnt_labels),) = heard
    assert np.array_equal(learnt, both) and np.array_equal(learnt_labels, labels)


@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        (UPDATE, []),
        (UPDATE, [(BATCH, *SHAPE), (BATCH, CLASSES)]),
        (UPDATE, [(BATCH, 1, 8, 9)]),
        (UPDATE, [(BATCH, 3, 8, 8)]),
        (UPDATE, [(BATCH, 64)]),
        (LOGITS, [(BATCH, CLASSES)]),
        (METRICS, [(BATCH, *SHAPE)]),
        (METRICS, [(BATCH, 1, 4, 4), (BATCH, CLASSES)]),
    ],
)
def test_arrays_of_another_form_are_refused(images: LabelledImages, task: str, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(VectorRefused, match=r"found arrays of shapes .*; allowed: [12], the first of shape"):
        learner(images).compute(task, [np.zeros(shape, np.float32) for shape in shapes], (1.0,) * 4)


@pytest.mark.parametrize("shape", [(BATCH, CLASSES + 1), (BATCH - 1, CLASSES), (BATCH,)])
def test_soft_labels_of_another_form_are_refused(
    images: LabelledImages, dreams: np.ndarray, shape: tuple[int, ...]
) -> None:
    """They come from the server: a refusal, not a crash in the middle of training."""
    with pytest.raises(VectorRefused):
        learner(images).compute(METRICS, [dreams, np.zeros(shape, np.float32)], (1.0,))


def test_what_is_spent_is_not_told_to_the_server(dreams: np.ndarray) -> None:
    class Spent:
        settings = LearningSettings()

        def acquire(self, dreams: np.ndarray, soft_labels: np.ndarray) -> Metrics:
            raise BudgetExceeded("epsilon 3.21 is spent")

    poor = DreamLearner(Spent(), shape=SHAPE, classes=CLASSES)  # type: ignore[arg-type]
    with pytest.raises(VectorRefused, match="past the privacy budget") as caught:
        poor.compute(METRICS, [dreams, np.zeros((BATCH, CLASSES), np.float32)], (1.0,))
    assert "3.21" not in f"{caught.value} {vars(caught.value)}"
    assert "3.21" in str(caught.value.__cause__)  # control: it is known here, and goes into the client's own log


def test_unknown_task_is_refused(images: LabelledImages, dreams: np.ndarray) -> None:
    with pytest.raises(VectorRefused, match="task 'weights'"):
        learner(images).compute("weights", [dreams], (1.0,))


def test_updates_are_clipped_before_they_are_weighted_and_the_fraction_is_told() -> None:
    class Restless:
        def dream_update(self, dreams: np.ndarray) -> DreamShare:
            delta = np.zeros_like(dreams)
            delta.reshape(-1)[:4] = 3.0
            return DreamShare(delta, 0.5)

    learner = DreamLearner(Restless(), shape=(1, 2, 2), weight=0.5)  # type: ignore[arg-type]
    values = learner.compute(UPDATE, [np.zeros((4, 1, 2, 2), dtype=np.float32)], (1.0, 1.0, 2.3, 1.0))
    assert values["dreams"].max() == 0.5
    assert values["clipped"][0] == pytest.approx(0.5 * 4 / 16)
