"""The parts of `docs/threats.md` that the code says itself: which attacks there are, and what a run of them brought.

`secure-codream threats --write-tables docs/threats.md` writes them anew; a test holds document and code together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secure_codream.threats.checker.protocol_tables import markdown, write_sections
from secure_codream.threats.laboratory.attack import Evidence
from secure_codream.threats.page import amount
from secure_codream.threats.suite import FAMILIES, Entry, Finding
from secure_codream.threats.table import in_short

ATTACK_COLUMNS = ("attack", "adversary", "goal", "speaks of", "off in the control")
RESULT_COLUMNS = ("attack", "verdict", "measured", "works above", "as deployed", "control")


def write_document(path: Path, findings: Sequence[Finding], *, made: str) -> None:
    """Write all generated parts of the document anew.

    Args:
        path: of the document.
        findings: of every attack of the suite.
        made: by which command and when.

    Raises:
        ValueError: a part has no place in it.
    """
    sections = {
        "attacks": attacks_section([finding.entry for finding in findings]),
        "results": results_section(findings, made),
    }
    path.write_text(write_sections(path.read_text(encoding="utf-8"), sections), encoding="utf-8")


def attacks_section(entries: Sequence[Entry]) -> str:
    """A table of attacks for each family."""
    tables = []
    for family, title in FAMILIES.items():
        rows = [_attack_cells(entry) for entry in entries if entry.family == family]
        tables.append(f"### {title}\n\n{markdown(ATTACK_COLUMNS, rows)}")
    return "\n\n".join(tables)


def results_section(findings: Sequence[Finding], made: str) -> str:
    """What came of each attack, and of its control."""
    rows = [
        (
            finding.entry.attack.name,
            finding.verdict.value,
            finding.evidence.measure if finding.evidence else finding.reason,
            f"{finding.evidence.success:.3g}" if finding.evidence else "",
            _amount(finding.evidence),
            _amount(finding.control),
        )
        for finding in findings
    ]
    return f"{made} {in_short(findings)}.\n\n{markdown(RESULT_COLUMNS, rows, right=(3, 4, 5))}"


def _attack_cells(entry: Entry) -> tuple[str, ...]:
    attack = entry.attack
    off = ", ".join(f"`{name}`" for name in attack.defences)
    return attack.name, attack.adversary, attack.goal, ", ".join(attack.promises), off


def _amount(evidence: Evidence | None) -> str:
    return amount(evidence) if evidence else ""
