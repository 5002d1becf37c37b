"""All checks of a party's folder, in the order in which a run would stumble.

A check whose ground another one has taken away is left out: without a roster there is no charter to compare with, and
code that a charter names is not run before that charter was accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from codream_protocols.charter import Charter, first_plan
from codream_protocols.course import Course
from codream_protocols.identity import Roster
from codream_protocols.membership import CharterSignature, fingerprint
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.deployment.acceptance import permitted
from secure_codream.deployment.earlier import is_running
from secure_codream.deployment.exposure import exposures
from secure_codream.deployment.files import CLIENT_FILE, JOURNAL, RECORD
from secure_codream.doctor.findings import MENDABLE, Finding, State, failed, failure, looked, ok, warning
from secure_codream.doctor.machine import bytes_to_write, of_clock, of_descriptors, of_disk
from secure_codream.doctor.reachability import REACHABILITY, of_own_port, of_server
from secure_codream.membership.accepted import (
    ACCEPTANCES,
    ROSTER,
    SIGNATURE,
    check_accepted,
    expiry_warning,
    gathered,
    load_roster,
    own_keys,
)
from secure_codream.membership.files import statement_of
from secure_codream.membership.keys import IDENTITY, PINNED, TRANSPORT, read_pinned_keys, read_private_key
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.words import counted

SETTINGS, KEYS, ROSTER_CHECK, CHARTER, ACCEPTANCE = "settings", "keys", "roster", "charter", "acceptance"
POLICY, BLOCKS, LOSSES = "policy", "blocks", "losses"


@dataclass
class _Known:
    """What the checks so far have made sure of."""

    client: ClientConfig | None = None
    federation: FederationConfig | None = None
    roster: Roster | None = None
    secret: bytes | None = None
    charter: Charter | None = None
    accepted: bool = False


def examine(folder: Path, *, address: str | None = None) -> list[Finding]:
    """Look at everything that a run from this folder needs.

    Args:
        folder: a client's, which has a `client.toml`, or the server's.
        address: where the server listens, or is to listen; None takes the roster's.

    Returns:
        At least one finding of each check that could be made.
    """
    with _no_bytecode():
        return _Examination(folder, address).findings()


def well(findings: list[Finding]) -> bool:
    """Whether a run may begin."""
    return not any(finding.state is State.FAILED for finding in findings)


class _Examination:
    def __init__(self, folder: Path, address: str | None) -> None:
        self._folder, self._address, self._known = folder, address, _Known()
        self._is_client = (folder / CLIENT_FILE).exists()

    def findings(self) -> list[Finding]:
        known, folder = self._known, self._folder
        found = looked(SETTINGS, self._settings)
        found += looked(ROSTER_CHECK, self._roster)
        found += looked(KEYS, self._keys)
        federation, roster = known.federation, known.roster
        if federation is not None and roster is not None:
            found += looked(CHARTER, lambda: self._charter(federation, roster))
            if known.charter is not None:
                found += self._under(federation, roster, known.charter)
        found += looked("clock", lambda: of_clock(folder))
        if roster is not None:
            members = 1 if self._is_client else len(roster.members)
            found += looked("descriptors", lambda: of_descriptors(members))
            found += looked(REACHABILITY, lambda: self._reachability(roster))
        return found

    def _under(self, federation: FederationConfig, roster: Roster, charter: Charter) -> list[Finding]:
        """What this party does under its charter, and what it needs for it."""
        found: list[Finding] = []
        known, folder, client = self._known, self._folder, self._known.client
        if known.accepted:
            found += looked(ACCEPTANCE, lambda: self._acceptance(federation, roster, charter))
        course: Course | None = None
        if known.accepted or not federation.code:
            try:
                course = make_course(federation, None if client is None else client.policy.code)
            except MENDABLE as error:
                found.append(failure(POLICY, error))
        if course is not None:
            try:
                first_plan(charter, course)
            except MENDABLE as error:  # whoever signed it did not look
                found.append(failure(CHARTER, error))
                course = None
        found += looked(BLOCKS, lambda: _blocks(federation, roster))
        found += looked(LOSSES, lambda: _losses(charter))
        weights = None
        if course is not None and client is not None:
            found += looked(POLICY, lambda: _policy(folder, client, federation, roster, charter))
            weights = self._learning(found, client, federation, charter, course)
        if course is not None:
            record = folder / (JOURNAL if self._is_client else RECORD)
            needed = bytes_to_write(record, federation, roster, charter, course, weights=weights)
            found += looked("disk", lambda: of_disk(folder, needed))
        return found

    def _settings(self) -> Iterator[Finding]:
        if self._is_client:
            self._known.client = read_client(self._folder / CLIENT_FILE)
        config = self._folder / "config.toml"
        if not config.exists() and not (self._folder / ROSTER).exists():
            accept = f"secure-codream roster verify {self._folder} CHARTER --administrator FINGERPRINT --accept"
            yield failed(
                SETTINGS, f"no charter in {self._folder} yet", "one that was accepted", f"{accept}, which lays it here"
            )
            return
        self._known.federation = read_federation(config)
        names = f"{CLIENT_FILE} and config.toml" if self._is_client else "config.toml"
        yield ok(SETTINGS, f"{names} can be read")

    def _roster(self) -> Iterator[Finding]:
        client = self._known.client
        if (self._folder / ROSTER).exists() and (self._folder / PINNED).exists():
            least = 1 if client is None else client.least_roster_serial
            roster = self._known.roster = load_roster(self._folder, least_serial=least)
            if client is not None:
                roster.number_of(client.name)
            pinned = " and ".join(map(fingerprint, read_pinned_keys(self._folder / PINNED)))
            yield ok(
                ROSTER_CHECK,
                f"{roster.federation}, serial {roster.serial}, {counted(len(roster.members), 'client')}, until "
                f"{roster.expires}; pinned administrator {pinned}",
            )
            if (text := expiry_warning(roster)) is not None:
                yield warning(ROSTER_CHECK, text, "a roster of more than 30 days")
        else:
            load_roster(self._folder)  # says which of the two is missing

    def _keys(self) -> Iterator[Finding]:
        known = self._known
        passphrase = Passphrase()
        names = [TRANSPORT, IDENTITY] if self._is_client else [TRANSPORT]
        if known.roster is None or (self._is_client and known.client is None):
            for file in names:
                read_private_key(self._folder / file, passphrase)
            yield ok(KEYS, f"{' and '.join(names)}, readable by their owner alone")
            return
        name = None if known.client is None else known.client.name
        known.secret, _ = own_keys(self._folder, known.roster, name, passphrase)
        yield ok(KEYS, f"{' and '.join(names)}, readable by their owner alone, and the roster's")

    def _charter(self, federation: FederationConfig, roster: Roster) -> Iterator[Finding]:
        charter = self._known.charter = federation.charter(roster)
        check_accepted(self._folder, federation, roster, None)
        self._known.accepted = True
        if (self._folder / SIGNATURE).exists():
            statement_of(self._folder / SIGNATURE, CharterSignature).check(charter, roster)
        yield ok(CHARTER, f"config.toml says what was accepted, {charter.digest.hex()[:16]}…")

    def _acceptance(self, federation: FederationConfig, roster: Roster, charter: Charter) -> Iterator[Finding]:
        known = self._known
        if known.client is not None:
            known.accepted = False
            check_accepted(self._folder, federation, roster, known.client.name)
            known.accepted = True
            yield ok(ACCEPTANCE, f"accepted by {known.client.name}")
            return
        found, wrong = gathered(self._folder / ACCEPTANCES, charter, roster)
        missing = [member.name for member in roster.members if member.name not in found]
        if not missing and not wrong:
            yield ok(ACCEPTANCE, f"accepted by all {len(found)} clients")
        if missing:
            place = self._folder / ACCEPTANCES
            yield warning(
                ACCEPTANCE, f"none of {', '.join(missing)}", "one of each client", f"put into {place} what they send"
            )
        for problem in wrong:
            yield warning(ACCEPTANCE, problem, do="take the file away")

    def _learning(
        self,
        found: list[Finding],
        client: ClientConfig,
        federation: FederationConfig,
        charter: Charter,
        course: Course,
    ) -> int:
        """A client's data, model and budget; returns the bytes of its model."""
        from secure_codream.doctor.learning import BUDGET, DATA, MASKS, MODEL, Weighed, of_budget, of_data, of_masks

        weighed = Weighed()
        data = looked(DATA, lambda: of_data(client, federation))
        found += data
        found += looked(MODEL, lambda: weighed.of_model(client, federation))
        found += looked(MASKS, lambda: of_masks(client, charter))
        if well(data):
            found += looked(BUDGET, lambda: of_budget(self._folder, client, federation, charter, course))
        return weighed.bytes

    def _reachability(self, roster: Roster) -> Iterator[Finding]:
        address, secret = self._address or roster.server.address, self._known.secret
        if not self._is_client:
            if is_running(self._folder):
                yield ok(REACHABILITY, "this server is running")
            else:
                yield from of_own_port(address)
        elif secret is not None:
            proxy = None if self._known.client is None else self._known.client.proxy
            yield from of_server(address, secret=secret, server_key=roster.server.transport_key, proxy=proxy)


def _policy(
    folder: Path, client: ClientConfig, federation: FederationConfig, roster: Roster, charter: Charter
) -> Iterator[Finding]:
    cut = permitted(folder, client, federation, roster, charter)
    if cut:
        allowed = "charters that keep blocks whole"
        yield warning(POLICY, "; ".join(cut), allowed, "nothing: this client's policy permits it, cuts = true")
    else:
        yield ok(POLICY, "this client's own policy permits the charter")


def _blocks(federation: FederationConfig, roster: Roster) -> Iterator[Finding]:
    yield ok(BLOCKS, exposures(federation, roster)[0])


def _losses(charter: Charter) -> Iterator[Finding]:
    aggregation = charter.aggregation
    least = 2 * (aggregation.colluders + 2)
    if aggregation.mode == "lockstep":
        yield ok(LOSSES, "while a client is away, the others wait; it is started again, and nothing is lost")
    elif len(charter.blocks) == 1:
        yield warning(
            LOSSES,
            f"one block of {charter.members} clients: this cohort bears no loss",
            f"{least} clients or more, which make two blocks",
            "mode = 'lockstep' under [aggregation] waits for who is away; or let more sites join",
        )
    else:
        yield ok(LOSSES, f"{len(charter.blocks)} blocks: whoever drops out takes its block along, the others go on")


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Code of one's own is loaded, and leaves no `__pycache__` behind."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
