"""Provisioning: the administrator's act. Keys, a signed roster, and one folder to hand to each party.

    <out>/administrator/   administrator.key (keep it offline), administrator.pub
    <out>/server/          transport.key, roster.json, administrator.pub, config.toml
    <out>/clients/<name>/  identity.key, transport.key, roster.json, administrator.pub, config.toml, client.toml

Private keys are files of mode 0600 that hold 64 hexadecimal digits; a key that others may read is refused when it
is read. Folders are of mode 0700. Nothing is ever overwritten.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import tomli_w

from codream_protocols.charter import Offer, derive_plan
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, read_roster, sign_roster
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course, with_layout
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reference import with_comments
from secure_codream.deployment.keys import KEY_BYTES, KeyFileError, new_transport_key, public_transport_key


def provision(
    out: Path, *, config: FederationConfig, clients: list[ClientConfig], address: str, serial: int = 1
) -> Roster:
    """Make every party's folder under `out` and return the signed roster.

    Args:
        out: a folder; it may exist, but none of the files.
        config: the federation's configuration, copied to each party.
        clients: one configuration for each client, in the roster's order.
        address: where the server will listen, such as "tcp://aggregator.example:7447".
        serial: the roster's serial number.

    Raises:
        KeyFileError: a file exists already.
        RosterRefused: two clients have one name, or a client's name, the address or their number does not fit.
        ConfigError, UnsafePlan: a federation that could never run: too few clients for its settings, for example.
    """
    administrator_key, server_key = secrets.token_bytes(KEY_BYTES), new_transport_key()
    identity_keys = [secrets.token_bytes(KEY_BYTES) for _ in clients]
    transport_keys = [new_transport_key() for _ in clients]
    administrator = Signer(administrator_key)
    members = tuple(
        Member(client.name, Signer(identity).public, public_transport_key(transport))
        for client, identity, transport in zip(clients, identity_keys, transport_keys, strict=True)
    )
    server = ServerEntry(address, public_transport_key(server_key))
    signed = sign_roster(Roster(config.federation.name, serial, server, members), administrator)
    # Whatever would be refused later is refused here, before anything is written.
    roster = read_roster(signed, administrator.public)
    config = with_layout(config)
    charter = config.charter(roster)
    derive_plan(charter, make_course(config), Offer(0, charter.everybody, charter.first_head), 0)
    _write_key(out / "administrator" / "administrator.key", administrator_key)
    _write_key(out / "server" / "transport.key", server_key)
    for client, identity, transport in zip(clients, identity_keys, transport_keys, strict=True):
        folder = out / "clients" / client.name
        _write_key(folder / "identity.key", identity)
        _write_key(folder / "transport.key", transport)
        _write_new(folder / "client.toml", with_comments(tomli_w.dumps(_plain(client)), ClientConfig).encode())
    for folder in (out / "server", *(out / "clients" / client.name for client in clients)):
        _write_new(folder / "roster.json", signed)
        _write_new(folder / "administrator.pub", administrator.public.hex().encode() + b"\n")
        _write_new(folder / "config.toml", tomli_w.dumps(_plain(config)).encode())
    _write_new(out / "administrator" / "administrator.pub", administrator.public.hex().encode() + b"\n")
    return roster


def _write_key(path: Path, key: bytes) -> None:
    _write_new(path, key.hex().encode() + b"\n")


def _write_new(path: Path, content: bytes) -> None:
    for folder in (*reversed(path.parent.parents), path.parent):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)  # each of them: `parents=True` would leave those above readable
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path}: found a file already; choose another folder, nothing is overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _plain(table: ClientConfig | FederationConfig) -> dict[str, object]:
    return table.model_dump(mode="json", exclude_none=True)
