"""Key files of a party: 32 bytes as hexadecimal digits, readable by their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import zmq
from zmq.utils import z85

KEY_BYTES = 32


class KeyFileError(ValueError):
    """A key file that is missing, readable by others, malformed, or would be overwritten."""


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


def check_key(path: Path, public: bytes, expected: bytes, whose: str) -> None:
    """Refuse a private key whose public half is not the roster's; raises `KeyFileError`."""
    if public != expected:
        raise KeyFileError(
            f"{path}: found another key than the roster has for {whose}; {whose}'s own is needed; put it back, or ask "
            "the administrator for a roster with the new one"
        )


def _parse(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (ValueError, UnicodeDecodeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path}: found no key; {2 * KEY_BYTES} hexadecimal digits are needed")
    return key


def new_transport_key() -> bytes:
    """A fresh CurveZMQ secret key."""
    _, secret = zmq.curve_keypair()
    return z85.decode(secret)
