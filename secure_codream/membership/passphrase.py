"""A passphrase, and a private key under it: scrypt (RFC 7914), then ChaCha20-Poly1305 (RFC 8439), both the library's.

A passphrase comes from a file that its owner alone may read, an environment variable or the terminal, never from an
option, which everybody on the machine could read. The variable is taken out of the environment as soon as there is a
`Passphrase`, which is before any code of others is run or started; what Linux shows of it in `/proc` stays.
"""

from __future__ import annotations

import getpass
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import Meta, Struct

from codream_protocols.keyschedule import labelled

FILE, VARIABLE = "SECURE_CODREAM_PASSPHRASE_FILE", "SECURE_CODREAM_PASSPHRASE"
LEAST_CHARACTERS, MOST_BYTES = 8, 1024
_COST, _BLOCK, _LANES, _SALT_BYTES = 1 << 17, 8, 1, 16  # 128 MiB and about half a second a guess
_ZERO_NONCE = bytes(12)  # every salt gives a key of its own, which seals once


class PassphraseError(ValueError):
    """No passphrase, one that is too short, or another than the key was sealed under."""


class Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """A private key under a passphrase: the content of its file."""

    salt: Annotated[bytes, Meta(min_length=_SALT_BYTES, max_length=_SALT_BYTES)]
    sealed: Annotated[bytes, Meta(min_length=48, max_length=48)]


class Passphrase:
    """A person's passphrase, asked for when it is first needed, and once; out of the environment at once."""

    __slots__ = ("_secret", "_variable")

    def __init__(self) -> None:
        self._secret: bytes | None = None
        self._variable = os.environ.pop(VARIABLE, "")

    def get(self, *, twice: bool = False) -> bytes:
        """The passphrase.

        Args:
            twice: whether a person at a terminal says it twice, as for a new one.

        Raises:
            PassphraseError: there is none, it is too short or too long, or was said in two ways.
        """
        if self._secret is None:
            self._secret = _checked(_of_file() or self._variable or _asked(twice))
            self._variable = ""
        return self._secret

    def __repr__(self) -> str:
        return "<Passphrase>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a Passphrase is never pickled")


def seal(key: bytes, passphrase: bytes, what: str) -> bytes:
    """The file's content for a key of 32 bytes; `what` it is must be said again to open it."""
    salt = secrets.token_bytes(_SALT_BYTES)
    sealed = ChaCha20Poly1305(_stretched(passphrase, salt)).encrypt(
        _ZERO_NONCE, key, labelled("sealed key", what.encode())
    )
    return msgspec.json.encode(Sealed(salt, sealed)) + b"\n"


def open_sealed(content: bytes, passphrase: bytes, what: str) -> bytes:
    """The key, 32 bytes.

    Raises:
        PassphraseError: another passphrase, another key's file, or a damaged one.
        msgspec.DecodeError: no sealed key at all.
    """
    found = msgspec.json.decode(content, type=Sealed)
    cipher = ChaCha20Poly1305(_stretched(passphrase, found.salt))
    try:
        return cipher.decrypt(_ZERO_NONCE, found.sealed, labelled("sealed key", what.encode()))
    except InvalidTag:
        raise PassphraseError("found a passphrase that does not open it; the one it was made with is needed") from None


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_COST, r=_BLOCK, p=_LANES).derive(passphrase)


def _of_file() -> str:
    path = os.environ.get(FILE)
    if not path:
        return ""
    with Path(path).open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise PassphraseError(f"{path}: found mode {mode:04o}; 0600 is needed; run: chmod 600 {path}")
        content = file.read(MOST_BYTES + 2)
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise PassphraseError(f"{path}: found no UTF-8 text; a passphrase on one line is needed") from None


def _asked(twice: bool) -> str:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise PassphraseError(
            f"found no terminal to ask for the passphrase on; set {FILE} to a file that holds it, or {VARIABLE}"
        )
    said = getpass.getpass("Passphrase: ")
    if twice and getpass.getpass("The same again: ") != said:
        raise PassphraseError("found two different passphrases; the same one twice is needed")
    return said


def _checked(text: str) -> bytes:
    secret = text.encode(errors="surrogatepass")
    if not (len(text) >= LEAST_CHARACTERS and len(secret) <= MOST_BYTES):
        raise PassphraseError(
            f"found a passphrase of {len(text)} characters; {LEAST_CHARACTERS} or more, in at most {MOST_BYTES} bytes, "
            "are needed"
        )
    return secret
