"""What a party set aside when its charter was followed by another: `earlier/`, a folder a charter.

    earlier/<first 16 digits of the charter's digest>/   record/ or journal/, models, sums, failures, what was accepted

The party begins anew in its own folder: a journal is one charter's, and weights of one charter are no start for
another. What is certified stays as it is and verifies as before. Ledger and `answered.json` go on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from codream_clients.journal import LOCK, JournalBusy
from codream_protocols.charter import Charter
from codream_protocols.durable import sync_folder
from codream_protocols.errors import NotAccepted
from secure_codream.deployment.files import BEST, FAILURES, JOURNAL, MODEL, RECORD, SUMS, TEACHER
from secure_codream.deployment.verify import Verified, verify_record
from secure_codream.membership.accepted import ACCEPTANCE, ACCEPTANCES, CHARTER, ROSTER, SIGNATURE

EARLIER = "earlier"
_SET_ASIDE = (MODEL, BEST, TEACHER, SUMS, FAILURES, ACCEPTANCES, ACCEPTANCE, SIGNATURE, CHARTER, ROSTER)


def not_running(folder: Path) -> AbstractContextManager[None]:
    """Hold the locks of whoever runs from this folder.

    Raises:
        JournalBusy: on entering, it is running.
    """
    return _locked(folder, fcntl.LOCK_EX)


def is_running(folder: Path) -> bool:
    """Whether a process runs from this folder; looked at, nothing is written or held."""
    try:
        with _locked(folder, fcntl.LOCK_SH):  # shared: two who look do not see each other
            return False
    except JournalBusy:
        return True


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with ExitStack() as held:
        for path in (folder / JOURNAL / LOCK, folder / RECORD):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalBusy(
                    f"{folder} in use by a running party", "one that is stopped", "stop it first"
                ) from None
        yield


def what_it_follows(folder: Path, charter: Charter, permitted: dict[str, str]) -> Verified | None:
    """What this party's own record says of the charter before; None where it has none, or it is this very charter.

    Args:
        folder: the party's.
        charter: the one to be accepted.
        permitted: own code that may be run.

    Raises:
        NotAccepted: the charter does not follow what is recorded here, or would lose some of it.
        RecordRefused: the record does not verify.
    """
    record = next((folder / name for name in (JOURNAL, RECORD) if (folder / name / CHARTER).is_file()), None)
    if record is None:
        return None
    found = verify_record(record, permitted=permitted)
    if found.charter == charter.digest.hex():
        return None
    named = charter.predecessor
    if named is None or named.charter.hex() != found.charter:
        raise NotAccepted(
            f"a charter that does not follow {found.charter[:16]}…, which {record} is of",
            "one that names it under [predecessor]",
            f"to begin anew all the same, move {record} away, and {MODEL} where there is one",
        )
    certified = found.earlier + found.epochs
    if certified > named.certified or (certified == named.certified and found.head != named.head.hex()):
        raise NotAccepted(
            f"a charter that follows {named.certified} certified epochs with head {named.head.hex()[:16]}…",
            f"one that follows {certified} with head {found.head[:16]}…, which {record} has",
            "tell the administrator: something certified would be lost",
        )
    return found


def set_aside(folder: Path, before: Verified) -> Path:
    """Move what was one charter's into `earlier/`; call it while `not_running`. Raises `OSError`."""
    place = folder / EARLIER / before.charter[:16]
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (*_SET_ASIDE, RECORD, JOURNAL):  # what tells that there is something to move goes last
        if os.path.lexists(folder / name):
            (folder / name).rename(place / name)
    sync_folder(place)
    sync_folder(folder)
    return place
