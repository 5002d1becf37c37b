"""Files that people write: read within limits, checked, and refused with what was found and what is allowed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from codream_protocols.settings import Settings, SettingsError, declared, out_of_range

_S = TypeVar("_S", bound=msgspec.Struct)

MAX_CONFIG_BYTES = 1 << 20
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"  # what a roster takes, and a folder; $ would let a newline follow
DIGEST = r"^[0-9a-f]{64}\Z"
PLACE = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}\Z"
MOST_LETTERS = 256  # of a text that goes into a model's file
REFERENCE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z"


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the key, what was found and what is allowed."""


class Table(BaseModel):
    """A table of a configuration: no key but its own, and none that changes.

    Its patterns are Python's, as msgspec's are, so that one text serves both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


PartyName = Annotated[str, Field(pattern=NAME)]


def canonical_json(value: Any) -> bytes:
    """One text for one value: sorted keys, no spaces, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: there is none, it is too large, or no TOML.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: found {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are allowed")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as Windows writes it
    except FileNotFoundError:
        raise ConfigError(f"{path}: found no such file; a TOML file is needed") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: found no valid TOML ({error})") from None


def as_struct(kind: type[_S], given: Mapping[str, Any]) -> _S:
    """Values over the defaults of one of the protocol's structures, which says their ranges.

    Raises:
        SettingsError: what does not fit.
    """
    names = kind.__struct_fields__
    whole = {**{name: getattr(kind(), name) for name in names}, **given}
    content = [whole[name] for name in names] if kind.__struct_config__.array_like else whole
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        index = re.match(r"\[(\d+)\]", place)
        name = names[int(index[1])] if index else re.split(r"[.\[`]", place.lstrip("."))[0]
        raise out_of_range(name, whole[name], structs_range(kind, name) or text) from None


def structs_range(kind: type[msgspec.Struct], name: str) -> str:
    """What a field of one of the protocol's structures allows, in words; empty where its type says it all."""
    hint = get_type_hints(kind, include_extras=True)[name]
    words = []
    while get_args(hint):
        if get_origin(hint) is Literal:
            return " or ".join(map(repr, get_args(hint)))
        for mark in get_args(hint):
            if isinstance(mark, msgspec.Meta):
                limits = (("at least", mark.ge), ("above", mark.gt), ("at most", mark.le), ("below", mark.lt))
                words += [f"{word} {limit:g}" for word, limit in limits if limit is not None]
        hint = get_args(hint)[0]
    return ", ".join(words)


def check(name: str, kind: Any, content: Any) -> Any:
    """Validate `content` as `kind` (a model or a dataclass).

    Raises:
        ConfigError: with one line for each value that does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "value_error":  # one of our own, which says itself what was found
                own = problem["ctx"]["error"]
                text = str(own)
                if isinstance(own, SettingsError) and own.name:
                    key = f"{key}.{own.name}" if key else own.name
                    text = f"found {own.found}; {own.allowed} is allowed"
            else:
                found = "" if problem["type"] == "missing" else f"found {problem['input']!r:.80}; "
                text = f"{found}{problem['msg'][:1].lower()}{problem['msg'][1:]}"
                if problem["type"] == "tuple_type":
                    text = f"{found}a list is needed"
                if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                    text = f"{found}there is no such key{_instead(kind, problem['loc'])}"
            lines.append(f"{name}: {key}: {text}" if key else f"{name}: {text}")
        raise ConfigError("\n".join(lines)) from None


def _instead(kind: Any, location: tuple[int | str, ...]) -> str:
    """For a key that does not exist: the one that it is most like, else all that its table knows."""
    for part in location[:-1]:
        kinds = _keys(kind).get(str(part))
        kind = next((one for one in (kinds, *get_args(kinds)) if _keys(one)), None)
    known = list(_keys(kind))
    alike = get_close_matches(str(location[-1]), known, n=1)
    if alike:
        return f"; did you mean {alike[0]}?"
    return f"; known here are {', '.join(known)}" if known else ""


def _keys(kind: Any) -> dict[str, Any]:
    """Key -> kind, of a table."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and issubclass(kind, Settings):
        return {setting.name: setting.kind for setting in declared(kind)}
    return {}
