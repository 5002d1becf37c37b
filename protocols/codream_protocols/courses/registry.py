"""The courses by the names that charters and configurations use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codream_protocols.courses.codream import CoDream
from codream_protocols.courses.dp_sgd import DPSGD
from codream_protocols.courses.generator import CoDreamFast
from codream_protocols.courses.parameters import FedAvg, FedProx, Moon, Scaffold
from codream_protocols.courses.sums import Sums
from codream_protocols.settings import SettingsError

COURSES: Mapping[str, type[Any]] = {
    "codream": CoDream,
    "codream-fast": CoDreamFast,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "moon": Moon,
    "dp-sgd": DPSGD,
    "sums": Sums,
}
"""Name -> class; each is a `Course` and is made of settings of its own."""


def course_class(name: str) -> type[Any]:
    """The class of a course.

    Raises:
        SettingsError: no such course; the text lists those allowed.
    """
    if name not in COURSES:
        raise SettingsError(f"course is {name!r}; allowed are {', '.join(COURSES)}")
    return COURSES[name]
