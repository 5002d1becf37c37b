"""A third party's look at a record: signatures, plans, chains and certificates, without any secret.

A record is what the server, and each client, keeps of a federation: `roster.json`, `charter.json`, one file for each
certified epoch, and what says that the charter was signed (`charter.signature`) and accepted (`acceptances/`). From
these every state is computed again, and every signature checked, so that one changed byte anywhere is found. What a
record cannot show is that nothing was cut off at its end: compare its head with a member's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codream_protocols.charter import Charter, successor_of
from codream_protocols.course import Course, is_over
from codream_protocols.errors import ProtocolError, RosterRefused
from codream_protocols.identity import MAX_ROSTER_BYTES, Roster, SignedRoster, read_roster
from codream_protocols.membership import Acceptance, CharterSignature
from codream_protocols.record import Kept, certified_epochs
from codream_protocols.record_file import parse_record, record_name
from secure_codream.configuration.charter_file import read_charter
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.files import JOURNAL, RECORD
from secure_codream.membership.accepted import ACCEPTANCES, SIGNATURE
from secure_codream.membership.files import statement_of


class RecordRefused(RuntimeError):
    """A record that does not verify; the text names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a record shows.

    Attributes:
        federation: its name.
        administrator: public key that signed the roster, 64 hexadecimal digits.
        members: their names.
        charter: the charter's digest, 64 hexadecimal digits.
        epochs: how many epochs are certified in it.
        votes: for each of them, how many members have voted for it.
        head: the digest of it all, 64 hexadecimal digits: who has the same head has the same record.
        planned: how many epochs the charter's course has, those of predecessors counted.
        earlier: how many epochs its predecessors had certified.
        follows: the digest of the charter that it follows, 64 hexadecimal digits; empty for a first one.
        followed_head: the head with which that one ended; empty for a first one.
        successor: what a charter that follows this one has under `[predecessor]`.
        signed: whether an administrator of the roster has signed the charter.
        accepted: the members whose acceptances are there.
        serial: the roster's serial number.
    """

    federation: str
    administrator: str
    members: tuple[str, ...]
    charter: str
    epochs: int
    votes: tuple[int, ...]
    head: str
    planned: int
    earlier: int
    follows: str
    followed_head: str
    successor: dict[str, Any]
    signed: bool
    accepted: tuple[str, ...]
    serial: int


def find_record(path: Path) -> Path:
    """The record's folder in a run's folder, a party's folder, or `path` itself.

    Raises:
        RecordRefused: there is none.
    """
    for folder in (path / RECORD, path / JOURNAL, path / "server" / RECORD, path):
        if (folder / "charter.json").is_file():
            return folder
    raise RecordRefused(f"{path}: found no record; a folder with charter.json, roster.json and epochs is needed")


def verify_record(
    path: Path, *, administrator: bytes | None = None, permitted: dict[str, str] | None = None
) -> Verified:
    """Check a record from its first byte to its last.

    Args:
        path: the record, or a folder that has one.
        administrator: the public key that must have signed the roster, 32 bytes; None takes the one in the file, which
            is to be compared by other means.
        permitted: own code of the charter that may be run, reference -> digest of its source.

    Raises:
        RecordRefused: what does not verify, and in which file.
    """
    folder = find_record(path)
    roster, signer = _read_roster(folder, administrator)
    try:
        config, charter = read_charter((folder / "charter.json").read_bytes(), roster)
        course: Course = make_course(config, permitted or {})
    except (ProtocolError, ConfigError, OSError) as error:
        raise RecordRefused(f"{folder / 'charter.json'}: {error}") from error
    signed, accepted = _said(folder, charter, roster)
    files = sorted(folder.glob("epoch-*.record"))
    first = charter.earlier
    head, planned = charter.first_head, course.epochs
    votes: list[int] = []
    begun: list[Path] = []

    def records() -> Iterator[Kept]:
        for number, file in enumerate(files, start=first):
            begun.append(file)
            if file.name != record_name(number):
                raise RecordRefused(f"{file}: found this file where {record_name(number)} is needed")
            kept = parse_record(file.read_bytes(), members=charter.members)
            votes.append(len(kept[0].votes))
            yield kept

    try:
        for certified, after, epoch in certified_epochs(charter, roster, course, records()):
            head = after
            if is_over(course, certified, epoch.publication()):
                planned = certified
    except (ProtocolError, OSError) as error:
        hint = "; or charter.json was changed" if len(begun) == 1 else ""
        raise RecordRefused(f"{begun[-1]}: damaged or altered: {error}{hint}") from error
    return Verified(
        federation=roster.federation,
        administrator=signer.hex(),
        members=tuple(member.name for member in roster.members),
        charter=charter.digest.hex(),
        epochs=len(files),
        votes=tuple(votes),
        head=head.hex(),
        planned=planned,
        earlier=first,
        follows="" if charter.predecessor is None else charter.predecessor.charter.hex(),
        followed_head="" if charter.predecessor is None else charter.predecessor.head.hex(),
        successor=_hexadecimal(msgspec.structs.asdict(successor_of(charter, roster, head, first + len(files)))),
        signed=signed,
        accepted=accepted,
        serial=roster.serial,
    )


def verify_history(
    path: Path, *, administrator: bytes | None = None, permitted: dict[str, str] | None = None
) -> list[Verified]:
    """Check a record, and those of the charters before it that the party has set aside (`earlier/`), newest first.

    Raises:
        RecordRefused: one does not verify, or does not end as the charter that follows it says.
    """
    found = [verify_record(path, administrator=administrator, permitted=permitted)]
    record = find_record(path)
    party = record.parent if (record.parent / "earlier").is_dir() else record  # itself, before it begins anew
    while found[-1].follows:
        after, place = found[-1], party / "earlier" / found[-1].follows[:16]
        if not place.is_dir():
            break
        before = verify_record(place, permitted=permitted)
        ends = (before.charter, before.head, before.earlier + before.epochs)
        if ends != (after.follows, after.followed_head, after.earlier):
            raise RecordRefused(f"{place}: found a record that does not end as the charter that follows it says")
        found.append(before)
    return found


def successor_table(verified: Verified) -> str:
    """`[predecessor]` in TOML, for the `config.toml` of a charter that follows."""
    table = verified.successor
    simple = ("charter", "head", "certified", "colluders")
    lines = ["[predecessor]", *(f"{name} = {json.dumps(table[name])}" for name in simple)]
    return "\n".join([*lines, "blocks = [", *(f"  {json.dumps(block)}," for block in table["blocks"]), "]"])


def _hexadecimal(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _hexadecimal(inner) for name, inner in value.items()}
    return [_hexadecimal(inner) for inner in value] if isinstance(value, tuple) else value


def _said(folder: Path, charter: Charter, roster: Roster) -> tuple[bool, tuple[str, ...]]:
    """Whether the charter is signed, and who has accepted it; what is there must verify."""
    path = folder / SIGNATURE
    try:
        if path.exists():
            statement_of(path, CharterSignature).check(charter, roster)
        signed, names = path.exists(), set[str]()
        for path in sorted((folder / ACCEPTANCES).glob("*")):
            acceptance = statement_of(path, Acceptance)
            acceptance.check(charter, roster)
            names.add(acceptance.member)
    except (ProtocolError, OSError) as error:
        raise RecordRefused(f"{path}: {error}") from error
    return signed, tuple(member.name for member in roster.members if member.name in names)


def _read_roster(folder: Path, administrator: bytes | None) -> tuple[Roster, bytes]:
    path = folder / "roster.json"
    try:
        data = path.read_bytes()
        if len(data) > MAX_ROSTER_BYTES:
            raise RosterRefused(f"a roster of {len(data)} bytes", f"at most {MAX_ROSTER_BYTES}")
        signed = msgspec.json.decode(data, type=SignedRoster)
        roster = read_roster(data, administrator or signed.administrator)
        written = msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n"
    except (ProtocolError, msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise RecordRefused(f"{path}: {error}") from error
    if written != data:
        raise RecordRefused(f"{path}: found another form than the administrator's; the signed file is needed")
    return roster, signed.administrator
