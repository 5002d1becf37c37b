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
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.provision import provision
from secure_codream.membership.accepted import load_roster
from secure_codream.threats.attacks.leaks import text
from secure_codream.threats.document import attacks_section, results_section, write_document
from secure_codream.threats.laboratory import seizure
from secure_codream.threats.laboratory.adversary import advertisements
from secure_codream.threats.laboratory.attack import (
    Attack,
    Evidence,
    Picture,
    Verdict,
    judge,
)
from secure_codream.threats.laboratory.defences import (
    ALL,
    Defences,
    Inapplicable,
)
from secure_codream.threats.laboratory.laboratory import Cohort, Laboratory, cohort_of
from secure_codream.threats.laboratory.switches import RULES, SWITCHES, describe, switched_off, without
from secure_codream.threats.laboratory.whole_run import contents
from secure_codream.threats.page import write_page
from secure_codream.threats.promises import BY_KEY
from secure_codream.threats.suite import FAMILIES, Entry, all_attacks, by_promise, chosen, own_attack, prove

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


COSTLY = {"dream-inversion", "lying-member-in-codream", "membership-inference-on-a-model"}
"""A quarter of the quick suite's time; what stands against them stands against others, too."""


def test_every_defence_is_taken_out_without_the_costly_attacks() -> None:
    """But for a member's honesty, which is none of ours."""
    quick = chosen(all_attacks(), quick=True)
    rest = [entry for entry in quick if entry.attack.name not in COSTLY]
    assert len(quick) - len(rest) == len(COSTLY)
    lost = {name for entry in quick for name in entry.attack.defences}
    assert lost - {name for entry in rest for name in entry.attack.defences} == {"honest"}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_quick_suite_holds_every_promise(threats: Command, tmp_path: Path, whole: bool) -> None:
    names = {entry.attack.name for entry in chosen(all_attacks(), quick=True)}
    code, out, _ = threats("--quick", "--json", *([] if whole else ["--only", ",".join(sorted(names - COSTLY))]))
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


def test_every_family_can_be_imported_and_has_attacks() -> None:
    found = {entry.family: entry.attack.name for entry in all_attacks()}
    assert list(found) == list(FAMILIES)
    assert not [name for name in found.values() if name.startswith("all-of-")]


def test_a_family_that_cannot_be_imported_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "secure_codream.threats.attacks.clients", None)
    (entry,) = (entry for entry in all_attacks() if entry.family == "clients")
    finding = prove(entry, Laboratory)
    assert finding.verdict is Verdict.CRASHED and "ModuleNotFoundError" in finding.reason


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
    monkeypatch.setattr(ClientProtocol, "_rule_whole_blocks", lambda self, members: None)
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
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.switches import Switch

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
    assert [entry.attack.name for entry in chosen(entries, ["low-*", "seized-b*"])] == [
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
    """But for what is encapsulated, which comes from the operating system, and so masks."""
    runs = [Laboratory(seed).federation().masked() for seed in (1, 1, 2)]
    advertised, inputs = ([of(run) for run in runs] for of in (advertisements, lambda run: run.vectors))
    assert advertised[0] == advertised[1] != advertised[2]
    assert inputs[0].keys() == inputs[2].keys() and all((inputs[0][at] == inputs[1][at]).all() for at in inputs[0])
    assert any((inputs[0][at] != inputs[2][at]).any() for at in inputs[0])


# -- a user's own settings ---------------------------------------------

CLIENTS = ("a", "b", "c", "d", "e", "f")


def provisioned(folder: Path, *, policy: dict[str, Any] | None = None, **tables: Any) -> Path:
    """The folder of a federation of six, as its administrator makes it."""
    config = FederationConfig.model_validate({"task": {"shape": (1, 8, 8), "classes": 10}, **tables})
    clients = [ClientConfig.model_validate({"name": name, "model": "cnn2", "policy": policy or {}}) for name in CLIENTS]
    provision(folder, config=config, clients=clients, address="tcp://127.0.0.1:1")
    return folder


RESILIENT = {"mode": "resilient", "value_bits": 12, "suite": "chacha20"}


@pytest.mark.parametrize("party", ["server", "clients/a"])
def test_cohort_is_what_a_party_really_has(tmp_path: Path, party: str) -> None:
    folder = provisioned(tmp_path / "federation", policy={"most_value_bits": 14}, aggregation=RESILIENT) / party
    cohort = cohort_of(folder / "config.toml")
    roster = load_roster(folder)
    assert cohort.charter == read_federation(folder / "config.toml").charter(roster)
    assert (cohort.clients, cohort.mode, cohort.value_bits, cohort.suite) == (6, "resilient", 12, "chacha20")
    assert cohort.blocks == ((0, 1, 2), (3, 4, 5))
    if party == "server":
        assert cohort.policy is None
    else:
        assert cohort.policy is not None and cohort.policy.most_value_bits == 14
    federation = Laboratory(cohort=cohort).federation()
    charter = federation.charter
    assert (charter.settings, charter.aggregation) == (cohort.charter.settings, cohort.charter.aggregation)
    assert federation.epoch().number == 1


@pytest.mark.parametrize("party", ["server", "clients/a"])
def test_suite_runs_against_a_provisioned_folder(threats: Command, tmp_path: Path, party: str) -> None:
    folder = provisioned(tmp_path / "federation", aggregation=RESILIENT) / party
    only = "both-kinds-of-share,others-at-another-state,silent-member,memory-*"
    code, out, _ = threats("--config", str(folder / "config.toml"), "--only", only, "--json")
    summary = json.loads(out)
    verdicts = {attack["name"]: attack["verdict"] for attack in summary["attacks"]}
    assert code == 0 and summary["cohort"]["clients"] == 6 and summary["cohort"]["suite"] == "chacha20"
    assert verdicts["both-kinds-of-share"] == verdicts["others-at-another-state"] == "defended"
    assert verdicts["silent-member"] == "no room", "this charter's sums are not made in lockstep"
    assert set(verdicts.values()) <= {"defended", "no room", "not promised"}
    assert summary["cohort"]["policy"] == ("the charter's limits" if party == "server" else "client.toml")


def test_lockstep_leaves_lies_about_dropouts_no_room(threats: Command, tmp_path: Path) -> None:
    folder = provisioned(tmp_path / "federation") / "clients" / "a"
    only = "both-kinds-of-share,all-but-two-*"
    code, out, _ = threats("--config", str(folder / "config.toml"), "--only", only, "--json")
    verdicts = {attack["name"]: attack["verdict"] for attack in json.loads(out)["attacks"]}
    assert code == 0 and verdicts["both-kinds-of-share"] == "no room" and verdicts["all-but-two-collude"] == "defended"


@pytest.mark.parametrize("privacy", [False, True])
def test_a_policy_that_refuses_its_own_federation_is_said_before_anything_runs(tmp_path: Path, privacy: bool) -> None:
    noise = {"epsilon": 8.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0}
    tables: dict[str, Any] = {"client_privacy": noise} if privacy else {}
    folder = provisioned(tmp_path / "federation", policy={"least_noise": 1e5}, **tables) / "clients" / "a"
    with pytest.raises(ConfigError, match="found noise of"):
        cohort_of(folder / "config.toml")


def test_client_level_noise_of_a_charter_can_be_attacked(threats: Command, tmp_path: Path) -> None:
    noise = {"epsilon": 8.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0}
    folder = provisioned(tmp_path / "federation", client_privacy=noise) / "clients" / "a"
    code, out, _ = threats("--config", str(folder / "config.toml"), "--only", "malformed-*,seized-*", "--json")
    verdicts = [attack["verdict"] for attack in json.loads(out)["attacks"]]
    assert code == 0 and set(verdicts) <= {"defended", "not promised", "no room"} and "defended" in verdicts


def test_a_roster_that_somebody_altered_is_refused(tmp_path: Path) -> None:
    folder = provisioned(tmp_path / "federation") / "clients" / "a"
    roster = (folder / "roster.json").read_text()
    (folder / "roster.json").write_text(roster.replace(":1", ":2", 1) if ":1" in roster else roster + " ")
    with pytest.raises(ConfigError, match="found no roster"):
        cohort_of(folder / "config.toml")


def test_settings_without_clients_or_without_safety_end_with_2(threats: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[task]\nshape = [1, 8, 8]\nclasses = 10\n[aggregation]\ncolluders = 4\n")
    code, _, err = threats("--config", str(config))
    assert code == 2 and "give the number of clients with --clients" in " ".join(err.split())
    code, _, err = threats("--config", str(config), "--clients", "5")
    assert code == 2 and "6 or more are needed" in " ".join(err.split())
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
    assert made.split(": ")[1] == f"{len(entries)} attacks"
    for row, entry in zip(cells, entries, strict=True):
        limit = any(BY_KEY[key].is_limit for key in entry.attack.promises)
        assert row[1] == ("not promised" if limit else "defended") and row[4] and row[5]


def test_the_readme_says_how_many_attacks_there_are() -> None:
    entries, page = all_attacks(), DOCUMENT.parents[1].joinpath("README.md").read_text("utf-8")
    quick = f"{len(chosen(entries, quick=True))} of the {len(entries)} attacks"
    assert re.findall(r"secure-codream threats --quick +# (.*?),", page) == [quick]
    assert f"lists all {len(entries)} attacks" in page


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
        "cohort": Cohort().summary,
        "versions": {"python": "3.11"},
    }
    page = write_page(tmp_path / "report.html", [finding], summary).read_text()
    assert page.count("data:image/png;base64,") == 1 and "what it saw" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert by_promise([finding])["P1"] == [finding]
