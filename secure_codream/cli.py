"""The command line; `EXIT_CODES` says what its commands return."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from codream_clients.journal import JournalBusy, JournalMismatch
from codream_protocols.charter import default_threshold
from codream_protocols.errors import BadSignature, ProtocolError, RosterRefused, UnknownIdentity
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import PARAMETER_COURSES, AveragingTable, read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.configuration.reading import check as check_values
from secure_codream.deployment.keys import KeyFileError
from secure_codream.reports.events import Refused
from secure_codream.reports.files import RecordError

app = typer.Typer(
    name="secure-codream",
    help="Federated learning by exchanging dreams, under secure aggregation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold secrets
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"secure-codream {metadata.version('secure-codream')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and nothing else.")
    ] = False,
) -> None:
    """What stands before a command."""


class Mode(StrEnum):
    """How sums are made."""

    LOCKSTEP = "lockstep"
    RESILIENT = "resilient"


Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="This party's folder, made by `provision`.")]
At = Annotated[str | None, typer.Option("--exhibit", hidden=True, metavar="EPOCH:STEP")]
Resume = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Go on with this run's folder.")]
Partitions = Annotated[
    str | None, typer.Option(help="iid, dirichlet:ALPHA, dirichlet-by-label:ALPHA, shards:N; commas between.")
]
Seeds = Annotated[str | None, typer.Option(help="0-4, or 0,2,5.")]
Data = Annotated[str | None, typer.Option(help="digits, mnist, ..., a path, or module:function.")]
Root = Annotated[Path | None, typer.Option(help="Where torchvision's files lie.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of communication.")]
Clients = Annotated[int | None, typer.Option(min=2, help="Clients.")]
PerClient = Annotated[int | None, typer.Option(min=2, help="Images of each client.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="At most so many test images.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto.")]
Name = Annotated[str | None, typer.Option(help="Part of the folder's name.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Cells at a time; one for each core unless given.")]
Plots = Annotated[bool, typer.Option(help="Draw plots, which needs matplotlib.")]
Out = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
Json = Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else.")]


EXIT_CODES = {
    0: "done",
    1: "the federation failed or was refused, or what was checked does not hold",
    2: "wrong usage or configuration, or a client that is running already",
    3: "a key, a roster or a signature was refused",
    130: "interrupted",
}


def main() -> None:
    """Run the command line; errors a person can mend are one line on standard error, without a traceback."""
    try:
        app()
    except OSError as error:  # a folder that cannot be written, a full disk, an address that is taken
        place = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{place}{error.strerror or error}", exit_code(error))
    except (RecordError, ValueError, ProtocolError, RuntimeError) as error:
        _fail(str(error), exit_code(error))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        _fail("interrupted", exit_code(error))


def exit_code(error: BaseException) -> int:
    """What a command returns that ends with this error, which `main` takes."""
    match error:
        case KeyFileError() | RosterRefused() | BadSignature() | UnknownIdentity():
            return 3
        case RecordError() | ValueError() | JournalBusy() | JournalMismatch():
            return 2
        case KeyboardInterrupt() | asyncio.CancelledError():
            return 130
    return 1


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"secure-codream: {text}", markup=False, style="red", soft_wrap=True)
    sys.exit(code)


@app.command(epilog="Example: secure-codream demo --clients 5 --alpha 0.5 --drop 1")
def demo(
    clients: Annotated[int, typer.Option(min=3, max=50, help="Client processes.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds: one batch of dreams each.")] = 4,
    alpha: Annotated[str, typer.Option(help="Dirichlet concentration of the labels, or 'iid'.")] = "0.5",
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, models and dreams.")] = 0,
    drop: Annotated[
        int, typer.Option(min=0, help="Client processes to kill in the middle of a step, and to start again.")
    ] = 0,
    mode: Annotated[
        Mode | None, typer.Option(help="lockstep waits for who is lost; resilient goes on without its block.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0.1, help="Differential privacy for each record, with this budget a client.")
    ] = None,
    out: Out = Path("runs"),
    json: Json = False,
) -> None:
    """Run a federation of real processes on this machine: digits data, different models, everything masked."""
    from secure_codream.demonstration.demo import DemoOptions, run_demo
    from secure_codream.reports.panel import LivePanel, result_table
    from secure_codream.reports.statement import read_statement

    options = DemoOptions(
        clients=clients,
        rounds=rounds,
        alpha=_alpha(alpha),
        seed=seed,
        drop=_droppable(drop, clients, mode),
        mode=None if mode is None else mode.value,
        epsilon=epsilon,
        out=out,
    )
    console = Console(stderr=json)
    with LivePanel(console) as panel:
        summary, run = run_demo(options, panel)
    if json:
        typer.echo(run.summary.read_text(encoding="utf-8"), nl=False)
        return
    console.print(result_table(summary))
    if summary.dropped:
        console.print(f"Killed in the middle of a step, and started again: {', '.join(summary.dropped)}")
    if epsilon is not None:
        console.print(read_statement(run.path).headline)
    console.print(f"The report: {run.report}", soft_wrap=True)


def _alpha(text: str) -> float | None:
    if text.lower() == "iid":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise typer.BadParameter(f"found {text!r}; a number above 0, or 'iid', is allowed", param_hint="--alpha")
    return value


def _droppable(drop: int, clients: int, mode: Mode | None) -> int:
    """How many may be lost in a step: in lockstep any, since they are waited for; else one block must be left whole."""
    most = clients if mode is not Mode.RESILIENT else clients - max(default_threshold(clients, 1), 3)
    if mode is Mode.RESILIENT and clients < 6 and drop:
        raise typer.BadParameter(f"found {clients}; with --drop in resilient mode 6 are needed", param_hint="--clients")
    if drop > most:
        raise typer.BadParameter(
            f"found {drop}; of {clients} clients at most {most} can be lost in a step", param_hint="--drop"
        )
    return drop


@app.command(
    epilog="Example: secure-codream provision config.toml --client alice=cnn2 --client bob=mlp --client carol=cnn3 "
    "--address tcp://aggregator.example:7447 --out federation"
)
def provision(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The federation's config.toml.")],
    client: Annotated[list[str], typer.Option(help="NAME=MODEL of a client; repeat for each.")],
    address: Annotated[str, typer.Option(help="Where the server will listen, tcp://HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="Folder to make; nothing in it is overwritten.")],
    serial: Annotated[int, typer.Option(min=1, help="Serial number of the roster; raise it with every change.")] = 1,
) -> None:
    """Make keys, the signed roster, and one folder to hand to each party (the administrator's act, offline)."""
    from secure_codream.deployment.exposure import exposures
    from secure_codream.deployment.provision import provision as make

    pairs = [text.partition("=") for text in client]
    if any(not (name and model) for name, _, model in pairs):
        raise typer.BadParameter(f"found {client}; NAME=MODEL is needed", param_hint="--client")
    if not address.startswith("tcp://"):
        raise typer.BadParameter(f"found {address!r}; tcp://HOST:PORT is needed", param_hint="--address")
    configs = [
        check_values(f"--client {name}={model}", ClientConfig, {"name": name, "model": model, "seed": number})
        for number, (name, _, model) in enumerate(pairs)
    ]
    roster = make(out, config=read_federation(config), clients=configs, address=address, serial=serial)
    console = Console(highlight=False)
    console.print(f"Roster {roster.hash.hex()[:16]}… of {len(roster.members)} clients, serial {serial}.")
    federation = read_federation(config)
    for line in exposures(federation, roster):
        console.print(line, soft_wrap=True)
    course = federation.federation.course
    if course in PARAMETER_COURSES:
        model = (federation.averaging or AveragingTable()).model
        console.print(f"Course {course}: everybody trains {model}, the model of [averaging], and no client its own.")
    console.print(f"Hand out: {out}/server to the aggregator, {out}/clients/NAME to each client.", soft_wrap=True)
    console.print(f"Keep offline: {out}/administrator/administrator.key", soft_wrap=True)


@app.command(epilog="Example: secure-codream server federation/server --listen tcp://0.0.0.0:7447")
def server(
    folder: Folder,
    listen: Annotated[str | None, typer.Option(help="Endpoint to bind; the roster's address otherwise.")] = None,
    exhibit: At = None,
) -> None:
    """Run the aggregator until its federation is over. It needs no torch."""
    from secure_codream.deployment.server import run_server
    from secure_codream.reports.panel import LivePanel

    console = Console(highlight=False)
    with LivePanel(console) as panel:

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "exposure":
                console.print(event["text"], markup=False, soft_wrap=True)
            elif event["event"] == "federation_started" and event["certified"]:
                panel.feed(event)
                console.print(f"going on after {event['certified']} of {event['epochs']} certified epochs")
            else:
                panel.feed(event)

        run_server(folder, listen=listen, exhibit=_at(exhibit), watch=show)


@app.command(epilog="Example: secure-codream client federation/clients/alice")
def client(
    folder: Folder,
    address: Annotated[
        str | None, typer.Option(help="Where the server listens; the roster's address otherwise.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for torch.")] = None,
    exhibit: At = None,
) -> None:
    """Take part in a federation with this client's data and model; the trained weights are in FOLDER/model.pt.

    A client that is started again goes on with its model and with what it has signed.
    """
    from secure_codream.deployment.client import run_client

    console = Console(highlight=False)

    def show(event: dict[str, Any]) -> None:
        line = _client_line(event)
        if line is not None:
            console.print(line, markup=False, soft_wrap=True)

    run_client(folder, address=address, threads=threads, exhibit=_at(exhibit), watch=show)


def _client_line(event: dict[str, Any]) -> str | None:
    """What a client's screen says of a line of its log; its own text, or what the log has made printable."""
    match event["event"]:
        case "exposure":
            return str(event["text"])
        case "warm-up":
            return f"beginning with {event['model']}" if event["model"] else None
        case "resume":
            return f"going on with {event['model']}, which has learnt {event['certified']} epochs"
        case "prepared":
            return "ready for the rounds"
        case "silence":
            return f"no word from {event['address'] or 'the server'} for {event['seconds']} s; asking again"
        case "certified":
            return f"epoch {event['number']} certified; head {event['head']}…"
        case "learnt":
            return f"epoch {event['number']} learnt"
        case "farewell":
            return f"the server: {event['reason']}"
        case "finished":
            return f"finished; head {event['head']}"
    code = str(event.get("code", ""))
    if event.get("level") == "info" or Refused(time=0.0, client="", code=code).ordinary:
        return None
    words = [f"{name}: {event[name]}" for name in ("code", "found", "allowed", "remedy", "error") if event.get(name)]
    return "; ".join([str(event["event"]), *words])


@app.command(epilog="Example: secure-codream verify runs/20261128-120000-demo")
def verify(
    record: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A record, a journal, or a run's or party's folder.")
    ],
    administrator: Annotated[
        str | None, typer.Option(help="Public key that must have signed the roster, 64 hexadecimal digits.")
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(help="MODULE:NAME=SHA256 of own code of the charter that may be run; repeat for each."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON and nothing else.")] = False,
    successor: Annotated[
        bool, typer.Option("--successor", help="Print the [predecessor] table of a charter that follows, nothing else.")
    ] = False,
) -> None:
    """Check what a federation published, as anybody can: every signature, every sum's place, every state, no secret.

    Exit code 1 names the file that does not verify.
    """
    from dataclasses import asdict

    from secure_codream.deployment.verify import RecordRefused, successor_table, verify_record

    key = None if administrator is None else _key(administrator)
    try:
        verified = verify_record(record, administrator=key, permitted=_permitted(code or []))
    except RecordRefused as error:
        _fail(str(error), 1)
    if json:
        typer.echo(dumps(asdict(verified), indent=2))
        return
    if successor:
        typer.echo(successor_table(verified))
        return
    console = Console(highlight=False)
    names = ", ".join(verified.members)
    console.print(f"Federation {verified.federation}, charter {verified.charter}", soft_wrap=True)
    console.print(f"Members: {names}", soft_wrap=True)
    console.print(f"Roster signed by {verified.administrator}; compare it with the administrator's.", soft_wrap=True)
    votes = ", ".join(map(str, verified.votes)) or "none"
    console.print(f"{verified.epochs} epochs verified; votes of {votes} members.", soft_wrap=True)
    console.print(f"Head: {verified.head}", soft_wrap=True)
    console.print("Compare the head with a member's: whoever has the same one has the same history.", soft_wrap=True)


def _permitted(code: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in code]
    if any(not (name and found) for name, _, found in pairs):
        raise typer.BadParameter(f"found {code}; MODULE:NAME=SHA256 is needed", param_hint="--code")
    return {name: found for name, _, found in pairs}


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise typer.BadParameter("64 hexadecimal digits are needed", param_hint="--administrator")
    return key


@app.command(
    epilog="Example: secure-codream compare --algorithms isolated,codream,fedavg,centralised "
    "--partitions iid,dirichlet:0.5 --seeds 0-4 --data digits --per-client 30"
)
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
    wanted: dict[str, Any] = {
        "name": name,
        "algorithms": algorithms and _listed(algorithms),
        "partitions": partitions and _listed(partitions),
        "seeds": seeds,
        "models": models and _listed(models),
        "rounds": rounds,
        "clients": clients,
        "per_client": per_client,
        "test_limit": test_limit,
        "patience": patience,
        "device": device,
    }
    source = {"source": data, "root": None if root is None else str(root)}
    flags = {"compare": _given(wanted), "data": _given(source)}
    _run_cells(config, resume, flags, jobs=jobs, plots=plots, tensorboard=tensorboard, out=out, json=json)


@app.command(
    epilog="Example: secure-codream sweep --epsilons 2,8,none --partitions iid,dirichlet:0.5 --seeds 0-4 --data digits"
)
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
    wanted: dict[str, Any] = {
        "name": name,
        "partitions": partitions and _listed(partitions),
        "seeds": seeds,
        "models": models and _listed(models),
        "rounds": rounds,
        "clients": clients,
        "per_client": per_client,
        "test_limit": test_limit,
        "device": device,
    }
    budgets = {"epsilons": epsilons and _listed(epsilons), "methods": methods and _listed(methods)}
    flags = {
        "compare": _given(wanted),
        "data": _given({"source": data, "root": None if root is None else str(root)}),
        "privacy": _given({"delta": delta}),
        "sweep": _given(budgets),
    }
    usual = {"compare": {"name": "sweep", "models": ["cnn2_gn"]}, "sweep": {}}
    _run_cells(config, resume, flags, jobs=jobs, plots=plots, tensorboard=False, out=out, json=json, usual=usual)


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
    from secure_codream.experiments.compare import Outputs, prepare, run_comparison, usual_jobs
    from secure_codream.experiments.compare import resume as resume_run
    from secure_codream.experiments.results import result_tables

    if resume is not None and (config is not None or any(flags.values())):
        raise typer.BadParameter(
            "found settings beside it; a run goes on with its own config.toml", param_hint="--resume"
        )
    outputs = Outputs(plots=plots, tensorboard=tensorboard)
    console = Console(stderr=json)
    comparison = resume_run(resume) if resume is not None else prepare(config, flags, out, usual)
    command = comparison.grid.config.command
    jobs = jobs or usual_jobs(comparison.grid.config.compare.device)
    try:
        results = run_comparison(comparison, jobs=jobs, console=console, outputs=outputs)
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print(
            f"Finished cells are kept. To go on: secure-codream {command} --resume {comparison.run.path}",
            soft_wrap=True,
        )
        raise
    if json:
        typer.echo(comparison.run.summary.read_text(encoding="utf-8"), nl=False)
    else:
        for table in result_tables(results):
            console.print(table, width=None if console.is_terminal else 120)
        for algorithm, reason in results.not_applicable.items():
            console.print(f"{algorithm} is not applicable: {reason}", markup=False, highlight=False, soft_wrap=True)
        for warned in results.warnings:
            console.print(f"warning: {warned}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"The report: {comparison.run.report}", soft_wrap=True)
    if results.failures:
        _fail(
            f"{len(results.failures)} of {results.cells} cells failed; read {comparison.logs}, "
            f"then try them again with {command} --resume {comparison.run.path}",
            1,
        )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@app.command(epilog="Example: secure-codream check --members 3-4")
def check(
    members: Annotated[str, typer.Option(help="Members of an epoch, such as 3-5 or 4.")] = "3-5",
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Six members too, which takes minutes.")] = False,
    write_tables: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Write the generated parts of this document anew."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")] = False,
) -> None:
    """Play malicious servers against the real machines: set-up, steps and epochs; then with each defence off."""
    from rich.progress import Progress

    from secure_codream.threats.checker.check import check as check_all
    from secure_codream.threats.checker.check import tables, work

    counts = _members(members, exhaustive)
    console = Console(stderr=json)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Trying strategies", total=work(counts))
        findings = check_all(counts, lambda: progress.advance(task))
    if json:
        typer.echo(dumps(findings.as_json(), indent=2))
    else:
        if not console.is_terminal:
            console.width = 120
        for table in tables(findings):
            console.print(table)
    if write_tables is not None:
        from secure_codream.threats.checker.protocol_tables import write_document

        write_document(write_tables, findings)
    if not findings.as_promised:
        _fail("what was found is not what the protocol promises; see the marked rows", 1)


def _members(text: str, exhaustive: bool) -> list[int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and 3 <= int(first) <= int(last or first) <= 6):
        raise typer.BadParameter(f"found {text!r}; 3-5, or one number from 3 to 6, is allowed", param_hint="--members")
    return sorted({*range(int(first), int(last or first) + 1), *([6] if exhaustive else [])})


@app.command(epilog="Example: secure-codream threats --quick --config federation/clients/alice/config.toml")
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
    listed: Annotated[bool, typer.Option("--list", help="Name the attacks and run none.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the laboratory.")] = 0,
    write_tables: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Write this document's tables anew, from a run of everything."),
    ] = None,
    out: Out = Path("runs"),
    json: Json = False,
) -> None:
    """Attack the code as it is deployed, each attack with a control that works without its defence."""
    import torch

    from secure_codream.threats.command import run_threats
    from secure_codream.threats.laboratory.laboratory import Cohort, cohort_of
    from secure_codream.threats.suite import alarming, all_attacks, chosen
    from secure_codream.threats.table import attacks_table, findings_table, in_short

    if clients is not None and config is None:
        raise typer.BadParameter("found it without --config, whose number of clients it gives", param_hint="--clients")
    if write_tables is not None and (only or attack or config or quick or listed):
        raise typer.BadParameter(
            "found it with a choice of attacks or settings; the document's tables are of all attacks as they come",
            param_hint="--write-tables",
        )
    torch.set_num_threads(1)  # the models are small: threads would only wait for each other
    console = Console(stderr=json, highlight=False)
    if not console.is_terminal:
        console.width = 200
    entries = chosen(all_attacks(attack or []), _listed(only) if only else [], quick=quick)
    if listed:
        if json:
            typer.echo(dumps([entry.attack.name for entry in entries]))
        else:
            console.print(attacks_table(entries))
        return
    cohort = cohort_of(config, clients) if config else Cohort()
    run = run_threats(entries, seed=seed, quick=quick, cohort=cohort, out=out, console=console)
    if json:
        typer.echo(run.folder.summary.read_text(encoding="utf-8"), nl=False)
    else:
        console.print(findings_table(run.findings))
        console.print(in_short(run.findings))
        console.print(f"The report: {run.folder.report}", soft_wrap=True)
    if write_tables is not None:
        from datetime import date

        from secure_codream.threats.document import write_document

        made = f"`secure-codream threats --seed {seed}`, {date.today().isoformat()}:"
        write_document(write_tables, run.findings, made=made)
    if found := alarming(run.findings):
        _fail("; ".join(f"{finding.entry.attack.name}: {finding.verdict.value}" for finding in found), 1)


@app.command(epilog="Example: secure-codream audit --epsilon 2 --canaries 400 --seed 1")
def audit(
    config: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="TOML with [audit] and [data]; flags win.")
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
    console = Console(stderr=json)
    with console.status("Training and attacking"):
        result = run_audit(read_audit(config, {"audit": _given(wanted), "data": _given(source)}))
    summary = keep_audit(out, result)
    if json:
        typer.echo(summary.read_text(encoding="utf-8"), nl=False)
    else:
        console.print(audit_table(result), width=None if console.is_terminal else 120)
        console.print(f"The figures: {summary}", highlight=False, soft_wrap=True)
    if refuted := result.refuted:
        _fail(
            "the claim does not hold: "
            + "; ".join(
                f"{row.adversary}: epsilon is at least {row.epsilon_lower:.3f}, claimed {row.epsilon_claimed:.3f}"
                for row in refuted
            ),
            1,
        )


@app.command(epilog="Example: secure-codream report runs/20261123-120000-demo")
def report(run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A run's folder.")]) -> None:
    """Write report.html of a finished run again."""
    from secure_codream.reports.report import write_report

    if (run / "cells").is_dir():
        raise ConfigError(f"{run}: found a comparison; its report is written by: secure-codream compare --resume {run}")
    Console(highlight=False).print(f"The report: {write_report(run)}", soft_wrap=True)


@app.command(hidden=True)
def reference(run: Path, names: list[str]) -> None:
    """Compute the references of a demonstration (started by `demo`)."""
    from secure_codream.demonstration.references import compute_references
    from secure_codream.reports.run_folder import RunFolder

    compute_references(RunFolder(run), names, sys.stdin)


def _at(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise typer.BadParameter(f"found {text!r}; EPOCH:STEP is needed", param_hint="--exhibit")
    return int(first), int(second)
