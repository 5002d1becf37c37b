"""Waiting for another process of this machine that writes what this one would write."""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from codream_clients.privacy.ledger_entries import LedgerBusy

PATIENCE = 600.0
"""Seconds that a process waits for another's entry: what dies lets go at once, and a busy machine is only slow."""
SAID_AFTER = 10.0
_POLL_SECONDS = 0.005


def wait_for_turn(take: Callable[[], bool], path: Path) -> None:
    """Call `take` until it is true; what is long is said in the log.

    Args:
        take: takes the turn, unless another process has it.
        path: the file that is waited for.

    Raises:
        LedgerBusy: another process has had it for `PATIENCE` seconds.
    """
    since, said = time.monotonic(), False
    while not take():
        waited = time.monotonic() - since
        if waited > PATIENCE:
            raise LedgerBusy(f"{path}: another process has held it for {PATIENCE:g} s; end that one")
        if waited > SAID_AFTER and not said:
            structlog.get_logger().warning("privacy-ledger-waits-for-another-process", path=str(path))
            said = True
        time.sleep(_POLL_SECONDS)
