from pathlib import Path

import numpy as np
import pytest

from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data, pool

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def images(count, classes=3):
    return LabelledImages(np.zeros((count, 1, 8, 8), np.float32), np.arange(count, dtype=np.int64) % classes, classes)


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "message"),
    [
        (np.zeros((2, 1, 8, 8)), np.zeros(2, np.int64), 3, "float64"),
        (np.zeros((2, 8, 8), np.float32), np.zeros(2, np.int64), 3, "channels"),
        (np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int32), 3, "int32"),
        (np.zeros((2, 1, 8, 8), np.float32), np.zeros(3, np.int64), 3, "2 images but 3 labels"),
        (np.zeros((2, 1, 8, 8), np.float32), np.array([0, 3]), 3, r"\[0, 2\] is allowed"),
        (np.zeros((2, 1, 8, 8), np.float32), np.array([-1, 0]), 3, r"\[0, 2\] is allowed"),
        (np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64), 1, "at least 2"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), np.zeros(2, np.int64), 3, "finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pixels, labels, classes, message):
    with pytest.raises(DatasetError, match=message):
        LabelledImages(pixels, labels, classes)


def test_subset_keeps_the_order_asked_for_and_refuses_other_indices():
    data = images(6)
    assert data.subset(np.array([5, 0, 4])).labels.tolist() == [2, 0, 1]
    assert data.subset(np.array([0, 3, 1])).class_counts.tolist() == [2, 1, 0]
    for indices in ([6], [-1]):
        with pytest.raises(DatasetError, match="allowed"):
            data.subset(np.array(indices))


def test_pool_joins_parts_of_one_kind_only():
    assert len(pool([images(4), images(5)])) == 9
    with pytest.raises(DatasetError, match="differ"):
        pool([images(4), images(4, classes=4)])
    with pytest.raises(DatasetError, match="at least one"):
        pool([])


def test_digits_are_standardised_split_without_overlap_and_pinned_by_the_seed():
    train, test = load_digits_data(seed=3)
    assert train.images.shape == (1197, 1, 8, 8)
    assert test.images.shape == (600, 1, 8, 8)
    assert abs(train.images.mean()) < 0.02
    assert abs(train.images.std() - 1) < 0.02
    assert np.ptp(test.class_counts) <= 4  # stratified
    # Each image of the whole set is in one part: the parts' pixel sums add up to the set's.
    whole = np.concatenate([train.images, test.images]).reshape(1797, -1)
    other = np.concatenate([part.images for part in load_digits_data(seed=4)]).reshape(1797, -1)
    assert np.array_equal(whole[np.lexsort(whole.T)], other[np.lexsort(other.T)])
    assert np.array_equal(load_digits_data(seed=3)[1].labels, test.labels)
    assert not np.array_equal(load_digits_data(seed=4)[1].labels, test.labels)


def test_digits_refuse_a_test_size_that_leaves_nothing():
    with pytest.raises(DatasetError, match="10 to 1787"):
        load_digits_data(seed=0, test_size=1797)


def test_names_and_groups_follow_their_images():
    images = np.zeros((4, 1, 2, 2), np.float32)
    whole = LabelledImages(
        images, np.array([0, 1, 0, 1]), 2, class_names=("ill", "well"), groups=np.array([7, 7, 3, 3])
    )
    part = whole.subset(np.array([3, 0]))
    assert part.groups is not None
    assert part.groups.tolist() == [3, 7]
    assert part.class_names == ("ill", "well")
    both = pool([part, whole])
    assert both.groups is not None
    assert both.groups.tolist() == [0, 1, 3, 3, 2, 2]  # person 7 of one site is not person 7 of another
    assert both.class_names == ("ill", "well")


@pytest.mark.parametrize(
    ("names", "groups", "words"),
    [
        (("a",), None, "2 different ones"),
        (("a", "a"), None, "2 different ones"),
        (None, np.zeros(3, np.int64), "one an image"),
        (None, np.zeros(4, np.float64), "one an image"),
    ],
)
def test_names_and_groups_that_do_not_fit_are_refused(names, groups, words):
    with pytest.raises(DatasetError, match=words):
        LabelledImages(np.zeros((4, 1, 2, 2), np.float32), np.zeros(4, np.int64), 2, class_names=names, groups=groups)
