"""What a machine holds, as a value: to see that a refused message has changed nothing.

Secrets are read and arrays copied; what a machine was given from outside (course, journal, generator) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from codream_protocols.client import ClientProtocol
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.record import History
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.server import ServerProtocol
from codream_protocols.tag import TagKey

_LEFT_OUT = ("_course", "course", "_journal", "_random")


def snapshot(machine: ClientProtocol | ServerProtocol) -> Any:
    """Everything that a machine holds, as a value that can be compared later."""
    return _held_by(machine)


def _held_by(holder: Any) -> dict[str, Any]:
    return {name: _frozen(held) for name, held in _attributes(holder).items() if name not in _LEFT_OUT}


def _frozen(held: Any) -> Any:
    if isinstance(held, Mapping):
        return {key: _frozen(value) for key, value in held.items()}
    if isinstance(held, list | tuple):
        return [_frozen(value) for value in held]
    if isinstance(held, set):
        return frozenset(held)
    if isinstance(held, np.ndarray):
        return held.dtype.str, held.shape, held.tobytes()
    if isinstance(held, Secret):
        return bytes(held._bytes)
    if isinstance(held, SecretArray):
        return held._rows.tobytes()
    if isinstance(held, LockstepKeys | TagKey | History):
        return _held_by(held)
    if is_dataclass(held) and not isinstance(held, type):
        return {item.name: _frozen(getattr(held, item.name)) for item in fields(held) if item.name != "course"}
    return held


def _attributes(held: Any) -> dict[str, Any]:
    names = [*getattr(held, "__dict__", ()), *(name for kind in type(held).__mro__ for name in _slots(kind))]
    return {name: getattr(held, name) for name in names if hasattr(held, name)}


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
