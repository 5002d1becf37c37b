"""The coordinator: what it plans, and what it makes of known sums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codream_protocols.identity import Member, Roster, ServerEntry
from codream_protocols.plan import check_plan
from codream_protocols.server import Reveal
from codream_protocols.tasks import LOGITS, METRICS, UPDATE
from codream_protocols.vectors import encode_vector
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from codream_server.settings import AggregationSettings, DreamSettings, SettingsError

CLASSES, BATCH, SHAPE = 3, 2, (1, 2, 3)
STEP = 2 / 65535  # two quantisation steps of 16 bits of a value in [-1, 1]


def make_roster(members: int = 5) -> Roster:
    key = (number.to_bytes(32, "big") for number in range(1, 2 * members + 2))
    return Roster(
        "test",
        1,
        ServerEntry("tcp://127.0.0.1:1", next(key)),
        tuple(Member(f"client-{number}", next(key), next(key)) for number in range(members)),
    )


def make(
    *,
    members: int = 5,
    aggregation: AggregationSettings | None = None,
    seed: int = 7,
    folder: Path | None = None,
    student: Any = None,
    **dreams: Any,
) -> Coordinator:
    return Coordinator(
        dreams=DreamSettings(**{"rounds": 2, "steps": 3, "batch": BATCH, "shape": SHAPE, "classes": CLASSES, **dreams}),
        aggregation=aggregation or AggregationSettings(),
        roster=make_roster(members),
        recipe=bytes(32),
        session=bytes(16),
        seed=seed,
        dataset=FedDreamDataset(10, folder),
        student=student,
    )


def reveal(
    coordinator: Coordinator, step: int, inputs: Sequence[dict[str, np.ndarray]], survivors: Sequence[int] | None = None
) -> Reveal:
    """The sum that secure aggregation reveals of these inputs."""
    plan = coordinator._plan
    assert plan is not None
    clips, _ = coordinator.broadcast(step)
    rounding = np.random.default_rng(step)
    total = sum(encode_vector(plan, step, clips, one, rounding).astype(np.uint64) for one in inputs)
    members = tuple(survivors) if survivors is not None else plan.cohort[: len(inputs)]
    assert len(members) == len(inputs)
    reduced = (np.asarray(total) % (1 << plan.modulus_bits)).astype(np.uint32)
    return Reveal(step, reduced, members, len(members) != len(plan.cohort), clips)


def update(delta: float | np.ndarray, weight: float = 1.0, entropy: float = 0.5, clipped: float = 0.0) -> dict:
    """One client's block values, weighted as a client sends them."""
    return {
        "dreams": np.broadcast_to(np.asarray(delta, float) * weight, (BATCH, *SHAPE)).reshape(-1),
        "weight": np.array([weight]),
        "entropy": np.array([entropy * weight]),
        "clipped": np.array([clipped * weight]),
    }


def labels(numerators: np.ndarray, denominators: Sequence[float]) -> dict:
    return {"numerators": numerators, "denominators": np.asarray(denominators, float)}


def figures(accuracy: float, tested: float, train: float) -> dict:
    return {"metrics": np.array([accuracy, tested, train])}


# -- plans ---------------------------------------------


@pytest.mark.parametrize("colluders", [0, 1, 3])
def test_plans_are_safe_for_every_cohort(colluders: int) -> None:
    aggregation = AggregationSettings(colluders=colluders, least_survivors=max(3, colluders + 2))
    coordinator = make(members=120, aggregation=aggregation)
    for size in [*range(coordinator.least_cohort(), 24), 50, 99, 120]:
        plan = coordinator.next_plan(range(size))
        check_plan(plan)  # raises where a promise would fail
        assert plan.cohort == tuple(range(size)) and plan.colluders == colluders
        assert plan.threshold >= 2 * size // 3 + 1 or plan.threshold == size


def test_plan_names_the_vectors_and_the_schedule() -> None:
    plan = make().next_plan([3, 0, 4])
    assert plan.cohort == (0, 3, 4)
    assert [plan.spec(step).task for step in range(plan.steps)] == [UPDATE] * 3 + [LOGITS, METRICS]
    assert [spec.length for spec in plan.specs] == [12 + 3, 6 + 3, 3]
    assert plan.specs[0].blocks[0].clip == 1.0 and plan.specs[1].blocks[0].clip == 30.0


def test_epochs_count_up_and_plans_differ() -> None:
    coordinator = make()
    plans = [coordinator.next_plan(range(4)) for _ in range(3)]
    assert [plan.epoch for plan in plans] == [0, 1, 2]
    assert len({plan.digest for plan in plans}) == 3


def test_threshold_of_the_settings_is_used() -> None:
    assert make(aggregation=AggregationSettings(threshold=5)).next_plan(range(5)).threshold == 5


@pytest.mark.parametrize(
    ("settings", "least"),
    [({}, 3), ({"least_survivors": 4}, 4), ({"threshold": 5}, 5), ({"least_survivors": 2, "colluders": 0}, 2)],
)
def test_least_cohort_is_what_a_plan_needs(settings: dict[str, Any], least: int) -> None:
    assert make(aggregation=AggregationSettings(**settings)).least_cohort() == least


def test_noise_is_normal_seeded_and_fresh_in_every_epoch() -> None:
    def noise(seed: int, epochs: int) -> list[np.ndarray]:
        coordinator = make(seed=seed, batch=200)
        found = []
        for _ in range(epochs):
            coordinator.next_plan(range(4))
            found.append(coordinator.broadcast(0)[1][0])
        return found

    first, second = noise(7, 2)
    assert np.array_equal(first, noise(7, 1)[0])
    assert not np.array_equal(first, second) and not np.array_equal(first, noise(8, 1)[0])
    assert first.dtype == np.float32 and first.shape == (200, *SHAPE)
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1


# -- sums ---------------------------------------------


def test_known_sums_give_the_right_dreams_labels_and_metrics(tmp_path: Path) -> None:
    coordinator = make(folder=tmp_path)
    coordinator.next_plan(range(3))
    start = coordinator.broadcast(0)[1][0].copy()

    deltas = np.array([0.4, -0.2, 0.1])
    weights = np.array([1.0, 0.5, 0.25])
    inputs = [
        update(delta, weight, entropy, clipped)
        for delta, weight, entropy, clipped in zip(deltas, weights, [1.0, 0.4, 0.2], [0.0, 0.2, 0.4], strict=True)
    ]
    result = coordinator.absorb(reveal(coordinator, 0, inputs))
    mean = float((deltas * weights).sum() / weights.sum())
    assert (result.task, result.metrics) == (UPDATE, None)
    assert result.entropy == pytest.approx((1.0 + 0.2 + 0.05) / 1.75, abs=1e-3)
    assert result.clipped == pytest.approx((0.1 + 0.1) / 1.75, abs=1e-3)
    np.testing.assert_allclose(coordinator.broadcast(1)[1][0], start + mean, atol=3 * STEP)

    for step in (1, 2):
        coordinator.absorb(reveal(coordinator, step, [update(0.0)] * 3))
    dreams = coordinator.broadcast(3)[1][0]

    logits = np.arange(6.0).reshape(2, 3) - 2
    result = coordinator.absorb(reveal(coordinator, 3, [labels(w * logits, [w, w, w]) for w in (1.0, 0.5, 0.1)]))
    assert result.task == LOGITS and not coordinator.done and coordinator.round == 0
    clips, (sent, soft) = coordinator.broadcast(4)
    assert clips == (1.0,) and np.array_equal(sent, dreams)
    np.testing.assert_allclose(soft, logits, atol=5e-3)
    assert soft.dtype == np.float32
    ((kept, kept_labels),) = coordinator.dataset.batches
    assert np.array_equal(kept, dreams) and np.array_equal(kept_labels, soft)
    assert (tmp_path / "round-000.npz").exists()

    result = coordinator.absorb(
        reveal(coordinator, 4, [figures(0.9, 1, 0.8), figures(0.5, 1, 0.6), figures(0.0, 0, 0.1)])
    )
    assert result.task == METRICS and coordinator.round == 1
    assert result.metrics == pytest.approx({"accuracy": 0.7, "train_accuracy": 0.5}, abs=1e-3)


def test_sum_of_the_survivors_is_averaged_over_them_alone() -> None:
    coordinator = make()
    coordinator.next_plan(range(5))
    start = coordinator.broadcast(0)[1][0].copy()
    coordinator.absorb(reveal(coordinator, 0, [update(0.5)] * 4, survivors=(0, 1, 3, 4)))
    np.testing.assert_allclose(coordinator.broadcast(1)[1][0], start + 0.5, atol=3 * STEP)


def test_class_that_nobody_weighs_has_finite_labels() -> None:
    coordinator = make(steps=1)
    coordinator.next_plan(range(3))
    coordinator.absorb(reveal(coordinator, 0, [update(0.0)] * 3))
    coordinator.absorb(reveal(coordinator, 1, [labels(np.zeros((2, 3)), [0, 1, 1])] * 3))
    assert np.isfinite(coordinator.broadcast(2)[1][1]).all()


def test_accuracy_is_unknown_where_nobody_has_test_images() -> None:
    coordinator = make(steps=1)
    coordinator.next_plan(range(3))
    coordinator.absorb(reveal(coordinator, 0, [update(0.0)] * 3))
    coordinator.absorb(reveal(coordinator, 1, [labels(np.zeros((2, 3)), [1, 1, 1])] * 3))
    metrics = coordinator.absorb(reveal(coordinator, 2, [figures(0, 0, 0.5)] * 3)).metrics
    assert metrics is not None and metrics["accuracy"] is None
    assert metrics["train_accuracy"] == pytest.approx(0.5, abs=1e-3)


def test_gradient_way_descends_with_adam() -> None:
    coordinator = make(way="gradient", optimiser="adam", server_lr=0.1)
    coordinator.next_plan(range(3))
    start = coordinator.broadcast(0)[1][0].copy()
    coordinator.absorb(reveal(coordinator, 0, [update(0.3)] * 3))
    np.testing.assert_allclose(coordinator.broadcast(1)[1][0], start - 0.1, atol=1e-3)


# -- half-way ---------------------------------------------


def zero_labels() -> dict:
    return labels(np.zeros((BATCH, CLASSES)), [1, 1, 1])


def test_views_are_labelled_and_no_image_but_the_dreams_is_sent() -> None:
    student = Pushing()
    coordinator = make(steps=1, views=2, student=student)
    check_plan(coordinator.next_plan(range(3)))
    coordinator.absorb(reveal(coordinator, 0, [update(0.5)] * 3))
    (asked,) = coordinator.broadcast(1)[1]
    rows = np.arange(3 * BATCH * CLASSES).reshape(3 * BATCH, CLASSES) / 10
    coordinator.absorb(reveal(coordinator, 1, [labels(rows, [1, 1, 1])] * 3))
    dreams, soft_labels = coordinator.broadcast(2)[1]
    assert np.array_equal(dreams, asked) and len(dreams) == BATCH
    np.testing.assert_allclose(soft_labels, rows, atol=5e-3)
    assert student.learnt == [1]


@pytest.mark.parametrize(("steps", "before"), [(2, 1), (3, 1), (6, 3)])
def test_half_way_dreams_take_one_more_step_in_the_middle(steps: int, before: int) -> None:
    coordinator = make(steps=steps, half_way=True)
    plan = coordinator.next_plan(range(4))
    check_plan(plan)
    tasks = [plan.spec(step).task for step in range(plan.steps)]
    assert tasks == [UPDATE] * before + [LOGITS] + [UPDATE] * (steps - before) + [LOGITS, METRICS]
    assert coordinator.steps_per_round == plan.steps == steps + 3
    assert make(steps=steps).steps_per_round == steps + 2


def test_half_way_and_final_dreams_go_out_as_one_batch_with_their_own_labels(tmp_path: Path) -> None:
    student = Pushing()
    coordinator = make(steps=3, half_way=True, folder=tmp_path, student=student)
    coordinator.next_plan(range(3))
    start = coordinator.broadcast(0)[1][0].copy()
    first, last = np.arange(6.0).reshape(2, 3), -np.arange(6.0).reshape(2, 3)

    coordinator.absorb(reveal(coordinator, 0, [update(0.5)] * 3))
    (asked,) = coordinator.broadcast(1)[1]
    np.testing.assert_allclose(asked, start + 0.5, atol=3 * STEP)
    coordinator.absorb(reveal(coordinator, 1, [labels(first, [1, 1, 1])] * 3))
    assert not coordinator.dataset.batches and not student.learnt, "nothing is published before the end"
    assert np.array_equal(coordinator.broadcast(2)[1][0], asked), "labels leave the dreams as they are"

    for step in (2, 3):
        coordinator.absorb(reveal(coordinator, step, [update(0.25)] * 3))
    coordinator.absorb(reveal(coordinator, 4, [labels(last, [1, 1, 1])] * 3))
    dreams, soft_labels = coordinator.broadcast(5)[1]
    assert dreams.shape == (2 * BATCH, *SHAPE) and soft_labels.shape == (2 * BATCH, CLASSES)
    np.testing.assert_allclose(dreams, np.concatenate([start + 0.5, start + 1.0]), atol=9 * STEP)
    np.testing.assert_allclose(soft_labels, np.concatenate([first, last]), atol=5e-3)
    assert dreams.dtype == soft_labels.dtype == np.float32
    ((kept, kept_labels),) = coordinator.dataset.batches
    assert np.array_equal(kept, dreams) and np.array_equal(kept_labels, soft_labels)
    assert student.learnt == [1]
    with np.load(tmp_path / "round-000.npz") as file:
        assert np.array_equal(file["dreams"], dreams)
    coordinator.absorb(reveal(coordinator, 5, [figures(0.5, 1, 0.5)] * 3))
    assert coordinator.round == 1


def test_epoch_that_fails_after_its_half_way_labels_starts_its_round_again() -> None:
    coordinator = make(steps=2, half_way=True, rounds=1)
    coordinator.next_plan(range(3))
    coordinator.absorb(reveal(coordinator, 0, [update(0.1)] * 3))
    coordinator.absorb(reveal(coordinator, 1, [zero_labels()] * 3))
    coordinator.give_up()
    assert coordinator.round == 0 and not coordinator.done and not coordinator.dataset.batches
    coordinator.next_plan(range(3))
    for step, one in enumerate([update(0.1), zero_labels(), update(0.1), zero_labels()]):
        coordinator.absorb(reveal(coordinator, step, [one] * 3))
    assert len(coordinator.broadcast(4)[1][0]) == 2 * BATCH, "nothing of the epoch that failed is left"
    coordinator.give_up()
    assert coordinator.done and len(coordinator.dataset.batches) == 1


@pytest.mark.parametrize("steps", [0, 1])
def test_without_two_updates_there_is_no_half_way(steps: int) -> None:
    with pytest.raises(SettingsError, match=f"steps is {steps} with half_way; 2 or more is allowed"):
        make(steps=steps, half_way=True)


# -- failed epochs ---------------------------------------------


def test_epoch_that_fails_before_its_labels_starts_its_round_again_from_other_noise() -> None:
    coordinator = make()
    coordinator.next_plan(range(4))
    first = coordinator.broadcast(0)[1][0].copy()
    coordinator.absorb(reveal(coordinator, 0, [update(0.1)] * 4))
    coordinator.give_up()
    assert coordinator.round == 0 and not coordinator.dataset.batches
    coordinator.next_plan(range(4))
    assert not np.array_equal(coordinator.broadcast(0)[1][0], first)


def test_epoch_that_fails_after_its_labels_keeps_its_dreams() -> None:
    coordinator = make(steps=1, rounds=1)
    coordinator.next_plan(range(3))
    coordinator.absorb(reveal(coordinator, 0, [update(0.0)] * 3))
    coordinator.absorb(reveal(coordinator, 1, [labels(np.zeros((2, 3)), [1, 1, 1])] * 3))
    coordinator.give_up()
    assert coordinator.round == 1 and coordinator.done and len(coordinator.dataset.batches) == 1


def test_giving_up_again_without_labels_does_not_count_a_round() -> None:
    coordinator = make(steps=1)
    coordinator.next_plan(range(3))
    coordinator.absorb(reveal(coordinator, 0, [update(0.0)] * 3))
    coordinator.absorb(reveal(coordinator, 1, [labels(np.zeros((2, 3)), [1, 1, 1])] * 3))
    coordinator.give_up()
    coordinator.next_plan(range(3))
    coordinator.give_up()
    assert coordinator.round == 1 and not coordinator.done


# -- the adaptive clip ---------------------------------------------


def clip_after(coordinator: Coordinator, fractions: Sequence[float]) -> float:
    for step, fraction in enumerate(fractions):
        coordinator.absorb(reveal(coordinator, step, [update(0.0, clipped=fraction)] * 3))
    return coordinator.broadcast(len(fractions))[0][0]


def test_clip_is_constant_unless_it_may_adapt() -> None:
    coordinator = make(steps=6)
    coordinator.next_plan(range(3))
    assert clip_after(coordinator, [0.0, 0.5, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("fractions", "clip"),
    [([0.0], 0.8), ([0.0, 0.0], 0.64), ([0.0, 0.0, 0.5], 0.96), ([0.5], 1.0), ([0.0, 0.005], 0.8)],
)
def test_clip_pursues_a_small_clipped_fraction(fractions: list[float], clip: float) -> None:
    """Times 0.8 while under 0.1 % is clipped, times 1.5 above 1 %, never beyond the plan's."""
    coordinator = make(steps=6, adapt_clip=True)
    coordinator.next_plan(range(3))
    assert clip_after(coordinator, fractions) == pytest.approx(clip)


def test_sums_of_an_adapted_clip_are_decoded_with_it() -> None:
    coordinator = make(steps=40, adapt_clip=True)
    coordinator.next_plan(range(3))
    assert clip_after(coordinator, [0.0] * 35) == pytest.approx(1 / 1024)  # its floor
    start = coordinator.broadcast(35)[1][0].copy()
    coordinator.absorb(reveal(coordinator, 35, [update(0.0005)] * 3))
    np.testing.assert_allclose(coordinator.broadcast(36)[1][0], start + 0.0005, atol=1e-6)


def test_clip_starts_anew_with_every_epoch() -> None:
    coordinator = make(adapt_clip=True)
    coordinator.next_plan(range(3))
    assert clip_after(coordinator, [0.0]) == pytest.approx(0.8)
    coordinator.next_plan(range(3))
    assert coordinator.broadcast(0)[0][0] == 1.0


# -- the adaptive term ---------------------------------------------


class Pushing:
    """A student that moves each dream by its weight, and says what it has learnt from."""

    def __init__(self) -> None:
        self.learnt: list[int] = []

    def learn(self, dataset: FedDreamDataset) -> None:
        self.learnt.append(len(dataset.batches))

    def push(self, dreams: np.ndarray, weight: float) -> np.ndarray:
        return dreams + np.float32(weight)


@pytest.mark.parametrize(("weight", "since", "moved"), [(0.25, 0, 0.25), (0.0, 0, 0.0), (0.25, 1, 0.0)])
def test_student_pushes_from_its_round_on_and_learns_from_each_batch(weight: float, since: int, moved: float) -> None:
    student = Pushing()
    coordinator = make(steps=1, student=student, adaptive_weight=weight, adaptive_from=since)
    coordinator.next_plan(range(3))
    start = coordinator.broadcast(0)[1][0].copy()
    coordinator.absorb(reveal(coordinator, 0, [update(0.0)] * 3))
    np.testing.assert_allclose(coordinator.broadcast(1)[1][0], start + moved, atol=3 * STEP)
    assert student.learnt == []
    coordinator.absorb(reveal(coordinator, 1, [labels(np.zeros((2, 3)), [1, 1, 1])] * 3))
    assert student.learnt == [1]
