"""A party's privacy statement is signed: what was changed in it, and whose it is not, is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from codream_clients.privacy.index import users_index
from codream_clients.privacy.ledger import Ledger, Spender
from codream_protocols.identity import Roster, Signer, sign_roster
from codream_protocols.membership import fingerprint
from secure_codream import cli
from secure_codream.deployment.verify_statement import StatementRefused, verify_statement
from secure_codream.reports.signed_statement import signed
from secure_codream.reports.statement import (
    PrivacyStatement,
    encoded,
    mechanisms_of,
    privacy_statement,
    read_statement,
    record_level,
    write_statement,
)
from tests.secure_codream.small import ADMINISTRATOR, roster_of
from tests.secure_codream.test_statement import BUDGET, CHARGES, audit

SIGNERS, ROSTER = roster_of(3, "lungs")
CLIENT = """
name = "client-1"
model = "mlp_gn"
[budget]
epsilon = 4.0
delta = 1e-5
accountant = "rdp"
"""


def statement_of(ledger: Ledger, signer: Signer = SIGNERS[1], party: str = "client-1") -> PrivacyStatement:
    record = record_level([(party, ledger.budget, mechanisms_of(ledger))], {"epsilon": 4.0})
    (member,) = record.members
    known = msgspec.structs.replace(member, ledger=ledger.name, entries=ledger.entries, head=ledger.head)
    stated = privacy_statement("lungs", record=msgspec.structs.replace(record, members=[known]), colluders=1)
    return signed(stated, party, ROSTER, signer)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A client's folder when its run is over."""
    (tmp_path / "client.toml").write_text(CLIENT)
    (tmp_path / "roster.json").write_bytes(sign_roster(ROSTER, ADMINISTRATOR))
    with Ledger.open(tmp_path / "privacy.jsonl", by=Spender("lungs", "client-1"), budget=BUDGET) as ledger:
        for charge in CHARGES:
            ledger.reserve(charge)
        write_statement(tmp_path, statement_of(ledger))
    return tmp_path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["ledger", "statement", *map(str, arguments)], env={"COLUMNS": "200"})


def test_whoever_is_handed_a_statement_can_check_whose_it_is(site: Path, tmp_path_factory: Any) -> None:
    here = run(site)
    assert here.exit_code == 0 and "Signed by client-1 of client-0, client-1, client-2; federation lungs" in here.output
    assert "compare it with what the administrator reads out" in here.output
    elsewhere: Path = tmp_path_factory.mktemp("other") / "from-client-1.json"
    elsewhere.write_bytes((site / "privacy.json").read_bytes())
    given = ("--roster", site / "roster.json", "--administrator", fingerprint(ADMINISTRATOR.public))
    content = json.loads(run(elsewhere, *given, "--json").output)
    assert (content["party"], content["compared"], content["entries_since"]) == ("client-1", True, None)
    assert run(elsewhere, "--roster", site / "roster.json", "--administrator", "0" * 40).exit_code == 1
    assert "found no roster" in run(elsewhere).output


def epsilon(content: Any) -> None:
    content["record"]["members"][0]["spent"] = 0.5


def party(content: Any) -> None:
    content["party"] = "client-2"


def key(content: Any) -> None:
    content["identity"] = SIGNERS[0].public.hex()


def left_out(content: Any) -> None:
    del content["not_covered"][0]


def unsigned(content: Any) -> None:
    content["signature"] = ""


def added(content: Any) -> None:
    content["note"] = "audited by nobody"


@pytest.mark.parametrize("change", [epsilon, party, key, left_out, unsigned, added])
def test_what_was_changed_is_refused(site: Path, change: Callable[[Any], None]) -> None:
    path = site / "privacy.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    with pytest.raises(StatementRefused):
        verify_statement(site)


def test_only_the_members_own_key_signs_for_it(site: Path) -> None:
    by = Spender("lungs", "client-1")
    with Ledger.open(site / "privacy.jsonl", by=by, budget=BUDGET) as ledger:
        write_statement(site, statement_of(ledger, SIGNERS[2]))
        with pytest.raises(StatementRefused, match="does not verify"):
            verify_statement(site)
        write_statement(site, statement_of(ledger, SIGNERS[2], "client-2"))  # control
    assert verify_statement(site).statement.party == "client-2"


def test_another_roster_is_named(site: Path) -> None:
    other = Roster("lungs", 2, ROSTER.server, ROSTER.members, ROSTER.administrators)
    (site / "roster.json").write_bytes(sign_roster(other, ADMINISTRATOR))
    with pytest.raises(StatementRefused, match="of serial 1"):
        verify_statement(site)


def test_an_audit_that_is_added_leaves_the_signature_and_is_said_to_be_unsigned(site: Path) -> None:
    stated = read_statement(site)
    write_statement(site, msgspec.structs.replace(stated, audit=audit(0.5)))
    assert "is not signed" in run(site).output and encoded(read_statement(site)) != encoded(stated)


def test_what_was_trained_since_without_a_charge_is_said(site: Path) -> None:
    """It is no entry of the ledger, and makes void what the statement says all the same."""
    assert "charged nothing" not in run(site).output  # control
    stated = read_statement(site).record
    assert stated is not None
    users_index().note_uncharged(stated.members[0].ledger, "hearts", "alice")
    assert "charged nothing: alice in hearts" in " ".join(run(site).output.split())


def test_a_statement_is_held_to_the_ledger_beside_it(site: Path) -> None:
    """What was spent since is said; a ledger that was put back, or another one, is none that it speaks of."""
    place = site / "privacy.jsonl"
    older = {path: path.read_bytes() for path in (place, place.with_name("privacy.jsonl.anchor"))}
    with Ledger.open(place, by=Spender("hearts", "client-1"), budget=BUDGET) as ledger:
        ledger.plan(CHARGES[:1])
        newer = statement_of(ledger)
    assert "1 entries since" in run(site).output
    write_statement(site, newer)
    assert run(site).exit_code == 0
    for path, content in older.items():
        path.write_bytes(content)
    assert run(site).exit_code == 1
