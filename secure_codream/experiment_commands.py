"""The commands of experiments: comparisons, audits of privacy, and the report of a finished run.

Flags overrule a file's values. A comparison that was interrupted keeps its finished cells and can go on. One of budgets
is a sweep: `sweep` is the short name of `compare --epsilons`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from secure_codream.command_parts import (
    EngineName,
    InEngine,
    Json,
    OfCluster,
    Out,
    Root,
    SummaryJson,
    check_cluster,
    console,
    fail,
    given,
    listed,
    say,
    say_json,
    usual_jobs,
)
from secure_codream.configuration.reading import ConfigError

Data = Annotated[str | None, typer.Option(help="digits, mnist, ..., a path, or module:function.")]

SWEEP = {"compare": {"name": "sweep", "models": ["cnn2_gn"]}, "sweep": {}}
"""What stands in for values that neither the file nor the flags of a sweep give, where it differs from a comparison."""


def compare(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="The comparison's TOML file; see examples/.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Go on with this folder.")] = None,
    algorithms: Annotated[str | None, typer.Option(help="Names with commas between.")] = None,
    epsilons: Annotated[
        str | None, typer.Option(help="Budgets with commas between, for a sweep; 'none' is no privacy.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of every budget; a tenth of 1/n unless given.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Of a sweep: isolated, codream, centralised; commas between.")
    ] = None,
    partitions: Annotated[
        str | None, typer.Option(help="iid, dirichlet:ALPHA, dirichlet-by-label:ALPHA, shards:N; commas between.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="0-4, or 0,2,5.")] = None,
    data: Data = None,
    root: Root = None,
    models: Annotated[
        str | None, typer.Option(help="One for all, or several, taken in turn; of a sweep with group norm, as cnn2_gn.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of communication.")] = None,
    clients: Annotated[int | None, typer.Option(min=2, help="Clients.")] = None,
    per_client: Annotated[int | None, typer.Option(min=2, help="Images of each client.")] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="At most so many test images.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Say by how many points each algorithm stands above this one.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a cell after so many rounds without a rise in accuracy.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto.")] = None,
    name: Annotated[str | None, typer.Option(help="Part of the folder's name.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time; one for each core unless given.")] = None,
    engine: InEngine = EngineName.LOCAL,
    cluster: OfCluster = None,
    gpus: Annotated[float, typer.Option(min=0, help="Of Ray: GPUs of a cell, fractions too.")] = 0.0,
    plots: Annotated[bool, typer.Option(help="Draw plots, which needs matplotlib.")] = True,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files too.")] = False,
    out: Out = Path("runs"),
    json: SummaryJson = False,
) -> None:
    """Compare algorithms on the same data, or budgets with --epsilons: table, plots, report. Flags overrule it."""
    from codream_clients.data.understanding import lines
    from secure_codream.configuration.images import uncharged
    from secure_codream.experiments.compare import Outputs, outdated, prepare, run_comparison
    from secure_codream.experiments.compare import resume as resume_run
    from secure_codream.experiments.grid import Elsewhere
    from secure_codream.experiments.ray_workers import RayWorkers
    from secure_codream.experiments.results import result_tables
    from secure_codream.experiments.worker_processes import Processes
    from secure_codream.experiments.workers import MakeWorkers

    flags = {
        "compare": given(
            {
                "name": name,
                "algorithms": algorithms and listed(algorithms),
                "partitions": partitions and listed(partitions),
                "seeds": seeds,
                "models": models and listed(models),
                "device": device,
                "rounds": rounds,
                "clients": clients,
                "per_client": per_client,
                "test_limit": test_limit,
                "against": against,
                "patience": patience,
            }
        ),
        "data": given({"source": data, "root": None if root is None else str(root)}),
        "privacy": given({"delta": delta}),
        "sweep": given({"epsilons": epsilons and listed(epsilons), "methods": methods and listed(methods)}),
    }
    if resume is not None and (config is not None or any(flags.values())):
        raise typer.BadParameter(
            "found settings beside it; a run goes on with its own config.toml", param_hint="--resume"
        )
    check_cluster(engine, cluster)
    if gpus and engine is not EngineName.RAY:
        raise typer.BadParameter("found it with another engine than ray", param_hint="--gpus")
    outputs = Outputs(plots=plots, tensorboard=tensorboard)
    screen = console(stderr=json, highlight=None)
    usual = SWEEP if context.info_name == "sweep" or flags["sweep"] else None
    elsewhere: Elsewhere | None = None
    if engine is EngineName.RAY:
        elsewhere = "cuda" if gpus else "cpu"  # Ray hides the GPUs that a cell has not asked for
    comparison = (
        prepare(config, flags, out, usual, elsewhere=elsewhere)
        if resume is None
        else resume_run(resume, elsewhere=elsewhere)
    )
    for line in lines(comparison.grid.understood):
        say(screen, line)
    if (said := uncharged(comparison.grid.cells[0].data.source)) is not None:
        say(screen, said, style="yellow")
    for sentence in outdated(comparison):
        say(screen, sentence, style="yellow")
    command = comparison.grid.config.command
    jobs = jobs or usual_jobs(comparison.grid.config.compare.device)
    try:
        workers: MakeWorkers = Processes
        if engine is EngineName.RAY:
            workers = partial(RayWorkers, address=cluster, gpus=gpus)
        results = run_comparison(comparison, jobs=jobs, console=screen, outputs=outputs, workers=workers)
    except KeyboardInterrupt:
        console(stderr=True).print(
            f"Finished cells are kept. To go on: secure-codream {command} --resume {comparison.run.path}",
            soft_wrap=True,
        )
        raise
    if json:
        typer.echo(comparison.run.summary.read_text(encoding="utf-8"), nl=False)
    else:
        for table in result_tables(results):
            screen.print(table)
        for algorithm, reason in results.not_applicable.items():
            say(screen, f"{algorithm} is not applicable: {reason}")
        for warned in results.warnings:
            say(screen, f"warning: {warned}", style="yellow")
        screen.print(f"The report: {comparison.run.report}", soft_wrap=True)
    if results.failures:
        fail(
            f"{len(results.failures)} of {results.cells} cells failed; read {comparison.logs}, "
            f"then try them again with {command} --resume {comparison.run.path}",
            1,
        )


def audit(
    config: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="TOML with \\[audit] and \\[data]; flags win.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(min=0, help="The claim for the client's whole run.")] = None,
    delta: Annotated[float | None, typer.Option(min=0, max=1, help="Of the claim.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(min=0, help="Of training, instead of epsilon, which then follows.")
    ] = None,
    canaries: Annotated[int | None, typer.Option(min=20, help="Records included by coins; an even number.")] = None,
    runs: Annotated[int | None, typer.Option(min=20, help="Of one step, in each of two worlds; even.")] = None,
    course: Annotated[
        str | None, typer.Option(help="codream, or dp-sgd: the opened sums of DP-SGD through the ring.")
    ] = None,
    data: Data = None,
    root: Root = None,
    model: Annotated[str | None, typer.Option(help="Every client's, with group norm, such as mlp_gn.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything.")] = None,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Break the mechanism on purpose: the audit must find it.")
    ] = False,
    statement: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A run's or client's folder: its epsilon is the claim, its privacy.json and .html get the bounds.",
        ),
    ] = None,
    out: Out = Path("runs"),
    json: SummaryJson = False,
) -> None:
    """Attack a private federation: lower bounds on epsilon beside the claim.

    Exit code 1 if the claim is refuted, 4 if this audit cannot tell: noise of half the size would often pass it.
    """
    import torch
    from msgspec.structs import replace

    from secure_codream.audit.run import keep_audit, run_audit
    from secure_codream.audit.settings import read_audit
    from secure_codream.configuration.images import uncharged
    from secure_codream.reports.audit_results import audit_table
    from secure_codream.reports.statement import claim_of, read_statement, write_statement

    torch.set_num_threads(1)  # the models are small: threads would only wait for each other
    wanted: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": delta,
        "noise_multiplier": noise_multiplier,
        "canaries": canaries,
        "runs": runs,
        "course": course,
        "model": model,
        "seed": seed,
        "without_noise": without_noise or None,
    }
    stated = None
    if statement is not None:
        if epsilon is not None or delta is not None or noise_multiplier is not None or without_noise:
            raise typer.BadParameter(
                "the run has its claim; leave --epsilon, --delta and noise out", param_hint="--statement"
            )
        stated = read_statement(statement)
        wanted["epsilon"], wanted["delta"] = claim_of(statement, stated)
        wanted["course"] = "dp-sgd" if stated.record is not None and stated.record.by_colluders else "codream"
    source = {"source": data, "root": None if root is None else str(root)}
    screen = console(stderr=json, highlight=None)
    settings = read_audit(config, {"audit": given(wanted), "data": given(source)})
    if (said := uncharged(settings.data.source)) is not None:
        say(screen, said, style="yellow")
    with screen.status("Training and attacking"):
        result = run_audit(settings)
    summary = keep_audit(out, result)
    if statement is not None and stated is not None:
        write_statement(statement, replace(stated, audit=result))
    if json:
        typer.echo(summary.read_text(encoding="utf-8"), nl=False)
    else:
        screen.print(audit_table(result))
        screen.print(f"The figures: {summary}", highlight=False, soft_wrap=True)
    if refuted := result.refuted:
        fail(
            "the claim does not hold: "
            + "; ".join(
                f"{row.adversary}: epsilon is at least {row.epsilon_lower:.3f}, claimed {row.epsilon_claimed:.3f}"
                for row in refuted
            ),
            1,
        )
    if not result.conclusive:
        fail(
            "cannot tell: the claim stands, but noise of half the size would be refuted with a chance below 90 %; more "
            "--runs are needed",
            4,
        )


def report(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A run's folder, or a party's own.")],
    json: Json = False,
) -> None:
    """Write report.html: of a finished run again, of a server's or a client's folder as it stands now."""
    from secure_codream.reports.party_report import write_party_report
    from secure_codream.reports.report import write_report
    from secure_codream.reports.status import STATUS

    if (run / "cells").is_dir():
        raise ConfigError(f"{run}: found a comparison; its report is written by: secure-codream compare --resume {run}")
    written = write_party_report(run) if (run / STATUS).exists() else write_report(run)
    if json:
        say_json({"report": str(written)})
    else:
        console().print(f"The report: {written}", soft_wrap=True)
