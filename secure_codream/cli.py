"""The command line; `EXIT_CODES` says what its commands return."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from enum import StrEnum
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codream_clients.journal import JournalBusy, JournalMismatch, JournalVersion
from codream_protocols.charter import default_threshold
from codream_protocols.errors import BadSignature, NotAccepted, ProtocolError, RosterRefused, UnknownIdentity
from codream_protocols.membership import fingerprint
from codream_server.record_folder import RecordFolderBusy
from secure_codream.bench_commands import bench
from secure_codream.check_commands import check, threats
from secure_codream.command_parts import Json, Out, SummaryJson, console, fail, say, say_failure, say_json
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import read_federation
from secure_codream.configuration.reading import check as check_values
from secure_codream.data_commands import data
from secure_codream.deployment.signals import Stopped
from secure_codream.experiment_commands import audit, compare, report
from secure_codream.extras import require, told_of
from secure_codream.ledger_commands import ledger
from secure_codream.membership.accepted import digits_of
from secure_codream.membership.keys import KeyFileError
from secure_codream.membership_commands import charter, join_request, keygen, roster, withdraw
from secure_codream.own_words import OwnWords
from secure_codream.party_commands import doctor, status, unreachable
from secure_codream.reports.events import Refused
from secure_codream.reports.files import RecordError
from secure_codream.reports.judgements import fall_line, judge_line
from secure_codream.reports.words import counted
from secure_codream.simulation_commands import simulate
from secure_codream.use_commands import evaluate, export, predict

if TYPE_CHECKING:
    from secure_codream.deployment.verify import Verified

app = typer.Typer(
    name="secure-codream",
    cls=OwnWords,
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
SpansKept = Annotated[bool, typer.Option("--spans", help="Write spans.json, where this process's time goes.")]


EXIT_CODES = {
    0: "done; of a server or a client that was stopped by SIGTERM, too",
    1: "the federation or this party's part in it failed or was refused, its results are not on disk, what was checked "
    "does not hold, or none of the inputs could be read",
    2: "wrong usage or configuration, or a client or server that is running already",
    3: "a key, a roster or a signature was refused, a key of another party included, or what is to be begun with was "
    "not accepted here",
    4: "an audit refutes nothing, and would often not have refuted noise of half the size",
    130: "interrupted",
}


def main() -> None:
    """Run the command line; errors a person can mend are one line on standard error, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without a sign must not end what has been done
            stream.reconfigure(errors="replace")
    try:
        app()
    except ImportError as error:
        missing = told_of(error)
        if missing is None:
            raise
        fail(str(missing), 2)
    except MENDABLE as error:
        fail(told(error), exit_code(error))


MENDABLE = (
    OSError,
    RecordError,
    ValueError,
    ProtocolError,
    RuntimeError,
    KeyboardInterrupt,
    asyncio.CancelledError,
    Stopped,
)


def told(error: BaseException) -> str:
    """What a person is told of an error that `main` takes."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return "interrupted"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk, an address that is taken
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    return str(error)


def exit_code(error: BaseException) -> int:
    """What a command returns that ends with this error, which `main` takes."""
    match error:
        case Stopped():
            return 0
        case KeyFileError() | RosterRefused() | BadSignature() | UnknownIdentity() | NotAccepted():
            return 3
        case RecordError() | ValueError() | JournalBusy() | JournalMismatch() | JournalVersion() | RecordFolderBusy():
            return 2
        case KeyboardInterrupt() | asyncio.CancelledError():
            return 130
    return 1


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
    json: SummaryJson = False,
) -> None:
    """Run a federation of real processes on this machine: digits data, different models, everything masked."""
    require("torch")  # its processes would each end without
    from secure_codream.demonstration import DemoOptions, run_demo
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
    screen = console(stderr=json, highlight=None)
    with LivePanel(screen) as panel:
        summary, run = run_demo(options, panel)
    if json:
        typer.echo(run.summary.read_text(encoding="utf-8"), nl=False)
        return
    screen.print(result_table(summary))
    if summary.dropped:
        screen.print(f"Killed in the middle of a step, and started again: {', '.join(summary.dropped)}")
    if epsilon is not None:
        screen.print(read_statement(run.path).headline)
    screen.print(f"The report: {run.report}", soft_wrap=True)


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
    json: Json = False,
) -> None:
    """On one machine: make everybody's keys, roster and charter, accepted for everybody, and one folder a party.

    Where sites make their own keys: `keygen`, `join-request`, `roster`, `charter`.
    """
    from secure_codream.deployment.exposure import exposures, remarks
    from secure_codream.deployment.provision import provision as make

    pairs = [text.partition("=") for text in client]
    if any(not (name and model) for name, _, model in pairs):
        raise typer.BadParameter(f"found {client}; NAME=MODEL is needed", param_hint="--client")
    configs = [
        check_values(f"--client {name}={model}", ClientConfig, {"name": name, "model": model, "seed": number})
        for number, (name, _, model) in enumerate(pairs)
    ]
    roster = make(out, config=read_federation(config), clients=configs, address=address, serial=serial)
    federation = read_federation(config)
    warned = [*exposures(federation, roster), *remarks(federation)]
    if json:
        say_json(
            {
                "roster": roster.hash.hex(),
                "serial": serial,
                "administrator": str(out / "administrator"),
                "server": str(out / "server"),
                "clients": {member.name: str(out / "clients" / member.name) for member in roster.members},
                "exposed": warned,
            }
        )
        return
    screen = console()
    screen.print(f"Roster {roster.hash.hex()[:16]}… of {len(roster.members)} clients, serial {serial}.")
    for line in warned:
        say(screen, line)
    course = federation.federation.course
    if (model := federation.common_model) is not None:
        if federation.dp_sgd is None:
            told = f"everybody trains {model}, the model of [averaging], and no client its own."
        else:
            told = f"everybody trains {model}; clients with another model learn it from that one's answers in the end."
        screen.print(f"Course {course}: {told}")
    say(
        screen,
        f"All private keys were made here, and {out} has them: whoever reads it can be each of the clients, and has "
        "accepted for them. Sites of their own make keys with keygen.",
    )
    screen.print(f"Folders: {out}/server of the aggregator, {out}/clients/NAME of each client.", soft_wrap=True)
    screen.print(f"Keep offline: {out}/administrator/administrator.key", soft_wrap=True)


@app.command(epilog="Example: secure-codream server federation/server --listen tcp://0.0.0.0:7447")
def server(
    folder: Folder,
    listen: Annotated[str | None, typer.Option(help="Endpoint to bind; the roster's address otherwise.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for sums; one for each core otherwise.")] = None,
    exhibit: At = None,
    spans: SpansKept = False,
) -> None:
    """Run the aggregator until its federation is over. It needs no torch."""
    from secure_codream.deployment.endings import server_ending
    from secure_codream.deployment.server import run_server
    from secure_codream.reports.panel import LivePanel

    screen = console()
    with LivePanel(screen) as panel:

        def show(event: dict[str, Any]) -> None:
            if event["event"] in ("exposure", "acceptances", "expiry"):
                say(screen, event["text"])
            elif event["event"] == "federation_started" and event["certified"]:
                panel.feed(event)
                screen.print(f"going on after {event['certified']} of {event['epochs']} certified epochs")
            else:
                panel.feed(event)

        run_server(folder, listen=listen, exhibit=_at(exhibit), spans=spans, threads=threads, watch=show)
    for line in server_ending(folder):
        say(screen, line)


@app.command(epilog="Example: secure-codream client federation/clients/alice")
def client(
    folder: Folder,
    address: Annotated[
        str | None, typer.Option(help="Where the server listens; the roster's address otherwise.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for torch and for sums.")] = None,
    exhibit: At = None,
    spans: SpansKept = False,
) -> None:
    """Take part in a federation with this client's data and model; the trained weights are in FOLDER/model.safetensors.

    A client that is started again goes on with its model and with what it has signed.
    """
    from codream_clients.runner import still_learning
    from secure_codream.deployment.client import run_client
    from secure_codream.deployment.endings import client_ending

    screen = console()

    def show(event: dict[str, Any]) -> None:
        line = _client_line(event)
        if line is not None:
            say(screen, line)

    if (why := unreachable(folder, address)) is not None:
        say(screen, why, style="yellow")
    try:
        run_client(folder, address=address, threads=threads, exhibit=_at(exhibit), spans=spans, watch=show)
    except MENDABLE as error:
        if not still_learning():
            raise
        # All files are closed. The thread that computes cannot be stopped, and Python would wait for it.
        say_failure(told(error))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code(error))
    for line in client_ending(folder):
        say(screen, line)


def _client_line(event: dict[str, Any]) -> str | None:
    """What a client's screen says of a line of its log; its own text, or what the log has made printable."""
    match event["event"]:
        case "exposure" | "expiry" | "data" | "masks":
            return str(event["text"])
        case "warm-up":
            return f"training alone: {event['model']}" if event["model"] else None
        case "resume":
            return f"going on with {event['model']}, which has learnt {counted(event['certified'], 'epoch')}"
        case "prepared":
            return "ready for the rounds; waiting for the server and the others"
        case "waiting":
            return f"the server says that it waits for {event['names']}" if event.get("names") else None
        case "progress":
            return f"{event['what']}: {event.get('percent', 0)} %"
        case "spool-failed":
            return f"this disk does not take a sum that is on its way ({event['found']}); make room, and it comes again"
        case "judge":
            return judge_line(event)
        case "worse":
            return fall_line(event)
        case "stranger":
            return (
                f"somebody answers at {event['address']} without the key of the roster's server: another server, or "
                "another program; compare the address and the server's fingerprint (roster show)"
            )
        case "silence":
            where = event["address"] or "the server"
            return f"no word from {where} for {event['seconds']} s; asking again; `doctor` says what is in the way"
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
        str | None,
        typer.Option(help="Who must have signed the roster: a fingerprint, as it is read out, or a public key."),
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(help="MODULE:NAME=SHA256 of own code of the charter that may be run; repeat for each."),
    ] = None,
    json: Json = False,
    successor: Annotated[
        bool,
        typer.Option("--successor", help="Print the \\[predecessor] table of a charter that follows, nothing else."),
    ] = False,
) -> None:
    """Check what a federation published, as anybody can: every signature, every sum's place, every state, no secret.

    Exit code 1 names the file that does not verify.
    """
    from dataclasses import asdict

    from secure_codream.deployment.verify import RecordRefused, successor_table, verify_history

    digits = "" if administrator is None else digits_of(administrator)
    if administrator is not None and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digits):
        raise typer.BadParameter(
            f"found {administrator!r}; 40 hexadecimal digits of a fingerprint, or 64 of a key, are needed",
            param_hint="--administrator",
        )
    key = bytes.fromhex(digits) if len(digits) == 64 else None
    try:
        verified, *before = verify_history(record, administrator=key, permitted=_permitted(code or []))
    except RecordRefused as error:
        fail(str(error), 1)
    signer = fingerprint(bytes.fromhex(verified.administrator))
    if key is None and digits not in ("", digits_of(signer)):
        fail(f"{record}: found a roster.json of the administrator {signer}; {administrator}'s is needed", 1)
    if json:
        say_json({**asdict(verified), "before": before})
        return
    if successor:
        typer.echo(successor_table(verified))
        return
    screen = console()
    names = ", ".join(verified.members)
    say(screen, f"Federation {verified.federation}, charter {verified.charter}")
    say(screen, f"Members: {names}")
    known = "as given" if administrator else "compare it with what the administrator reads out"
    say(screen, f"Roster signed by the administrator with the fingerprint {signer}; {known}.")
    say(
        screen,
        f"Charter {'signed' if verified.signed else 'not signed'} by the administrator. {_acceptances(verified)}",
    )
    if verified.earlier:
        say(screen, f"It follows charter {verified.follows}, which had certified {counted(verified.earlier, 'epoch')}.")
    for one in before:
        say(
            screen, f"Charter {one.charter} verified: {counted(one.epochs, 'epoch')}, and ended with the head it names."
        )
    votes = ", ".join(map(str, verified.votes)) or "none"
    planned = verified.planned - verified.earlier
    screen.print(
        f"{verified.epochs} of {counted(planned, 'epoch')} verified; votes of {votes} members.", soft_wrap=True
    )
    screen.print(f"Head: {verified.head}", soft_wrap=True)
    screen.print("Compare the head with a member's: whoever has the same one has the same history.", soft_wrap=True)


def _acceptances(verified: Verified) -> str:
    missing = ", ".join(name for name in verified.members if name not in verified.accepted)
    if not missing:
        return "All members have accepted it."
    return f"Accepted by {', '.join(verified.accepted) or 'nobody'}; no acceptance here of {missing}."


def _permitted(code: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in code]
    if any(not (name and found) for name, _, found in pairs):
        raise typer.BadParameter(f"found {code}; MODULE:NAME=SHA256 is needed", param_hint="--code")
    return {name: found for name, _, found in pairs}


# in the order of the help
app.command(epilog="Example: secure-codream keygen sites/alice --name alice --model resnet8")(keygen)
app.command("join-request", epilog="Example: secure-codream join-request sites/alice")(join_request)
app.add_typer(roster, name="roster", no_args_is_help=True)
app.command(epilog="Example: secure-codream charter admin config.toml")(charter)
app.command(epilog="Example: secure-codream withdraw sites/alice")(withdraw)
app.command(epilog="Example: secure-codream doctor sites/alice")(doctor)
app.command(epilog="Example: secure-codream status federation/server")(status)
app.add_typer(ledger, name="ledger", no_args_is_help=True)
app.command(epilog="Example: secure-codream data scans --sheet scans.png")(data)
app.command(epilog="Example: secure-codream predict federation/clients/alice scans/ --out predicted.csv")(predict)
app.command(epilog="Example: secure-codream evaluate federation/clients/alice scans.npz")(evaluate)
app.command(epilog="Example: secure-codream export federation/clients/alice --out model.onnx")(export)
app.command(
    epilog="Example: secure-codream compare --algorithms isolated,codream,fedavg,centralised "
    "--partitions iid,dirichlet:0.5 --seeds 0-4 --data digits --per-client 30"
)(compare)
app.command(
    "sweep",
    help="Accuracy against epsilon: compare --epsilons, with CoDream, clients alone and all data in one place.",
    epilog="Example: secure-codream sweep --epsilons 2,8,none --partitions iid,dirichlet:0.5 --seeds 0-4 --data digits",
)(compare)
app.command(epilog="Example: secure-codream simulate --members 200 --drop 0.01 --latency 40 --bandwidth 20")(simulate)
app.command(epilog="Example: secure-codream check --members 3-4")(check)
app.command(epilog="Example: secure-codream threats --quick --config federation/clients/alice/config.toml")(threats)
app.command(epilog="Example: secure-codream audit --epsilon 2 --canaries 400 --seed 1")(audit)
app.command(epilog="Example: secure-codream bench --members 20 --bits 16,21 --against flower")(bench)
app.command(epilog="Example: secure-codream report runs/20261123-120000-demo")(report)


@app.command(hidden=True)
def reference(run: Path, names: list[str]) -> None:
    """Compute the references of a demonstration (started by `demo`)."""
    from secure_codream.demonstration_references import compute_references
    from secure_codream.reports.run_folder import RunFolder

    compute_references(RunFolder(run), names, sys.stdin)


def _at(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise typer.BadParameter(f"found {text!r}; EPOCH:STEP is needed", param_hint="--exhibit")
    return int(first), int(second)
