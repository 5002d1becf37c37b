"""Whether this machine can bear a run: clock, disk and descriptors."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from codream_protocols.charter import Charter, first_plan
from codream_protocols.course import Course
from codream_protocols.identity import Roster
from codream_protocols.record_file import record_numbers
from secure_codream.configuration.federation import FederationConfig, learning_settings
from secure_codream.doctor.findings import Finding, failed, ok, warning
from secure_codream.membership.accepted import CHARTER, CONFIG, ROSTER
from secure_codream.reports.words import format_bytes

CLOCK, DISK, DESCRIPTORS = "clock", "disk", "descriptors"
PLAUSIBLE_FROM = 1_735_689_600  # 2025-01-01: no roster of this program is older
AHEAD_SECONDS = 300  # by which files may be younger than now: clocks of file servers
OWN_DESCRIPTORS, DESCRIPTORS_EACH = 128, 3  # of files, threads and ZeroMQ; of a member's connection and its vector
BYTES_OF_RECORD, SLACK_BYTES = 8192, 64 << 20  # signatures and keys of a member and epoch; logs


def of_clock(folder: Path, now: float | None = None) -> Iterator[Finding]:
    """Whether the time is plausible: rosters are refused by the day, and a clock that lies lets old ones in.

    Args:
        folder: the party's, whose files were not stored in the future.
        now: seconds since 1970; the clock's unless given.
    """
    seconds = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + " UTC"
    stored = max(
        (path.stat().st_mtime for name in (ROSTER, CHARTER, CONFIG) if (path := folder / name).is_file()), default=0.0
    )
    if seconds < PLAUSIBLE_FROM:
        yield failed(CLOCK, shown, "the true time", "set this machine's clock, best by NTP")
    elif stored > seconds + AHEAD_SECONDS:
        later = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(stored))
        yield warning(
            CLOCK,
            f"{shown}, before what was accepted here was stored ({later})",
            "the true time",
            "set this machine's clock, best by NTP: by it an expired roster is known",
        )
    else:
        yield ok(CLOCK, shown)


def of_descriptors(members: int, allowed: int | None = None) -> Iterator[Finding]:
    """Whether a process may open as many files and sockets as so many members need.

    Args:
        members: connected to this process; 1 for a client, which has the server alone.
        allowed: the soft limit; this process's unless given.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if allowed is None else allowed
    needed = OWN_DESCRIPTORS + DESCRIPTORS_EACH * members
    if limit != resource.RLIM_INFINITY and limit < needed:
        yield failed(DESCRIPTORS, f"{limit} files may be open", f"{needed} or more", f"ulimit -n {2 * needed}")
    else:
        yield ok(
            DESCRIPTORS, "no limit" if limit == resource.RLIM_INFINITY else f"{limit} may be open, {needed} needed"
        )


def of_disk(folder: Path, needed: int, free: int | None = None) -> Iterator[Finding]:
    """Whether there is room for so many bytes.

    Args:
        folder: the party's.
        needed: what is still to be written.
        free: what there is; the disk's unless given.
    """
    room = shutil.disk_usage(folder).free if free is None else free
    found, wanted = f"{format_bytes(room)} free", f"about {format_bytes(needed)} that the run will write"
    if room < needed:
        yield failed(DISK, found, wanted, f"make room where {folder} lies")
    elif room < 2 * needed:
        yield warning(DISK, found, f"twice {wanted}", f"make room where {folder} lies")
    else:
        yield ok(DISK, f"{found}; {wanted}")


def bytes_to_write(
    record: Path, config: FederationConfig, roster: Roster, charter: Charter, course: Course, *, weights: int | None
) -> int:
    """What a party's run will still write, about: the sums of each epoch with their signatures, and what is learnt.

    Args:
        record: the party's journal or record, whose epochs are written already.
        config: the federation's settings.
        roster: who takes part.
        charter: the charter.
        course: the course.
        weights: bytes of a client's model, written as it is, as the best one, and as what teaches if that is another;
            None for the server, which keeps the dreams.
    """
    there = len(record_numbers(path.name for path in record.iterdir())) if record.is_dir() else 0
    epochs = max(0, course.epochs - charter.earlier - there)
    plan = first_plan(charter, course)
    sums = sum(plan.spec(step).words * plan.modulus_bits(step) // 8 + 16 for step in range(plan.steps))
    epoch = sums + BYTES_OF_RECORD * len(roster.members)
    if weights is not None:
        files = 2 if learning_settings(config).teacher == "current" else 3
        return SLACK_BYTES + epochs * epoch + (files + 1) * weights  # each whole, and one more while one is replaced
    if config.federation.course == "sums":
        return SLACK_BYTES + epochs * epoch
    channels, height, width = config.task.shape
    return SLACK_BYTES + epochs * (epoch + 8 * config.dreams.batch * (channels * height * width + config.task.classes))
