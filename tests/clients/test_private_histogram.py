import numpy as np

from codream_clients.privacy.histogram import NOISE_ALONE, noisy_histogram


def test_noise_has_the_stated_deviation_and_no_bias():
    counts = np.full(20_000, 1000)
    noise = noisy_histogram(counts, 5.0, np.random.default_rng(0)) - counts
    assert abs(noise.mean()) < 0.15
    assert 4.9 < noise.std() < 5.1


def test_what_noise_alone_could_have_made_counts_as_not_seen():
    counts = np.array([500, 0, 0, 0, 300, 0])
    noisy = noisy_histogram(counts, 10.0, np.random.default_rng(1))
    assert noisy.dtype == np.float32
    assert (noisy[[0, 4]] > 250).all() and (noisy[[1, 2, 3, 5]] == 0).all()
    empty = noisy_histogram(np.append(np.zeros(20_000, dtype=np.int64), 10**6), 10.0, np.random.default_rng(0))
    assert 0.018 < (empty[:-1] >= NOISE_ALONE * 10.0).mean() < 0.028  # 2.3 % of a Gaussian


def test_where_all_drowns_all_classes_count_alike():
    assert (noisy_histogram(np.full(10, 3), 1000.0, np.random.default_rng(4)) >= 0).all()
    drowned = [noisy_histogram(np.full(2, 1), 1e6, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert [1.0, 1.0] in drowned and [0.0, 0.0] not in drowned
