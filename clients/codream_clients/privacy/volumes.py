"""Whether a file would outlast the machine's next start: a ledger that vanishes with its volume starts at nothing."""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
VANISHING = ("tmpfs", "ramfs")


def vanishing(path: Path) -> str | None:
    """The kind of file system, if it is one in memory, where `path` lies or will lie; None where none is known."""
    if not MOUNTS.exists():
        return None
    place = path.absolute().parent.resolve()
    kind, longest = "", -1
    for line in MOUNTS.read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), before.split()[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= longest:
            kind, longest = after.split()[0], len(mounted.parts)
    return kind if kind in VANISHING else None
