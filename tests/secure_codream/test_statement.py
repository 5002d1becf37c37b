"""The statement says what the ledger and the accountant say, for every kind of run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.ledger import Budget, Ledger
from secure_codream.reports.audit_results import AuditResult, AuditRow
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.statement import (
    FLOATING_POINT,
    METRICS_REPORTED,
    ClientLevel,
    PrivacyStatement,
    RecordLevel,
    member_spending,
    privacy_statement,
    read_statement,
    write_statement,
)

BUDGET = Budget(4.0, 1e-5, "rdp")
CHARGES = [SampledGaussian(8.0, 1.0, 1, "label histogram"), SampledGaussian(1.4, 0.034, 360, "warm-up")]
CLIENT = ClientLevel(
    epsilon=8.0,
    delta=1e-6,
    spent=4.2,
    left=3.8,
    noise_multiplier=21.5,
    accountant="zCDP",
    mechanism="distributed discrete Gaussian",
    clips={"updates": 3.0},
    honest_shares=6,
)


def record(name: str = "alice") -> RecordLevel:
    return RecordLevel(members=[member_spending(name, BUDGET, CHARGES)], clip=0.3)


def audit(lower: float) -> AuditResult:
    row = AuditRow(
        adversary="a client's model",
        method="one run",
        auc=0.5,
        advantage=0.1,
        tpr_at_1_fpr=0.0,
        trials=400,
        right=210,
        guesses=400,
        epsilon_lower=lower,
        epsilon_claimed=2.0,
        epsilon_most=3.7,
    )
    return AuditResult(
        confidence=0.95, delta=1e-5, noise_multiplier=6.0, without_noise=False, rows=[row], seconds=1.0, settings={}
    )


def page(folder: Path, statement: PrivacyStatement) -> str:
    _, html = write_statement(folder, statement)
    assert read_statement(folder) == statement
    text = html.read_text("utf-8")
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text  # self-contained
    return text


def test_an_experiment_that_deals_a_known_set_out_says_so() -> None:
    for dealt_out in (True, False):
        said = privacy_statement("run", record=record(), dealt_out=dealt_out).not_covered
        assert any("this is an experiment" in line for line in said) is dealt_out


def test_spending_is_the_ledgers(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.jsonl", federation="example", member="alice", budget=BUDGET) as ledger:
        for charge in CHARGES:
            ledger.reserve(charge)
        spending = member_spending("alice", ledger.budget, ledger.charges)
        assert (spending.spent, spending.left) == (ledger.spent, ledger.left)
    assert spending.second == epsilon_of(CHARGES, 1e-5, "prv") < spending.spent
    assert [(part.purpose, part.steps) for part in spending.mechanisms] == [("label histogram", 1), ("warm-up", 360)]


def test_record_level_says_everything_in_json_and_on_the_page(tmp_path: Path) -> None:
    statement = privacy_statement("a-run", record=record(), colluders=2)
    text = page(tmp_path, statement)
    assert statement.record is not None
    (member,) = statement.record.members
    for found in (
        f"{member.spent:.3f}",
        f"{member.left:.3f}",
        f"{member.second:.3f}",
        "0.034",
        "360",
        "Poisson",
        "0.3",
    ):
        assert found in text
    assert statement.headline.startswith(
        f"Each training record is protected with epsilon {member.spent:.3g} at delta 1e-05"
    )
    assert {"opacus", "torch"} <= set(statement.versions)
    raw = msgspec.json.decode((tmp_path / "privacy.json").read_bytes())
    assert raw["record"]["neighbours"] == "one record added or removed"
    assert (raw["colluders"], raw["client"]) == (2, None)
    assert "AES-256" in raw["record"]["randomness"]


def test_client_level_and_its_optional_fields(tmp_path: Path) -> None:
    statement = privacy_statement("a-run", client=CLIENT, colluders=1)
    text = page(tmp_path, statement)
    assert "21.5" in text and "6 honest ones" in text and "clip of updates" in text and "times the variance" not in text
    assert "Each client as a whole is protected with epsilon 4.2" in text and 'id="records"' not in text


def test_both_levels_and_an_audit_that_refutes(tmp_path: Path) -> None:
    fine = privacy_statement("a-run", record=record(), client=CLIENT, audit=audit(0.5))
    assert "REFUTES" not in page(tmp_path, fine)
    refuted = privacy_statement("a-run", record=record(), client=CLIENT, audit=audit(2.5))
    text = page(tmp_path, refuted)
    assert "THE AUDIT REFUTES THE CLAIM" in text and '<tr class="refuted">' in text


def test_without_privacy_it_says_so_plainly(tmp_path: Path) -> None:
    text = page(tmp_path, privacy_statement("a-run", colluders=1))
    assert "This run has no differential privacy" in text and "epsilon" not in text.split("</style>")[1]


def test_what_is_not_covered_follows_the_run() -> None:
    with_metrics = privacy_statement("a-run", record=record())
    without = privacy_statement("a-run", record=record(), metrics_reported=False)
    assert METRICS_REPORTED in with_metrics.not_covered and METRICS_REPORTED not in without.not_covered
    assert FLOATING_POINT in with_metrics.not_covered


def test_names_are_escaped(tmp_path: Path) -> None:
    assert "<b>mallory" not in page(tmp_path, privacy_statement("<b>mallory", record=record("<b>mallory")))


def test_files_that_are_no_statement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingRecord):
        read_statement(tmp_path)
    for content in (b"", b"{}", b"\xff", b'{"run": 1}'):
        (tmp_path / "privacy.json").write_bytes(content)
        with pytest.raises(MalformedRecord):
            read_statement(tmp_path)
