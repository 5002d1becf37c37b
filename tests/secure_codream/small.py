"""A small federation of a configuration, in one process: the real machines, a signed roster, a record on disk."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codream_protocols.charter import Charter, Policy
from codream_protocols.client import ClientProtocol
from codream_protocols.course import Publication, Task
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import VectorSpec
from codream_server.record_folder import RecordFolder
from secure_codream.configuration.charter_file import charter_bytes
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import check
from secure_codream.simulation.in_process import PERMISSIVE, Simulation

ADMINISTRATOR = Signer(b"a" * 32)
SUMS = {"vectors": {"patients": {"number": {"count": True, "bound": 1000}, "ages": {"length": 3, "bound": 100.0}}}}


def config_of(**tables: Any) -> FederationConfig:
    """A configuration with the smallest task there is, unless told otherwise."""
    found: FederationConfig = check(
        "config.toml", FederationConfig, {"task": {"shape": (1, 2, 2), "classes": 2}, **tables}
    )
    return found


def codream(**tables: Any) -> FederationConfig:
    """CoDream with two tiny dreams."""
    return config_of(**{"federation": {"rounds": 2}, "dreams": {"batch": 2, "steps": 1}, **tables})


class NumbersLearner:
    """Answers every task with numbers that hang on the member alone; a member's counts are its number and more."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.learnt: list[int] = []

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, np.ndarray[Any, Any]]:
        """See `Learner`."""
        return {
            block.name: np.full(block.length, self.member + 1.0 if block.kind == "count" else 0.1 * (self.member + 1))
            for block in spec.blocks
        }

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self.learnt.append(number)


class SmallFederation:
    """Roster, charter and machines of a configuration; `simulation` runs its epochs.

    Args:
        config: the configuration.
        members: how many.
        record: where the server keeps its record; nowhere unless given.
        policy: every client's.
    """

    def __init__(
        self,
        config: FederationConfig,
        members: int = 3,
        *,
        record: Path | None = None,
        policy: Policy = PERMISSIVE,
    ) -> None:
        self.config = config
        self.signers, self.roster = roster_of(members, config.federation.name)
        self.signed = sign_roster(self.roster, ADMINISTRATOR)
        self.charter: Charter = config.charter(self.roster)
        course = make_course(config)
        self.learners = [NumbersLearner(member) for member in range(members)]
        self.simulation = Simulation(course, self.learners)
        self.record = (
            None
            if record is None
            else RecordFolder(
                record,
                roster=self.signed,
                charter=charter_bytes(config, self.roster),
                first=0 if config.predecessor is None else config.predecessor.certified,
            )
        )
        self.server = self.simulation.server = ServerProtocol(self.charter, self.roster, course, journal=self.record)
        self.clients = self.simulation.clients = [
            ClientProtocol(
                charter=self.charter, roster=self.roster, course=course, member=member, signer=signer, policy=policy
            )
            for member, signer in enumerate(self.signers)
        ]

    def run(self, epochs: int) -> list[Publication]:
        """Run epochs to their certificates; what they published."""
        return [self.simulation.run_epoch() for _ in range(epochs)]


def roster_of(members: int, name: str = "federation") -> tuple[Sequence[Signer], Roster]:
    """The same keys each time."""
    signers = [Signer(bytes([number + 1]) * 32) for number in range(members)]
    entries = tuple(
        Member(f"client-{number}", signer.public, bytes([100 + number]) * 32) for number, signer in enumerate(signers)
    )
    server = ServerEntry("tcp://127.0.0.1:1", bytes(32))
    return signers, Roster(name, 1, server, entries, administrators=(ADMINISTRATOR.public,))


def record_of(folder: Path, config: FederationConfig, epochs: int, members: int = 3) -> SmallFederation:
    """Run a federation whose record lies in `folder` when it is over."""
    federation = SmallFederation(config, members, record=folder)
    federation.run(epochs)
    assert federation.record is not None
    federation.record.close()
    return federation


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
