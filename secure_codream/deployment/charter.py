"""The charter as the administrator signs it: settings and a roster, refused where they could never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from codream_protocols.charter import MAX_BLOCKS, Charter, first_plan
from codream_protocols.errors import RosterRefused
from codream_protocols.identity import MAX_ROSTER_BYTES, Roster, Signer, read_roster
from codream_protocols.membership import CharterSignature, sign_charter, statement_bytes
from secure_codream.configuration.charter_file import charter_bytes
from secure_codream.configuration.courses import make_course, written_out
from secure_codream.configuration.federation import FederationConfig, PredecessorTable
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.verify import verify_record
from secure_codream.membership.accepted import CHARTER, ROSTER, SIGNATURE
from secure_codream.membership.administration import newest_roster
from secure_codream.membership.files import read_bounded, write_new
from secure_codream.membership.keys import PINNED, read_pinned_keys


def runnable(config: FederationConfig, roster: Roster) -> tuple[FederationConfig, Charter]:
    """The configuration with what hangs on libraries written out (`written_out`), and its charter.

    Raises:
        ConfigError, UnsafePlan: a federation that could never run: too few clients for its settings, for example.
    """
    config = written_out(config)
    charter, course = config.charter(roster), make_course(config)
    first_plan(charter, course)
    return config, charter


def following(config: FederationConfig, record: Path) -> FederationConfig:
    """The configuration of a charter that follows the one that a record is of.

    Raises:
        ConfigError: it names a predecessor already, or there were too many blocks.
        RecordRefused: the record does not verify.
    """
    if config.predecessor is not None:
        raise ConfigError("[predecessor]: found one already; leave out the table, or --after")
    successor = verify_record(record, permitted=config.code).successor
    if len(successor["blocks"]) > MAX_BLOCKS:
        raise ConfigError(
            f"[predecessor]: found {len(successor['blocks'])} different blocks of all charters before; at most "
            f"{MAX_BLOCKS} are allowed; keep to the charter that is in force, or begin a federation under another name"
        )
    table = check("[predecessor]", PredecessorTable, successor)
    return config.model_copy(update={"predecessor": table})


def sign(folder: Path, administrator: Signer, config: FederationConfig) -> tuple[Path, Roster, FederationConfig]:
    """Sign the charter that this configuration and the newest roster make.

    Args:
        folder: the administrator's.
        administrator: its key.
        config: the federation's configuration.

    Returns:
        The folder to hand out, the roster, and the configuration with what hangs on libraries written out.

    Raises:
        RosterRefused: the roster is another federation's.
        ConfigError, UnsafePlan: see `runnable`.
        WouldOverwrite: somebody else writes there.
    """
    data = read_bounded(newest_roster(folder), MAX_ROSTER_BYTES)
    roster = read_roster(data, read_pinned_keys(folder / PINNED))
    if roster.federation != config.federation.name:
        raise RosterRefused(
            f"a roster of {roster.federation!r}", f"one of {config.federation.name!r}, as [federation] says"
        )
    config, charter = runnable(config, roster)
    out = _next_folder(folder)
    for name, content in handed_out(config, roster, data, sign_charter(charter, administrator)).items():
        write_new(out / name, content)
    return out, roster, config


def handed_out(
    config: FederationConfig, roster: Roster, roster_file: bytes, signature: CharterSignature
) -> dict[str, bytes]:
    """What an administrator hands out to be accepted: file name -> content."""
    return {ROSTER: roster_file, CHARTER: charter_bytes(config, roster), SIGNATURE: statement_bytes(signature)}


def config_file(config: FederationConfig) -> bytes:
    """A party's `config.toml`; what is not given is left out, since TOML has no word for it."""
    return tomli_w.dumps(_given(config.model_dump(mode="json"))).encode()


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(inner) for name, inner in value.items() if inner is not None}
    return value


def _next_folder(folder: Path) -> Path:
    number = 1
    while (folder / f"charter-{number}").exists():
        number += 1
    return folder / f"charter-{number}"
