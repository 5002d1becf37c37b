"""Data that grow come in parts, each with a ledger and a spending of its own, and no image is in two."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.index import Index, SpentElsewhere, users_index
from codream_clients.privacy.ledger import Ledger, LedgerMismatch, LedgerRolledBack, Spender
from secure_codream import cli
from secure_codream.configuration.limits import PartUnknown, earlier_parts, open_ledger
from secure_codream.deployment.statements import own_statement
from secure_codream.reports.statement import SHARED_NOISE
from secure_codream.simulation.wire import Federation
from tests.secure_codream.test_ledger_commands import DATA, client, federation, plan

NEW = replace(DATA, images=DATA.images + np.float32(1))


def spend(path: Path, index: Index, data: LabelledImages = DATA, **budget: Any) -> Ledger:
    with open_ledger(path, client(ledger=path, **budget), federation(), plan(), data, index=index) as ledger:
        for charge in plan().charges:
            ledger.reserve(charge)
        ledger.end()
        return ledger


def test_a_new_part_spends_its_own_and_the_statement_is_the_most_of_them(tmp_path: Path) -> None:
    index, old, new = users_index(), tmp_path / "2024.jsonl", tmp_path / "2025.jsonl"
    spend(old, index)
    ledger = spend(new, index, NEW, parts=(old,))
    assert 1.9 < ledger.spent <= 2.0, "what the first part has cost counts for its own images alone"
    parts = earlier_parts(client(ledger=new, parts=(old,)))
    whole = Federation(3)
    said = own_statement(federation(), "alice", ledger, whole.charter, whole.course, 0.0, parts=parts)
    assert said.record is not None
    assert [member.name for member in said.record.members] == ["alice", "alice, part 2024.jsonl"]
    assert f"epsilon {max(member.spent for member in said.record.members):.3g}" in said.headline


@pytest.mark.parametrize("shared", [True, False], ids=["a ring's step", "control: noise of its own"])
def test_what_rests_on_others_noise_in_another_federation_is_in_the_first_sentence(
    tmp_path: Path, shared: bool
) -> None:
    """Else all that was spent would hold against everybody but the client."""
    path, whole = tmp_path / "privacy.jsonl", Federation(3)
    spend(path, users_index(), epsilon=9.0)
    with Ledger.open(path, by=Spender("ring", "alice"), budget=None) as other:
        other.reserve(SampledGaussian(50.0, 1.0, 1, "a step", discrete=shared))
    with open_ledger(path, client(ledger=path, epsilon=9.0), federation(), plan(), DATA, index=users_index()) as ledger:
        said = own_statement(federation(), "alice", ledger, whole.charter, whole.course, 0.0)
    assert ("in part on noise that others added there" in said.headline) is shared
    assert (SHARED_NOISE in said.not_covered) is shared


@pytest.mark.parametrize("named", [True, False])
def test_an_image_in_two_parts_is_refused(tmp_path: Path, named: bool) -> None:
    """Whether the earlier part is named or not: the index knows. Control: without the image that is in both."""
    index, old, new = users_index(), tmp_path / "2024.jsonl", tmp_path / "2025.jsonl"
    spend(old, index)
    parts: dict[str, Any] = {"parts": (old,)} if named else {}
    with pytest.raises(SpentElsewhere, match=r"1 of 41 images have spent in the ledger .*leave its images out"):
        spend(new, index, pool([NEW, DATA.subset(np.array([3]))]), **parts)
    spend(new, index, NEW, **parts)


def test_a_part_of_which_nobody_knows_the_images_is_refused(tmp_path: Path) -> None:
    index, old, new = users_index(), tmp_path / "2024.jsonl", tmp_path / "2025.jsonl"
    with pytest.raises(LedgerMismatch, match="found no ledger of an earlier part"):
        spend(new, index, NEW, parts=(old,))
    spend(old, index)
    with pytest.raises(PartUnknown, match="found no images of this part"):
        spend(new, Index(tmp_path / "other" / "ledgers.sqlite"), NEW, parts=(old,))


def test_an_older_copy_of_a_part_is_noticed_though_its_anchor_fits(tmp_path: Path) -> None:
    """Else the statement would say that its images have cost less than they have."""
    index, old, new = users_index(), tmp_path / "2024.jsonl", tmp_path / "2025.jsonl"
    spend(old, index)
    shutil.copytree(tmp_path, tmp_path / "backup")
    with Ledger.open(old, by=Spender("another", "alice"), budget=None, memory=index) as later:
        later.reserve(SampledGaussian(50.0, 1.0, 1, "a step"))
    for path in (tmp_path / "backup").iterdir():
        path.replace(tmp_path / path.name)
    with pytest.raises(LedgerRolledBack, match=r"2024\.jsonl"):
        spend(new, index, NEW, parts=(old,))
    with pytest.raises(LedgerRolledBack, match=r"2024\.jsonl"):
        earlier_parts(client(ledger=new, parts=(old,)), index)
    assert earlier_parts(client(ledger=new, parts=(old,)))  # control: its two files alone fit each other


def test_ledger_show_lists_the_parts(tmp_path: Path) -> None:
    index = users_index()
    spend(tmp_path / "2024.jsonl", index)
    spend(tmp_path / "2025.jsonl", index, NEW, parts=(tmp_path / "2024.jsonl",))
    (tmp_path / "client.toml").write_text(
        'name = "alice"\nmodel = "mlp_gn"\n[budget]\nepsilon = 2.5\ndelta = 1e-3\naccountant = "rdp"\n'
        'ledger = "2025.jsonl"\nparts = ["2024.jsonl"]\n'
    )
    shown = CliRunner().invoke(cli.app, ["ledger", "show", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "earlier part" in shown.output and "an image is in one part" in shown.output
    found = json.loads(CliRunner().invoke(cli.app, ["ledger", "show", str(tmp_path), "--json"]).output)
    assert [part["path"] for part in found["parts"]] == [str(tmp_path / "2024.jsonl")]
