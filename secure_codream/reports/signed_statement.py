"""A party's signature over its privacy statement: whoever is handed one can see whose it is, and that it is whole.

What is signed is the statement's JSON in its one form, with the party's name and key, its ledgers' names and heads, and
without the audit: an audit attacks the code after the run, wherever it runs, and its figures are nobody's promise. The
server has no identity, since nobody need believe it, so its statement is not signed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from codream_protocols.errors import BadSignature
from codream_protocols.identity import Roster, Signer, verify
from secure_codream.reports.files import MalformedRecord
from secure_codream.reports.statement import PrivacyStatement, encoded, read_statement, statement_path

LABEL = "privacy statement"


def signed(statement: PrivacyStatement, party: str, roster: Roster, signer: Signer) -> PrivacyStatement:
    """The statement as that of a member of the roster, whose identity `signer` has."""
    said = replace(
        statement,
        party=party,
        identity=signer.public.hex(),
        members=[member.name for member in roster.members],
        serial=roster.serial,
        roster=roster.hash.hex(),
    )
    # As it will be read: a whole number where a real one is declared is written otherwise.
    said = msgspec.json.decode(msgspec.json.encode(said), type=PrivacyStatement)
    return replace(said, signature=signer.sign(LABEL, _message(said)).hex())


def read_signed(path: Path, roster: Roster) -> PrivacyStatement:
    """The statement in a folder or a file, of a member of the roster.

    Raises:
        MissingRecord: there is none.
        MalformedRecord: it is none, is not in its one form, or is of another roster.
        UnknownIdentity, Revoked: its party is no member.
        BadSignature: it is not signed, or was altered.
    """
    statement, path = read_statement(path), statement_path(path)
    if path.read_bytes() != encoded(statement):
        raise MalformedRecord(path, "more than a statement says, or another form", "the file as it was written")
    if not statement.signature:
        raise BadSignature(f"{path} without a signature", "a client's own statement; a server's is not signed")
    if statement.roster != roster.hash.hex():
        raise MalformedRecord(
            path,
            f"a statement under roster {statement.roster[:16]}… of serial {statement.serial}",
            "that roster's file",
        )
    member = roster.members[roster.number_of(statement.party)]
    try:
        signature = bytes.fromhex(statement.signature)
    except ValueError:
        signature = b""
    verify(member.identity_key, signature, LABEL, _message(statement))
    return statement


def _message(statement: PrivacyStatement) -> bytes:
    return msgspec.json.encode(replace(statement, signature="", audit=None))
