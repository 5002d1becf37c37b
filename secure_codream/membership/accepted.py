"""What a party begins with: the newest roster that it took, and the charter that it accepted. Nothing else runs.

A party's folder has, beside its keys:

    roster.json           who takes part
    charter.json          all settings, as the record has them; config.toml says the same, or the party does not start
    charter.signature     the administrator's
    acceptance.json       a client's own signed yes to this roster with this charter
    newest_roster.json    serial and digest of the newest roster that this party took: no older one is taken again
    administrator.pub     whose rosters it takes
    acceptances/          the server's: what the clients' operators have sent, for the record
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from codream_protocols.charter import Charter
from codream_protocols.errors import MalformedMessage, NotAccepted, ProtocolError, RosterRefused
from codream_protocols.identity import MAX_MEMBERS, MAX_ROSTER_BYTES, Key, Roster, Signer, read_roster, revoked
from codream_protocols.membership import Acceptance, accept, fingerprint, statement_bytes
from secure_codream.configuration.charter_file import MAX_CHARTER_BYTES, charter_bytes
from secure_codream.configuration.federation import FederationConfig
from secure_codream.membership.files import read_bounded, statement_of
from secure_codream.membership.keys import (
    IDENTITY,
    PINNED,
    TRANSPORT,
    KeyFileError,
    check_key,
    public_transport_key,
    read_pinned_keys,
    read_private_key,
)
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole

ROSTER, CHARTER, SIGNATURE, ACCEPTANCE = "roster.json", "charter.json", "charter.signature", "acceptance.json"
NEWEST, ACCEPTANCES, CONFIG = "newest_roster.json", "acceptances", "config.toml"
WARNED_DAYS = 30
_ACCEPT = "read what `secure-codream roster verify FOLDER ROSTER` prints, and accept it with --accept"


class Newest(Struct, frozen=True, forbid_unknown_fields=True):
    """The newest roster that a party took."""

    serial: Annotated[int, Meta(ge=1, lt=1 << 32)]
    roster: Key


# -- the roster ---------------------------------------------


def today() -> str:
    """The day in UTC, as rosters write it."""
    return day_from_now(0)


def day_from_now(days: int) -> str:
    """The day in UTC, so many days from today."""
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400 * days))


def load_roster(folder: Path, *, least_serial: int = 1) -> Roster:
    """Read and verify a party's roster, as it must be to begin with it today.

    Raises:
        NotAccepted: there is none yet.
        KeyFileError, RosterRefused, BadSignature: as their names say.
    """
    try:
        data = read_bounded(folder / ROSTER, MAX_ROSTER_BYTES)
    except FileNotFoundError:
        raise NotAccepted(f"no {ROSTER} in {folder}", "what was accepted", _ACCEPT) from None
    except MalformedMessage as error:
        raise RosterRefused(error.found, error.allowed) from None
    roster = read_roster(data, read_pinned_keys(folder / PINNED), least_serial=least_serial, today=today())
    check_newest(folder, roster)
    return roster


def digits_of(fingerprint: str) -> str:
    """A fingerprint's hexadecimal digits, however people group it."""
    return "".join(fingerprint.split()).replace("-", "").lower()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two people read the same."""
    return digits_of(one) == digits_of(other)


def trusted_keys(signer: bytes, pinned: tuple[bytes, ...], given: str | None) -> tuple[bytes, ...]:
    """Whose signature of a roster counts: the fingerprint that a person was read out goes before what is pinned.

    Args:
        signer: who has signed it, as it says itself.
        pinned: whose rosters were taken until now.
        given: a fingerprint, as people compare it; None goes by the pinned keys.

    Raises:
        RosterRefused: the signer has another fingerprint.
        KeyFileError: there is neither.
    """
    if given is not None:
        if not same_fingerprint(given, fingerprint(signer)):
            raise RosterRefused(
                f"a roster of the administrator {fingerprint(signer)}",
                given,
                "ask the administrator again, by telephone; do not take the fingerprint from whoever sent the file",
            )
        return (signer,)
    if not pinned:
        raise KeyFileError(
            "found no administrator whose rosters this party takes; the fingerprint is needed that the administrator "
            "reads out, by telephone for example: --administrator FINGERPRINT"
        )
    return pinned


def check_newest(folder: Path, roster: Roster) -> None:
    """Refuse a roster that is older than the newest that this party took, or another of the same serial.

    Raises:
        RosterRefused: as said, or the file that remembers it is damaged.
    """
    try:
        newest = statement_of(folder / NEWEST, Newest)
    except FileNotFoundError:
        return
    except MalformedMessage as error:
        raise RosterRefused(error.found, error.allowed, "restore it from a copy") from None
    if roster.serial < newest.serial:
        raise RosterRefused(
            f"roster serial {roster.serial}",
            f"serial {newest.serial}, the newest that this party took, or later",
            "ask the administrator for the newest",
        )
    if roster.serial == newest.serial and roster.hash != newest.roster:
        raise RosterRefused(
            f"another roster of serial {roster.serial} than this party took",
            "one roster for each serial number",
            "two were signed with one number; ask the administrators for one with a larger",
        )


def remember_newest(folder: Path, roster: Roster) -> None:
    """No older roster is taken in this folder again. Raises `OSError`."""
    write_whole(folder / NEWEST, statement_bytes(Newest(roster.serial, roster.hash)))


def expiry_warning(roster: Roster) -> str | None:
    """What to say of a roster whose last day is near."""
    if roster.expires > day_from_now(WARNED_DAYS):
        return None
    return (
        f"The roster expires on {roster.expires}: from the day after, nobody begins with it. Ask the administrator for "
        "the next one."
    )


# -- own keys ---------------------------------------------


def own_keys(folder: Path, roster: Roster, name: str | None, passphrase: Passphrase) -> tuple[bytes, Signer | None]:
    """A party's transport key and identity; with others' the server would never answer, or refuse every word.

    Args:
        folder: the party's.
        roster: the roster, whose entry the keys must be of.
        name: the client's; None is the server, which has no identity.
        passphrase: asked where keys are sealed.

    Raises:
        KeyFileError: a key that cannot be read, or is not the roster's.
        Revoked, UnknownIdentity: this party is none of the roster's.
    """
    secret = read_private_key(folder / TRANSPORT, passphrase)
    signer = None if name is None else Signer(read_private_key(folder / IDENTITY, passphrase))
    public = public_transport_key(secret)
    if roster.revoked_by_key(public, *([] if signer is None else [signer.public])) is not None:
        raise revoked(name or "the server's key", roster.serial)
    if name is None or signer is None:
        check_key(folder / TRANSPORT, public, roster.server.transport_key, "the server")
        return secret, None
    member = roster.members[roster.number_of(name)]
    check_key(folder / TRANSPORT, public, member.transport_key, name)
    check_key(folder / IDENTITY, signer.public, member.identity_key, name)
    return secret, signer


# -- the charter ---------------------------------------------


def check_accepted(folder: Path, config: FederationConfig, roster: Roster, member: str | None) -> None:
    """Refuse to begin with what was not accepted in this folder.

    Args:
        folder: the party's.
        config: what its `config.toml` says.
        roster: its roster.
        member: the client's name, whose signed acceptance must be there; None is the server.

    Raises:
        NotAccepted: as said; settings that were changed since are named.
    """
    try:
        accepted = read_bounded(folder / CHARTER, MAX_CHARTER_BYTES)
        statement = None if member is None else statement_of(folder / ACCEPTANCE, Acceptance)
    except FileNotFoundError as error:
        raise NotAccepted(f"no {Path(str(error.filename)).name} in {folder}", "what was accepted", _ACCEPT) from None
    except MalformedMessage as error:
        raise NotAccepted(error.found, error.allowed, _ACCEPT) from None
    if accepted != charter_bytes(config, roster):
        changed = "; ".join(differences(accepted, charter_bytes(config, roster))) or "its form"
        raise NotAccepted(
            f"{folder / CONFIG} that differs from the accepted charter: {changed}",
            "the accepted settings",
            f"put them back, or {_ACCEPT} what the administrator signed for all",
        )
    if statement is None:
        return
    try:
        if statement.member != member:
            raise NotAccepted(f"{statement.member}'s acceptance", f"{member}'s")
        statement.check(config.charter(roster), roster)
    except ProtocolError as error:
        raise NotAccepted(f"{folder / ACCEPTANCE}: {error.found}", error.allowed, _ACCEPT) from None


def differences(accepted: bytes, found: bytes) -> list[str]:
    """The settings in which two charters differ, by key, as `config.toml` has it."""
    try:
        before, after = (dict(_flat(json.loads(data))) for data in (accepted, found))
    except (ValueError, RecursionError):
        return []
    absent = object()
    return [
        f"{name.removeprefix('settings.')} is {_shown(after.get(name))}, accepted was {_shown(before.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name, absent) != after.get(name, absent)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    return "not given" if value is None else f"{json.dumps(value):.80}"


# -- acceptances ---------------------------------------------


def write_acceptance(folder: Path, signer: Signer, name: str, charter: Charter, roster: Roster) -> Acceptance:
    """Sign a client's acceptance, and store it in its folder. Raises `OSError`."""
    statement = accept(signer, name, charter, roster)
    write_whole(folder / ACCEPTANCE, statement_bytes(statement))
    return statement


def gathered(folder: Path, charter: Charter, roster: Roster) -> tuple[dict[str, Acceptance], list[str]]:
    """Acceptances that lie in a folder, whatever their files are called: by member, and what is wrong with the others.

    Of this charter and roster alone; a file that is none is nobody's acceptance, and is said.
    """
    found: dict[str, Acceptance] = {}
    wrong: list[str] = []
    for path in sorted(folder.glob("*.json"))[: 2 * MAX_MEMBERS]:
        try:
            statement = statement_of(path, Acceptance)
            statement.check(charter, roster)
            found[statement.member] = statement
        except (ProtocolError, OSError) as error:
            wrong.append(f"{path}: {error}")
    return found, wrong


def keep_in_record(
    folder: Path, record: Path, charter: Charter, roster: Roster
) -> tuple[dict[str, Acceptance], list[str]]:
    """Copy to a party's record what says that its charter was signed and accepted; returns what `gathered` does.

    Raises:
        OSError: the record cannot be written.
    """
    found, wrong = gathered(folder / ACCEPTANCES, charter, roster)
    if (folder / ACCEPTANCE).is_file():
        own = statement_of(folder / ACCEPTANCE, Acceptance)
        found[own.member] = own
    if (folder / SIGNATURE).is_file():
        write_whole(record / SIGNATURE, read_bounded(folder / SIGNATURE, MAX_ROSTER_BYTES))
    for name, statement in found.items():
        write_whole(record / ACCEPTANCES / f"{name}.json", statement_bytes(statement))
    return found, wrong
