"""The suite: what it runs, what it concludes, how it ends, and that promises and attacks name each other."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codream_protocols.client import ClientProtocol
from secure_codream import cli
from secure_codream.config import ClientConfig, ConfigError, FederationConfig
from secure_codream.provision import provision
from secure_codream.threats import seizure
from secure_codream.threats.attack import ALL, Attack, Defences, Evidence, Inapplicable, Picture, Verdict, judge
from secure_codream.threats.document import attacks_section, results_section, write_document
from secure_codream.threats.implementation import text
from secure_codream.threats.laboratory import Cohort, Laboratory, cohort_of
from secure_codream.threats.page import write_page
from secure_codream.threats.promises import BY_KEY
from secure_codream.threats.run_folder import contents
from secure_codream.threats.suite import Entry, all_attacks, by_promise, chosen, own_attack, prove
from secure_codream.threats.switches import RULES, SWITCHES, describe, switched_off, without

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCUMENT = Path(__file__).parents[2] / "docs" / "threats.md"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def threats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        out = [] if "--list" in arguments else ["--out", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["secure-codream", "threats", *arguments, *out])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def evidence(value: float, **more: Any) -> Evidence:
    return Evidence(**{"measure": "tries", "value": value, "success": 0.5, "learned": "something", **more})


class Stub(Attack):
    """Brings back what it is told, with its defence and without."""

    name, adversary, goal = "stub", "nobody", "Nothing."
    promises, defences = ("P1",), ("masks",)

    def __init__(self, defended: float = 0.0, undefended: float = 1.0) -> None:
        self.values = {True: defended, False: undefended}

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        return evidence(self.values[defences.stands("masks")])


# -- the whole of it ---------------------------------------------


def test_quick_suite_holds_every_promise(threats: Command, tmp_path: Path) -> None:
    code, out, _ = threats("--quick", "--json")
    summary = json.loads(out)
    attacks = {attack["name"]: attack for attack in summary["attacks"]}
    assert code == 0 and len(attacks) >= 30
    for name, attack in attacks.items():
        limit = any(key.startswith("L") for key in attack["promises"])
        assert attack["verdict"] == ("not promised" if limit else "defended"), (name, attack)
        assert attack["defences"] and attack["evidence"]["measure"] and attack["control"] is not None
        assert limit or (attack["control"]["worked"] and not attack["evidence"]["worked"])
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text()) == summary
    page = (run / "report.html").read_text()
    assert all(f'id="{name}"' in page for name in (*attacks, *BY_KEY))
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page


# -- promises and attacks ---------------------------------------------


def test_every_promise_has_an_attack_and_every_attack_a_promise() -> None:
    entries = all_attacks()
    named = {key for entry in entries for key in entry.attack.promises}
    assert named == set(BY_KEY)
    for entry in entries:
        kinds = {BY_KEY[key].is_limit for key in entry.attack.promises}
        assert len(kinds) == 1, f"{entry.attack.name} speaks of promises and of limits"


def test_every_promise_is_attacked_by_the_quick_suite() -> None:
    quick = chosen(all_attacks(), quick=True)
    assert {key for entry in quick for key in entry.attack.promises} == set(BY_KEY)


def test_every_rule_and_switch_is_taken_out_by_an_attack() -> None:
    entries = all_attacks()
    off = {name for entry in entries for name in entry.attack.defences}
    declared = {name for entry in entries for name in entry.switches}
    assert off == {*RULES, *SWITCHES, *declared}


# -- verdicts ---------------------------------------------


@pytest.mark.parametrize(
    ("promise", "defended", "undefended", "verdict"),
    [
        ("P1", 0.0, 1.0, Verdict.DEFENDED),
        ("P1", 1.0, 1.0, Verdict.BROKEN),
        ("P1", 1.0, 0.0, Verdict.BROKEN),
        ("P1", 0.0, 0.0, Verdict.UNPROVEN),
        ("L2", 1.0, 0.0, Verdict.LIMIT),
        ("L2", 0.0, 0.0, Verdict.UNPROVEN),
        ("L2", 1.0, 1.0, Verdict.UNPROVEN),
    ],
)
def test_verdict_follows_from_both_runs(promise: str, defended: float, undefended: float, verdict: Verdict) -> None:
    attack = Stub()
    attack.promises = (promise,)
    assert judge(attack, evidence(defended), evidence(undefended)) is verdict


def test_an_estimate_counts_by_its_lower_end() -> None:
    assert not evidence(0.9, interval=(0.4, 1.0)).worked
    assert evidence(0.9, interval=(0.6, 1.0)).worked


def test_a_broken_rule_is_reported_as_broken(threats: Command, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(ClientProtocol, "_rule_enough_survivors", lambda self, plan, members: None)
    code, out, err = threats("--only", "survivors-below-minimum")
    assert code == 1 and "BROKEN" in out and "survivors-below-minimum: BROKEN" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert "A promise is broken: survivors-below-minimum." in (run / "report.html").read_text()


def test_a_defence_that_is_off_is_reported_as_broken() -> None:
    """The same, for a defence that is no rule: played as if it stood, while it is out."""
    entry = next(entry for entry in all_attacks() if entry.attack.name == "late-masked-input")
    with switched_off(ALL.without("self-mask")):
        assert prove(entry, Laboratory).verdict is Verdict.BROKEN
    assert prove(entry, Laboratory).verdict is Verdict.DEFENDED


OWN = """
from secure_codream.threats.attack import Attack, Evidence
from secure_codream.threats.switches import Switch

SWITCHES = {"luck": Switch("Nothing.")}

class Powerless(Attack):
    name, adversary, goal, promises, defences = "powerless", "nobody", "Nothing.", ("P1",), ("luck",)

    def run(self, defences, laboratory):
        return Evidence(measure="bits", value=0.0, success=0.5, learned="nothing")

class Faulty(Powerless):
    name = "faulty"

    def run(self, defences, laboratory):
        raise ZeroDivisionError("an error of the attack's own")

class Misnamed(Powerless):
    name, defences = "misnamed", ("no-such-defence",)

class Unpromised(Powerless):
    name, promises = "unpromised", ("P99",)

class Twin(Powerless):
    name = "both-kinds-of-share"

class Nothing:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with attacks of somebody's own, importable from the current folder."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("attack", "verdict"), [("Powerless", "powerless: unproven"), ("Faulty", "faulty: failed to run")]
)
def test_what_shows_nothing_ends_with_1(threats: Command, own: str, attack: str, verdict: str) -> None:
    code, _, err = threats("--attack", f"{own}:{attack}", "--only", "own")
    assert code == 1 and verdict in err


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("Misnamed", "defence 'no-such-defence': found neither a rule nor a switch"),
        ("Unpromised", "found promise 'P99'"),
        ("Twin", "found two of this name"),
        ("Nothing", "found no name, adversary, goal"),
        ("Missing", "has no 'Missing'"),
    ],
)
def test_own_attack_that_does_not_fit_ends_with_2(threats: Command, own: str, attack: str, message: str) -> None:
    code, out, err = threats("--attack", f"{own}:{attack}", "--only", "own")
    assert code == 2 and message in " ".join(err.split()) and not out


def test_example_of_an_own_attack(threats: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    code, out, _ = threats("--attack", "own_attack:GuessFromTraffic", "--only", "own", "--json")
    (attack,) = json.loads(out)["attacks"]
    assert code == 0 and attack["verdict"] == "defended" and attack["control"]["value"] > 0.9


def test_own_attack_may_be_a_function() -> None:
    sys.modules["threats_of_a_test"] = type(sys)("threats_of_a_test")
    sys.modules["threats_of_a_test"].make = Stub  # type: ignore[attr-defined]
    assert prove(own_attack("threats_of_a_test:make"), Laboratory).verdict is Verdict.DEFENDED


# -- memory and files ---------------------------------------------


def test_a_processs_memory_holds_what_its_program_has_let_go_of_only_without_erasure() -> None:
    """The attack, but that a system which does not show another process's memory leaves it no room."""
    entry = next(entry for entry in all_attacks() if entry.attack.name == "process-memory-after-a-step")
    assert prove(entry, Laboratory).verdict in (Verdict.DEFENDED, Verdict.INAPPLICABLE)


def test_memory_of_a_process_that_is_not_there_leaves_no_room() -> None:
    with pytest.raises(Inapplicable, match="does not show"):
        list(seizure.memory_of(0))


def test_files_are_read_through_archives_and_escapes(tmp_path: Path) -> None:
    secret = bytes([92, 0, 255, 39] * 8)
    np.savez_compressed(tmp_path / "exhibit.npz", key=np.frombuffer(secret, dtype=np.uint8))
    (tmp_path / "log.jsonl").write_text(json.dumps({"client": repr(secret)}))
    (tmp_path / "own.key").write_bytes(secret)
    read = {path.name: text(data) for path, data in contents(tmp_path)}
    assert read.keys() == {"exhibit.npz", "log.jsonl"}
    assert secret.decode("latin-1") in read["exhibit.npz"] and repr(secret)[2:-1] in read["log.jsonl"]


# -- choosing ---------------------------------------------


def test_list_names_every_attack_and_runs_none(threats: Command, tmp_path: Path) -> None:
    code, out, _ = threats("--list", "--json")
    assert code == 0 and json.loads(out) == [entry.attack.name for entry in all_attacks()]
    code, out, _ = threats("--list", "--only", "P11")
    assert code == 0 and "memory-after-a-step" in out and "two-survivor-sets" not in out
    assert not (tmp_path / "runs").exists()


def test_only_takes_names_families_and_promises() -> None:
    entries = all_attacks()
    assert {entry.family for entry in chosen(entries, ["dropouts"])} == {"dropouts"}
    assert [entry.attack.name for entry in chosen(entries, ["low-*", "seized-*"])] == [
        "low-order-keys",
        "seized-before-masking",
    ]
    assert all("L2" in entry.attack.promises for entry in chosen(entries, ["L2"]))
    with pytest.raises(ConfigError, match="found nothing called 'nonsense'"):
        chosen(entries, ["dropouts", "nonsense"])


def test_quick_leaves_out_what_is_not_quick() -> None:
    slow = Stub()
    slow.quick = False
    entries = [Entry(Stub(), "own", {}), Entry(slow, "own", {})]
    assert len(chosen(entries)) == 2 and chosen(entries, quick=True) == entries[:1]


def test_seed_repeats_a_run() -> None:
    runs = [Laboratory(seed).federation().masked().sent for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


# -- a user's own settings ---------------------------------------------


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    config = FederationConfig.model_validate(
        {"task": {"shape": (1, 8, 8), "classes": 10}, "aggregation": {"value_bits": 12, "suite": "chacha20"}}
    )
    clients = [
        ClientConfig.model_validate({"name": name, "model": "cnn2", "policy": {"least_survivors": 4}})
        for name in ("a", "b", "c", "d", "e")
    ]
    provision(tmp_path / "federation", config=config, clients=clients, address="tcp://127.0.0.1:1")
    return tmp_path / "federation"


def test_cohort_comes_from_a_clients_folder(federation: Path) -> None:
    cohort = cohort_of(federation / "clients" / "a" / "config.toml")
    assert replace(cohort, policy=None) == Cohort(
        clients=5, threshold=4, colluders=1, least_survivors=3, value_bits=12, suite="chacha20"
    )
    assert cohort.policy is not None and cohort.policy.least_survivors == 4 == cohort.least
    assert cohort_of(federation / "server" / "config.toml", 9).clients == 9


def test_suite_runs_against_a_users_configuration(threats: Command, federation: Path) -> None:
    config = str(federation / "server" / "config.toml")
    code, out, _ = threats("--config", config, "--only", "dropouts", "--json")
    summary = json.loads(out)
    verdicts = {attack["name"]: attack["verdict"] for attack in summary["attacks"]}
    assert code == 0 and summary["cohort"]["clients"] == 5 and summary["cohort"]["suite"] == "chacha20"
    assert verdicts["both-kinds-of-share"] == "defended"
    assert verdicts["two-survivor-sets"] == "no room"  # four of five are needed: two cannot be missing
    assert set(verdicts.values()) == {"defended", "no room"}


def test_settings_without_clients_or_without_safety_end_with_2(threats: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[task]\nshape = [1, 8, 8]\nclasses = 10\n[aggregation]\nthreshold = 4\n")
    code, _, err = threats("--config", str(config))
    assert code == 2 and "give the number of clients with --clients" in " ".join(err.split())
    code, _, err = threats("--config", str(config), "--clients", "8")
    assert code == 2 and "threshold 4 with 8 members" in " ".join(err.split())
    (tmp_path / "roster.json").write_text("{}")
    code, _, err = threats("--config", str(config))
    assert code == 2 and "found no roster" in " ".join(err.split())
    code, _, err = threats("--clients", "5")
    assert code == 2 and "--config" in err


# -- the document ---------------------------------------------


def part(name: str) -> str:
    """A generated part, as the document has it."""
    (found,) = re.findall(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return str(found).strip()


def test_document_names_the_attacks_as_they_are() -> None:
    assert part("attacks") == attacks_section(all_attacks()), "secure-codream threats --write-tables docs/threats.md"


def test_documents_results_are_of_a_whole_run_in_which_every_promise_held() -> None:
    made, _, *rows = part("results").splitlines()
    assert re.match(r"`secure-codream threats --seed 0`, 2\d\d\d-\d\d-\d\d: ", made)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]
    entries = all_attacks()
    assert [row[0] for row in cells] == [entry.attack.name for entry in entries]
    for row, entry in zip(cells, entries, strict=True):
        limit = any(BY_KEY[key].is_limit for key in entry.attack.promises)
        assert row[1] == ("not promised" if limit else "defended") and row[4] and row[5]


def test_tables_are_written_from_findings(tmp_path: Path) -> None:
    document = tmp_path / "threats.md"
    document.write_text(DOCUMENT.read_text("utf-8"), "utf-8")
    found = [prove(Entry(Stub(), "dropouts", {}), Laboratory)]
    write_document(document, found, made="Today:")
    written = document.read_text("utf-8")
    assert "Today: 1 attack: 1 defended." in written and "| stub | defended | tries | 0.5 | 0 | 1 |" in written
    assert "| stub | nobody | Nothing. | P1 | `masks` |" in written and "both-kinds-of-share" not in written
    assert results_section(found, "Today:") in written


def test_tables_are_not_written_from_a_part_of_the_suite(threats: Command) -> None:
    code, _, err = threats("--quick", "--write-tables", str(DOCUMENT))
    assert code == 2 and "--write-tables" in err


# -- switches and report ---------------------------------------------


def test_an_unknown_defence_is_an_error() -> None:
    for attempt in (lambda: without("_rule_nothing"), lambda: describe("nothing")):
        with pytest.raises(ConfigError):
            attempt()
    with pytest.raises(ConfigError), switched_off(ALL.without("nothing")):
        pass


def test_switches_leave_nothing_behind() -> None:
    for entry in all_attacks():
        with switched_off(ALL.without(*entry.attack.defences), entry.switches):
            pass
    federation = Laboratory().federation()
    assert federation.set_up()
    reveal = federation.step()
    assert reveal is not None and (reveal.total == federation.plain_sum(0, reveal.survivors)).all()


def test_report_shows_pictures_and_says_what_it_is_told_safely(tmp_path: Path) -> None:
    attack = Stub()
    attack.goal = "<script>alert(1)</script>"
    seen = Picture("what it saw", np.linspace(0, 1, 64).reshape(8, 8))
    finding = replace(prove(Entry(attack, "own", {}), Laboratory), evidence=evidence(0.0, pictures=(seen,)))
    summary: dict[str, Any] = {
        "written": "2026-11-23T12:00:00",
        "seconds": 1.0,
        "seed": 0,
        "quick": False,
        "cohort": {"clients": 8, "threshold": 5, "colluders": 1, "least_survivors": 6},
        "versions": {"python": "3.11"},
    }
    page = write_page(tmp_path / "report.html", [finding], summary).read_text()
    assert page.count("data:image/png;base64,") == 1 and "what it saw" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert by_promise([finding])["P1"] == [finding]
