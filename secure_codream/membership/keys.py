"""Key files of a party: made where they are used, readable by their owner alone, never overwritten.

A private key is 32 bytes: as 64 hexadecimal digits, or sealed under a passphrase. What a party's folder holds tells
what it is: `identity.key` and `transport.key` a client's, `transport.key` alone the server's, `administrator.key` that
of whoever signs rosters.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from codream_protocols.errors import MalformedMessage
from codream_protocols.identity import Signer
from secure_codream.membership.files import WouldOverwrite, read_bounded, write_new
from secure_codream.membership.passphrase import Passphrase, PassphraseError, open_sealed, seal

KEY_BYTES = 32
IDENTITY, TRANSPORT, ADMINISTRATOR = "identity.key", "transport.key", "administrator.key"
PINNED = "administrator.pub"
MOST_KEY_FILE_BYTES = 4096


class KeyFileError(ValueError):
    """A key file that is missing, readable by others, malformed, sealed under another passphrase, or in the way."""


def read_private_key(path: Path, passphrase: Passphrase | None = None) -> bytes:
    """Read a private key of 32 bytes.

    Args:
        path: its file.
        passphrase: asked if the key is sealed; None asks for this key alone.

    Raises:
        KeyFileError: missing, readable by others, malformed, or not opened; the text never holds the key.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise KeyFileError(f"{path}: found mode {mode:04o}; 0600 is needed; run: chmod 600 {path}")
        content = _content(path)
    except FileNotFoundError:
        raise KeyFileError(
            f"{path}: found no such file; a key made by `secure-codream keygen` or `provision` is needed"
        ) from None
    if not content.startswith(b"{"):
        return _parse(path, content)
    try:
        return open_sealed(content, (passphrase or Passphrase()).get(), path.name)
    except PassphraseError as error:
        raise KeyFileError(f"{path}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise KeyFileError(f"{path}: found no key; what `secure-codream keygen` wrote is needed") from None


def read_pinned_keys(path: Path) -> tuple[bytes, ...]:
    """The administrators' public keys that a party pins, one or two of 32 bytes.

    Raises:
        KeyFileError: missing or malformed.
    """
    try:
        lines = _content(path).split()
    except FileNotFoundError:
        raise KeyFileError(f"{path}: found no such file; the administrator's public key is needed") from None
    if len(lines) > 2:
        raise KeyFileError(f"{path}: found {len(lines)} keys; one or two are allowed")
    return tuple(_parse(path, line) for line in lines or [b""])


def pinned_bytes(keys: tuple[bytes, ...]) -> bytes:
    """What `read_pinned_keys` reads: a key a line."""
    return b"".join(key.hex().encode() + b"\n" for key in keys)


def public_transport_key(secret: bytes) -> bytes:
    """The CurveZMQ public key, 32 bytes, of a secret key."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def check_key(path: Path, public: bytes, expected: bytes, whose: str) -> None:
    """Refuse a private key whose public half is not the roster's; raises `KeyFileError`."""
    if public != expected:
        raise KeyFileError(
            f"{path}: found another key than the roster has for {whose}; {whose}'s own is needed; put it back, or ask "
            "the administrator for a roster with the new one"
        )


def new_identity_key() -> bytes:
    """A fresh Ed25519 private key."""
    return secrets.token_bytes(KEY_BYTES)


def new_transport_key() -> bytes:
    """A fresh CurveZMQ secret key."""
    _, secret = zmq.curve_keypair()
    return z85.decode(secret)


def write_key(path: Path, key: bytes, passphrase: Passphrase | None = None) -> None:
    """Write a new private key, sealed if there is a passphrase.

    Raises:
        KeyFileError: something is in its place, or the passphrase is none.
    """
    try:
        content = key.hex().encode() + b"\n" if passphrase is None else seal(key, passphrase.get(twice=True), path.name)
        write_new(path, content)
    except (WouldOverwrite, PassphraseError) as error:
        raise KeyFileError(str(error)) from None


def make_keys(folder: Path, *names: str, passphrase: Passphrase | None = None) -> None:
    """Make a party's private keys, all of them or none.

    Raises:
        KeyFileError: one is there already, or the passphrase is none.
    """
    for name in (*names, PINNED) if ADMINISTRATOR in names else names:
        if os.path.lexists(folder / name):
            raise KeyFileError(f"{folder / name}: found a file already; choose another folder: nothing is overwritten")
    if passphrase is not None:
        try:
            passphrase.get(twice=True)
        except PassphraseError as error:
            raise KeyFileError(str(error)) from None
    made = {name: new_transport_key() if name == TRANSPORT else new_identity_key() for name in names}
    for name, key in made.items():
        write_key(folder / name, key, passphrase)
    if ADMINISTRATOR in made:
        write_new(folder / PINNED, pinned_bytes((Signer(made[ADMINISTRATOR]).public,)))


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_KEY_FILE_BYTES).strip()
    except MalformedMessage as error:
        raise KeyFileError(f"found {error.found}; a key file is needed") from None


def _parse(path: Path, content: bytes) -> bytes:
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path}: found no key; {2 * KEY_BYTES} hexadecimal digits are needed")
    return key
