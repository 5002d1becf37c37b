"""One night, in which all goes wrong: the federation comes to its end, nothing is lost, and all say who is awaited.

Every party is a process with a folder of its own, and each client's line to the server can be cut. Ten minutes are
scaled to half of one by the server's `[timing]`; the ten minutes themselves, and a night, pass on a virtual clock, with
the patience that servers have by default, in tests/server/test_long_nights.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.system.night import Night, dreams, until

LOST_AFTER, STEP = 5.0, 20.0
NAMED_WITHIN = 15.0


def assert_named(night: Night, missing: str, looking: Iterable[str], since: float) -> None:
    """Each of those who look has been told, by name and soon, and by nothing more."""
    for name in looking:
        until(lambda name=name: missing in night.names_waited_for(name))  # type: ignore[misc]
        found = night.status_by_command(name)
        (waited,) = (one for one in found["waiting"] if one["name"] == missing)
        assert set(waited) == {"name", "present", "heard"}  # no cause
        assert found["since"] - since <= NAMED_WITHIN and found["running"]
        assert found["told"] is (name != "server")


@pytest.mark.exhaustive
@pytest.mark.system
def test_bad_night(tmp_path: Path) -> None:
    night = Night(tmp_path, rounds=10, tables=dreams(24), seed=22, beat=0.5, lost_after=LOST_AFTER, step=STEP)
    with night.falling():
        night.start("server", *night.NAMES)
        until(lambda: night.of("step_finished"))

        # The server is killed at ten random instants, and gives no epoch up.
        for _ in range(10):
            night.some_events_later(24)
            night.kill("server")
            night.start("server")
        steps = len(night.of("step_finished"))
        until(lambda: len(night.of("step_finished")) > steps)
        assert night.of("epoch_resumed")
        assert night.of("epoch_given_up") == []

        # One client's line is down for longer than the server waits: that costs the running epoch, and no more.
        night.lines["b"].cut()
        began = time.time()
        assert_named(night, "b", ("server", "a", "c"), began)
        until(lambda: night.of("epoch_given_up"))
        assert "the server" in night.names_waited_for("b")
        night.lines["b"].mend()
        certified = len(night.of("round_finished"))
        until(lambda: len(night.of("round_finished")) > certified)
        assert len(night.of("epoch_given_up")) == 1

        # One stands still, then is killed, then started; and started twice.
        night.running["c"].send_signal(signal.SIGSTOP)
        assert_named(night, "c", ("server", "a", "b"), time.time())
        night.kill("c")
        night.start("c")
        until(lambda: night.log("c")[-1]["event"] != "resume" and night.of("client_joined")[-1]["client"] == "c")
        assert night.start_again("c") == 2 and night.running["c"].poll() is None
        assert night.start_again("server") == 2 and night.running["server"].poll() is None

        # The server is stopped, and started.
        night.some_events_later(8)
        assert night.kill("server", signal.SIGTERM) == 0
        night.start("server")
        night.finish()
    night.assert_nothing_was_lost_or_counted_twice()
    night.assert_no_hail_of_refusals()
