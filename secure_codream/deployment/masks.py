"""Where a client's vectors are masked: on its GPU, if its charter's suite and this machine allow it."""

from __future__ import annotations

from typing import Any

from codream_clients.devices import pick_device
from codream_clients.dream_learner import HandOver, fetched
from codream_clients.masking.device import DeviceMasks, OnDevice, why_not


def masks_on(device: str, suite: str, log: Any, *, exhibited: bool) -> tuple[DeviceMasks | None, HandOver]:
    """What masks vectors on the device, if anything, and what its numbers are handed over as.

    Args:
        device: as `pick_device` takes it.
        suite: the charter's.
        log: told where vectors are masked by a client that has a GPU, and why.
        exhibited: whether a plain vector is kept for a demonstration: it is encoded on the processor, to be seen.
    """
    chosen = pick_device(device)
    if chosen.type != "cuda" or exhibited:
        return None, fetched
    reason = why_not(chosen, suite)
    log.info("masks", text=reason or f"CoDream's updates are masked on {chosen}, once it has proven that it can")
    if reason is not None:
        return None, fetched
    return DeviceMasks(chosen, lambda text: log.warning("masks", text=text)), OnDevice
