"""Which of a client's own images judge, and which it trains on."""

from __future__ import annotations

import numpy as np
import pytest

from codream_clients.data.datasets import DatasetError, LabelledImages, pool
from codream_clients.data.held_back import LEAST_IMAGES, hold_back
from codream_clients.data.splits import split_one_by_one


def images(*counts: int, groups: np.ndarray | None = None) -> LabelledImages:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    pixels = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
    return LabelledImages(pixels, labels, len(counts), groups=groups)


def numbers(data: LabelledImages) -> set[int]:
    return {int(image[0, 0, 0]) for image in data.images}


@pytest.mark.parametrize("one_by_one", [False, True])
def test_every_image_is_on_one_side_and_a_restart_divides_alike(one_by_one: bool) -> None:
    data = images(120, 80)
    trained, held = hold_back(data, 0.2, 7, one_by_one=one_by_one)
    again, _ = hold_back(data, 0.2, 7, one_by_one=one_by_one)
    other, _ = hold_back(data, 0.2, 8, one_by_one=one_by_one)
    assert held is not None
    assert numbers(trained) | numbers(held) == set(range(200)) and not numbers(trained) & numbers(held)
    assert numbers(again) == numbers(trained) != numbers(other)


def test_each_class_gives_about_its_share_and_a_rare_one_a_few() -> None:
    for seed in range(20):
        trained, held = hold_back(images(540, 60, 13, 2), 0.1, seed)
        assert held is not None
        often, seldom, *rare = held.class_counts.tolist()
        assert 30 <= often <= 80 and 3 <= seldom <= 15 and rare == [3, 0], "54, 6, 3 and none, on average"
        assert trained.class_counts.tolist() == [540 - often, 60 - seldom, 10, 2], "a class is never taken away"


@pytest.mark.parametrize(("count", "share"), [(LEAST_IMAGES - 1, 0.1), (LEAST_IMAGES, 0.0)])
def test_of_few_images_and_without_a_share_nothing_is_held_back(count: int, share: float) -> None:
    data = images(count, 0)
    assert hold_back(data, share, 0) == (data, None)
    assert hold_back(images(LEAST_IMAGES, 0), 0.1, 0)[1] is not None  # the control


def test_one_by_one_none_at_all_may_judge_and_that_is_not_nobody() -> None:
    trained, held = hold_back(images(20, 0), 1e-9, 0, one_by_one=True)
    assert held is not None and len(held) == 0 and len(trained) == 20


def test_a_group_is_never_divided() -> None:
    groups = np.random.default_rng(0).integers(0, 60, 600).astype(np.int64)
    trained, held = hold_back(images(400, 200, groups=groups), 0.2, 3)
    assert held is not None and held.groups is not None and trained.groups is not None
    assert not set(held.groups) & set(trained.groups)
    assert 40 <= len(held) <= 200, "a fifth, on average"


def test_copies_of_an_image_are_on_one_side() -> None:
    data = images(120, 80)
    twice = pool([data, data])
    trained, held = hold_back(twice, 0.2, 3)
    assert held is not None and not numbers(trained) & numbers(held)
    assert len(held) == 2 * len(numbers(held))


def test_a_class_whose_groups_are_large_gives_its_smallest() -> None:
    groups = np.concatenate([np.arange(200), np.repeat([300, 301, 302], [12, 9, 15])]).astype(np.int64)
    _, held = hold_back(images(200, 36, groups=groups), 0.1, 0)
    assert held is not None and held.class_counts[1] == 9


@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_held_back_stays_so_when_images_are_added(grouped: bool) -> None:
    """Images that judged would else be trained on after a restart, and the judge would know them."""
    groups = np.arange(600) // 3 if grouped else None
    more = images(400, 200, groups=groups)
    fewer = more.subset(np.flatnonzero(np.arange(600) % 30 > 2))  # whole groups are missing
    (_, then), (_, now) = hold_back(fewer, 0.2, 1), hold_back(more, 0.2, 1)
    assert then is not None and now is not None and len(then) > 60
    assert numbers(then) == numbers(now) & numbers(fewer)


@pytest.mark.parametrize("count", [LEAST_IMAGES, 30])
def test_under_privacy_one_image_more_moves_no_other(count: int) -> None:
    """Neighbours differ in one record, also at the number from which others are held back, and with copies."""
    more = images(count - 20, 20)
    for left_out in range(0, count, 7):
        fewer = more.subset(np.flatnonzero(np.arange(count) != left_out))
        (kept, _), (kept_of_fewer, _) = (hold_back(data, 0.2, 1, one_by_one=True) for data in (more, fewer))
        assert numbers(kept) ^ numbers(kept_of_fewer) <= {left_out}


def test_the_least_number_of_images_would_move_others_under_privacy() -> None:
    """The control of the one above."""
    more = images(LEAST_IMAGES - 40, 40)
    fewer = more.subset(np.arange(LEAST_IMAGES - 1))
    (kept, _), (kept_of_fewer, _) = (hold_back(data, 0.2, 1) for data in (more, fewer))
    assert len(numbers(kept) ^ numbers(kept_of_fewer)) > 5


def test_under_privacy_groups_are_refused() -> None:
    """Whichever of its images named a group, one more could move it."""
    data = images(60, 60, groups=np.arange(120, dtype=np.int64) // 3)
    with pytest.raises(DatasetError, match="images in groups to be held back one by one"):
        hold_back(data, 0.2, 1, one_by_one=True)
    assert hold_back(data, 0.2, 1)[1] is not None  # control: not private


def test_who_is_for_testing_tells_nothing_of_who_is_held_back() -> None:
    """With one coin for both nothing would be held back of what is left to train on."""
    many = np.random.default_rng(0).standard_normal((1000, 1, 2, 2)).astype(np.float32)
    train, test = split_one_by_one(many, None, 0.2, seed=0)
    assert 150 < len(test) < 250 and len(train) + len(test) == 1000
    data = LabelledImages(many[train], np.arange(len(train)) % 10, 10)
    _, held = hold_back(data, 0.1, 0, one_by_one=True)
    assert held is not None and 40 < len(held) < 120


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_side_without_images_is_refused(share: float) -> None:
    with pytest.raises(DatasetError, match="images are too few to split off"):
        split_one_by_one(np.zeros((3, 1, 2, 2)), None, share, seed=0)
