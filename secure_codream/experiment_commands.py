"""The commands of experiments: comparisons, sweeps, audits of privacy, and the report of a finished run.

Flags overrule a file's values. A comparison or a sweep that was interrupted keeps its finished cells and can go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secure_codream.command_parts import Json, Out, Root, console, fail, given, listed, say
from secure_codream.configuration.reading import ConfigError

Resume = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Go on with this run's folder.")]
Partitions = Annotated[
    str | None, typer.Option(help="iid, dirichlet:ALPHA, dirichlet-by-label:ALPHA, shards:N; commas between.")
]
Seeds = Annotated[str | None, typer.Option(help="0-4, or 0,2,5.")]
Data = Annotated[str | None, typer.Option(help="digits, mnist, ..., a path, or module:function.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of communication.")]
Clients = Annotated[int | None, typer.Option(min=2, help="Clients.")]
PerClient = Annotated[int | None, typer.Option(min=2, help="Images of each client.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="At most so many test images.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto.")]
Name = Annotated[str | None, typer.Option(help="Part of the folder's name.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Cells at a time; one for each core unless given.")]
Plots = Annotated[bool, typer.Option(help="Draw plots, which needs matplotlib.")]


def compare(
    config: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="The comparison's TOML file; see examples/.")
    ] = None,
    resume: Resume = None,
    algorithms: Annotated[str | None, typer.Option(help="Names with commas between.")] = None,
    partitions: Partitions = None,
    seeds: Seeds = None,
    data: Data = None,
    root: Root = None,
    models: Annotated[str | None, typer.Option(help="One for all clients, or several, taken in turn.")] = None,
    rounds: Rounds = None,
    clients: Clients = None,
    per_client: PerClient = None,
    test_limit: TestLimit = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a cell after so many rounds without a rise in accuracy.")
    ] = None,
    device: Device = None,
    name: Name = None,
    jobs: Jobs = None,
    plots: Plots = True,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files too.")] = False,
    out: Out = Path("runs"),
    json: Json = False,
) -> None:
    """Compare algorithms on the same data: table, plots and report. Flags overrule the file."""
    wanted = _cells(name, partitions, seeds, models, device) | _sizes(rounds, clients, per_client, test_limit)
    own = given({"algorithms": algorithms and listed(algorithms), "patience": patience})
    flags = {"compare": wanted | own, "data": _source(data, root)}
    _run_cells(config, resume, flags, jobs=jobs, plots=plots, tensorboard=tensorboard, out=out, json=json)


def sweep(
    config: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="The sweep's TOML file; see examples/.")
    ] = None,
    resume: Resume = None,
    epsilons: Annotated[str | None, typer.Option(help="Budgets with commas between; 'none' is no privacy.")] = None,
    delta: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of every budget; a tenth of 1/n unless given.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="isolated, codream, centralised; commas between.")] = None,
    partitions: Partitions = None,
    seeds: Seeds = None,
    data: Data = None,
    root: Root = None,
    models: Annotated[str | None, typer.Option(help="With group norm, such as cnn2_gn; one, or several.")] = None,
    rounds: Rounds = None,
    clients: Clients = None,
    per_client: PerClient = None,
    test_limit: TestLimit = None,
    device: Device = None,
    name: Name = None,
    jobs: Jobs = None,
    plots: Plots = True,
    out: Out = Path("runs"),
    json: Json = False,
) -> None:
    """Accuracy against epsilon: CoDream, clients alone and all data in one place under the same privacy budget."""
    budgets = {"epsilons": epsilons and listed(epsilons), "methods": methods and listed(methods)}
    flags = {
        "compare": _cells(name, partitions, seeds, models, device) | _sizes(rounds, clients, per_client, test_limit),
        "data": _source(data, root),
        "privacy": given({"delta": delta}),
        "sweep": given(budgets),
    }
    usual = {"compare": {"name": "sweep", "models": ["cnn2_gn"]}, "sweep": {}}
    _run_cells(config, resume, flags, jobs=jobs, plots=plots, tensorboard=False, out=out, json=json, usual=usual)


def _cells(
    name: str | None, partitions: str | None, seeds: str | None, models: str | None, device: str | None
) -> dict[str, Any]:
    """What cells there are, as in `[compare]`; flags that are not given are left out."""
    return given(
        {
            "name": name,
            "partitions": partitions and listed(partitions),
            "seeds": seeds,
            "models": models and listed(models),
            "device": device,
        }
    )


def _sizes(rounds: int | None, clients: int | None, per_client: int | None, test_limit: int | None) -> dict[str, Any]:
    """How large each cell is, as in `[compare]`."""
    return given({"rounds": rounds, "clients": clients, "per_client": per_client, "test_limit": test_limit})


def _source(data: str | None, root: Path | None) -> dict[str, Any]:
    """Where the images are from, as in `[data]`."""
    return given({"source": data, "root": None if root is None else str(root)})


def _run_cells(
    config: Path | None,
    resume: Path | None,
    flags: dict[str, dict[str, Any]],
    *,
    jobs: int | None,
    plots: bool,
    tensorboard: bool,
    out: Path,
    json: bool,
    usual: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Run a comparison or a sweep; `usual` holds the values without a file that differ from a comparison's."""
    from codream_clients.data.understanding import lines
    from secure_codream.experiments.compare import Outputs, prepare, run_comparison, usual_jobs
    from secure_codream.experiments.compare import resume as resume_run
    from secure_codream.experiments.results import result_tables

    if resume is not None and (config is not None or any(flags.values())):
        raise typer.BadParameter(
            "found settings beside it; a run goes on with its own config.toml", param_hint="--resume"
        )
    outputs = Outputs(plots=plots, tensorboard=tensorboard)
    screen = console(stderr=json, highlight=None)
    comparison = resume_run(resume) if resume is not None else prepare(config, flags, out, usual)
    for line in lines(comparison.grid.understood()):
        say(screen, line)
    command = comparison.grid.config.command
    jobs = jobs or usual_jobs(comparison.grid.config.compare.device)
    try:
        results = run_comparison(comparison, jobs=jobs, console=screen, outputs=outputs)
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
            screen.print(table, width=None if screen.is_terminal else 120)
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
    data: Annotated[str | None, typer.Option(help="digits, mnist, ..., a path, or module:function.")] = None,
    root: Root = None,
    model: Annotated[str | None, typer.Option(help="Every client's, with group norm, such as mlp_gn.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything.")] = None,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Break the mechanism on purpose: the audit must find it.")
    ] = False,
    out: Out = Path("runs"),
    json: Json = False,
) -> None:
    """Attack a private federation: lower bounds on epsilon beside the claim. Exit code 1 if the claim is refuted."""
    import torch

    from secure_codream.audit.run import keep_audit, run_audit
    from secure_codream.audit.settings import read_audit
    from secure_codream.reports.audit_results import audit_table

    torch.set_num_threads(1)  # the models are small: threads would only wait for each other
    wanted: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": delta,
        "noise_multiplier": noise_multiplier,
        "canaries": canaries,
        "runs": runs,
        "model": model,
        "seed": seed,
        "without_noise": without_noise or None,
    }
    source = {"source": data, "root": None if root is None else str(root)}
    screen = console(stderr=json, highlight=None)
    with screen.status("Training and attacking"):
        result = run_audit(read_audit(config, {"audit": given(wanted), "data": given(source)}))
    summary = keep_audit(out, result)
    if json:
        typer.echo(summary.read_text(encoding="utf-8"), nl=False)
    else:
        screen.print(audit_table(result), width=None if screen.is_terminal else 120)
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


def report(run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A run's folder.")]) -> None:
    """Write report.html of a finished run again."""
    from secure_codream.reports.report import write_report

    if (run / "cells").is_dir():
        raise ConfigError(f"{run}: found a comparison; its report is written by: secure-codream compare --resume {run}")
    console().print(f"The report: {write_report(run)}", soft_wrap=True)
