"""docs/configuration.md has every key that can be written, with its sentence, and says what the declarations say."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import tomli_w
from annotated_types import Ge, Gt, Le, doc
from pydantic import BaseModel, Field

from codream_clients.privacy.settings import PrivacySettings
from codream_protocols.charter import Aggregation, Policy
from codream_protocols.settings import Settings, declared
from secure_codream.audit.settings import AuditConfig
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import Table
from secure_codream.configuration.reference import STRUCTURES, Key, keys_of, table_in_markdown, with_comments
from secure_codream.documents import FILES, PAGES, write
from secure_codream.experiments.grid import CompareConfig

DOCS = Path(__file__).parents[2] / "docs"
TABLES = [(file, title, table) for file, (_, tables) in FILES.items() for title, table in tables]
WHOLE = (FederationConfig, ClientConfig, CompareConfig, AuditConfig)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "python -m secure_codream.documents docs"


def test_writing_makes_every_page(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize(("file", "title", "table"), TABLES)
def test_every_key_has_a_sentence_and_every_table_too(file: str, title: str, table: type[Any]) -> None:
    assert table.__doc__
    for key in keys_of(table):
        assert key.text, f"{file}: {title}: {key.name}: a sentence, Annotated[..., doc(...)], is needed"
        assert not key.text.endswith(".") and "\n" not in key.text


def tables_in(kind: Any) -> Iterator[type[Any]]:
    """Every table that a type has in it, at any depth."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from tables_in(field.annotation)
    elif isinstance(kind, type) and issubclass(kind, Settings):
        yield kind
        for setting in declared(kind):
            yield from tables_in(setting.kind)
    else:
        for inner in get_args(kind):
            yield from tables_in(inner)


def test_every_table_of_every_file_is_in_the_document() -> None:
    listed = {table for _, _, table in TABLES}
    reached = {table for file in WHOLE for table in tables_in(file)}
    assert reached <= listed
    assert PrivacySettings in listed  # behind a dictionary, as `Learning` is
    tables = {table for table in Table.__subclasses__() if table.__module__.startswith("secure_codream")}
    assert {table for table in tables if not table.__subclasses__()} <= listed  # a base is in those made from it


def test_a_key_without_a_sentence_is_found() -> None:  # control
    class Silent(Table):
        """Says nothing of its key."""

        key: int = 0

    assert keys_of(Silent) == (Key("key", "integer", "", "`0`", "", None),)


def test_what_the_protocols_structures_say_is_taken_from_them() -> None:
    assert {table.__name__: structure for table, structure in STRUCTURES.items()} == {
        "AggregationTable": Aggregation,
        "PolicyTable": Policy,
    }
    for table, structure in STRUCTURES.items():
        keys = {key.name: key for key in keys_of(table)}
        shared = set(keys) & set(structure.__struct_fields__)
        assert shared == set(structure.__struct_fields__) - {"most_rho"}  # which follows from [client_privacy]
        for name in shared:
            assert f"        {name}: {keys[name].text[:30]}" in str(structure.__doc__)
    policy = {key.name: key for key in keys_of(next(table for table in STRUCTURES if STRUCTURES[table] is Policy))}
    assert (policy["least_cohort"].range, policy["least_cohort"].default) == ("3 to 100,000", "`3`")


class Inner(Settings):
    """`[sample.inner]`: a table within."""

    rate: Annotated[float, Gt(0), Le(1e6), doc("of something")] = 2.5e-5


class Sample(Table):
    """`[sample]`: of everything a little.

    A second paragraph.
    """

    needed: Annotated[int, doc("a | b")]
    count: Annotated[Annotated[int, Field(ge=2, lt=9, multiple_of=2)] | None, doc("how many")] = None
    shape: Annotated[tuple[Annotated[int, Ge(1), Le(4096)], int], doc("of it")] = (1, 2)
    names: Annotated[tuple[str, ...], Field(min_length=1), doc("`its` names")] = ("a", "b")
    way: Annotated[Literal["one", "two"], doc("which")] = "one"
    on: Annotated[bool, doc("whether")] = True
    inner: Inner = Inner()


def test_a_table_in_words() -> None:
    assert table_in_markdown("`[sample]`", Sample).splitlines() == [
        "### `[sample]`",
        "",
        "Of everything a little.",
        "",
        "A second paragraph.",
        "",
        "| key | type | range | default | what it is |",
        "| --- | --- | --- | --- | --- |",
        "| `needed` | integer |  | required | a \\| b |",
        "| `count` | integer | at least 2, below 9, a multiple of 2 | not given | how many |",
        "| `shape` | list of 2 integers | 1 to 4,096 | `[1, 2]` | of it |",
        '| `names` | list of texts | 1 or more of them | `["a", "b"]` | `its` names |',
        '| `way` | `"one"` or `"two"` |  | `"one"` | which |',
        "| `on` | true or false |  | `true` | whether |",
        "| `inner` | table |  |  | a table within |",
    ]
    assert keys_of(Inner)[0].range == "above 0, at most 1,000,000" and keys_of(Inner)[0].default == "`2.5e-05`"


def test_comments_stand_above_their_keys() -> None:
    text = tomli_w.dumps({"needed": 3, "names": ["x = 1", "[y]"], "inner": {"rate": 1.0}})
    assert with_comments(text, Sample).splitlines() == [
        "# a | b",
        "needed = 3",
        "# its names",
        "names = [",
        '    "x = 1",',
        '    "[y]",',
        "]",
        "",
        "[inner]",
        "# of something",
        "rate = 1.0",
    ]


def test_a_commented_file_reads_as_the_same_configuration(tmp_path: Path) -> None:
    reference, digest = "mine:Seen", "0" * 64
    client = ClientConfig.model_validate(
        {
            "name": "alice",
            "model": "cnn2",
            "answers": "hospital:answer",
            "data": {"source": "/scans # [policy]", "root": "/a = b"},
            "policy": {"modes": ["lockstep"], "cuts": True, "code": {reference: digest}},
            "budget": {"epsilon": 2.0, "delta": 1e-6},
        }
    )
    plain = tomli_w.dumps(client.model_dump(mode="json", exclude_none=True))
    text = with_comments(plain, ClientConfig)
    assert tomllib.loads(text) == tomllib.loads(plain)
    path = tmp_path / "client.toml"
    path.write_text(text, encoding="utf-8")
    assert read_client(path) == client
    assert max(map(len, text.splitlines())) <= 120
    lines = text.splitlines()
    for line, before in zip(lines[1:], lines, strict=False):
        if " = " in line and not line.startswith(("#", " ", '"')):
            assert before.startswith("# "), line
