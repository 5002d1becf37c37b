import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_clients.data.partitions import PartitionError, dirichlet, iid

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60)).astype(np.int64)


def assert_disjoint_and_equal(parts, clients, per_client):
    assert [len(part) for part in parts] == [per_client] * clients
    together = np.concatenate(parts)
    assert len(np.unique(together)) == clients * per_client
    assert together.min() >= 0
    assert together.max() < len(LABELS)


def largest_share(parts):
    return np.mean([np.bincount(LABELS[part], minlength=10).max() / len(part) for part in parts])


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 10),
    per_client=st.integers(1, 60),
    alpha=st.sampled_from([0.001, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_dirichlet_parts_are_disjoint_and_of_equal_size(clients, per_client, alpha, seed):
    assert_disjoint_and_equal(dirichlet(LABELS, clients, per_client, alpha, seed), clients, per_client)


def test_iid_parts_are_disjoint_and_of_equal_size():
    assert_disjoint_and_equal(iid(LABELS, 7, 80, seed=1), 7, 80)


def test_everything_can_be_dealt_out_although_classes_run_out():
    parts = dirichlet(LABELS, 10, 60, alpha=0.01, seed=5)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


def test_a_smaller_alpha_is_a_stronger_skew():
    shares = [largest_share(dirichlet(LABELS, 10, 30, alpha, seed=2)) for alpha in (0.1, 1.0, 100.0)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[0] > 0.6
    assert abs(shares[2] - largest_share(iid(LABELS, 10, 30, seed=2))) < 0.08


def test_the_seed_fixes_the_parts():
    for deal in (lambda seed: iid(LABELS, 4, 20, seed), lambda seed: dirichlet(LABELS, 4, 20, 0.5, seed)):
        assert all(np.array_equal(one, two) for one, two in zip(deal(1), deal(1), strict=True))
        assert not all(np.array_equal(one, two) for one, two in zip(deal(1), deal(2), strict=True))


def test_what_cannot_be_dealt_out_is_refused():
    with pytest.raises(PartitionError, match="only 600"):
        iid(LABELS, 7, 100, seed=0)
    with pytest.raises(PartitionError, match="only 600"):
        dirichlet(LABELS, 7, 100, 1.0, seed=0)
    with pytest.raises(PartitionError, match="at least 1"):
        iid(LABELS, 0, 10, seed=0)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PartitionError, match="positive"):
            dirichlet(LABELS, 2, 10, alpha, seed=0)
