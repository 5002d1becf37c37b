"""The statement says what the ledger and the accountant say, for every kind of run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of, solve_noise_multiplier
from codream_clients.privacy.groups import group_epsilon
from codream_clients.privacy.ledger import Budget, Ledger, Spender
from secure_codream.reports.audit_results import AuditResult, AuditRow
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.statement import (
    FLOATING_POINT,
    METRICS_REPORTED,
    ClientLevel,
    Mechanism,
    PrivacyStatement,
    RecordLevel,
    mechanisms_of,
    member_spending,
    privacy_statement,
    read_statement,
    record_level,
    write_statement,
)

BUDGET = Budget(4.0, 1e-5, "rdp")
CHARGES = [SampledGaussian(8.0, 1.0, 1, "label histogram"), SampledGaussian(1.4, 0.034, 360, "warm-up")]
MECHANISMS = [Mechanism(**vars(charge), federation="a-run") for charge in CHARGES]
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
    return RecordLevel(members=[member_spending(name, BUDGET, MECHANISMS)], clip=0.3)


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
    with Ledger.open(tmp_path / "l.jsonl", by=Spender("example", "alice"), budget=BUDGET) as ledger:
        for charge in CHARGES:
            ledger.reserve(charge)
        spending = member_spending("alice", ledger.budget, mechanisms_of(ledger))
        assert (spending.spent, spending.left) == (ledger.spent, ledger.left)
    assert spending.second == epsilon_of(CHARGES, 1e-5, "prv") < spending.spent
    assert [(part.purpose, part.steps) for part in spending.mechanisms] == [("label histogram", 1), ("warm-up", 360)]


def test_spending_is_that_of_all_federations_on_the_same_images_and_says_when(tmp_path: Path) -> None:
    """Two of epsilon 4 are not 4 of 4, twice."""
    for federation in ("one", "other"):
        with Ledger.open(tmp_path / "l.jsonl", by=Spender(federation, "alice"), budget=BUDGET) as ledger:
            ledger.plan(CHARGES[:1])
            if federation == "one":
                ledger.reserve(CHARGES[0])
            found = mechanisms_of(ledger)
    assert [(part.federation, part.began is None) for part in found] == [("one", False), ("other", True)]
    assert member_spending("alice", BUDGET, found).spent == epsilon_of(CHARGES[:1] * 2, 1e-5, "rdp")
    text = page(tmp_path, privacy_statement("a-run", record=record_level([("alice", BUDGET, found)], {"epsilon": 4.0})))
    assert "<td>one</td>" in text and "<td>other</td>" in text and "<td>reserved</td>" in text


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


def test_what_a_person_with_several_records_pays_is_said_and_what_says_nothing_is_called_so(tmp_path: Path) -> None:
    statement = privacy_statement("a-run", record=record())
    assert statement.record is not None
    (member,) = statement.record.members
    assert list(member.persons) == [2, 5, 20]
    assert member.persons[2] == group_epsilon(CHARGES, 1e-5, 2) > 2 * member.spent
    text = page(tmp_path, statement)
    assert f"{member.persons[2]:.1f}</td>" in text and f"{member.persons[20]:.1f} (says nothing)" in text
    assert any("more than one record of a person" in line for line in statement.not_covered)


@pytest.mark.parametrize("level", ["record", "client"])
def test_what_colluders_make_of_it_is_a_table_on_the_page(tmp_path: Path, level: str) -> None:
    """From none to all but one of the smallest sum; with all of them there is no bound."""
    by = [7.2, 8.0, 31.0]
    records = msgspec.structs.replace(record(), by_colluders=by) if level == "record" else None
    clients = msgspec.structs.replace(CLIENT, by_colluders=by) if level == "client" else None
    text = page(tmp_path, privacy_statement("a-run", record=records, client=clients, colluders=1))
    rows = re.findall(r'<tr><td>(\d[^<]*)</td><td class="n">([^<]*)</td></tr>', text)
    assert rows[-4:] == [("0", "7.2"), ("1", "8"), ("2", "31 (says nothing)"), ("3 or more", "no bound")]
    assert "against a client count one more" in text and "earlier ones" not in text


@pytest.mark.parametrize("level", ["record", "client"])
def test_rounds_of_earlier_charters_are_not_said_to_be_this_ones(tmp_path: Path, level: str) -> None:
    """Seven rounds of four members, and one of twelve: two who reveal cost more than the table of twelve says."""
    known = {"by_colluders": [7.2, 8.0], "earlier": 7}
    records = msgspec.structs.replace(record(), **known) if level == "record" else None
    clients = msgspec.structs.replace(CLIENT, **known) if level == "client" else None
    statement = privacy_statement("a-run", record=records, client=clients, colluders=1)
    assert "as if all rounds were under this charter: 7 were under earlier ones" in page(tmp_path, statement)
    assert "in 7 rounds under earlier charters, against as many as those said" in statement.headline
    if records is not None:
        assert any("other federations have charged" in line for line in statement.not_covered)


@pytest.mark.parametrize(("epsilon", "right"), [(0.5, 62.2), (1.0, 73.1), (4.0, 98.2)])
def test_an_epsilon_is_put_into_words(epsilon: float, right: float) -> None:
    """Kairouz, Oh and Viswanath, ICML 2015: at even odds at most (e^epsilon + delta) / (1 + e^epsilon) are right."""
    noise = solve_noise_multiplier(target_epsilon=epsilon, delta=1e-5, sample_rate=1.0, steps=1, accountant="rdp")
    part = Mechanism(purpose="warm-up", noise_multiplier=noise, sample_rate=1.0, steps=1)
    member = member_spending("alice", BUDGET, [part])
    statement = privacy_statement("a-run", record=RecordLevel(members=[member], clip=0.3))
    said = float(statement.reading.partition("at most ")[2].split()[0])
    exact = 100 * (math.exp(member.spent) + 1e-5) / (1 + math.exp(member.spent))
    assert said == pytest.approx(exact, rel=1e-2) == pytest.approx(right, rel=1e-2)
    assert privacy_statement("a-run").reading == ""


def test_a_statement_says_when_and_of_whom_it_is(tmp_path: Path) -> None:
    text = page(tmp_path, privacy_statement("a-run", record=record(), roster=bytes(31) + b"\x0a", recipe=b"\xff" * 32))
    raw = msgspec.json.decode((tmp_path / "privacy.json").read_bytes())
    assert raw["roster"] == "00" * 31 + "0a" and raw["recipe"] == "ff" * 32 and raw["date"].endswith("+00:00")
    assert raw["date"] in text and raw["roster"] in text and raw["recipe"] in text


def test_names_are_escaped(tmp_path: Path) -> None:
    assert "<b>mallory" not in page(tmp_path, privacy_statement("<b>mallory", record=record("<b>mallory")))


def test_files_that_are_no_statement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingRecord):
        read_statement(tmp_path)
    for content in (b"", b"{}", b"\xff", b'{"run": 1}'):
        (tmp_path / "privacy.json").write_bytes(content)
        with pytest.raises(MalformedRecord):
            read_statement(tmp_path)


def test_a_statement_of_another_schema_is_refused(tmp_path: Path) -> None:
    """Its fields may mean something else."""
    write_statement(tmp_path, privacy_statement("a-run", record=record()))
    said = read_statement(tmp_path)  # control
    for schema in (2, 4):
        content = msgspec.json.encode({**msgspec.to_builtins(said), "schema": schema})
        (tmp_path / "privacy.json").write_bytes(content)
        with pytest.raises(MalformedRecord, match=r"schema"):
            read_statement(tmp_path)
