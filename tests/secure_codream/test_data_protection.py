"""What the pages for a data-protection officer say is held: by a promise, a limit, an attack or another page."""

from __future__ import annotations

import math
import re

import pytest

pytest.importorskip("torch")

from secure_codream.deployment.withdrawal import DELETED
from secure_codream.threats.promises import PROMISES
from secure_codream.threats.suite import all_attacks
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "data-protection.md").read_text(encoding="utf-8")
ATTACKS = {entry.attack.name for entry in all_attacks()}
FREE = ("No program can.",)
"""What needs nothing that holds it."""


def statements() -> list[str]:
    """List items and rows of tables, but for heads and the table of epsilons."""
    items = re.findall(r"^- (.*?)(?=^- |^$|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"(?<=\n\|---\|---\|---\|\n)((?:\|.*\n)+)", PAGE)
    return [" ".join(item.split()) for item in items] + [row for table in rows for row in table.splitlines()]


def test_every_statement_names_what_holds_it() -> None:
    said = statements()
    assert len(said) >= 30
    images_where_they_were, account = "its images, where they were", "the account of what was spent"
    for statement in said:
        held = re.search(r"\]\([\w/-]+\.md#", statement) or any(f"`{name}`" in statement for name in ATTACKS)
        assert held or any(words in statement for words in (*FREE, images_where_they_were, account)), statement


def test_promises_are_linked_by_their_own_names() -> None:
    keys = {promise.key: promise.title for promise in PROMISES}
    for key, anchor in re.findall(r"\[([PL]\d+)\]\(protocol\.md#([\w-]+)\)", PAGE):
        title = re.sub(r"[^\w\- ]", "", keys[key].lower()).replace(" ", "-")
        assert anchor == f"{key.lower()}-{title}"


def test_attacks_are_there() -> None:
    named = {name for name in re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", PAGE) if name != "secure-codream"}
    assert len(named) > 15 and named <= ATTACKS


def test_epsilon_in_plain_numbers() -> None:
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8]
    for epsilon, times, half, hundredth in rows:
        factor = math.exp(int(epsilon))
        sure = [100 * prior * factor / (prior * factor + 1 - prior) for prior in (0.5, 0.01)]
        assert (times, half, hundredth) == (f"{factor:.1f}", f"{sure[0]:.1f}", f"{sure[1]:.1f}")


def test_what_withdrawing_deletes_is_said() -> None:
    said = PAGE.partition("**A site withdraws**")[2].partition("\n- ")[0]
    assert all(word in said for word in ("keys", "journal", "models", "acceptance"))
    assert {"journal", "identity.key", "transport.key", "acceptance.json", "model.safetensors"} <= set(DELETED)
