"""What a party is asked to accept, read once, checked against all that it knows itself, and then signed and stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codream_protocols.charter import Charter, first_plan
from codream_protocols.errors import NotAccepted, ProtocolError, Revoked
from codream_protocols.identity import MAX_ROSTER_BYTES, Roster, Signer, parse_roster, read_roster
from codream_protocols.membership import CharterSignature, statement_bytes
from secure_codream.configuration.charter_file import MAX_CHARTER_BYTES, charter_bytes, read_charter
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.blocks_answered import BlocksAnswered
from secure_codream.deployment.charter import config_file
from secure_codream.deployment.earlier import not_running, set_aside, what_it_follows
from secure_codream.deployment.exposure import all_noised, exposures
from secure_codream.deployment.files import CLIENT_FILE
from secure_codream.deployment.verify import Verified
from secure_codream.membership.accepted import (
    CHARTER,
    CONFIG,
    ROSTER,
    SIGNATURE,
    check_newest,
    own_keys,
    remember_newest,
    today,
    trusted_keys,
    write_acceptance,
)
from secure_codream.membership.files import read_bounded, statement_of
from secure_codream.membership.keys import PINNED, pinned_bytes, read_pinned_keys
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What a party is asked to accept; every byte of it was checked.

    Attributes:
        roster: who takes part.
        signer: the administrator who signed the roster.
        pinned: whose rosters this party took until now; none in a new folder.
        config: the charter's settings; None where a roster alone was given.
        charter: the charter.
        exposed: what taking part shows, in words; a permitted cut last.
        follows: what the party's own record has of the charter before.
        member: the client's name; None is the server.
    """

    roster: Roster
    signer: bytes
    pinned: tuple[bytes, ...]
    config: FederationConfig | None
    charter: Charter | None
    exposed: tuple[str, ...]
    follows: Verified | None
    member: str | None
    identity: Signer | None
    roster_file: bytes
    signature: CharterSignature | None

    def accept(self, folder: Path) -> Path | None:
        """Sign it if this is a client, and store it; the party begins with it from now on.

        Returns:
            Where what belonged to the charter before lies now; None where there was none.

        Raises:
            NotAccepted: there is no charter, or this party is running.
            OSError: the folder cannot be written; accept once more.
        """
        if self.config is None or self.charter is None or self.signature is None:
            raise NotAccepted("no charter", "a roster and a charter", "give charter.json, or the folder that has both")
        with not_running(folder):
            config = _with_timing(self.config, folder)
            remember_newest(folder, self.roster)  # from here on nothing older is taken, whatever happens next
            aside = None if self.follows is None else set_aside(folder, self.follows)
            write_whole(folder / PINNED, pinned_bytes(self.roster.administrators))
            write_whole(folder / ROSTER, self.roster_file)
            write_whole(folder / CHARTER, charter_bytes(self.config, self.roster))
            write_whole(folder / SIGNATURE, statement_bytes(self.signature))
            write_whole(folder / CONFIG, config_file(config))
            if self.identity is not None and self.member is not None:
                write_acceptance(folder, self.identity, self.member, self.charter, self.roster)
        return aside


def read_offered(
    folder: Path,
    roster_path: Path,
    charter_path: Path | None,
    *,
    administrator: str | None,
    passphrase: Passphrase,
    taking: bool = False,
) -> Offered:
    """Read what a party is asked to accept, and refuse what it must not accept.

    Args:
        folder: the party's; one with a `client.toml` is a client's.
        roster_path: the roster.
        charter_path: the charter, its signature beside it; None for a roster alone.
        administrator: the fingerprint of who must have signed, as people compare it; None goes by the pinned keys.
        passphrase: asked where own keys are sealed.
        taking: whether a roster by which this party is revoked is stored, so that it begins with no older one.

    Raises:
        RosterRefused, BadSignature, KeyFileError: another administrator's, an old or expired one, another's keys.
        Revoked: this party is revoked.
        NotAccepted: what its own policy forbids, or what does not follow its own record.
        ConfigError: a `client.toml` that cannot be used.
    """
    client = read_client(folder / CLIENT_FILE) if (folder / CLIENT_FILE).exists() else None
    data = read_bounded(roster_path, MAX_ROSTER_BYTES)
    signer = parse_roster(data).administrator
    pinned = read_pinned_keys(folder / PINNED) if (folder / PINNED).exists() else ()
    least = 1 if client is None else client.least_roster_serial
    roster = read_roster(data, trusted_keys(signer, pinned, administrator), least_serial=least, today=today())
    check_newest(folder, roster)
    name = None if client is None else client.name
    try:
        _, identity = own_keys(folder, roster, name, passphrase)
    except Revoked:
        if taking:
            remember_newest(folder, roster)
            write_whole(folder / ROSTER, data)
        raise
    found: tuple[FederationConfig, Charter] | None = None
    signature, follows, exposed = None, None, list[str]()
    if charter_path is not None:
        found = config, charter = read_charter(read_bounded(charter_path, MAX_CHARTER_BYTES), roster)
        signature = statement_of(charter_path.with_name(SIGNATURE), CharterSignature)
        signature.check(charter, roster)
        runs = config.code if client is None else client.policy.code
        follows = what_it_follows(folder, charter, dict(runs))
        exposed = exposures(config, roster)
        if client is not None:
            exposed += permitted(folder, client, config, roster, charter)
    return Offered(
        roster=roster,
        signer=signer,
        pinned=pinned,
        config=None if found is None else found[0],
        charter=None if found is None else found[1],
        exposed=tuple(exposed),
        follows=follows,
        member=name,
        identity=identity,
        roster_file=data,
        signature=signature,
    )


def permitted(
    folder: Path, client: ClientConfig, config: FederationConfig, roster: Roster, charter: Charter
) -> list[str]:
    """What a client's own policy, own code and answered blocks say to a charter; a permitted cut in words.

    Raises:
        NotAccepted: one of them refuses it.
    """
    from secure_codream.configuration.limits import client_policy  # needs torch, which a server has not

    try:
        course = make_course(config, client.policy.code)
        plan = first_plan(charter, course)
        client_policy(client, config, course).check(plan)
        cut = BlocksAnswered(folder / "answered.json").check(
            roster,
            charter,
            roster.members[roster.number_of(client.name)].identity_key,
            permitted=bool(client.policy.cuts),
            noised=all_noised(course, charter),
        )
    except ConfigError as error:
        raise NotAccepted(str(error), "what this client's own files permit") from None
    except ProtocolError as error:
        raise NotAccepted(error.found, error.allowed, error.remedy) from None
    return [] if cut is None else [cut]


def _with_timing(config: FederationConfig, folder: Path) -> FederationConfig:
    """`[timing]` is nobody else's business: what stood in this folder stays."""
    path = folder / CONFIG
    return config.model_copy(update={"timing": read_federation(path).timing}) if path.exists() else config
