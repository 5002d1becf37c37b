"""The commands that look at a party: whether it could run, and how it stands while it runs. They write nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from secure_codream.command_parts import Json, console, say, say_json
from secure_codream.reports.status import Status
from secure_codream.reports.words import clock_face, counted

Party = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A client's folder, or the server's.")]
_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    folder: Party,
    address: Annotated[
        str | None, typer.Option(help="Where the server listens, or is to listen; the roster's address otherwise.")
    ] = None,
    json: Json = False,
) -> None:
    """Look at all that a run from this folder needs, and at whether the server is there. Nothing is written or joined.

    Exit code 0 if the run may begin, warnings or not; 1 if a check failed.
    """
    from secure_codream.doctor.examination import examine, well

    findings = examine(folder, address=address)
    if json:
        say_json({"ok": well(findings), "checks": findings})
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


def unreachable(folder: Path, address: str | None) -> str | None:
    """Why a client that starts now will wait, in words; None if somebody listens, or what is wrong is said anyway."""
    from secure_codream.configuration.client import read_client
    from secure_codream.deployment.files import CLIENT_FILE
    from secure_codream.doctor.findings import MENDABLE
    from secure_codream.doctor.reachability import of_port
    from secure_codream.membership.accepted import load_roster

    try:
        proxy = read_client(folder / CLIENT_FILE).proxy
        found = of_port(f"tcp://{proxy}" if proxy else address or load_roster(folder).server.address)
    except MENDABLE:
        return None  # `client` ends with it
    return None if found is None else f"{found.found}; asking again until it is there. If it should be: {found.do}"


def status(
    folder: Party,
    json: Json = False,
) -> None:
    """Say how the party of this folder stands, from what it wrote last: what it is at, and for whom it waits.

    Exit code 0 if it runs or has finished; 1 otherwise.
    """
    from secure_codream.deployment.earlier import is_running
    from secure_codream.reports.status import read_status

    found = read_status(folder)
    running = is_running(folder)
    if json:
        say_json({"running": running, **msgspec.to_builtins(found)})
    else:
        screen = console()
        for line in _told(found, running=running, now=time.time()):
            say(screen, line)
    if not running and found.phase != "finished":
        raise typer.Exit(1)


def _told(found: Status, *, running: bool, now: float) -> list[str]:
    """A status as a few lines."""
    age = clock_face(max(0.0, now - found.written))
    lines = [f"{found.party} of {found.federation}: {'running' if running else 'not running'}, written {age} ago"]
    step = "" if found.step is None or found.steps is None else f"; step {min(found.step + 1, found.steps)} "
    of = f"of {found.steps}" if step else ""
    lines.append(f"{found.phase}; {found.certified} of {counted(found.epochs, 'epoch')} certified{step}{of}")
    if found.members:
        there = sum(member.present for member in found.members)
        lines.append(f"{there} of {len(found.members)} clients there")
    who = "the server says that it waits for" if found.told else "waiting for"
    if found.since is not None and not found.waiting:
        lines.append(f"{who} answers of some that are there")
    for member in found.waiting:
        heard = "never heard" if member.heard is None else f"last heard {clock_face(max(0.0, now - member.heard))} ago"
        lines.append(f"{who} {member.name}, {'it is there' if member.present else heard}")
    return lines
