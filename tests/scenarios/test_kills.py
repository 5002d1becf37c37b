"""The server is killed again and again, at random instants, and the same line starts it again."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.system.night import Night, dreams, until


@pytest.mark.exhaustive
@pytest.mark.system
@pytest.mark.parametrize(("kills", "rounds"), [(50, 16)])
def test_a_server_killed_at_fifty_random_instants_finishes_and_gives_no_epoch_up(
    tmp_path: Path, kills: int, rounds: int
) -> None:
    night = Night(tmp_path, rounds=rounds, tables=dreams(24), seed=50, beat=0.5, lost_after=60.0)
    with night.falling():
        night.start("server", *night.NAMES)
        for _ in range(kills):
            night.some_events_later(30)
            assert not night.of("federation_finished"), "too short for so many kills"
            night.kill("server")
            night.start("server")
        night.finish()
    night.assert_nothing_was_lost_or_counted_twice()
    assert night.of("epoch_resumed") and night.of("epoch_given_up") == []
    night.assert_no_hail_of_refusals()


@pytest.mark.exhaustive
@pytest.mark.system
@pytest.mark.parametrize("seed", range(20))
def test_twenty_rough_nights(tmp_path: Path, seed: int) -> None:
    """Chaos with real processes: whoever is next is killed, cut off, or stopped, and comes back."""
    night = Night(tmp_path, rounds=3, tables=dreams(12), seed=seed, beat=0.5, lost_after=4.0, step=12.0)
    with night.falling():
        night.start("server", *night.NAMES)
        until(lambda: night.of("step_finished"))
        for _ in range(night.chance.randint(3, 5)):
            night.some_events_later(10)
            if night.of("federation_finished"):
                break
            night.one_misfortune()
        night.finish()
    night.assert_nothing_was_lost_or_counted_twice()
