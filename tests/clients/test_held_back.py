"""Which of a client's own images judge, and which it trains on."""

from __future__ import annotations

import numpy as np
import pytest

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.held_back import LEAST_IMAGES, hold_back


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


def test_each_class_gives_its_share_and_a_rare_one_a_few() -> None:
    trained, held = hold_back(images(540, 60, 13, 2), 0.1, 0)
    assert held is not None
    assert held.class_counts.tolist() == [54, 6, 3, 0]
    assert trained.class_counts.tolist() == [486, 54, 10, 2], "a class is never taken away"


@pytest.mark.parametrize(("count", "share"), [(LEAST_IMAGES - 1, 0.1), (LEAST_IMAGES, 0.0)])
def test_of_few_images_and_without_a_share_nothing_is_held_back(count: int, share: float) -> None:
    data = images(count, 0)
    assert hold_back(data, share, 0) == (data, None)
    assert hold_back(images(LEAST_IMAGES, 0), 0.1, 0)[1] is not None  # the control


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_group_is_never_divided(one_by_one: bool) -> None:
    groups = np.random.default_rng(0).integers(0, 60, 600).astype(np.int64)
    trained, held = hold_back(images(400, 200, groups=groups), 0.2, 3, one_by_one=one_by_one)
    assert held is not None and held.groups is not None and trained.groups is not None
    assert not set(held.groups) & set(trained.groups)
    assert 60 <= len(held) <= 180


def test_a_class_whose_groups_are_large_gives_its_smallest() -> None:
    groups = np.concatenate([np.arange(200), np.repeat([300, 301, 302], [12, 9, 15])]).astype(np.int64)
    _, held = hold_back(images(200, 36, groups=groups), 0.1, 0)
    assert held is not None and held.class_counts.tolist() == [20, 9]


def test_under_privacy_one_image_more_moves_no_other() -> None:
    """Neighbours differ in one record. Control: the choice of whole classes moves others."""
    more, fewer = images(60, 140), images(60, 139)
    for one_by_one in (True, False):
        (_, of_more), (_, of_fewer) = (hold_back(data, 0.2, 1, one_by_one=one_by_one) for data in (more, fewer))
        assert of_more is not None and of_fewer is not None
        moved = numbers(of_more) ^ numbers(of_fewer)
        assert (moved <= {199}) == one_by_one
