"""The suite: which attacks there are, each run with all defences and then without its own, and what came of it.

An attack that fails against the defences counts as defended only if it works without them. A crash of an attack's own
code is a verdict of its own, and as alarming as a broken promise: nothing was shown.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from codream_clients.own_parts import OwnPartError, call_own_part, load_own_part
from secure_codream.configuration.reading import ConfigError
from secure_codream.threats.laboratory.attack import (
    Attack,
    Evidence,
    Verdict,
    judge,
)
from secure_codream.threats.laboratory.defences import (
    ALL,
    Defences,
    Inapplicable,
)
from secure_codream.threats.laboratory.evidence import said
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import Switch, describe, switched_off
from secure_codream.threats.promises import BY_KEY

FAMILIES: Mapping[str, str] = {
    "dropouts": "Server lies about dropouts",
    "rings": "Server and neighbourhoods",
    "enrolment": "Server in the set-up",
    "charters": "Charters, offers and cohorts",
    "broadcasts": "Server in the broadcast",
    "certificates": "Votes, certificates and records",
    "network": "Network",
    "floods": "Floods and sizes",
    "clients": "Clients",
    "lying": "A lying member",
    "implementation": "Implementation",
    "leaks": "Secrets in output, files and time",
    "peers": "Peers",
    "state": "State across steps and epochs",
    "oracles": "Questions as oracles",
    "observation": "Observation across steps",
    "inversion": "Inversion",
    "inference": "Learning",
}
OWN_FAMILY = "own"


@dataclass(frozen=True)
class Entry:
    """An attack of the suite.

    Attributes:
        attack: the attack.
        family: the name of its module; "own" for a user's.
        switches: what its module declares beside `switches.SWITCHES`.
    """

    attack: Attack
    family: str
    switches: Mapping[str, Switch]

    @property
    def defences(self) -> dict[str, str]:
        """Name -> what it does, of each defence that stands against the attack."""
        return {name: describe(name, self.switches) for name in self.attack.defences}


@dataclass(frozen=True)
class Finding:
    """What came of one attack.

    Attributes:
        entry: the attack.
        verdict: what its two runs say.
        evidence: with all defences; None if it could not be run.
        control: without its own defences; None likewise.
        reason: why it could not be run.
        seconds: of both runs.
    """

    entry: Entry
    verdict: Verdict
    evidence: Evidence | None
    control: Evidence | None
    reason: str
    seconds: float


def all_attacks(own: Sequence[str] = ()) -> list[Entry]:
    """Every attack of the suite, families in order, then a user's own.

    Args:
        own: `module:name` of attack classes, or of functions that return an attack.

    Raises:
        ConfigError: an own attack cannot be loaded or lacks an attribute, a promise or a defence is not known, or two
            attacks have one name.
    """
    entries = []
    for family in FAMILIES:
        try:
            module = importlib.import_module(f"secure_codream.threats.attacks.{family}")
        except ImportError as error:  # reported with the others, so that nobody takes silence for a defence
            entries.append(Entry(_NotThere(family, error), family, {_NotThere.missing: Switch("It can be imported.")}))
            continue
        switches = getattr(module, "SWITCHES", {})
        entries += [Entry(attack, family, switches) for attack in module.ATTACKS]
    entries += [own_attack(reference) for reference in own]
    names: set[str] = set()
    for entry in entries:
        _check(entry)
        if entry.attack.name in names:
            raise ConfigError(f"attack {entry.attack.name!r}: found two of this name; each needs one of its own")
        names.add(entry.attack.name)
    return entries


class _NotThere(Attack):
    """Stands for a family whose module cannot be imported; it fails to run."""

    missing = "importable"
    adversary, goal, promises, defences = "nobody", "Nothing: its module cannot be imported.", ("P1",), (missing,)

    def __init__(self, family: str, error: ImportError) -> None:
        self.name, self._error = f"all-of-{family}", error

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Say why."""
        raise self._error


def own_attack(reference: str) -> Entry:
    """A user's own attack, and the switches (`SWITCHES`) of its module; raises as `all_attacks` does."""
    try:
        attack = call_own_part(reference, load_own_part(reference))
    except OwnPartError as error:
        raise ConfigError(f"attack {error}") from None
    missing = [
        name for name in ("name", "adversary", "goal", "promises", "defences", "run") if not hasattr(attack, name)
    ]
    if missing:
        raise ConfigError(
            f"attack {reference}: found no {', '.join(missing)}; see secure_codream.threats.laboratory.attack.Attack"
        )
    module = importlib.import_module(reference.partition(":")[0])
    return Entry(attack, OWN_FAMILY, getattr(module, "SWITCHES", {}))


def _check(entry: Entry) -> None:
    for key in entry.attack.promises:
        if key not in BY_KEY:
            raise ConfigError(f"attack {entry.attack.name!r}: found promise {key!r}; allowed: {', '.join(BY_KEY)}")
    if not (entry.attack.promises and entry.attack.defences):
        raise ConfigError(f"attack {entry.attack.name!r}: found no promise or no defence; one of each is needed")
    _ = entry.defences  # an unknown name is an error


def chosen(entries: Sequence[Entry], patterns: Sequence[str] = (), *, quick: bool = False) -> list[Entry]:
    """The attacks to run.

    Args:
        entries: all of them.
        patterns: names, families or keys of promises, with `*` and `?`; none means all.
        quick: leave out those that are not part of `--quick`, unless a pattern is given.

    Raises:
        ConfigError: a pattern fits nothing.
    """
    for pattern in patterns:
        if not any(_fits(entry, pattern) for entry in entries):
            raise ConfigError(f"--only: found nothing called {pattern!r}; see secure-codream threats --list")
    if patterns:
        return [entry for entry in entries if any(_fits(entry, pattern) for pattern in patterns)]
    return [entry for entry in entries if getattr(entry.attack, "quick", True) or not quick]


def _fits(entry: Entry, pattern: str) -> bool:
    return any(fnmatch(name, pattern) for name in (entry.attack.name, entry.family, *entry.attack.promises))


Progress = Callable[[Entry, Finding | None], None]
"""Called before (without a finding) and after each attack."""
RunSuite = Callable[[Sequence[Entry], Callable[[], Laboratory], Progress], list[Finding]]
"""As `run_suite`."""


def run_suite(
    entries: Sequence[Entry],
    laboratory: Callable[[], Laboratory],
    progress: Progress = lambda entry, finding: None,
) -> list[Finding]:
    """Run attacks one after the other.

    Args:
        entries: which.
        laboratory: makes a fresh one, of the same seed, for each run.
        progress: told of each.
    """
    findings = []
    for entry in entries:
        progress(entry, None)
        findings.append(prove(entry, laboratory))
        progress(entry, findings[-1])
    return findings


def prove(entry: Entry, laboratory: Callable[[], Laboratory]) -> Finding:
    """Run an attack with all defences, then its control without its own, and judge both."""
    started = time.perf_counter()
    evidence = control = None
    verdict, reason = Verdict.CRASHED, ""
    try:
        evidence = _run(entry, ALL, laboratory())
        control = _run(entry, ALL.without(*entry.attack.defences), laboratory())
        verdict = judge(entry.attack, evidence, control)
    except Inapplicable as inapplicable:
        verdict, reason = Verdict.INAPPLICABLE, str(inapplicable)
    except Exception as error:
        reason = said(error)
    return Finding(entry, verdict, evidence, control, reason, time.perf_counter() - started)


def _run(entry: Entry, defences: Defences, laboratory: Laboratory) -> Evidence:
    with switched_off(defences, entry.switches):
        return entry.attack.run(defences, laboratory)


def by_promise(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Key of a promise or limit -> the findings that speak of it."""
    return {key: [one for one in findings if key in one.entry.attack.promises] for key in BY_KEY}


def alarming(findings: Sequence[Finding]) -> list[Finding]:
    """Those that somebody has to look at."""
    return [finding for finding in findings if finding.verdict.is_alarming]


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings for a machine; pictures are left to the report."""
    return [
        {
            "name": finding.entry.attack.name,
            "family": finding.entry.family,
            "adversary": finding.entry.attack.adversary,
            "goal": finding.entry.attack.goal,
            "paper": getattr(finding.entry.attack, "paper", ""),
            "promises": list(finding.entry.attack.promises),
            "defences": finding.entry.defences,
            "verdict": finding.verdict.value,
            "evidence": _plain(finding.evidence),
            "control": _plain(finding.control),
            "reason": finding.reason,
            "seconds": round(finding.seconds, 3),
        }
        for finding in findings
    ]


def _plain(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return {
        "measure": evidence.measure,
        "value": evidence.value,
        "success_above": evidence.success,
        "interval": evidence.interval,
        "worked": evidence.worked,
        "learned": evidence.learned,
        "refusal": evidence.refusal,
    }
