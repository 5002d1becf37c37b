"""The charter as a file of a record: `charter.json`, one text for one charter, enough to derive everything again."""

from __future__ import annotations

import json

import msgspec

from codream_protocols.charter import Charter
from codream_protocols.errors import MalformedMessage
from codream_protocols.identity import Roster
from codream_protocols.starts import PHOTOS
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError, canonical_json, check

MAX_CHARTER_BYTES = 1 << 22


def charter_bytes(config: FederationConfig, roster: Roster) -> bytes:
    """The file's bytes: all settings with their defaults resolved, how sums are made, and what it follows.

    Raises:
        ConfigError: fewer members than can be summed, or dreams that start from photographs whose digest is missing.
    """
    settings = config.settings
    if "dreams" in settings and config.dreams.start == PHOTOS and config.dreams.photographs is None:
        raise ConfigError(
            f"[dreams]: found start {PHOTOS!r} without photographs, by whose digest parties see whether theirs are "
            "alike; `provision` and `charter` write it"
        )
    charter = config.charter(roster)
    blocks = [[roster.members[member].name for member in block] for block in charter.blocks]
    previous = config.predecessor
    return canonical_json(
        {
            "settings": settings,
            "aggregation": {**msgspec.structs.asdict(charter.aggregation), "blocks": blocks},
            "predecessor": None if previous is None else previous.model_dump(mode="json"),
        }
    )


def read_charter(data: bytes, roster: Roster) -> tuple[FederationConfig, Charter]:
    """The configuration and the charter that a file and a roster make.

    Raises:
        MalformedMessage: bytes that `charter_bytes` would not write.
    """
    if len(data) > MAX_CHARTER_BYTES:
        raise MalformedMessage(f"a charter of {len(data)} bytes", f"at most {MAX_CHARTER_BYTES}")
    try:
        content = json.loads(data)
        settings = dict(content["settings"])
        settings.pop("protocol")
        predecessor = {} if content["predecessor"] is None else {"predecessor": content["predecessor"]}
        config: FederationConfig = check(
            "charter.json", FederationConfig, {**settings, "aggregation": content["aggregation"], **predecessor}
        )
        same = charter_bytes(config, roster) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0][:160] if isinstance(error, ConfigError) else type(error).__name__
        raise MalformedMessage(f"a charter that cannot be read ({reason})", "the file that the server wrote") from None
    if not same:
        raise MalformedMessage(
            "a charter that this version would write otherwise",
            "the file as it was written, read by the version that did",
        )
    return config, config.charter(roster)
