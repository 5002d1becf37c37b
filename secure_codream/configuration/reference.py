"""The keys of configuration files as people read them: tables of Markdown, and comments in a file.

All of it is read from the declarations: types, ranges, defaults and sentences of `Settings` and `Table` classes, and
what `[aggregation]` and `[policy]` have from the protocol's structures. `secure_codream.documents` writes
docs/configuration.md with it, `provision` each `client.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from inspect import cleandoc
from pathlib import Path
from textwrap import fill, wrap
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from annotated_types import DocInfo
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from codream_protocols.charter import Aggregation, Policy
from codream_protocols.settings import Settings, declared
from secure_codream.configuration.client import PolicyTable
from secure_codream.configuration.federation import AggregationTable
from secure_codream.configuration.reading import DIGEST, NAME, PLACE, REFERENCE

WIDTH = 120
COLUMNS = ("key", "type", "range", "default", "what it is")
STRUCTURES: dict[type[Any], type[msgspec.Struct]] = {AggregationTable: Aggregation, PolicyTable: Policy}
"""Tables whose keys the protocol declares."""
_PATTERNS = {
    NAME: "1 to 64 letters, digits, `.`, `_` or `-`, a letter or digit first",
    DIGEST: "64 hexadecimal digits",
    REFERENCE: "module:name",
    PLACE: "HOST:PORT",
}
_KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "anything"}
_LIMITS = {"gt": "above {}", "lt": "below {}", "multiple_of": "a multiple of {}", "min_length": "{} or more of them"}
_LIMITS |= {"max_length": "{} of them at most"}
_FIELD = re.compile(r"([A-Za-z_]\w*) = ")
_HEADER = re.compile(r"\[([A-Za-z_][\w.]*)\]$")


@dataclass(frozen=True)
class Key:
    """One key of a table, in words.

    Attributes:
        name: the key.
        kind: its type, or its choices.
        range: what is allowed.
        default: as TOML has it; "required", or "not given".
        text: its sentence; empty where none was declared.
        table: the class of the table that it is; None of any other key.
    """

    name: str
    kind: str
    range: str
    default: str
    text: str
    table: type[Any] | None


def keys_of(table: type[Any]) -> tuple[Key, ...]:
    """The keys of a `Settings` or a pydantic table, in order."""
    if issubclass(table, Settings):
        defaults = {setting.name: setting.default for setting in declared(table)}
    else:
        defaults = {
            name: MISSING if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in table.model_fields.items()
        }
    hints = get_type_hints(table, include_extras=True)
    structure = STRUCTURES.get(table)
    own = {} if structure is None else get_type_hints(structure, include_extras=True)
    sentences = {} if structure is None else _attributes(structure)
    keys = []
    for name, default in defaults.items():
        hint = own.get(name, hints[name])
        if default is None and table is PolicyTable and name in own:  # not given, as strict as the structure
            default = getattr(Policy(), name)
        inner = _table_in(hint)
        text = _sentence(hints[name]) or sentences.get(name, "") or ("" if inner is None else about(inner))
        keys.append(Key(name, _kind(hint), _range(hint), _default(default), text, inner))
    return tuple(keys)


def about(table: type[Any]) -> str:
    """What a table is, in one line: the first of its docstring, without the table's name."""
    first = cleandoc(table.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r"^`\[[^\]]*\]`[:,] ", "", first).rstrip(".")


def table_in_markdown(title: str, table: type[Any]) -> str:
    """A heading, what the docstring says of the table as a whole, and a row for each key."""
    first, *others = cleandoc(table.__doc__ or "").split("\n\n")
    first = re.sub(r"^`\[[^\]]*\]`[:,] ", "", " ".join(first.split()))
    prose = [first[:1].upper() + first[1:], *(" ".join(other.split()) for other in others)]
    paragraphs = [fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) for text in prose]
    rows = [(f"`{key.name}`", key.kind, key.range, key.default, key.text) for key in keys_of(table)]
    return "\n\n".join([f"### {title}", *paragraphs, markdown(COLUMNS, rows)])


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def with_comments(text: str, file: type[BaseModel]) -> str:
    """A file as `tomli_w` writes it, with the sentence of each key above it, as comments.

    Args:
        text: the file; a value is on one line, or indented on the next ones.
        file: the class of the whole file.
    """
    table: type[Any] | None = file
    lines: list[str] = []
    for line in text.splitlines():
        if header := _HEADER.fullmatch(line):
            table = file
            for part in header[1].split("."):
                found = [key.table for key in keys_of(table) if key.name == part] if table is not None else []
                table = found[0] if found else None
        elif (field := _FIELD.match(line)) and table is not None:
            sentence = next(key.text for key in keys_of(table) if key.name == field[1])
            comment = wrap(sentence.replace("`", ""), WIDTH - 2, break_long_words=False, break_on_hyphens=False)
            lines += [f"# {part}" for part in comment]
        lines.append(line)
    return "\n".join(lines) + "\n"


# -- declarations in words ---------------------------------------------


def _attributes(structure: type[msgspec.Struct]) -> dict[str, str]:
    """Field -> its sentence under "Attributes:" of the docstring."""
    _, _, listed = cleandoc(structure.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """A type without None and annotations, and the annotations."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            for mark in more:
                marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
        elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
            rest = [one for one in get_args(hint) if one is not NoneType]
            hint = Union[tuple(rest)]  # noqa: UP007 - of a list
        else:
            return hint, marks


def _sentence(hint: Any) -> str:
    _, marks = _unwrapped(hint)
    return next((mark.documentation for mark in marks if isinstance(mark, DocInfo)), "")


def _table_in(hint: Any) -> type[Any] | None:
    kind, _ = _unwrapped(hint)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel | Settings) else None


def _kind(hint: Any) -> str:
    kind, _ = _unwrapped(hint)
    inside, origin = get_args(kind), get_origin(kind)
    if origin is Literal:
        return " or ".join(f"`{_toml(one)}`" for one in inside)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inside))
    if origin is tuple and inside[-1] is ...:
        return f"list of {_several(_kind(inside[0]))}"
    if origin is tuple and len(set(map(_kind, inside))) == 1:
        return f"list of {len(inside)} {_several(_kind(inside[0]))}"
    if origin is tuple:
        return f"({', '.join(map(_kind, inside))})"
    if origin is dict or _table_in(kind) is not None:
        return "table"
    return _KINDS[kind]


def _several(kind: str) -> str:
    if kind.startswith("list of"):
        return f"lists{kind.removeprefix('list')}"
    return f"{kind}s" if kind in _KINDS.values() else kind


def _range(hint: Any) -> str:
    kind, marks = _unwrapped(hint)
    found = [] if get_origin(kind) is dict else list(_limits(marks))
    inside = get_args(kind)
    if get_origin(kind) is tuple:
        each = "; ".join(filter(None, (_range(one) for one in inside if one is not ...)))
        if each and inside[-1] is ... and not each.startswith("each "):
            each = f"each {each}"
        found += [each] if each else []
    return ", ".join(found)


def _limits(marks: Sequence[Any]) -> Iterator[str]:
    names = ("ge", "le", "gt", "lt", "multiple_of", "min_length", "max_length", "pattern")
    limits = {name: getattr(mark, name) for mark in marks for name in names if getattr(mark, name, None) is not None}
    least, most = limits.get("ge"), limits.get("le")
    if least is not None and most is not None:
        yield f"{_number(least)} to {_number(most)}"
    elif least is not None:
        yield f"at least {_number(least)}"
    yield from (words.format(_number(limits[name])) for name, words in _LIMITS.items() if name in limits)
    if most is not None and least is None:
        yield f"at most {_number(most)}"
    if "pattern" in limits:
        yield _PATTERNS[limits["pattern"]]


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _default(value: Any) -> str:
    if value is MISSING or value is PydanticUndefined:
        return "required"
    if value is None:
        return "not given"
    if value == {} or isinstance(value, BaseModel | Settings):
        return ""
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
