import numpy as np
import pytest
from scipy.stats import norm

from codream_clients.privacy import histogram, plan
from codream_clients.privacy.accounting import AccountingError
from codream_clients.privacy.histogram import NOISE_ALONE, grid, noisy_histogram
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacySettings, plan_privacy


def test_noise_has_the_stated_deviation_and_no_bias():
    counts = np.full(20_000, 1000)
    noise = noisy_histogram(counts, 5.0, NoiseSource(0).stream(0)) - counts
    assert abs(noise.mean()) < 0.15
    assert 4.9 < noise.std() < 5.1


def test_what_noise_alone_could_have_made_counts_as_not_seen():
    counts = np.array([500, 0, 0, 0, 300, 0])
    noisy = noisy_histogram(counts, 10.0, NoiseSource(1).stream(0))
    assert noisy.dtype == np.float32
    assert (noisy[[0, 4]] > 250).all() and (noisy[[1, 2, 3, 5]] == 0).all()
    empty = noisy_histogram(np.append(np.zeros(20_000, dtype=np.int64), 10**6), 10.0, NoiseSource(0).stream(0))
    assert 0.018 < (empty[:-1] >= NOISE_ALONE * 10.0).mean() < 0.028  # 2.3 % of a Gaussian


def test_where_all_drowns_all_classes_count_alike():
    assert (noisy_histogram(np.full(10, 3), 1000.0, NoiseSource(4).stream(0)) >= 0).all()
    drowned = [noisy_histogram(np.full(2, 1), 1e5, NoiseSource(seed).stream(0)).tolist() for seed in range(20)]
    assert [1.0, 1.0] in drowned and [0.0, 0.0] not in drowned


def profile(epsilon, deviation, sensitivity):
    """Theorem 7 of Canonne, Kamath and Steinke: delta of the discrete Gaussian, summed up."""
    values = np.arange(-10 * deviation, 10 * deviation + 1)
    masses = np.exp(-0.5 * (values / deviation) ** 2)
    above = np.append(np.cumsum(masses[::-1])[::-1], 0.0) / masses.sum()

    def tail(limit):
        return above[np.clip(np.floor(limit).astype(int) + 1 + 10 * deviation, 0, len(masses))]

    centre = epsilon * deviation**2 / sensitivity
    return tail(centre - sensitivity / 2) - np.exp(epsilon) * tail(centre + sensitivity / 2)


@pytest.mark.parametrize(
    ("noise", "margin", "holds"),
    [
        *((noise, histogram.MARGIN, True) for noise in (0.6, 3.7, 10.0, 47.3, 300.0)),
        (10.0, 1.0, False),
        (300.0, 1.0, False),
    ],
)
def test_the_discrete_noise_costs_no_more_than_the_continuous_one_that_is_charged(noise, margin, holds, monkeypatch):
    """At every epsilon, between breakpoints too, where a charge is counted: down to a delta of 10^-12."""
    monkeypatch.setattr(histogram, "MARGIN", margin)
    grain, deviation = grid(noise)
    epsilon = np.linspace(0, 0.5 / noise**2 + 8 / noise, 30_011)
    charged = norm.sf(epsilon * noise - 0.5 / noise) - np.exp(epsilon) * norm.sf(epsilon * noise + 0.5 / noise)
    counts = charged > 1e-12
    assert (profile(epsilon, deviation, round(1 / grain)) <= charged)[counts].all() == holds


def test_noise_beyond_what_is_drawn_is_refused_before_anything_is_charged(monkeypatch):
    settings = PrivacySettings(epsilon=1.0, delta=1e-5)
    assert plan_privacy(settings, records=1000, rounds=0).histogram.noise_multiplier > 10  # control: it is drawn
    monkeypatch.setattr(plan, "MOST_NOISE", 10.0)
    plan._plan.cache_clear()
    with pytest.raises(AccountingError, match="up to 10 is drawn"):
        plan_privacy(settings, records=1000, rounds=0)
