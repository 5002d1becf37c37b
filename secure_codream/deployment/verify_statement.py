"""A look at a signed privacy statement: whose it is, that it is whole, and what of its ledger it speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codream_protocols.errors import MalformedMessage, ProtocolError, RosterRefused
from codream_protocols.identity import MAX_ROSTER_BYTES, Roster, parse_roster, read_roster
from codream_protocols.membership import fingerprint
from secure_codream.deployment.files import JOURNAL
from secure_codream.membership.accepted import ROSTER, trusted_keys
from secure_codream.membership.files import read_bounded
from secure_codream.membership.keys import PINNED, KeyFileError, read_pinned_keys
from secure_codream.reports.files import RecordError
from secure_codream.reports.signed_statement import read_signed
from secure_codream.reports.statement import PrivacyStatement, statement_path


class StatementRefused(RuntimeError):
    """A privacy statement that does not verify; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class Vouched:
    """A statement that verifies.

    Attributes:
        statement: what it says.
        administrator: the fingerprint of who signed the roster.
        compared: whether that is who was asked for, or whom the folder's party takes rosters of; else a person has to.
    """

    statement: PrivacyStatement
    administrator: str
    compared: bool


def verify_statement(path: Path, *, roster: Path | None = None, administrator: str | None = None) -> Vouched:
    """Check a client's privacy statement from its signature to the roster's.

    Args:
        path: a client's folder, or the file.
        roster: the roster's file; the newest one that lies beside the statement unless given.
        administrator: the fingerprint of whom the roster must be signed by; the folder's pinned one unless given.

    Raises:
        StatementRefused: what does not verify.
    """
    folder = statement_path(path).parent
    signers = roster or next(
        (found for found in (folder / JOURNAL / ROSTER, folder / ROSTER) if found.is_file()), folder / ROSTER
    )
    try:
        members, signer, compared = _roster(signers, folder, administrator)
        return Vouched(read_signed(path, members), fingerprint(signer), compared)
    except FileNotFoundError as error:
        raise StatementRefused(
            f"{error.filename}: found no roster; the one that the statement was made under is needed: --roster FILE"
        ) from None
    except (ProtocolError, RecordError, KeyFileError, OSError) as error:
        raise StatementRefused(f"{path}: {error}") from error


def _roster(path: Path, folder: Path, administrator: str | None) -> tuple[Roster, bytes, bool]:
    """A roster that is as old as the statement, who has signed it, and whether that was asked for."""
    try:
        data = read_bounded(path, MAX_ROSTER_BYTES)
    except MalformedMessage as error:
        raise RosterRefused(error.found, error.allowed) from None
    signer = parse_roster(data).administrator
    pinned = read_pinned_keys(folder / PINNED) if (folder / PINNED).is_file() else ()
    if administrator is None and not pinned:
        return read_roster(data, signer), signer, False
    return read_roster(data, trusted_keys(signer, pinned, administrator)), signer, True
