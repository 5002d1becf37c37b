"""Where attacks are played: a cohort with its settings, real machines for it, and randomness that can be repeated.

The usual cohort has the weakest settings that a plan may have for its size: a threshold just above (n + c) / 2 and a
minimum that leaves room for two dropouts. What holds there holds where more is demanded. A user's own settings take
its place with `cohort_of`; where they leave an attack no room to begin, it says so (`Inapplicable`).
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from codream_protocols.client import ClientProtocol
from codream_protocols.errors import RosterRefused, UnsafePlan
from codream_protocols.identity import MAX_ROSTER_BYTES, SignedRoster
from codream_protocols.plan import Policy, check_plan, default_threshold
from codream_protocols.tasks import UPDATE
from secure_codream.config import ConfigError, read_client, read_federation
from secure_codream.threats.attack import Defences, Inapplicable
from secure_codream.threats.federation import Federation
from secure_codream.threats.switches import weakened


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who takes part, and under which settings of the aggregation.

    Attributes:
        clients: n.
        threshold: shares that rebuild a secret.
        colluders: c, whom the plan must tolerate.
        least_survivors: a sum over fewer is never opened.
        value_bits: bits of one value.
        suite: the mask generator.
        policy: of each client; one that leaves the limits to the plan unless given.
    """

    clients: int = 8
    threshold: int = 5
    colluders: int = 1
    least_survivors: int = 6
    value_bits: int = 16
    suite: str = "aes-256-ctr"
    policy: Policy | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """Everyone's number."""
        return tuple(range(self.clients))

    @property
    def least(self) -> int:
        """Fewer survivors than this are refused by every client."""
        policy = self.policy.least_survivors if self.policy else 0
        return max(self.least_survivors, self.threshold, policy)

    @property
    def spare(self) -> int:
        """How many may drop out of a step."""
        return self.clients - self.least


def cohort_of(config: Path, clients: int | None = None) -> Cohort:
    """The cohort of a user's `config.toml`.

    A `roster.json` beside it says how many clients there are, and a `client.toml` what their policy is; both lie there
    in a client's folder as `provision` makes it. The roster's signature is not looked at: only its length is taken.

    Args:
        config: the federation's configuration.
        clients: how many clients, where no roster says so.

    Raises:
        ConfigError: a value does not fit, no number of clients is known, or no plan with these settings is safe.
    """
    settings = read_federation(config).aggregation_settings()
    roster, own = config.with_name("roster.json"), config.with_name("client.toml")
    if clients is None:
        clients = _members(roster)
    policy = None
    if own.exists():
        table = read_client(own).policy
        policy = Policy(tasks={UPDATE: 1.0}, **table.model_dump())
    cohort = Cohort(
        clients=clients,
        threshold=settings.threshold or default_threshold(clients, settings.colluders),
        colluders=settings.colluders,
        least_survivors=settings.least_survivors,
        value_bits=settings.value_bits,
        suite=settings.suite,
        policy=policy,
    )
    try:
        check_plan(Laboratory(cohort=cohort).federation().plan)
    except UnsafePlan as error:
        raise ConfigError(f"{config}: with {clients} clients, {error}") from None
    return cohort


def _members(roster: Path) -> int:
    if not roster.exists():
        raise ConfigError(f"{roster}: found no roster; give the number of clients with --clients")
    try:
        if roster.stat().st_size > MAX_ROSTER_BYTES:
            raise RosterRefused(f"{roster.stat().st_size} bytes", f"at most {MAX_ROSTER_BYTES}")
        return len(msgspec.json.decode(roster.read_bytes(), type=SignedRoster).roster.members)
    except (msgspec.DecodeError, RosterRefused) as error:
        raise ConfigError(f"{roster}: found no roster ({error}); `secure-codream provision` makes one") from None


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

        `options` overrule the cohort's settings; see `Federation` and `make_plan`.
        """
        cohort = self.cohort
        usual: dict[str, Any] = {
            "members": cohort.clients,
            "seed": self.seed,
            "client_class": weakened(defences) if defences else ClientProtocol,
            "threshold": cohort.threshold,
            "colluders": cohort.colluders,
            "least_survivors": cohort.least_survivors,
            "value_bits": cohort.value_bits,
            "suite": cohort.suite,
            "policy": cohort.policy,
        }
        return Federation(**{**usual, **options})

    def need(self, enough: bool, reason: str) -> None:
        """Give up an attack for which the cohort leaves no room.

        Raises:
            Inapplicable: it is not enough.
        """
        if not enough:
            raise Inapplicable(f"{reason}; the settings leave no room for this attack")
