"""`secure-codream threats`: choose, run, write the folder of the run, and say what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from secure_codream.reports.files import write_whole
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.versions import versions_of
from secure_codream.threats.laboratory.laboratory import Cohort, Laboratory
from secure_codream.threats.page import write_page
from secure_codream.threats.suite import Entry, Finding, RunSuite, as_json, by_promise, run_suite
from secure_codream.threats.table import SuitePanel

SCHEMA = 1
PACKAGES = ("secure-codream", "numpy", "cryptography", "pyzmq", "msgspec", "torch")


@dataclass(frozen=True)
class ThreatsRun:
    """A finished run of the suite."""

    findings: list[Finding]
    folder: RunFolder


def run_threats(
    entries: Sequence[Entry],
    *,
    seed: int,
    quick: bool,
    cohort: Cohort,
    out: Path,
    console: Console,
    suite: RunSuite = run_suite,
) -> ThreatsRun:
    """Run attacks and write `summary.json` and `report.html` into a new folder under `out`; `suite` runs them."""
    began, started = datetime.now(UTC), time.perf_counter()
    with SuitePanel(console, len(entries)) as panel:
        findings = suite(entries, partial(Laboratory, seed, quick=quick, cohort=cohort), panel.feed)
    folder = RunFolder.create(out, "threats", began.astimezone())
    summary = {
        "schema": SCHEMA,
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "seed": seed,
        "quick": quick,
        "cohort": cohort.summary,
        "promises": {
            key: {finding.entry.attack.name: finding.verdict.value for finding in found}
            for key, found in by_promise(findings).items()
        },
        "attacks": as_json(findings),
        "versions": versions_of(*PACKAGES),
    }
    write_whole(folder.summary, json.dumps(summary, indent=2).encode() + b"\n")
    write_page(folder.report, findings, summary)
    return ThreatsRun(findings, folder)
