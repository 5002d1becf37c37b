"""The audit catches noise that is missing or too small, and leaves an honest mechanism alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from typer.testing import CliRunner

from codream_clients.privacy.accounting import solve_noise_multiplier
from codream_clients.privacy.ledger import Budget
from secure_codream import cli
from secure_codream.audit.ring import audit_ring, ring_course
from secure_codream.audit.run import run_audit
from secure_codream.audit.settings import read_audit
from secure_codream.audit.two_worlds import audit_two_worlds, one_step, power
from secure_codream.configuration.reading import ConfigError
from secure_codream.reports.audit_results import POWER, AuditResult, AuditRow
from secure_codream.reports.files import MalformedRecord
from secure_codream.reports.statement import (
    Mechanism,
    RecordLevel,
    member_spending,
    privacy_statement,
    read_statement,
    write_statement,
)

SMALL = {"canaries": 200, "runs": 100, "epochs": 40, "steps": 2, "batch": 32, "epsilon": 1.0}
DATA = {"per_client": 50}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_adversary(result: AuditResult) -> dict[str, AuditRow]:
    return {row.adversary: row for row in result.rows}


@pytest.fixture(scope="module")
def honest() -> AuditResult:
    return run_audit(read_audit(None, {"audit": SMALL, "data": DATA}))


@pytest.fixture(scope="module")
def broken() -> AuditResult:
    return run_audit(read_audit(None, {"audit": {**SMALL, "without_noise": True}, "data": DATA}))


def test_an_honest_mechanism_stays_below_its_claim(honest: AuditResult) -> None:
    assert honest.refuted == []
    assert set(by_adversary(honest)) == {"a client's model", "the FedDream dataset", "the sums", "one step's weights"}
    for row in honest.rows:
        assert row.epsilon_lower < row.epsilon_claimed < row.epsilon_most  # the audit could have refuted it


def test_noise_left_out_is_caught(broken: AuditResult) -> None:
    """The control of the test above: the same audit, the same claim, and no noise."""
    refuted = {row.adversary for row in broken.refuted}
    assert {"a client's model", "the sums", "one step's weights"} <= refuted


def test_noise_is_what_makes_the_difference(honest: AuditResult, broken: AuditResult) -> None:
    for adversary, with_noise in by_adversary(honest).items():
        assert with_noise.auc < by_adversary(broken)[adversary].auc
    assert by_adversary(broken)["a client's model"].auc > 0.9 > 0.65 > by_adversary(honest)["a client's model"].auc


def test_an_audit_repeats() -> None:
    tiny = {"canaries": 20, "runs": 20, "epochs": 1, "steps": 1, "batch": 8, "epsilon": 5.0, "seed": 3}
    first, second = (run_audit(read_audit(None, {"audit": tiny, "data": {"per_client": 20}})) for _ in range(2))
    assert first.rows == second.rows


@pytest.mark.parametrize(("share", "refuted"), [(1.0, False), (0.5, True), (0.0, True)])
@pytest.mark.parametrize("claimed", [2.0, *(pytest.param(more, marks=pytest.mark.exhaustive) for more in (4.0, 8.0))])
def test_noise_of_half_the_size_is_caught_at_the_epsilons_that_people_use(
    share: float, refuted: bool, claimed: float
) -> None:
    """A scale mistaken by a factor of two, as a wrong sensitivity would make it, is found in one step."""
    noise = solve_noise_multiplier(target_epsilon=claimed, delta=1e-5, sample_rate=1.0, steps=1)
    step = one_step(max(share * noise, 1e-6), 0)
    row = audit_two_worlds(step, runs=800, claimed=claimed, delta=1e-5, confidence=0.95)
    assert row.refuted is refuted and row.power is not None and row.power >= POWER


@pytest.mark.parametrize(("claimed", "runs", "least", "most"), [(2, 800, 0.9, 1), (8, 400, 0.9, 1), (2, 100, 0, 0.3)])
def test_power_is_that_of_audits_that_were_drawn(claimed: float, runs: int, least: float, most: float) -> None:
    assert least <= power(runs=runs, claimed=claimed, delta=1e-5, confidence=1 - 0.05 / 4, tries=60) <= most


@pytest.mark.parametrize(("silent", "refuted"), [(0, False), (1, True)], ids=["honest", "one share is missing"])
def test_one_missing_share_of_noise_is_found_in_the_rings_sums(silent: int, refuted: bool) -> None:
    """Several steps of the course, less what a colluding member sent: the others' two shares, or one of them."""
    row = audit_ring(ring_course(16.0, 1e-5, steps=2), members=3, runs=400, confidence=0.95, seed=0, silent=silent)
    assert row.refuted is refuted and row.epsilon_claimed == 16.0 and row.adversary == "the ring's sums"


def test_the_rings_audit_by_the_command_finds_noise_that_is_left_out(tmp_path: Path) -> None:
    command = [
        "audit",
        "--course",
        "dp-sgd",
        "--epsilon",
        "8",
        "--runs",
        "30",
        "--out",
        str(tmp_path),
        "--without-noise",
    ]
    caught = CliRunner().invoke(cli.app, command)
    assert caught.exit_code == 1 and "the ring's sums" in caught.output
    with pytest.raises(ConfigError, match="noise_multiplier with course 'dp-sgd'"):
        read_audit(None, {"audit": {"course": "dp-sgd", "noise_multiplier": 1.0}})


def test_the_command_says_what_does_not_hold_and_exits_with_1(tmp_path: Path) -> None:
    config = tmp_path / "audit.toml"
    config.write_text("[audit]\nruns = 100\ncanaries = 20\nepochs = 1\nsteps = 1\nbatch = 8\n[data]\nper_client = 20\n")
    command = ["audit", str(config), "--epsilon", "8", "--out", str(tmp_path / "runs")]
    fine = CliRunner().invoke(cli.app, [*command, "--json"])
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["settings"]["audit"]["epsilon"] == 8.0
    caught = CliRunner().invoke(cli.app, [*command, "--without-noise"])
    assert caught.exit_code == 1
    assert "the claim does not hold: one step's weights: epsilon is at least" in " ".join(caught.output.split())
    kept = sorted((tmp_path / "runs").glob("*/summary.json"))
    assert [json.loads(path.read_text())["without_noise"] for path in kept] == [False, True]


def test_an_audit_that_cannot_tell_says_so_and_exits_with_4(tmp_path: Path) -> None:
    config = tmp_path / "audit.toml"
    config.write_text("[audit]\nruns = 100\ncanaries = 20\nepochs = 1\nsteps = 1\nbatch = 8\n[data]\nper_client = 20\n")
    found = CliRunner().invoke(cli.app, ["audit", str(config), "--epsilon", "1", "--out", str(tmp_path / "runs")])
    assert found.exit_code == 4 and "cannot tell" in found.output


CONFIG = "[audit]\nruns = 100\ncanaries = 20\nepochs = 1\nsteps = 1\nbatch = 8\n[data]\nper_client = 20\n"


def test_a_runs_statement_gets_the_bounds_of_an_audit_of_its_code(tmp_path: Path) -> None:
    """Until now each statement said "not audited", whatever had been audited."""
    part = Mechanism(purpose="warm-up", noise_multiplier=0.7, sample_rate=1.0, steps=1)
    member = member_spending("alice", Budget(8.0, 1e-5), [part])
    statement = privacy_statement("a-run", record=RecordLevel(members=[member], clip=0.3))
    write_statement(tmp_path, statement)
    (tmp_path / "audit.toml").write_text(CONFIG)
    command = ["audit", str(tmp_path / "audit.toml"), "--out", str(tmp_path / "runs"), "--statement", str(tmp_path)]
    assert "was not audited" in (tmp_path / "privacy.html").read_text()
    assert CliRunner().invoke(cli.app, [*command, "--without-noise"]).exit_code == 2
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    audited = read_statement(tmp_path)
    assert audited.audit is not None and audited.audit.settings["audit"]["epsilon"] == member.spent
    assert "was not audited" not in (tmp_path / "privacy.html").read_text()
    write_statement(tmp_path, replace(statement, versions={"torch": "0.1"}))
    assert isinstance(CliRunner().invoke(cli.app, command).exception, MalformedRecord)
    write_statement(tmp_path, privacy_statement("a-run"))
    assert isinstance(CliRunner().invoke(cli.app, command).exception, MalformedRecord)


def test_the_claim_follows_from_a_noise_multiplier() -> None:
    tiny = {"canaries": 20, "runs": 20, "epochs": 1, "steps": 1, "batch": 8, "noise_multiplier": 1.0}
    claims = [
        run_audit(read_audit(None, {"audit": {**tiny, "noise_multiplier": noise}, "data": {"per_client": 20}}))
        for noise in (1.0, 2.0)
    ]
    weak, strong = (by_adversary(result)["a client's model"].epsilon_claimed for result in claims)
    assert weak > strong > 0


@pytest.mark.parametrize(
    "audit",
    [
        {"epsilon": 0},
        {"canaries": 21},
        {"runs": 10},
        {"epsilon": 1.0, "noise_multiplier": 1.0},
        {"unknown": 1},
        {"confidence": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(audit: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        read_audit(None, {"audit": audit})


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.toml"
    for content in (b"[audit", b"\xff", b"x" * (1 << 21)):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            read_audit(path, {})


def test_a_model_that_mixes_records_is_refused() -> None:
    tiny = {"canaries": 20, "runs": 20, "epochs": 1, "model": "mlp"}
    with pytest.raises(ValueError, match="mixes records"):
        run_audit(read_audit(None, {"audit": tiny, "data": {"per_client": 20}}))
