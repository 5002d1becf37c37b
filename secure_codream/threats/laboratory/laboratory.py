"""Where attacks are played: a cohort with its settings, real machines for it, and randomness that can be repeated.

The usual cohort has the weakest settings that a charter may have for one colluder: blocks of three, of which two make
six clients. What holds there holds where more is demanded. A user's own files take its place with `cohort_of`: the
charter that `config.toml` and `roster.json` make, and a client's own policy; where they leave an attack no room to
begin, it says so (`Inapplicable`).

The machines are a deployment's own. What they compute is a toy (`LaboratoryCourse`), so that an attack takes no
minutes, but for those that run CoDream's course and train. So of a user's policy what concerns the course (steps,
coordinates, noise, budget) is held against the course that the configuration names, by `cohort_of`; the machines in the
laboratory go by the rest of it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks, first_plan
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import ProtocolError, RosterRefused
from codream_protocols.identity import MAX_ROSTER_BYTES, Member, Roster, ServerEntry, SignedRoster, read_roster
from secure_codream.configuration.client import read_client
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.membership.keys import KeyFileError, read_pinned_keys
from secure_codream.simulation.wire import PERMISSIVE, Federation
from secure_codream.threats.laboratory.defences import Defences, Inapplicable
from secure_codream.threats.laboratory.switches import weakened

_ITS_OWN = ("members", "charter")  # an attack that says who takes part brings its own settings
_TOY_EPOCHS = 1000


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who takes part, and under which settings of the aggregation.

    Attributes:
        clients: N.
        mode: how sums are made.
        colluders: c, whom the charter must bear.
        least_survivors: a sum over fewer is never opened.
        value_bits: bits of one value.
        suite: the mask generator.
        losses: whether sums over parts of blocks are permitted.
        attempts: epochs that may be given up between two certificates.
        policy: of each client; one that leaves the limits to the charter unless given.
        charter: a user's own, of which the settings above are; None for the laboratory's.
    """

    clients: int = 6
    mode: Literal["lockstep", "resilient"] = "resilient"
    colluders: int = 1
    least_survivors: int = 3
    value_bits: int = 16
    suite: Literal["aes-256-ctr", "chacha20"] = "aes-256-ctr"
    losses: Literal["blocks", "allow"] = "blocks"
    attempts: int = 20
    policy: Policy | None = None
    charter: Charter | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """Everyone's number."""
        return tuple(range(self.clients))

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Who is only ever summed together."""
        return even_blocks(self.clients, self.colluders) if self.charter is None else self.charter.blocks

    @property
    def aggregation(self) -> Aggregation:
        """The settings as a charter has them."""
        return Aggregation(**self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The aggregation's settings, by name."""
        return {name: getattr(self, name) for name in Aggregation.__struct_fields__}

    @property
    def summary(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "clients": self.clients,
            "blocks": [len(block) for block in self.blocks],
            **self.settings,
            "policy": "client.toml" if self.policy else "the charter's limits",
            "charter": "the laboratory's" if self.charter is None else self.charter.digest.hex(),
        }


def cohort_of(config: Path, clients: int | None = None) -> Cohort:
    """The cohort of a user's `config.toml`, as a party whose folder it lies in has it.

    A `roster.json` beside it says who takes part, and is verified where `administrator.pub` lies there too. A
    `client.toml` beside it says what this client permits.

    Args:
        config: the federation's configuration.
        clients: how many clients, instead of the roster's.

    Raises:
        ConfigError: a value does not fit, nothing says how many clients there are, or with these files no epoch could
            begin: no charter with these settings is safe, or the client's own policy refuses it.
    """
    federation, own = read_federation(config), config.with_name("client.toml")
    client = read_client(own) if own.exists() else None
    roster = _roster(config) if clients is None else _made_up(clients)
    try:
        charter = federation.charter(roster)
        course = make_course(federation, None if client is None else client.policy.code)
        plan = first_plan(charter, course)
        policy = None
        if client is not None:
            from secure_codream.configuration.limits import client_policy

            policy = client_policy(client, federation, course)
            policy.check(plan)
    except ProtocolError as error:
        raise ConfigError(f"{config}: with {len(roster.members)} clients, {error}") from None
    settings = {name: getattr(charter.aggregation, name) for name in Aggregation.__struct_fields__}
    return Cohort(clients=charter.members, **settings, policy=policy, charter=charter)


def _roster(config: Path) -> Roster:
    path, administrator = config.with_name("roster.json"), config.with_name("administrator.pub")
    if not path.exists():
        raise ConfigError(f"{path}: found no roster; give the number of clients with --clients")
    try:
        data = path.read_bytes()
        if len(data) > MAX_ROSTER_BYTES:
            raise RosterRefused(f"{len(data)} bytes", f"at most {MAX_ROSTER_BYTES}")
        if administrator.exists():
            return read_roster(data, read_pinned_keys(administrator))
        return msgspec.json.decode(data, type=SignedRoster).roster
    except (msgspec.DecodeError, ProtocolError, KeyFileError) as error:
        raise ConfigError(f"{path}: found no roster ({error}); `secure-codream provision` makes one") from None


def _made_up(clients: int) -> Roster:
    """A roster of so many strangers: where there is none yet, their number is all that matters."""
    members = tuple(
        Member(f"client-{number}", number.to_bytes(32, "big"), bytes([1]) + number.to_bytes(31, "big"))
        for number in range(1, clients + 1)
    )
    return Roster("laboratory", 1, ServerEntry("tcp://127.0.0.1:5555", bytes(32)), members)


class Laboratory:
    """What an attack may use.

    Args:
        seed: of all randomness.
        quick: whether attacks that take long should take a small share of their work.
        cohort: the settings.
    """

    def __init__(self, seed: int = 0, *, quick: bool = True, cohort: Cohort | None = None) -> None:
        self.seed, self.quick, self.cohort = seed, quick, cohort or Cohort()

    def generator(self, purpose: str) -> np.random.Generator:
        """NumPy's generator for one purpose, the same each time."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    def random(self, purpose: str) -> random.Random:
        """The standard library's generator for one purpose, the same each time."""
        return random.Random(f"{self.seed} {purpose}")  # noqa: S311 - a laboratory's randomness can be repeated

    def federation(self, defences: Defences | None = None, **options: Any) -> Federation:
        """The cohort as real machines in memory, clients without the rules that are off.

        `options` overrule the cohort's settings; see `Federation` and `make_charter`. Who says who takes part
        (`members`, `charter`) gets a federation of its own, of which only values and masks are the cohort's.

        Raises:
            Inapplicable: a user's own charter makes its sums in the other mode.
        """
        client_class = weakened(defences) if defences else ClientProtocol
        usual: dict[str, Any] = {"seed": self.seed, "client_class": client_class}
        if any(name in options for name in _ITS_OWN):
            shared = {"value_bits": self.cohort.value_bits, "suite": self.cohort.suite}
            return Federation(**{**usual, **({} if "charter" in options else shared), **options})
        return Federation(**{**usual, **self._as_agreed(options), **options})

    def _as_agreed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The cohort's own arguments of a federation, where `options` do not give others."""
        cohort, charter = self.cohort, self.cohort.charter
        policy = cohort.policy and of_the_toy(cohort.policy)
        agreed: dict[str, Any] = {"members": cohort.clients, "policy": policy}
        if charter is None:
            return {**agreed, **cohort.settings}
        self.need(options.get("mode", cohort.mode) == cohort.mode, f"this charter's sums are made in {cohort.mode}")
        epochs = _TOY_EPOCHS + (charter.predecessor.certified if charter.predecessor else 0)
        if "course" not in options:
            agreed["epochs"] = epochs
        if set(options) & set(cohort.settings) - {"mode"}:
            return {**agreed, **cohort.settings}
        return {**agreed, "charter": charter}

    def need(self, enough: bool, reason: str) -> None:
        """Give up an attack for which the cohort leaves no room.

        Raises:
            Inapplicable: it is not enough.
        """
        if not enough:
            raise Inapplicable(f"{reason}; the settings leave no room for this attack")


def of_the_toy(policy: Policy) -> Policy:
    """A client's policy, without what concerns the course: a toy takes that course's place."""
    limits = ("most_steps", "most_total_steps", "most_coordinates", "least_noise", "most_rho")
    return msgspec.structs.replace(policy, **{name: getattr(PERMISSIVE, name) for name in limits})
