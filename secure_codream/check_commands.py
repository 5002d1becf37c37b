"""The commands that put the promises to the test: the model checker, and the suite of attacks.

Either ends with exit code 1 if what was found is not what the protocol promises.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from secure_codream.command_parts import (
    EngineName,
    InEngine,
    Json,
    OfCluster,
    Out,
    SummaryJson,
    check_cluster,
    console,
    fail,
    listed,
    say,
    say_json,
    usual_jobs,
)


def check(
    members: Annotated[str, typer.Option(help="Members of an epoch, such as 3-5 or 4.")] = "3-5",
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Six members too, which takes minutes.")] = False,
    write_tables: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Write the generated parts of this document anew."),
    ] = None,
    json: Json = False,
) -> None:
    """Play malicious servers against the real machines: set-up, steps and epochs; then with each defence off."""
    from rich.progress import Progress

    from secure_codream.threats.checker.check import check as check_all
    from secure_codream.threats.checker.check import tables, work

    counts = _members(members, exhaustive)
    screen = console(stderr=json, highlight=None)
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task("Trying strategies", total=work(counts))
        findings = check_all(counts, lambda: progress.advance(task))
    if json:
        say_json(findings.as_json())
    else:
        for table in tables(findings):
            screen.print(table)
        if findings.as_promised:
            say(screen, "All is as the protocol promises.")
    if write_tables is not None:
        from secure_codream.threats.checker.protocol_tables import write_document

        write_document(write_tables, findings)
    if not findings.as_promised:
        fail("what was found is not what the protocol promises; see the marked rows", 1)


def _members(text: str, exhaustive: bool) -> list[int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and 3 <= int(first) <= int(last or first) <= 6):
        raise typer.BadParameter(f"found {text!r}; 3-5, or one number from 3 to 6, is allowed", param_hint="--members")
    return sorted({*range(int(first), int(last or first) + 1), *([6] if exhaustive else [])})


def threats(
    only: Annotated[
        str | None, typer.Option(help="Names, families or promises (P1, L2), with * and ?; commas between.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="module:name of an attack of your own; repeat. This runs its code.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A config.toml whose settings to attack.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=2, max=200, help="Clients, where no roster.json beside it says how many.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="What fits into a minute and a half.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Name the attacks and run none.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the laboratory.")] = 0,
    write_tables: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Write this document's tables anew, from a run of everything."),
    ] = None,
    engine: InEngine = EngineName.LOCAL,
    cluster: OfCluster = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Of Ray: attacks at a time.")] = None,
    out: Out = Path("runs"),
    json: SummaryJson = False,
) -> None:
    """Attack the code as it is deployed, each attack with a control that works without its defence."""
    import torch

    from secure_codream.threats.command import run_threats
    from secure_codream.threats.laboratory.laboratory import Cohort, cohort_of
    from secure_codream.threats.on_ray import run_on_ray
    from secure_codream.threats.suite import RunSuite, alarming, all_attacks, chosen, run_suite
    from secure_codream.threats.table import attacks_table, findings_table, in_short

    check_cluster(engine, cluster)
    if clients is not None and config is None:
        raise typer.BadParameter("found it without --config, whose number of clients it gives", param_hint="--clients")
    if write_tables is not None and (only or attack or config or quick or list_only):
        raise typer.BadParameter(
            "found it with a choice of attacks or settings; the document's tables are of all attacks as they come",
            param_hint="--write-tables",
        )
    torch.set_num_threads(1)  # the models are small: threads would only wait for each other
    screen = console(stderr=json)
    entries = chosen(all_attacks(attack or []), listed(only) if only else [], quick=quick)
    if list_only:
        if json:
            say_json([entry.attack.name for entry in entries])
        else:
            screen.print(attacks_table(entries))
        return
    cohort = cohort_of(config, clients) if config else Cohort()
    suite: RunSuite = run_suite
    if engine is EngineName.RAY:
        suite = partial(run_on_ray, own=attack or [], jobs=jobs or usual_jobs(), address=cluster)
    run = run_threats(entries, seed=seed, quick=quick, cohort=cohort, out=out, console=screen, suite=suite)
    if json:
        typer.echo(run.folder.summary.read_text(encoding="utf-8"), nl=False)
    else:
        screen.print(findings_table(run.findings))
        screen.print(in_short(run.findings))
        screen.print(f"The report: {run.folder.report}", soft_wrap=True)
    if write_tables is not None:
        from datetime import date

        from secure_codream.threats.document import write_document

        made = f"`secure-codream threats --seed {seed}`, {date.today().isoformat()}:"
        write_document(write_tables, run.findings, made=made)
    if found := alarming(run.findings):
        fail("; ".join(f"{finding.entry.attack.name}: {finding.verdict.value}" for finding in found), 1)
