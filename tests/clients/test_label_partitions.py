"""Skew by label, label shards, and the table of who holds what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_clients.data.partitions import (
    PartitionError,
    count_table,
    deal,
    dirichlet,
    dirichlet_by_label,
    iid,
    label_shards,
)

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60)).astype(np.int64)


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 8),
    per_client=st.integers(10, 60),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_by_label_are_disjoint_and_add_up(clients, per_client, alpha, seed):
    parts = dirichlet_by_label(LABELS, clients, per_client, alpha, seed)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == clients * per_client
    assert min(len(part) for part in parts) >= 2


@settings(max_examples=40, deadline=None)
@given(clients=st.integers(1, 8), shards=st.integers(1, 5), size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_shards_are_disjoint_of_one_size_and_hold_few_labels(clients, shards, size, seed):
    parts = label_shards(LABELS, clients, shards * size, shards, seed)
    assert [len(part) for part in parts] == [shards * size] * clients
    assert len(np.unique(np.concatenate(parts))) == clients * shards * size


def test_mcmahans_clients_have_about_two_digits():
    parts = label_shards(LABELS, 10, 60, 2, seed=0)
    held = (count_table(LABELS, parts, 10) > 0).sum(axis=1)
    assert held.max() <= 2  # 20 shards of 30 images: each within one class
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))


def test_a_smaller_alpha_is_a_stronger_skew_of_labels_and_sizes():
    def spread(alpha):
        table = count_table(LABELS, dirichlet_by_label(LABELS, 6, 100, alpha, seed=3), 10)
        return (table.max(axis=0) / table.sum(axis=0)).mean(), np.std(table.sum(axis=1))

    strong, mild, even = spread(0.1), spread(1.0), spread(1e4)
    assert strong[0] > mild[0] > even[0]
    assert strong[1] > even[1]
    assert even[0] < 0.2


def test_everything_is_dealt_out_evenly_when_no_number_is_given():
    for scheme in ("iid", "dirichlet", "dirichlet-by-label", "shards"):
        parts = deal(LABELS, scheme, clients=6, seed=1)
        assert len(np.unique(np.concatenate(parts))) == 600, scheme
    assert [len(part) for part in deal(LABELS, "shards", clients=7, shards=2)] == [84] * 7


def test_deal_is_the_function_of_its_name():
    for parts, expected in [
        (deal(LABELS, "iid", clients=3, per_client=20, seed=4), iid(LABELS, 3, 20, 4)),
        (deal(LABELS, "dirichlet", clients=3, per_client=20, alpha=0.2, seed=4), dirichlet(LABELS, 3, 20, 0.2, 4)),
        (
            deal(LABELS, "dirichlet-by-label", clients=3, per_client=20, alpha=2.0, seed=4),
            dirichlet_by_label(LABELS, 3, 20, 2.0, 4),
        ),
        (deal(LABELS, "shards", clients=3, per_client=20, shards=4, seed=4), label_shards(LABELS, 3, 20, 4, 4)),
    ]:
        assert all(np.array_equal(one, two) for one, two in zip(parts, expected, strict=True))


def test_the_seed_fixes_the_parts():
    for scheme in ("dirichlet-by-label", "shards"):
        one, same, other = (deal(LABELS, scheme, clients=4, per_client=40, seed=seed) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_counts_classes_that_nobody_has_too():
    table = count_table(np.array([0, 0, 2, 1]), [np.array([0, 1]), np.array([2, 3])], 4)
    assert table.tolist() == [[2, 0, 0, 0], [0, 1, 1, 0]]


def test_what_cannot_be_dealt_out_is_refused():
    with pytest.raises(PartitionError, match="some of 60 clients got fewer than 10 images; raise alpha"):
        dirichlet_by_label(LABELS, 60, 10, 0.01, seed=0, least=10)
    with pytest.raises(PartitionError, match="least is 9 for 5"):
        dirichlet_by_label(LABELS, 2, 5, 1.0, seed=0, least=9)
    with pytest.raises(PartitionError, match="positive"):
        dirichlet_by_label(LABELS, 2, 10, 0.0, seed=0)
    with pytest.raises(PartitionError, match="21 images in 2 shards; a multiple"):
        label_shards(LABELS, 2, 21, 2, seed=0)
    with pytest.raises(PartitionError, match="only 600"):
        deal(LABELS, "shards", clients=7, per_client=100)
