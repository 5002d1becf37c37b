"""Provisioning, for one machine: everybody's keys, a signed roster and charter, and everybody's acceptance.

    <out>/administrator/   administrator.key, administrator.pub, roster-1.json, charter-1/
    <out>/server/          transport.key, acceptances/, and what all have
    <out>/clients/<name>/  identity.key, transport.key, client.toml, acceptance.json, and what all have

What all have: roster.json, newest_roster.json, administrator.pub, charter.json, charter.signature, config.toml. Whoever
provisions has been everybody; where nobody should be, sites make their own keys (`membership_commands`). Private keys
are files of mode 0600 that hold 64 hexadecimal digits; a key that others may read is refused when it is read. Folders
are of mode 0700. Nothing is ever overwritten.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

from codream_clients.models.names import GROUP_NORM_SUFFIX, split_norm
from codream_clients.own_parts import is_reference
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, read_roster
from codream_protocols.membership import accept, sign_charter, statement_bytes
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError
from secure_codream.configuration.reference import with_comments
from secure_codream.deployment.charter import config_file, handed_out, runnable
from secure_codream.deployment.files import CLIENT_FILE
from secure_codream.membership.accepted import (
    ACCEPTANCE,
    ACCEPTANCES,
    CONFIG,
    NEWEST,
    Newest,
)
from secure_codream.membership.addresses import require_address
from secure_codream.membership.administration import VALID_DAYS, checked, last_day
from secure_codream.membership.files import WouldOverwrite, write_new
from secure_codream.membership.keys import (
    ADMINISTRATOR,
    IDENTITY,
    PINNED,
    TRANSPORT,
    KeyFileError,
    new_identity_key,
    new_transport_key,
    pinned_bytes,
    public_transport_key,
    write_key,
)


def provision(
    out: Path,
    *,
    config: FederationConfig,
    clients: list[ClientConfig],
    address: str,
    serial: int = 1,
    valid_days: int = VALID_DAYS,
) -> Roster:
    """Make every party's folder under `out` and return the signed roster.

    Args:
        out: a folder; it may exist, but none of the files.
        config: the federation's configuration, copied to each party.
        clients: one configuration for each client, in the roster's order.
        address: where the server will listen, such as "tcp://aggregator.example:7447".
        serial: the roster's serial number.
        valid_days: how long the roster may be begun with, from today on.

    Raises:
        KeyFileError: a file exists already.
        RosterRefused: two clients have one name, or a client's name, the address or their number does not fit.
        ConfigError, UnsafePlan: a federation that could never run: too few clients for its settings, an address that
            nobody can connect to, or a model that mixes records in one with `[privacy]`.
    """
    require_address(address)
    for client in clients:
        _require_private(client, config)
    administrator_key, server_key = new_identity_key(), new_transport_key()
    identity_keys = [new_identity_key() for _ in clients]
    transport_keys = [new_transport_key() for _ in clients]
    administrator = Signer(administrator_key)
    members = tuple(
        Member(client.name, Signer(identity).public, public_transport_key(transport))
        for client, identity, transport in zip(clients, identity_keys, transport_keys, strict=True)
    )
    server = ServerEntry(address, public_transport_key(server_key))
    pinned, expires = (administrator.public,), last_day(valid_days)
    # Whatever would be refused later is refused here, before anything is written.
    signed = checked(Roster(config.federation.name, serial, server, members, pinned, expires), administrator)
    roster = read_roster(signed, administrator.public)
    config, charter = runnable(config, roster)
    said = {
        client.name: statement_bytes(accept(Signer(identity), client.name, charter, roster))
        for client, identity in zip(clients, identity_keys, strict=True)
    }
    offered = handed_out(config, roster, signed, sign_charter(charter, administrator))
    shared = {
        **offered,
        NEWEST: statement_bytes(Newest(roster.serial, roster.hash)),
        PINNED: pinned_bytes(pinned),
        CONFIG: config_file(config),
    }
    try:
        write_key(out / "administrator" / ADMINISTRATOR, administrator_key)
        write_key(out / "server" / TRANSPORT, server_key)
        for client, identity, transport in zip(clients, identity_keys, transport_keys, strict=True):
            folder = out / "clients" / client.name
            write_key(folder / IDENTITY, identity)
            write_key(folder / TRANSPORT, transport)
            write_new(folder / CLIENT_FILE, client_file(client))
            _write_all(folder, {**shared, ACCEPTANCE: said[client.name]})
        _write_all(out / "server", shared)
        _write_all(out / "server" / ACCEPTANCES, {f"{name}.json": content for name, content in said.items()})
        _write_all(out / "administrator", {PINNED: shared[PINNED], f"roster-{serial}.json": signed})
        _write_all(out / "administrator" / "charter-1", offered)
    except WouldOverwrite as error:
        raise KeyFileError(str(error)) from None
    return roster


def _require_private(client: ClientConfig, config: FederationConfig) -> None:
    """A model of the zoo's whose name says batch norm; what a reference builds is seen at the client."""
    if config.privacy is None or config.federation.course == "sums" or config.common_model is not None:
        return
    if split_norm(client.model) == (client.model, None) and not is_reference(client.model):
        raise ConfigError(
            f"client {client.name}: found model {client.model!r}, whose batch norm mixes records, in a federation with "
            f"[privacy]; take {client.model}{GROUP_NORM_SUFFIX}, which has group norm"
        )


def client_file(client: ClientConfig) -> bytes:
    """A client's `client.toml`, with the sentence of each key above it."""
    return with_comments(tomli_w.dumps(client.model_dump(mode="json", exclude_none=True)), ClientConfig).encode()


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        write_new(folder / name, content)
