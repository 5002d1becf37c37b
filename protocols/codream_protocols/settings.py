"""A setting is declared once: type, default, range, unit and sentence stand in one annotation of a `Settings` class.

    class Dreams(Settings):
        batch: Annotated[int, Ge(2), Le(65_536), doc("images of a batch")] = 128

From it come the check of every instance, the tables of configuration files (pydantic reads the same annotations), and
the reference of all keys (docs/configuration.md).
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Le, Lt

MOST = 1e6
"""No rate, clip or bound is larger: their products then stay far within single precision."""


class SettingsError(ValueError):
    """A setting that is out of range: what was found, what is allowed.

    Attributes:
        name: the setting; empty where several do not fit each other.
        found: its value, in words.
        allowed: what is allowed.
    """

    def __init__(self, text: str, *, name: str = "", found: str = "", allowed: str = "") -> None:
        super().__init__(text)
        self.name, self.found, self.allowed = name, found, allowed


def out_of_range(name: str, value: object, allowed: str) -> SettingsError:
    """The error of one setting."""
    found = f"{value!r:.80}"
    return SettingsError(f"{name} is {found}; {allowed} is allowed", name=name, found=found, allowed=allowed)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Settings:
    """Base of declarations: each subclass is a frozen, keyword-only dataclass whose instances are within their ranges.

    Raises:
        SettingsError: a setting out of its range, or settings that do not fit each other.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for setting in declared(type(self)):
            setting.check(getattr(self, setting.name))
        self._check()

    def _check(self) -> None:
        """Refuse settings that do not fit each other; raises `SettingsError`."""


@dataclass(frozen=True)
class Setting:
    """One declaration.

    Attributes:
        name: of the setting.
        kind: its type, without None.
        optional: whether None, for "not given", is allowed.
        default: its default; `MISSING` if it must be given.
        text: what it is, with its unit.
        bounds: its range.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    text: str
    bounds: tuple[Ge | Gt | Le | Lt, ...]

    @property
    def allowed(self) -> str:
        """Its range in words."""
        if get_origin(self.kind) is Literal:
            return " or ".join(map(repr, get_args(self.kind)))
        words = [f"{word} {_number(bound)}" for word, bound in map(_in_words, self.bounds)]
        return ", ".join(words)

    def check(self, value: Any) -> None:
        """Refuse a value out of range; raises `SettingsError`."""
        if value is None and self.optional:
            return
        fits = value in get_args(self.kind) if get_origin(self.kind) is Literal else True
        if self.bounds or isinstance(value, float):
            fits = fits and math.isfinite(value) and all(_holds(bound, value) for bound in self.bounds)
        if not fits:
            raise out_of_range(self.name, value, self.allowed or "a finite number")


def declared(cls: type[Any]) -> tuple[Setting, ...]:
    """The declarations of a class, in order."""
    return _declared(cls)  # type: ignore[arg-type]


@cache
def _declared(cls: Any) -> tuple[Setting, ...]:
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append(_setting(field.name, hints[field.name], default))
    return tuple(found)


def _setting(name: str, hint: Any, default: Any) -> Setting:
    marks: list[Any] = []
    optional = False
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks += more
        elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
            optional = True
        else:
            break
    text = next((mark.documentation for mark in marks if isinstance(mark, DocInfo)), "")
    bounds = tuple(mark for mark in marks if isinstance(mark, Ge | Gt | Le | Lt))
    return Setting(name, hint, optional, default, text, bounds)


def _in_words(bound: Ge | Gt | Le | Lt) -> tuple[str, Any]:
    match bound:
        case Ge():
            return "at least", bound.ge
        case Gt():
            return "above", bound.gt
        case Le():
            return "at most", bound.le
        case Lt():
            return "below", bound.lt


def _holds(bound: Ge | Gt | Le | Lt, value: Any) -> bool:
    match bound:
        case Ge():
            return bool(value >= bound.ge)
        case Gt():
            return bool(value > bound.gt)
        case Le():
            return bool(value <= bound.le)
        case Lt():
            return bool(value < bound.lt)


def _number(bound: Any) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
