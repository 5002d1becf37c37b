"""Commands of a federation's life: keys, requests, rosters, charters, acceptance and withdrawal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from codream_protocols.identity import Roster, Signer
from codream_protocols.membership import (
    JoinRequest,
    ServerRequest,
    ask_to_join,
    fingerprint,
    fingerprint_of,
    statement_bytes,
)
from secure_codream.command_parts import Json, console, fail, say, say_json
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.reading import check
from secure_codream.deployment.files import CLIENT_FILE
from secure_codream.membership import administration, keys
from secure_codream.membership.accepted import CHARTER, ROSTER, expiry_warning, same_fingerprint
from secure_codream.membership.addresses import require_address
from secure_codream.membership.administration import MOST_VALID_DAYS, VALID_DAYS, Change
from secure_codream.membership.files import read_bounded, write_new
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.words import counted

if TYPE_CHECKING:
    from secure_codream.deployment.acceptance import Offered

Party = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="This party's folder.")]
Administrator = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, help="The administrator's folder, made by `keygen`.")
]
Server = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The server's join request.")]
NewServer = Annotated[
    Path | None, typer.Option("--server", exists=True, dir_okay=False, help="The server's new join request.")
]
Requests = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)]
Second = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="administrator.pub of another administrator, who may sign as well."),
]
ValidDays = Annotated[
    int, typer.Option(min=1, max=MOST_VALID_DAYS, help="How long parties may begin with the roster, in days.")
]
Previous = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="The roster before, where another administrator signed it."),
]


# -- keys, at each party ---------------------------------------------


def keygen(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="This party's folder; nothing in it is overwritten.")],
    name: Annotated[str | None, typer.Option(help="A client's name, as the roster will have it.")] = None,
    model: Annotated[str, typer.Option(help="A client's model; it stands in client.toml.")] = "cnn2",
    server: Annotated[bool, typer.Option("--server", help="The aggregator's key.")] = False,
    administrator: Annotated[bool, typer.Option("--administrator", help="The key that signs rosters.")] = False,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Seal the keys under a passphrase, which is asked for.")
    ] = False,
    json: Json = False,
) -> None:
    """Make this party's private keys. They never leave the folder.

    A passphrase is asked on the terminal, or read from the file that SECURE_CODREAM_PASSPHRASE_FILE names, or from
    SECURE_CODREAM_PASSPHRASE; so it is again when the party starts.
    """
    from secure_codream.deployment.provision import client_file

    if (name is not None) + server + administrator != 1:
        raise typer.BadParameter("one of --name NAME, --server and --administrator is needed")
    asked = Passphrase() if passphrase else None
    screen = console(stderr=json)
    if name is not None:
        config = check(f"--name {name} --model {model}", ClientConfig, {"name": name, "model": model})
        keys.make_keys(folder, keys.IDENTITY, keys.TRANSPORT, passphrase=asked)
        if not (folder / CLIENT_FILE).exists():
            write_new(folder / CLIENT_FILE, client_file(config))
        say(screen, f"Keys of {name}: {folder}/{keys.IDENTITY}, {folder}/{keys.TRANSPORT}. They stay here.")
        say(screen, f"Complete {folder}/{CLIENT_FILE}, then run: secure-codream join-request {folder}")
        made = [keys.IDENTITY, keys.TRANSPORT]
    elif server:
        keys.make_keys(folder, keys.TRANSPORT, passphrase=asked)
        say(screen, f"Key of the server: {folder}/{keys.TRANSPORT}. It stays here.")
        say(screen, f"Next: secure-codream join-request {folder} --address tcp://HOST:PORT")
        made = [keys.TRANSPORT]
    else:
        keys.make_keys(folder, keys.ADMINISTRATOR, passphrase=asked)
        (public,) = keys.read_pinned_keys(folder / keys.PINNED)
        say(screen, f"Key of the administrator: {folder}/{keys.ADMINISTRATOR}. Keep it off the network.")
        say(screen, f"Fingerprint, to read out to every site: {fingerprint(public)}")
        made = [keys.ADMINISTRATOR, keys.PINNED]
    if json:
        say_json({"party": name or ("server" if server else "administrator"), "files": [str(folder / x) for x in made]})


def join_request(
    folder: Party,
    address: Annotated[str | None, typer.Option(help="Where the server will listen, tcp://HOST:PORT.")] = None,
    json: Json = False,
) -> None:
    """Write what the administrator needs of this party: public keys, signed by itself. Nothing in it is secret."""
    passphrase, screen = Passphrase(), console(stderr=json)
    transport = keys.public_transport_key(keys.read_private_key(folder / keys.TRANSPORT, passphrase))
    request: JoinRequest | ServerRequest
    if (folder / CLIENT_FILE).exists():
        if address is not None:
            raise typer.BadParameter(
                "found it with a client's folder; the server alone has one", param_hint="--address"
            )
        client = read_client(folder / CLIENT_FILE)
        signer = Signer(keys.read_private_key(folder / keys.IDENTITY, passphrase))
        request = ask_to_join(signer, client.name, transport, client.model)
        path = folder / f"{client.name}.join.json"
    else:
        if address is None:
            raise typer.BadParameter("found none; tcp://HOST:PORT is needed", param_hint="--address")
        request = ServerRequest(require_address(address), transport)
        path = folder / "server.join.json"
    content = statement_bytes(request)
    if not (path.exists() and read_bounded(path, 2 * len(content)) == content):
        write_new(path, content)
    administration.request_of(path)  # what the administrator would refuse is refused here
    say(screen, f"{path}: send it to the administrator.")
    say(screen, f"Fingerprint, to read out to the administrator: {_of_request(request)}")
    if json:
        party, digits = _whose(request)
        say_json({"file": str(path), "party": party, "fingerprint": digits})


def withdraw(
    folder: Party,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: delete.")] = False,
    json: Json = False,
) -> None:
    """Take part no more: sign it for the administrator, and delete this client's keys, journal and weights."""
    from secure_codream.deployment.withdrawal import CONSEQUENCES, withdraw_from

    screen, name = console(stderr=json), read_client(folder / CLIENT_FILE).name
    for line in CONSEQUENCES:
        say(screen, line)
    if not yes:
        typer.confirm(f"Withdraw {name}, and delete this?", abort=True, err=json)
    path = withdraw_from(folder, Passphrase(), name)
    say(screen, f"{name} has withdrawn. Send the administrator {path}.")
    if json:
        say_json({"file": str(path), "party": name})


# -- the administrator's ---------------------------------------------

roster = typer.Typer(help="Who takes part: made and signed by an administrator, verified and accepted by each party.")


@roster.command(
    epilog="Example: secure-codream roster create admin --name study --server server.join.json --client a.join.json "
    "--client b.join.json --client c.join.json"
)
def create(
    folder: Administrator,
    client: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="A client's join request; repeat.")],
    server: Server,
    name: Annotated[
        str, typer.Option(help="The federation's name, as \\[federation] in config.toml has it.")
    ] = "federation",
    valid_days: ValidDays = VALID_DAYS,
    second: Second = None,
    json: Json = False,
) -> None:
    """Sign a federation's first roster, from join requests whose fingerprints were compared."""
    made = administration.create(
        folder,
        administration.administrator_of(folder, Passphrase()),
        federation=name,
        clients=[administration.client_request(path) for path in client],
        server=administration.server_request(server),
        valid_days=valid_days,
        second=_second(second),
    )
    if json:
        say_json({"file": str(folder / "roster-1.json"), "roster": _as_json(made)})
        return
    screen = console()
    _tell_roster(made, screen)
    say(screen, f"Written: {folder}/roster-1.json. Next: secure-codream charter {folder} config.toml")


@roster.command(epilog="Example: secure-codream roster change admin --add d.join.json --remove c")
def change(
    folder: Administrator,
    add: Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A new client's request.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="NAME of a client who is revoked.")] = None,
    withdrawn: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A client's signed withdrawal.json.")
    ] = None,
    rotate: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Request of a client with new keys.")
    ] = None,
    server: NewServer = None,
    second: Second = None,
    without: Annotated[
        str | None, typer.Option(help="Fingerprint of the other administrator, who may sign no more.")
    ] = None,
    valid_days: ValidDays = VALID_DAYS,
    previous: Previous = None,
    signed_by: Annotated[
        str | None,
        typer.Option(help="Fingerprint of who signed the roster before, where this folder does not know it."),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Sign with a key that the roster before does not name.")
    ] = False,
    json: Json = False,
) -> None:
    """Sign the next roster: all changes together, under one new serial number."""
    signer = administration.administrator_of(folder, Passphrase())
    before_path = previous or administration.newest_roster(folder)
    before = administration.parsed(before_path)
    gone = [*(remove or []), *(administration.withdrawn_name(path, before) for path in withdrawn or [])]
    changes = Change(
        add=[administration.client_request(path) for path in add or []],
        remove=gone,
        rotate=[administration.client_request(path) for path in rotate or []],
        server=None if server is None else administration.server_request(server),
        second=_second(second),
        without=None if without is None else _named(before, without),
        take_over=take_over,
    )
    before, made = administration.change(
        folder, signer, changes, previous=before_path, signed_by=signed_by, valid_days=valid_days
    )
    if json:
        say_json({"file": str(folder / f"roster-{made.serial}.json"), "roster": _as_json(made)})
        return
    screen = console()
    _tell_changes(before, made, screen)
    _tell_roster(made, screen)
    say(
        screen,
        f"Written: {folder}/roster-{made.serial}.json. It is for a charter that follows: "
        f"secure-codream charter {folder} config.toml --after RECORD",
    )


@roster.command()
def add(folder: Administrator, request: Requests, json: Json = False) -> None:
    """The same as `roster change --add`."""
    change(folder, add=request, json=json)


@roster.command()
def remove(folder: Administrator, name: Annotated[list[str], typer.Argument()], json: Json = False) -> None:
    """The same as `roster change --remove`: these clients are revoked."""
    change(folder, remove=name, json=json)


@roster.command()
def rotate(folder: Administrator, request: Requests, json: Json = False) -> None:
    """The same as `roster change --rotate`: new keys for these clients; the old ones are revoked."""
    change(folder, rotate=request, json=json)


@roster.command()
def show(
    path: Annotated[Path, typer.Argument(exists=True, help="A roster, a folder that has one, or a join request.")],
    json: Json = False,
) -> None:
    """Print members, fingerprints, serial number and last day. Of whom a roster is, `roster verify` says."""
    if path.name.endswith(".join.json"):
        party, digits = _whose(administration.request_of(path))
        if json:
            say_json({"party": party, "fingerprint": digits})
        else:
            say(console(), f"Fingerprint: {party}: {digits}")
        return
    found = administration.parsed(path / ROSTER if path.is_dir() else path)
    if json:
        say_json(_as_json(found))
    else:
        _tell_roster(found, console())


def _as_json(found: Roster) -> dict[str, Any]:
    return {
        "federation": found.federation,
        "serial": found.serial,
        "expires": found.expires,
        "administrators": [fingerprint(key) for key in found.administrators],
        "server": {"address": found.server.address, "fingerprint": fingerprint_of(found.server)},
        "members": {member.name: fingerprint_of(member) for member in found.members},
        "revoked": {member.name: fingerprint_of(member) for member in found.revoked},
    }


@roster.command(
    epilog='Example: secure-codream roster verify sites/a charter-1 --administrator "1234 5678 ..." --accept'
)
def verify(
    folder: Party,
    offered: Annotated[
        Path, typer.Argument(metavar="ROSTER", exists=True, help="The roster, or the folder with both.")
    ],
    charter: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="The charter, its signature beside it; the roster's neighbour."
        ),
    ] = None,
    administrator: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the administrator, as read out; needed once, and for another administrator."),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept what is printed: sign it, and begin with it from now on.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a roster and a charter against all that this party knows, print what they ask, and accept them."""
    from secure_codream.deployment.acceptance import read_offered
    from secure_codream.deployment.verify import RecordRefused

    path = offered / ROSTER if offered.is_dir() else offered
    beside = charter or path.with_name(CHARTER)
    try:
        found = read_offered(
            folder,
            path,
            beside if beside.exists() else None,
            administrator=administrator,
            passphrase=Passphrase(),
            taking=accept,
        )
    except RecordRefused as error:
        fail(str(error), 1)
    screen = console(stderr=json)
    _tell_offered(found, screen)
    aside = found.accept(folder) if accept else None
    if json:
        say_json(
            {
                "party": found.member or "server",
                "signer": fingerprint(found.signer),
                "roster": _as_json(found.roster),
                "charter": None if found.charter is None else found.charter.digest.hex(),
                "exposed": found.exposed,
                "accepted": accept,
            }
        )
        return
    if not accept:
        say(screen, "All of it verifies. Nothing was accepted; to accept it, the same with --accept.")
        return
    if aside is not None:
        say(screen, f"What belonged to the charter before lies in {aside}; it verifies as before.")
    if found.member is None:
        say(screen, f"Taken. The server begins with it: secure-codream server {folder}")
    else:
        say(screen, f"Accepted by {found.member}: send {folder}/acceptance.json to whoever runs the server.")


def charter(
    folder: Administrator,
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The federation's config.toml.")],
    after: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Record of the charter that this one follows.")
    ] = None,
    json: Json = False,
) -> None:
    """Sign the charter: all settings of config.toml, for the newest roster. Its folder is handed to every party."""
    from secure_codream.deployment.charter import following, sign
    from secure_codream.deployment.exposure import exposures, remarks
    from secure_codream.deployment.verify import RecordRefused

    federation = read_federation(config)
    try:
        if after is not None:
            federation = following(federation, after)
    except RecordRefused as error:
        fail(str(error), 1)
    signer = administration.administrator_of(folder, Passphrase())
    out, found, federation = sign(folder, signer, federation)
    exposed = [*exposures(federation, found), *remarks(federation)]
    if json:
        say_json(
            {
                "folder": str(out),
                "charter": federation.charter(found).digest.hex(),
                "exposed": exposed,
                "fingerprint": fingerprint(signer.public),
            }
        )
        return
    screen = console()
    _tell_settings(federation, found, screen)
    for line in exposed:
        say(screen, line)
    say(screen, f"Hand out to every party: {out} ({ROSTER}, {CHARTER}, charter.signature). Nothing in it is secret.")
    say(screen, f"Fingerprint, to read out to every site: {fingerprint(signer.public)}")


# -- in words ---------------------------------------------


def _tell_roster(found: Roster, screen: Console) -> None:
    say(screen, f"Roster of {found.federation}, serial {found.serial}, to be begun with until {found.expires} (UTC)")
    for key in found.administrators:
        say(screen, f"  administrator  {fingerprint(key)}")
    say(screen, f"  server  {found.server.address}  {fingerprint_of(found.server)}")
    for member in found.members:
        say(screen, f"  {member.name}  {fingerprint_of(member)}")
    for member in found.revoked:
        say(screen, f"  revoked: {member.name}  {fingerprint_of(member)}")
    if (warning := expiry_warning(found)) is not None:
        say(screen, warning)


def _tell_changes(before: Roster, after: Roster, screen: Console) -> None:
    old, new = set(before.members), set(after.members)
    for member in sorted(new - old, key=lambda one: one.name):
        again = any(member.name == one.name for one in before.members)
        say(screen, f"{'New keys' if again else 'Added'}: {member.name}  {fingerprint_of(member)}")
    for member in sorted(old - new, key=lambda one: one.name):
        say(screen, f"Revoked: {member.name}  {fingerprint_of(member)}")
    if before.server != after.server:
        say(screen, f"Server: {after.server.address}  {fingerprint_of(after.server)}")
    _tell_administrators(before.administrators, after.administrators, screen)


def _tell_administrators(before: Sequence[bytes], after: Sequence[bytes], screen: Console) -> None:
    for key in after:
        if key not in before:
            say(screen, f"May sign from now on: administrator {fingerprint(key)}")
    for key in before:
        if key not in after:
            say(screen, f"May sign no more: administrator {fingerprint(key)}")


def _tell_settings(config: FederationConfig, found: Roster, screen: Console) -> None:
    from secure_codream.deployment.exposure import protection

    charter_ = config.charter(found)
    table = config.federation
    say(screen, f"Charter {charter_.digest.hex()}")
    rounds = "" if table.course == "sums" else f", {counted(table.rounds, 'round')}"
    say(screen, f"Course {table.course}{rounds}; {counted(charter_.aggregation.colluders, 'member')} may collude.")
    say(screen, protection(config))
    for reference, found_digest in sorted(config.code.items()):
        say(screen, f'Own code that every party RUNS: "{reference}" = "{found_digest}"')
    if charter_.predecessor is not None:
        certified = counted(charter_.predecessor.certified, "epoch")
        say(screen, f"It follows charter {charter_.predecessor.charter.hex()}, which certified {certified}.")


def _tell_offered(found: Offered, screen: Console) -> None:
    say(screen, f"Signed by the administrator {fingerprint(found.signer)}")
    if found.pinned:
        _tell_administrators(found.pinned, found.roster.administrators, screen)
    _tell_roster(found.roster, screen)
    if found.config is not None:
        _tell_settings(found.config, found.roster, screen)
        for line in found.exposed:
            say(screen, line)


def _of_request(request: JoinRequest | ServerRequest) -> str:
    return ": ".join(_whose(request))


def _whose(request: JoinRequest | ServerRequest) -> tuple[str, str]:
    """Whose a request is, and its fingerprint."""
    if isinstance(request, ServerRequest):
        return f"server at {request.address}", fingerprint_of(request.entry)
    return f"{request.name} ({request.model})", fingerprint_of(request.member)


def _second(path: Path | None) -> bytes | None:
    return None if path is None else keys.read_pinned_keys(path)[0]


def _named(before: Roster, wanted: str) -> bytes:
    for key in before.administrators:
        if same_fingerprint(wanted, fingerprint(key)):
            return key
    known = " or ".join(map(fingerprint, before.administrators))
    raise typer.BadParameter(f"found {wanted!r}; {known} is allowed", param_hint="--without")
