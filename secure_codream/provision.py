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
import stat
from pathlib import Path

import tomli_w
import zmq
from zmq.utils import z85

from codream_protocols.charter import Offer, derive_plan
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, read_roster, sign_roster
from secure_codream.config import ClientConfig, FederationConfig
from secure_codream.courses import make_course, with_layout

KEY_BYTES = 32


class KeyFileError(ValueError):
    """A key file that is missing, readable by others, malformed, or would be overwritten."""


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
    administrator_key, server_key = secrets.token_bytes(KEY_BYTES), _new_transport_key()
    identity_keys = [secrets.token_bytes(KEY_BYTES) for _ in clients]
    transport_keys = [_new_transport_key() for _ in clients]
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
        _write_new(folder / "client.toml", tomli_w.dumps(_plain(client)).encode())
    for folder in (out / "server", *(out / "clients" / client.name for client in clients)):
        _write_new(folder / "roster.json", signed)
        _write_new(folder / "administrator.pub", administrator.public.hex().encode() + b"\n")
        _write_new(folder / "config.toml", tomli_w.dumps(_plain(config)).encode())
    _write_new(out / "administrator" / "administrator.pub", administrator.public.hex().encode() + b"\n")
    return roster


def read_private_key(path: Path) -> bytes:
    """Read a private key of 32 bytes.

    Raises:
        KeyFileError: missing, readable by others, or malformed; the text never holds the key.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise KeyFileError(f"{path}: found mode {mode:04o}; 0600 is needed; run: chmod 600 {path}")
        return _parse(path)
    except FileNotFoundError:
        raise KeyFileError(f"{path}: found no such file; a key made by `secure-codream provision` is needed") from None


def read_public_key(path: Path) -> bytes:
    """Read a public key of 32 bytes; raises `KeyFileError` when it is missing or malformed."""
    try:
        return _parse(path)
    except FileNotFoundError:
        raise KeyFileError(f"{path}: found no such file; the administrator's public key is needed") from None


def public_transport_key(secret: bytes) -> bytes:
    """The CurveZMQ public key, 32 bytes, of a secret key."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def _parse(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (ValueError, UnicodeDecodeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path}: found no key; {2 * KEY_BYTES} hexadecimal digits are needed")
    return key


def _new_transport_key() -> bytes:
    _, secret = zmq.curve_keypair()
    return z85.decode(secret)


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
