"""One sum of large vectors over loopback, each party a process of its own: `python -m tests.system.large ROLE FOLDER`.

The course keeps a few numbers, so that what is measured is the sum's. A party prints its largest resident memory above
what it held before it began, in bytes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import structlog

from codream_clients.journal import FileJournal
from codream_clients.runner import ClientRunner
from codream_protocols.charter import Charter, Policy
from codream_protocols.client import ClientProtocol
from codream_protocols.course import Array, Publication, Task
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import Block, VectorSpec
from codream_server.record_folder import RecordFolder
from codream_server.runner import ServerRunner
from codream_server.settings import Timing
from secure_codream.simulation.sockets import transport_keys
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import make_charter

TIMING = Timing(step=3600.0, beat=1.0, lost_after=600.0)


class Stand(msgspec.Struct):
    """What all parties are given.

    Attributes:
        members: clients.
        length: coordinates.
        steps: sums.
        mode: how sums are made; in the resilient one any set may be summed.
        keys: public and secret transport keys: of the server, then of each member.
    """

    members: int
    length: int
    steps: int
    mode: Literal["lockstep", "resilient"]
    keys: list[tuple[bytes, bytes]]

    @property
    def roster(self) -> Roster:
        members = tuple(
            Member(f"site-{number}", signer(number).public, public) for number, (public, _) in enumerate(self.keys[1:])
        )
        return Roster("large", 1, ServerEntry("tcp://127.0.0.1:1", self.keys[0][0]), members)

    @property
    def charter(self) -> Charter:
        return msgspec.structs.replace(
            make_charter(self.members, mode=self.mode, losses="allow"), roster=self.roster.hash
        )

    @property
    def course(self) -> LaboratoryCourse:
        return LaboratoryCourse((VectorSpec("update", (Block("dream", self.length, 1.0),)),), self.steps, 1)


def signer(number: int) -> Signer:
    return Signer(bytes([number + 1]) * 32)


def make(folder: Path, *, members: int, length: int, steps: int, mode: Literal["lockstep", "resilient"]) -> None:
    """Write down what all parties are given."""
    stand = Stand(members, length, steps, mode, [transport_keys() for _ in range(members + 1)])
    (folder / "stand").write_bytes(msgspec.msgpack.encode(stand))


def memory(what: str) -> int:
    """Of this process, in bytes: `VmRSS`, or `VmHWM`, the largest it has had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


class Halves:
    """Answers with a half everywhere; its numbers are made as they are asked for."""

    def __init__(self) -> None:
        self.learnt: list[Publication] = []

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        return {block.name: np.full(block.length, 0.5, np.float32) for block in spec.blocks}

    def learn(self, number: int, publication: Publication) -> None:
        self.learnt.append(publication)


def serve(folder: Path, stand: Stand) -> None:
    record = RecordFolder(folder / "record", roster=b"roster", charter=b"charter")
    protocol = ServerProtocol(stand.charter, stand.roster, stand.course, beat_seconds=TIMING.beat, journal=record)
    runner = ServerRunner(
        protocol,
        roster=stand.roster,
        transport_secret=stand.keys[0][1],
        endpoint="tcp://127.0.0.1:*",
        timing=TIMING,
        emit=lambda event: print(event, file=sys.stderr, flush=True),
        spool=record.folder,
    )
    idle = memory("VmRSS")
    asyncio.run(runner.run(lambda endpoint: print(endpoint, flush=True)))
    print(memory("VmHWM") - idle, flush=True)


def take_part(folder: Path, stand: Stand, member: int, address: str) -> None:
    journal = FileJournal.open(folder / f"journal-{member}", charter=stand.charter.digest, member=f"site-{member}")
    learner = Halves()
    runner = ClientRunner(
        protocol=ClientProtocol(
            charter=stand.charter,
            roster=stand.roster,
            course=stand.course,
            member=member,
            signer=signer(member),
            policy=Policy(losses=True),
            journal=journal,
        ),
        learner=learner,
        roster=stand.roster,
        transport_secret=stand.keys[member + 1][1],
        transport_public=stand.keys[member + 1][0],
        epochs=1,
        address=address,
        spool=folder / f"journal-{member}",
        log=structlog.wrap_logger(None, processors=[_shown]),
    )
    idle = memory("VmRSS")
    asyncio.run(runner.run())
    (published,) = learner.learnt
    assert np.isfinite(published["result"]).all()
    print(memory("VmHWM") - idle, flush=True)


def _shown(logger: Any, method: str, event: Any) -> str:
    print(method, dict(event), file=sys.stderr, flush=True)
    raise structlog.DropEvent


def main() -> None:
    role, folder = sys.argv[1], Path(sys.argv[2])
    stand = msgspec.msgpack.decode((folder / "stand").read_bytes(), type=Stand)
    if role == "server":
        serve(folder, stand)
    else:
        take_part(folder, stand, int(role), sys.argv[3])


if __name__ == "__main__":
    main()
