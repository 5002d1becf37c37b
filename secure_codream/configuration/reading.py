"""Files that people write: read within limits, checked, and refused with what was found and what is allowed."""

from __future__ import annotations

import json
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_CONFIG_BYTES = 1 << 20
DIGEST = r"^[0-9a-f]{64}$"
REFERENCE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the key, what was found and what is allowed."""


class Table(BaseModel):
    """A table of a configuration: no key but its own, and none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


PartyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # what a roster takes, and a folder


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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: found no such file; a TOML file is needed") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: found no valid TOML ({error})") from None


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
                text = str(problem["ctx"]["error"])
            else:
                found = "" if problem["type"] == "missing" else f"found {problem['input']!r:.80}; "
                text = f"{found}{problem['msg'][:1].lower()}{problem['msg'][1:]}"
                if problem["type"] == "extra_forbidden":
                    text += _instead(kind, problem["loc"])
            lines.append(f"{name}: {key}: {text}" if key else f"{name}: {text}")
        raise ConfigError("\n".join(lines)) from None


def _instead(kind: Any, location: tuple[int | str, ...]) -> str:
    """For a key that does not exist: the one that it is most like, else all that its table knows."""
    for part in location[:-1]:
        field = getattr(kind, "model_fields", {}).get(part)
        inner = () if field is None else (field.annotation, *get_args(field.annotation))
        kind = next((one for one in inner if hasattr(one, "model_fields")), None)
    known = list(getattr(kind, "model_fields", ()))
    alike = get_close_matches(str(location[-1]), known, n=1)
    if alike:
        return f"; did you mean {alike[0]}?"
    return f"; known here are {', '.join(known)}" if known else ""
