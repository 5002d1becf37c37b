"""What a party may say of its own records and of all that it has sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from codream_protocols.charter import Charter
from codream_protocols.course import Course
from codream_protocols.courses.codream import CoDream
from codream_protocols.courses.dp_sgd import DPSGD
from codream_server.privacy_statement import client_privacy_statement
from secure_codream.configuration.federation import FederationConfig
from secure_codream.reports.statement import (
    PrivacyStatement,
    client_level,
    mechanisms_of,
    privacy_statement,
    record_level,
    ring_level,
    sums_level,
)

if TYPE_CHECKING:
    from codream_clients.privacy.ledger import Ledger


def _shared_elsewhere(ledger: Ledger) -> bool:
    """Whether other runs have charged it with what rests on the noise of others, too."""
    others = (account for account in ledger.accounts.values() if account is not ledger.own)
    return any(charge.discrete for account in others for charge in account.begun)


def own_statement(
    federation: FederationConfig,
    name: str,
    ledger: Ledger | None,
    charter: Charter,
    course: Course,
    spent_rho: float,
    *,
    metrics_reported: bool = False,
    dealt_out: bool = False,
    weights: str = "",
    parts: Mapping[Path, Ledger] | None = None,
    uncharged: Sequence[str] = (),
) -> PrivacyStatement:
    """What a party may say of its own records and of all that it has sent.

    `weights`: where its model's first weights come from, in words. `parts`: the ledgers of earlier parts of its data; a
    record is in one part, so it has cost the most of them at most. `uncharged`: who has trained on the same images, and
    charged nothing.
    """
    privacy, noised, record = federation.client_privacy, None, None
    if ledger is not None:
        earlier = ((f"{name}, part {path.name}", part) for path, part in (parts or {}).items())
        spent = [(said, part.budget, mechanisms_of(part)) for said, part in ((name, ledger), *earlier)]
        if isinstance(course, DPSGD):
            record = ring_level(spent, course, charter)
        elif federation.privacy is None and isinstance(course, CoDream):
            record = sums_level(spent, course, charter)
        else:
            record = record_level(spent, federation.privacy)
        record = replace(
            record,
            weights=weights,
            elsewhere=any(map(_shared_elsewhere, (ledger, *(parts or {}).values()))),
            members=[
                replace(member, ledger=of.name, entries=of.entries, head=of.head)
                for member, of in zip(record.members, (ledger, *(parts or {}).values()), strict=True)
            ],
        )
    if privacy is not None and isinstance(course, CoDream):
        noised = client_level(client_privacy_statement(privacy, course.settings, charter, spent_rho=spent_rho))
    return privacy_statement(
        federation.federation.name,
        record=record,
        client=noised,
        colluders=federation.aggregation.colluders,
        metrics_reported=metrics_reported,
        dealt_out=dealt_out,
        roster=charter.roster,
        recipe=charter.settings,
        uncharged=uncharged,
    )
