"""Settings that are out of range are refused where they are made."""

from __future__ import annotations

import math

MOST = 1e6
"""No rate, clip or bound is larger: their products then stay far within single precision."""


class SettingsError(ValueError):
    """A setting that is out of range: what was found, what is allowed."""


def require_least(**least: tuple[int, int]) -> None:
    """For each name (value, least allowed value).

    Raises:
        SettingsError: a value below its least.
    """
    for name, (value, allowed) in least.items():
        if value < allowed:
            raise SettingsError(f"{name} is {value}; {allowed} or more is allowed")


def require_positive(**values: float) -> None:
    """Rates, clips and bounds: above 0, at most `MOST`.

    Raises:
        SettingsError: a value that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and 0 < value <= MOST):
            raise SettingsError(f"{name} is {value}; a number above 0, at most {MOST:g}, is allowed")
