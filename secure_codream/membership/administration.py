"""The administrator's acts: a roster from requests, and each next one from the one before.

Everything lies in one folder, which may be on a machine without a network:

    administrator.key, administrator.pub    the own key, and who else may sign
    roster-1.json, roster-2.json, ...       what was signed, by serial number
    charter-1/, charter-2/, ...             roster.json, charter.json, charter.signature: what is handed to everybody
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codream_protocols.errors import MalformedMessage, RosterRefused
from codream_protocols.identity import (
    MAX_ROSTER_BYTES,
    Member,
    Roster,
    Signer,
    parse_roster,
    read_roster,
    sign_roster,
)
from codream_protocols.membership import JoinRequest, ServerRequest, Withdrawal, fingerprint
from secure_codream.membership.accepted import day_from_now, trusted_keys
from secure_codream.membership.files import read_bounded, statement_of, write_new
from secure_codream.membership.keys import ADMINISTRATOR, PINNED, pinned_bytes, read_pinned_keys, read_private_key
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole

VALID_DAYS, MOST_VALID_DAYS = 365, 3650
_ROSTER_NAME = re.compile(r"roster-([1-9][0-9]{0,9})\.json\Z")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next roster has in another way.

    Attributes:
        add: new members' requests; they come last.
        remove: names of members who are revoked.
        rotate: requests of members who have new keys; the old ones are revoked.
        server: the aggregator's new address or key.
        second: another administrator's public key, who may sign as well.
        without: the public key of an administrator who may sign no more.
        take_over: sign although the roster before does not name this administrator: everybody must confirm it by hand.
    """

    add: Sequence[JoinRequest] = ()
    remove: Sequence[str] = ()
    rotate: Sequence[JoinRequest] = ()
    server: ServerRequest | None = None
    second: bytes | None = None
    without: bytes | None = None
    take_over: bool = False


def request_of(path: Path) -> JoinRequest | ServerRequest:
    """A request from a file, signed by the key that it names.

    Raises:
        MalformedMessage: it is none.
        BadSignature: its signature does not verify.
        OSError: it cannot be read.
    """
    request: JoinRequest | ServerRequest = statement_of(path, JoinRequest | ServerRequest)  # type: ignore[arg-type]
    request.check()
    return request


def client_request(path: Path) -> JoinRequest:
    """A client's request; raises as `request_of`."""
    request = request_of(path)
    if not isinstance(request, JoinRequest):
        raise MalformedMessage(f"{path}, the server's request", "a client's")
    return request


def server_request(path: Path) -> ServerRequest:
    """The server's request; raises as `request_of`."""
    request = request_of(path)
    if not isinstance(request, ServerRequest):
        raise MalformedMessage(f"{path}, the request of the client {request.name}", "the server's")
    return request


def withdrawn_name(path: Path, roster: Roster) -> str:
    """Who says in this file that it takes part no more; raises as `request_of`, and `UnknownIdentity`."""
    statement = statement_of(path, Withdrawal)
    statement.check(roster)
    return statement.member


def parsed(path: Path) -> Roster:
    """A roster as it says itself; whoever signs the next one, or takes it, verifies it.

    Raises:
        RosterRefused: it is none.
        OSError: it cannot be read.
    """
    try:
        return parse_roster(read_bounded(path, MAX_ROSTER_BYTES)).roster
    except MalformedMessage as error:
        raise RosterRefused(error.found, error.allowed) from None


def administrator_of(folder: Path, passphrase: Passphrase) -> Signer:
    """The administrator's key; raises `KeyFileError`."""
    return Signer(read_private_key(folder / ADMINISTRATOR, passphrase))


def newest_roster(folder: Path) -> Path:
    """The roster that was signed last in this folder.

    Raises:
        RosterRefused: there is none.
    """
    numbers = [int(found[1]) for found in (_ROSTER_NAME.match(path.name) for path in folder.iterdir()) if found]
    if not numbers:
        raise RosterRefused(f"no roster in {folder}", "roster-1.json", "make one: secure-codream roster create")
    return folder / f"roster-{max(numbers)}.json"


def create(
    folder: Path,
    administrator: Signer,
    *,
    federation: str,
    clients: Sequence[JoinRequest],
    server: ServerRequest,
    valid_days: int = VALID_DAYS,
    second: bytes | None = None,
) -> Roster:
    """Sign a federation's first roster, and write it.

    Args:
        folder: the administrator's.
        administrator: its key.
        federation: the federation's name.
        clients: their requests, in the roster's order; blocks follow it.
        server: the aggregator's.
        valid_days: how long parties may begin with it, from today on.
        second: another administrator's public key, who may sign as well.

    Raises:
        RosterRefused: names or keys repeat, or do not fit.
        WouldOverwrite: there is a first roster already.
    """
    administrators = (administrator.public, *([] if second is None else [second]))
    members = tuple(one.member for one in clients)
    roster = Roster(federation, 1, server.entry, members, administrators, last_day(valid_days))
    return _write(folder, roster, administrator)


def change(
    folder: Path,
    administrator: Signer,
    changes: Change,
    *,
    previous: Path | None = None,
    signed_by: str | None = None,
    valid_days: int = VALID_DAYS,
) -> tuple[Roster, Roster]:
    """Sign the roster that follows, with one serial number for all changes, and write it.

    Args:
        folder: the administrator's.
        administrator: its key.
        changes: what is different.
        previous: the roster before; None takes the newest of the folder.
        signed_by: the fingerprint of who signed it, where that is nobody whom this folder knows (`administrator.pub`).
        valid_days: how long parties may begin with the new one, from today on.

    Returns:
        The roster before, and the new one.

    Raises:
        RosterRefused, BadSignature, UnknownIdentity, Revoked: what does not fit the roster before, or in itself.
        WouldOverwrite: that serial number was given already.
    """
    data = read_bounded(previous or newest_roster(folder), MAX_ROSTER_BYTES)
    signed = parse_roster(data)
    pinned = read_pinned_keys(folder / PINNED)
    before = read_roster(data, trusted_keys(signed.administrator, pinned, signed_by))
    if administrator.public not in before.administrators and not changes.take_over:
        raise RosterRefused(
            "a roster that does not name this administrator",
            f"one of {' or '.join(map(fingerprint, before.administrators))}",
            "or --take-over, and every site confirms the new fingerprint by hand",
        )
    members, gone = list(before.members), list(before.revoked)
    for name in changes.remove:
        number = _number(members, name, before)
        gone.append(members.pop(number))
    for request in changes.rotate:
        number = _number(members, request.name, before)
        gone.append(members[number])
        members[number] = request.member
    members += [request.member for request in changes.add]
    roster = Roster(
        before.federation,
        before.serial + 1,
        before.server if changes.server is None else changes.server.entry,
        tuple(members),
        _administrators(before, administrator.public, changes),
        last_day(valid_days),
        tuple(gone),
    )
    return before, _write(folder, roster, administrator)


def last_day(valid_days: int) -> str:
    """The day (UTC) so many days from today.

    Raises:
        RosterRefused: fewer than 1, or more than ten years.
    """
    if not 1 <= valid_days <= MOST_VALID_DAYS:
        raise RosterRefused(f"a roster valid for {valid_days} days", f"1 to {MOST_VALID_DAYS}")
    return day_from_now(valid_days)


def checked(roster: Roster, administrator: Signer) -> bytes:
    """A signed roster's file, whose values were checked as whoever reads it checks them.

    Raises:
        RosterRefused: what does not fit.
    """
    names = [member.name.lower() for member in roster.members]
    if len(set(names)) != len(names):
        raise RosterRefused("names that differ in capitals alone, or not at all", "one name for each client")
    signed = sign_roster(roster, administrator)
    read_roster(signed, administrator.public)
    return signed


def _write(folder: Path, roster: Roster, administrator: Signer) -> Roster:
    write_new(folder / f"roster-{roster.serial}.json", checked(roster, administrator))
    others = [key for key in roster.administrators if key != administrator.public]
    write_whole(folder / PINNED, pinned_bytes((administrator.public, *others)))
    return roster


def _number(members: Sequence[Member], name: str, before: Roster) -> int:
    before.number_of(name)  # says who is there, and who is revoked
    for number, member in enumerate(members):
        if member.name == name:
            return number
    raise RosterRefused(f"{name} twice among the changes", "one change for each member")


def _administrators(before: Roster, own: bytes, changes: Change) -> tuple[bytes, ...]:
    keys = [own] if changes.take_over else list(before.administrators)
    if changes.without is not None:
        if changes.without not in keys or changes.without == own:
            raise RosterRefused("no other administrator with that key", "the other one of the roster before")
        keys.remove(changes.without)
    if changes.second is not None:
        keys.append(changes.second)
    if len(keys) > 2:
        raise RosterRefused(f"{len(keys)} administrators", "at most two", "name the one who may sign no more")
    return tuple(keys)
