"""A site that takes part no more: its signed word, and what it deletes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from codream_protocols.errors import ProtocolError
from codream_protocols.identity import MAX_ROSTER_BYTES, Roster, Signer, read_roster
from codream_protocols.membership import Withdrawal, statement_bytes, withdraw
from secure_codream.deployment.earlier import EARLIER, not_running
from secure_codream.deployment.files import BEST, FAILURES, JOURNAL, MODEL, SUMS, TEACHER
from secure_codream.membership.accepted import ACCEPTANCE, ROSTER
from secure_codream.membership.files import read_bounded, statement_of
from secure_codream.membership.keys import IDENTITY, PINNED, TRANSPORT, read_pinned_keys, read_private_key
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole

WITHDRAWAL = "withdrawal.json"
DELETED = (JOURNAL, EARLIER, "releases", MODEL, BEST, TEACHER, SUMS, FAILURES, ACCEPTANCE, TRANSPORT, IDENTITY)
"""In this order: the key that signs goes last, so that an interrupted withdrawal can be repeated."""

CONSEQUENCES = (
    "What this site's data did to finished models cannot be taken back: it is in the sums, the dreams and the weights "
    "that all members have learnt from, and in the records that the server and all members keep.",
    f"Deleted here: both private keys, {JOURNAL}/, {EARLIER}/, {MODEL}, {BEST}, {TEACHER}, {SUMS}, {FAILURES}, "
    f"releases/, {ACCEPTANCE}. A disk may keep deleted content for a while; copies made elsewhere are yours to delete.",
    "Kept here, and nowhere else: your data, client.toml, logs and reports, and what bounds what the same data may "
    "still answer (privacy.jsonl, client_privacy.jsonl, answered.json). Delete them only if these data never take part "
    "again.",
)


def withdraw_from(folder: Path, passphrase: Passphrase, name: str) -> Path:
    """Sign that this client withdraws, and delete what only a member needs.

    Args:
        folder: the client's.
        passphrase: asked where its keys are sealed.
        name: the client's.

    Returns:
        The statement, for the administrator.

    Raises:
        JournalBusy: the client is running.
        KeyFileError, RosterRefused, BadSignature, UnknownIdentity: nothing can be signed; nothing was deleted.
        OSError: something cannot be deleted; call again.
    """
    roster = read_roster(read_bounded(folder / ROSTER, MAX_ROSTER_BYTES), read_pinned_keys(folder / PINNED))
    with not_running(folder):
        path = folder / WITHDRAWAL
        if not _signed(path, roster):
            signer = Signer(read_private_key(folder / IDENTITY, passphrase))
            statement = withdraw(signer, name, roster)
            statement.check(roster)
            write_whole(path, statement_bytes(statement))
        for one in DELETED:
            _delete(folder / one)
    return path


def _signed(path: Path, roster: Roster) -> bool:
    try:
        statement_of(path, Withdrawal).check(roster)
    except (ProtocolError, OSError):
        return False
    return True


def _delete(path: Path) -> None:
    """A file, a link itself, or a folder with all that is in it; links in it are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
