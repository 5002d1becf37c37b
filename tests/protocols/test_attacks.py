"""The suite's attacks on the machines in memory, each with its control; and where two layers stand, one suffices.

Attacks over the network are tested with the whole suite: tests/secure_codream/test_threats.py.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from secure_codream.threats.laboratory.attack import Attack, Evidence, Verdict, judge
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import RULES, SWITCHES
from secure_codream.threats.suite import Entry, prove

IN_MEMORY = (
    "dropouts",
    "rings",
    "enrolment",
    "charters",
    "broadcasts",
    "certificates",
    "clients",
    "implementation",
    "leaks",
    "peers",
)
MODULES = {family: importlib.import_module(f"secure_codream.threats.attacks.{family}") for family in IN_MEMORY}
BY_NAME = {
    attack.name: Entry(attack, family, getattr(module, "SWITCHES", {}))
    for family, module in MODULES.items()
    for attack in module.ATTACKS
}
QUICK = [entry.attack for entry in BY_NAME.values() if entry.attack.quick]


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_attack_fails_and_its_control_works(attack: Attack) -> None:
    """Against a promise: defended. Against what is not promised: it works, and its control shows what stops it."""
    finding = prove(BY_NAME[attack.name], Laboratory)
    limit = any(key.startswith("L") for key in attack.promises)
    assert finding.verdict is (Verdict.LIMIT if limit else Verdict.DEFENDED), finding


def test_every_rule_of_the_client_stands_against_an_attack() -> None:
    """A rule that no attack needs is either superfluous or untested."""
    needed = {name for entry in BY_NAME.values() for name in entry.attack.defences}
    assert {name for name in needed if name.startswith("_rule_")} == set(RULES)


def test_each_way_of_an_attack_needs_a_control_of_its_own() -> None:
    """A control in which only one of several ways gets through shows nothing of the others."""
    attack = SimpleNamespace(promises=("P1",))
    fails = Evidence(measure="", value=0.0, success=0.0, learned="", tries={"first": False, "second": False})
    for through, verdict in ((True, Verdict.DEFENDED), (False, Verdict.UNPROVEN)):
        tries = {"first": True, "second": through}
        control = Evidence(measure="", value=2.0, success=0.0, learned="", tries=tries)
        assert judge(attack, fails, control) is verdict


def test_a_limits_control_must_be_clearly_elsewhere() -> None:
    attack = SimpleNamespace(promises=("L1",))

    def evidence(value: float) -> Evidence:
        return Evidence(measure="", value=value, success=0.5, learned="")

    assert judge(attack, evidence(1.0), evidence(0.0)) is Verdict.LIMIT
    assert judge(attack, evidence(1.0), evidence(4.0)) is Verdict.LIMIT
    assert judge(attack, evidence(1.0), evidence(1.01)) is Verdict.UNPROVEN


def test_a_try_is_made_without_its_own_defences_and_no_others() -> None:
    seen: dict[str, frozenset[str]] = {}

    def attempt(name: str) -> Try:
        def run(standing: Defences) -> bool:
            seen[name] = standing.off
            return True

        return Try(run, (name,))

    counted({"a": attempt("a"), "b": attempt("b")}, what="tries", defences=Defences().without("a", "b", "c"))
    assert seen == {"a": frozenset("a"), "b": frozenset("b")}


# -- what the server announces in a step ---------------------------------------------


@pytest.mark.parametrize(
    ("layer", "refusal"),
    [("_rule_one_survivor_set", "SecondSurvivorSet"), ("_rule_erase_answered", "LocalProtocolError")],
)
@pytest.mark.parametrize("name", ["both-kinds-of-share", "two-survivor-sets", "rerun-without-a-block"])
def test_second_survivor_set_one_layer_alone_suffices(name: str, layer: str, refusal: str) -> None:
    """Without the refusal the second answer has nothing to say: the shares are erased. And the other way round."""
    (other,) = {"_rule_one_survivor_set", "_rule_erase_answered"} - {layer}
    evidence = BY_NAME[name].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith(refusal)


@pytest.mark.parametrize("layer", ["_rule_true_sum", "chain-binding"])
def test_a_forked_state_one_layer_alone_suffices(layer: str) -> None:
    entry = BY_NAME["different-states"]
    (other,) = {"_rule_true_sum", "chain-binding"} - {layer}
    with SWITCHES[other].off() if other in SWITCHES else SWITCHES["memory"].off():
        evidence = entry.attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked


@pytest.mark.parametrize("layer", ["_rule_enough_survivors", "_rule_whole_blocks"])
def test_a_sum_below_the_minimum_one_layer_alone_suffices(layer: str) -> None:
    (other,) = {"_rule_enough_survivors", "_rule_whole_blocks"} - {layer}
    evidence = BY_NAME["survivors-below-minimum"].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith("CohortRefused")


@pytest.mark.parametrize("name", ["sybils-in-members-names", "substituted-keys"])
@pytest.mark.parametrize("other", ["_rule_signed_advertisement", "_rule_signed_seal"])
def test_strangers_keys_one_signature_alone_suffices(name: str, other: str) -> None:
    evidence = BY_NAME[name].attack.run(Defences().without(other), Laboratory())
    assert not evidence.worked and evidence.refusal.startswith("BadSignature")
