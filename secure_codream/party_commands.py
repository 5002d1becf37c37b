"""The commands that look at a party: whether it could run, and how it stands while it runs. They write nothing."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secure_codream.command_parts import console, say

Party = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A client's folder, or the server's.")]
_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    folder: Party,
    address: Annotated[
        str | None, typer.Option(help="Where the server listens, or is to listen; the roster's address otherwise.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")] = False,
) -> None:
    """Look at all that a run from this folder needs, and at whether the server is there. Nothing is written or joined.

    Exit code 0 if the run may begin, warnings or not; 1 if a check failed.
    """
    from secure_codream.doctor.examination import examine, well

    findings = examine(folder, address=address)
    if json:
        content = {"ok": well(findings), "checks": [asdict(finding) for finding in findings]}
        typer.echo(json_text.dumps(content, indent=2))
    else:
        screen = console()
        for finding in findings:
            parts = [finding.found]
            if finding.allowed:
                parts.append(f"allowed: {finding.allowed}")
            if finding.do:
                parts.append(f"do: {finding.do}")
            say(screen, f"{finding.state:8}{finding.check:14}{'; '.join(parts)}", style=_STYLES[finding.state])
        failing = list(dict.fromkeys(one.check for one in findings if one.state == "failed"))
        say(screen, f"failed: {', '.join(failing)}" if failing else "all that a run needs is there")
    if not well(findings):
        raise typer.Exit(1)
