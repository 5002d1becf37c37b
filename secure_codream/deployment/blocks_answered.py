"""Which blocks a client's data have answered for, over all charters: a new charter must not cut one of them unseen.

Kept beside the client's files, in terms of identity keys, since numbers change with the roster. The common refinement
of all blocks that were ever answered and the new ones is what sums together can tell apart.
"""

from __future__ import annotations

import json
from pathlib import Path

from codream_protocols.charter import Charter, blocks_by_key, cuts
from codream_protocols.errors import PolicyViolation
from codream_protocols.identity import MAX_MEMBERS, Roster
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.exposure import cut_exposure, predecessors_blocks
from secure_codream.reports.files import write_whole

RENEWED = (
    "a charter of which nobody can tell what it cuts: this client's identity key is another than the one under which "
    "its data have answered, so that old blocks cannot be compared with new ones"
)


class BlocksAnswered:
    """The file that remembers them.

    Args:
        path: a JSON file; it need not exist.

    Raises:
        ConfigError: it is there, and is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks: list[list[str]] = []
        self._colluders = 0
        if path.exists():
            try:
                content = json.loads(path.read_bytes())
                self._blocks = [[str(key) for key in block] for block in content["blocks"]]
                self._colluders = int(content["colluders"])
                if not 0 <= self._colluders < MAX_MEMBERS:
                    raise ValueError("no number of colluders")
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                raise ConfigError(f"{path}: found no list of blocks; restore it from a copy") from None

    def check(self, roster: Roster, charter: Charter, own: bytes, *, permitted: bool, noised: bool) -> str | None:
        """Refuse a charter that cuts a block, unless it is permitted; `own` is this client's identity key.

        It is a cut by what this client's own data answered for, or by what the charter says of its predecessors'
        blocks, which is all that a new member knows of them. So a client that takes a cut sees to it that the charter
        says of these blocks what it knows itself.

        Returns:
            What a permitted cut exposes, for the client's screen; None where nothing is cut.

        Raises:
            PolicyViolation: a cut that the client's policy does not permit, or that is kept from new members.
        """
        if noised:
            return None  # a difference of noised sums keeps what the noise promises
        said, new = predecessors_blocks(charter), _named(roster, charter)
        before = 0 if charter.predecessor is None else charter.predecessor.colluders
        least = max(charter.aggregation.colluders, before, self._colluders) + 2
        parts = cuts([*self._blocks, *said], new, least)
        renewed = bool(self._blocks) and not any(own.hex() in block for block in self._blocks)
        if not parts and not renewed:
            return None
        text = cut_exposure(roster, least, parts) if parts else RENEWED
        if not permitted:
            raise PolicyViolation(text, "charters that keep blocks whole", "or permit it with cuts = true in [policy]")
        told = {frozenset(block) for block in [*said, *new]}
        members = {key for block in new for key in block}
        if any(members.intersection(block) and frozenset(block) not in told for block in self._blocks):
            raise PolicyViolation(
                f"{text}; and the charter does not say so to new members",
                "the blocks that this client's data have answered for, under [predecessor]",
                "`secure-codream verify RECORD --successor` writes that table",
            )
        return text

    def add(self, roster: Roster, charter: Charter) -> None:
        """Remember a charter's blocks, and what it was to bear, before anything is answered for it."""
        known = {frozenset(block) for block in self._blocks}
        self._blocks += [block for block in _named(roster, charter) if frozenset(block) not in known]
        self._colluders = max(self._colluders, charter.aggregation.colluders)
        content = {"colluders": self._colluders, "blocks": self._blocks}
        write_whole(self._path, json.dumps(content, indent=2).encode())


def _named(roster: Roster, charter: Charter) -> list[list[str]]:
    return [[key.hex() for key in block] for block in blocks_by_key(charter, roster)]
