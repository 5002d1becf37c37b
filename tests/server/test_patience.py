"""Clocks that stand still while the server was held up, rates, and moments at growing intervals."""

from __future__ import annotations

import pytest

from codream_protocols.settings import SettingsError
from codream_server.patience import Growing, PatientClock, RateLimit, is_power_of_two
from codream_server.settings import Timing


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_passes_while_the_server_looks_and_stands_still_while_it_was_held_up() -> None:
    hands = Hands()
    clock = PatientClock(0.4, hands)
    for _ in range(10):
        hands.now += 0.2
        assert clock.look() == 0.0
    assert clock.now == pytest.approx(2.0)
    hands.now += 3600.0
    assert clock.look() == pytest.approx(3599.6)
    assert clock.now == pytest.approx(2.4)
    hands.now += 0.1
    assert clock.look() == 0.0 and clock.now == pytest.approx(2.5)


def test_rate_limit_admits_a_burst_and_then_so_many_a_second() -> None:
    hands = Hands()
    limit = RateLimit(5, 2.0, hands)
    assert [limit.admits() for _ in range(7)] == [True] * 5 + [False] * 2
    assert limit.over == 2
    hands.now += 1.0
    assert [limit.admits() for _ in range(3)] == [True, True, False]
    hands.now += 1000.0
    assert sum(limit.admits() for _ in range(10)) == 5  # no more than a burst is saved up
    limit.give_back()
    assert limit.admits() and not limit.admits()


def test_moments_come_at_growing_intervals_up_to_the_longest() -> None:
    growing = Growing(1.0, 8.0)
    growing.start(10.0)
    moments = [tenth / 10 for tenth in range(100, 600) if growing.is_due(tenth / 10)]
    assert moments == pytest.approx([11.0, 13.0, 17.0, 25.0, 33.0, 41.0, 49.0, 57.0])
    growing.start(60.0)
    assert not growing.is_due(60.9) and growing.is_due(61.0)


def test_powers_of_two() -> None:
    assert [count for count in range(1, 40) if is_power_of_two(count)] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "wrong",
    [
        {"beat": 0.0},
        {"beat": 0.01},
        {"lost_after": 1.5},
        {"step": -1.0},
        {"join": 0.0},
        {"join": float("nan")},
        {"step": float("inf")},
    ],
)
def test_timing_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Timing(**wrong)


def test_patience_without_settings() -> None:
    timing = Timing()
    assert (timing.join, timing.step, timing.beat, timing.lost_after) == (None, 600.0, 1.0, 60.0)
