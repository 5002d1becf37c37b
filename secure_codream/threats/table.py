"""What a person sees of the suite on a terminal: the attacks as they pass, then one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from secure_codream.threats.laboratory.attack import Verdict
from secure_codream.threats.suite import FAMILIES, Entry, Finding

STYLES = {
    Verdict.DEFENDED: "green",
    Verdict.LIMIT: "yellow",
    Verdict.INAPPLICABLE: "dim",
    Verdict.BROKEN: "bold red",
    Verdict.UNPROVEN: "red",
    Verdict.CRASHED: "red",
}


class SuitePanel:
    """Shows how far the suite is; use it as a context manager and pass `feed` to `run_suite`."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("", total=total)

    def __enter__(self) -> SuitePanel:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def feed(self, entry: Entry, finding: Finding | None) -> None:
        """Take note of an attack that begins, or has ended."""
        if finding is None:
            self._progress.update(self._task, description=f"{entry.attack.name:32}")
            return
        self._progress.advance(self._task)
        if finding.verdict.is_alarming:
            self._console.print(Text(f"{entry.attack.name}: {finding.verdict.value}", STYLES[finding.verdict]))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Each attack: who, what for, what it learned, the verdict, and what it learns without the defence."""
    table = Table(title=None, show_lines=True, header_style="bold")
    for name, ratio in (("attack", 3), ("adversary", 2), ("tried to", 5), ("learned", 5)):
        table.add_column(name, ratio=ratio)
    table.add_column("verdict", no_wrap=True)
    table.add_column("control: learned without the defence", ratio=5)
    for finding in findings:
        attack, evidence, control = finding.entry.attack, finding.evidence, finding.control
        table.add_row(
            Text(attack.name),
            Text(attack.adversary),
            Text(attack.goal),
            Text(evidence.learned if evidence else finding.reason),
            Text(finding.verdict.value, STYLES[finding.verdict]),
            Text(control.learned if control else ""),
        )
    return table


def attacks_table(entries: Sequence[Entry]) -> Table:
    """What there is, for `--list`."""
    table = Table(header_style="bold")
    for name in ("attack", "family", "promises", "adversary", "goal"):
        table.add_column(name)
    table.add_column("quick", justify="center")
    for entry in entries:
        attack = entry.attack
        quick = "yes" if getattr(attack, "quick", True) else ""
        family = FAMILIES.get(entry.family, entry.family)
        table.add_row(attack.name, family, " ".join(attack.promises), attack.adversary, attack.goal, quick)
    return table


def in_short(findings: Sequence[Finding]) -> str:
    """The verdicts, counted: "52 attacks: 45 defended, 7 not promised"."""
    counts = Counter(finding.verdict for finding in findings)
    words = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    return f"{len(findings)} attack{'s' if len(findings) != 1 else ''}: {words}"
