"""Configuration: one TOML file for the federation, one for each client, both checked before anything starts.

`config.toml` is what all parties agree on. All of it but `[timing]` goes, with every default resolved, into the charter
(`FederationConfig.settings`, `FederationConfig.charter`): a party that was given other settings is refused at its first
word. `client.toml` is a client's own: its model, its data, and its policy, which can only be stricter. Values that do
not fit are reported with the key, what was found and what is allowed. Nothing here needs a tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from codream_clients.learning.settings import DreamLoss, LearningSettings
from codream_clients.privacy.settings import PrivacySettings
from codream_protocols.charter import MAX_BLOCKS, MAX_EPOCHS, MAX_STEPS, Aggregation, Charter, Predecessor, even_blocks
from codream_protocols.courses.codream import ClientPrivacy, DreamSettings
from codream_protocols.courses.generator import ADVERSARIAL_FROM
from codream_protocols.courses.parameters import CONTRAST, CONTRAST_TEMPERATURE, PROXIMAL
from codream_protocols.courses.settings import SettingsError
from codream_protocols.identity import MAX_MEMBERS, Roster
from codream_protocols.keyschedule import PROTOCOL, digest
from codream_protocols.specs import MAX_COORDINATES, MAX_COUNT
from codream_protocols.starts import START_NAMES
from codream_server.settings import Timing
from secure_codream.configuration.reading import (
    DIGEST,
    REFERENCE,
    ConfigError,
    PartyName,
    Table,
    canonical_json,
    check,
    read_toml,
)

MOST_IN_LOCKSTEP = 30  # members; the default mode beyond is the resilient one
PARAMETER_COURSES = ("fedavg", "fedprox", "scaffold", "moon")
COURSES = ("codream", "codream-fast", *PARAMETER_COURSES, "sums")


class FederationTable(Table):
    """`[federation]`: its name, its course, its length, and the seed of what all parties train alike.

    `course` is what is computed together: "codream", "codream-fast", "fedavg", "fedprox", "scaffold", "moon", "sums",
    or `module:Class`, WHICH RUNS THAT CODE, where `[code]` and a client's own policy name it with its source's digest.
    """

    name: PartyName = "federation"
    course: str = "codream"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 4
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0

    @field_validator("course")
    @classmethod
    def _exists(cls, course: str) -> str:
        return _named(course, COURSES)


class TaskTable(Table):
    """`[task]`: the form of an image and the number of classes, which everybody's data share.

    `mean` and `std`, one for each channel or one for all, for pixels divided by 255, replace every client's own way to
    standardise its images: give them where clients bring data of their own. `class_names` fixes the order of the
    classes for clients with image folders.
    """

    shape: tuple[
        Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=1024)], Annotated[int, Field(ge=1, le=1024)]
    ]
    classes: Annotated[int, Field(ge=2, le=10_000)]
    mean: tuple[Annotated[float, Field(ge=-10, le=10)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0, le=10)], ...] | None = None
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> TaskTable:
        channels = self.shape[0]
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std; both or neither are needed")
        if self.mean is not None and self.std is not None and not {len(self.mean), len(self.std)} <= {1, channels}:
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations; 1 or {channels} are allowed")
        if self.class_names is not None and len(set(self.class_names)) != self.classes:
            raise ValueError(f"{len(set(self.class_names))} different class names; {self.classes} are needed")
        return self


def _named(name: str, known: tuple[str, ...]) -> str:
    if name not in known and ":" not in name:
        raise ValueError(f"found {name!r}; {', '.join(known)} or module:name is allowed")
    return name


class DreamsTable(Table):
    """`[dreams]`: see `DreamSettings`. `start` is a rule's name, or `module:function`, treated as an own course is."""

    start: str = "noise"
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS - 3)] = 10
    half_way: bool = False
    batch: Annotated[int, Field(ge=2, le=65_536)] = 128
    views: Annotated[int, Field(ge=0, le=64)] = 0
    way: Literal["update", "gradient"] = "update"
    optimiser: Literal["average", "fedadam", "adam", "distadam"] = "average"
    server_lr: Annotated[float, Field(gt=0, le=100)] = 1.0
    update_clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    logit_clip: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    pixel_bound: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    window: Annotated[int, Field(ge=1, le=1000)] = 10
    adaptive_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    adaptive_from: Annotated[int, Field(ge=0)] = 0

    @field_validator("start")
    @classmethod
    def _exists(cls, start: str) -> str:
        return _named(start, START_NAMES)

    @model_validator(mode="after")
    def _has_a_middle(self) -> DreamsTable:
        if self.half_way and self.steps < 2:
            raise ValueError(f"steps {self.steps} with half_way; 2 or more are allowed")
        if self.half_way and self.views:
            raise ValueError(f"views {self.views} with half_way; choose one of them")
        return self


Layout = tuple[tuple[str, tuple[Annotated[int, Field(ge=1, le=MAX_COORDINATES)], ...]], ...]


class AveragingTable(Table):
    """`[averaging]` of a course that averages parameters: see `AveragingSettings` and `ScaffoldSettings`.

    `model` is everybody's architecture. `layout`, its parameters' names and shapes, is worked out by `provision`, so
    that a server needs no torch. `proximal` is FedProx's mu; `contrast` and `temperature` are MOON's mu and tau.
    """

    model: str = "cnn2"
    layout: Layout | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS - 2)] = 1
    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    statistic_clip: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    server_lr: Annotated[float, Field(gt=0, le=100)] = 1.0
    variate_clip: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    proximal: Annotated[float, Field(ge=0, le=1e6)] = PROXIMAL
    contrast: Annotated[float, Field(ge=0, le=1e6)] = CONTRAST
    temperature: Annotated[float, Field(gt=0, le=1e6)] = CONTRAST_TEMPERATURE


class FastTable(Table):
    """`[fast]` of CoDream-fast: see `GeneratorSettings`. `layout` is the generator's; see `AveragingTable`.

    `adversarial_from` is the round, from 0, from which on the adversarial term counts.
    """

    layout: Layout | None = None
    batches: Annotated[int, Field(ge=1, le=1000)] = 5
    global_steps: Annotated[int, Field(ge=1, le=1000)] = 1
    local_steps: Annotated[int, Field(ge=1, le=1000)] = 5
    noise: Annotated[int, Field(ge=1, le=1024)] = 256
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-3
    noise_lr: Annotated[float, Field(gt=0, le=10)] = 1.5e-3
    adversarial_from: Annotated[int, Field(ge=0, le=100_000)] = ADVERSARIAL_FROM


class NumbersTable(Table):
    """One block of `[sums.vectors.NAME]`: so many reals within +-`bound`, or, with `count`, integers from 0 to it."""

    length: Annotated[int, Field(ge=1, le=MAX_COORDINATES)] = 1
    bound: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 1.0
    count: bool = False


class SumsTable(Table):
    """`[sums]` of the course of that name: `vectors` -> blocks -> what they hold; `norm` bounds a noised vector."""

    vectors: dict[str, dict[str, NumbersTable]]
    norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class AggregationTable(Table):
    """`[aggregation]`: see `Aggregation`. What is left out follows from the number of members when the charter is made:
    lockstep up to 30 of them, and at least c + 2 survivors. `blocks` are lists of the clients' names, as a charter that
    follows another needs them to keep the old ones; unless given, they are as many and as even as they can be.
    """

    mode: Literal["lockstep", "resilient"] | None = None
    colluders: Annotated[int, Field(ge=1, lt=MAX_MEMBERS)] = 1
    least_survivors: Annotated[int, Field(ge=3, le=MAX_MEMBERS)] | None = None
    value_bits: Annotated[int, Field(ge=2, le=24)] = 16
    suite: Literal["aes-256-ctr", "chacha20"] = "aes-256-ctr"
    losses: Literal["blocks", "allow"] = "blocks"
    attempts: Annotated[int, Field(ge=1, le=1000)] = 20
    blocks: tuple[tuple[PartyName, ...], ...] | None = None

    @model_validator(mode="after")
    def _safe(self) -> AggregationTable:
        if self.least_survivors is not None and self.least_survivors < self.colluders + 2:
            raise ValueError(f"least_survivors {self.least_survivors}; {self.colluders + 2} (colluders + 2) or more")
        return self


class ClientPrivacyTable(Table):
    """`[client_privacy]`: noise that hides whether a client took part; see `ClientPrivacy`."""

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, le=0.01)]
    update_norm: Annotated[float, Field(ge=1e-6, le=1e6)]
    logit_norm: Annotated[float, Field(ge=1e-6, le=1e6)]
    spare_rounds: Annotated[int, Field(ge=0, le=100_000)] = 0


class PredecessorTable(Table):
    """`[predecessor]` of a charter that follows another: `secure-codream verify RECORD --successor` writes it."""

    charter: Annotated[str, Field(pattern=DIGEST)]
    head: Annotated[str, Field(pattern=DIGEST)]
    certified: Annotated[int, Field(ge=0, lt=MAX_EPOCHS)]
    blocks: Annotated[
        tuple[Annotated[tuple[Annotated[str, Field(pattern=DIGEST)], ...], Field(max_length=MAX_MEMBERS)], ...],
        Field(max_length=MAX_BLOCKS),
    ] = ()
    colluders: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)] = 0


class TimingTable(Table):
    """`[timing]`, in seconds, the server's patience: see `Timing`. No part of the charter."""

    join: Annotated[float, Field(gt=0, le=604_800)] | None = None
    step: Annotated[float, Field(gt=0, le=604_800)] = 600.0
    beat: Annotated[float, Field(ge=0.1, le=3_600)] = 1.0
    lost_after: Annotated[float, Field(gt=0, le=86_400)] = 30.0


class FederationConfig(Table):
    """The whole of `config.toml`.

    `[learning]` has the keys of `LearningSettings`, `[privacy]` (differential privacy for each record of a client)
    those of `PrivacySettings`. `[code]` maps each `module:name` that the charter names to the SHA-256 of its source.
    """

    federation: FederationTable = FederationTable()
    task: TaskTable
    dreams: DreamsTable = DreamsTable()  # of no meaning to `sums`, as are `task` and `learning`
    learning: dict[str, Any] = {}
    averaging: AveragingTable | None = None
    fast: FastTable | None = None
    sums: SumsTable | None = None
    aggregation: AggregationTable = AggregationTable()
    privacy: dict[str, Any] | None = None
    client_privacy: ClientPrivacyTable | None = None
    code: dict[
        Annotated[str, Field(pattern=REFERENCE)],
        Annotated[str, Field(pattern=DIGEST)],
    ] = {}
    predecessor: PredecessorTable | None = None
    timing: TimingTable = TimingTable()

    @model_validator(mode="before")
    @classmethod
    def _sums_have_no_images(cls, tables: Any) -> Any:
        federation = tables.get("federation") if isinstance(tables, dict) else None
        if isinstance(federation, dict) and federation.get("course") == "sums":
            return {"task": {"shape": (1, 1, 1), "classes": 2}, **tables}
        return tables

    @model_validator(mode="after")
    def _fits(self) -> FederationConfig:
        for reference in (self.federation.course, self.dreams.start):
            if ":" in reference and reference not in self.code:
                raise ValueError(
                    f"{reference} without an entry in [code]; the SHA-256 of its source is needed there: "
                    f'"{reference}" = "what sha256sum {reference.partition(":")[0].replace(".", "/")}.py says"'
                )
        if self.federation.course == "sums" and self.sums is None:
            raise ValueError("course 'sums' without [sums.vectors]; what is to be summed is needed")
        learning_settings(self)
        if self.privacy is not None:
            privacy_settings(self.privacy)
        return self

    # -- the charter ---------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that all parties share but who they are and how sums are made, every default resolved."""
        course = self.federation.course
        tables: dict[str, Any] = {
            "protocol": PROTOCOL,
            "federation": self.federation.model_dump(mode="json"),
            "code": dict(sorted(self.code.items())),
        }
        if course != "sums":
            tables["task"] = self.task.model_dump(mode="json")
            tables["dreams"] = self.dreams.model_dump(mode="json")
            tables["learning"] = _own_learning(asdict(learning_settings(self)))
        if course in PARAMETER_COURSES:
            tables["averaging"] = (self.averaging or AveragingTable()).model_dump(mode="json")
        if course == "codream-fast":
            tables["fast"] = (self.fast or FastTable()).model_dump(mode="json")
        if self.sums is not None:
            tables["sums"] = self.sums.model_dump(mode="json")
        if self.privacy is not None:
            tables["privacy"] = asdict(privacy_settings(self.privacy))
        if self.client_privacy is not None:
            tables["client_privacy"] = self.client_privacy.model_dump(mode="json")
        return tables

    @property
    def recipe(self) -> bytes:
        """Digest of `settings`, 32 bytes."""
        return digest("settings", canonical_json(self.settings))

    def charter(self, roster: Roster) -> Charter:
        """The charter that this configuration and this roster make.

        Raises:
            ConfigError: fewer members than can be summed.
        """
        members = len(roster.members)
        aggregation = self.aggregation_settings(members)
        previous = self.predecessor
        return Charter(
            roster=roster.hash,
            members=members,
            settings=self.recipe,
            aggregation=aggregation,
            blocks=self._blocks(roster, aggregation.colluders),
            predecessor=None
            if previous is None
            else Predecessor(
                bytes.fromhex(previous.charter),
                bytes.fromhex(previous.head),
                previous.certified,
                tuple(tuple(map(bytes.fromhex, block)) for block in previous.blocks),
                previous.colluders,
            ),
        )

    def _blocks(self, roster: Roster, colluders: int) -> tuple[tuple[int, ...], ...]:
        if self.aggregation.blocks is None:
            return even_blocks(len(roster.members), colluders)
        numbers = {member.name: number for number, member in enumerate(roster.members)}
        strangers = {name for block in self.aggregation.blocks for name in block} - set(numbers)
        if strangers:
            raise ConfigError(
                f"[aggregation]: blocks name {', '.join(sorted(strangers))}; the roster's clients are needed"
            )
        return tuple(tuple(sorted(numbers[name] for name in block)) for block in self.aggregation.blocks)

    def aggregation_settings(self, members: int) -> Aggregation:
        """How sums are made among so many members, defaults resolved.

        Raises:
            ConfigError: fewer members than can be summed.
        """
        table = self.aggregation
        least = table.least_survivors if table.least_survivors is not None else max(3, table.colluders + 2)
        if members < least:
            raise ConfigError(
                f"[aggregation]: found {members} clients; {least} or more are needed, so that a sum hides each behind "
                f"another with {table.colluders} that may collude with the server"
            )
        mode = table.mode or ("lockstep" if members <= MOST_IN_LOCKSTEP else "resilient")
        return Aggregation(
            mode=mode,
            colluders=table.colluders,
            least_survivors=least,
            value_bits=table.value_bits,
            suite=table.suite,
            losses=table.losses,
            attempts=table.attempts,
        )

    # -- its parts ---------------------------------------------

    def dream_settings(self) -> DreamSettings:
        """The settings of the dreams.

        Raises:
            ConfigError: the way and the optimiser do not fit each other.
        """
        try:
            return DreamSettings(
                rounds=self.federation.rounds,
                shape=self.task.shape,
                classes=self.task.classes,
                **self.dreams.model_dump(),
            )
        except SettingsError as error:
            raise ConfigError(f"[dreams]: {error}") from None

    def client_privacy_settings(self) -> ClientPrivacy | None:
        """Client-level privacy; None without that table."""
        return None if self.client_privacy is None else ClientPrivacy(**self.client_privacy.model_dump())

    def timing_settings(self) -> Timing:
        """The server's patience."""
        return Timing(**self.timing.model_dump())


_FROM_DREAMS = ("way", "views", "logit_clip", "window")  # one setting, told once: `[dreams]` has it


def learning_settings(federation: FederationConfig) -> LearningSettings:
    """The `[learning]` table as settings; `way`, views, clips and window follow `[dreams]`.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    shared = {name: getattr(federation.dreams, name) for name in _FROM_DREAMS}
    loss = federation.learning.get("loss")
    own: dict[str, Any] = {} if federation.privacy is None else {"own_weight": 0.0}  # would be refused
    _check_keys("learning", federation.learning, {field.name for field in fields(LearningSettings)} - set(shared))
    if isinstance(loss, Mapping):
        _check_keys("learning.loss", loss, {field.name for field in fields(DreamLoss)})
    settings = {**own, **federation.learning, **shared}
    try:
        return check("[learning]", LearningSettings, settings)  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check of a combination
        raise ConfigError(f"[learning]: {error}") from None


def _own_learning(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _FROM_DREAMS}


def privacy_settings(table: Mapping[str, Any]) -> PrivacySettings:
    """A `[privacy]` table as settings: differential privacy for each record of a client.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    _check_keys("privacy", table, {field.name for field in fields(PrivacySettings)})
    try:
        return check("[privacy]", PrivacySettings, dict(table))  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check
        raise ConfigError(f"[privacy]: {error}") from None


def _check_keys(table: str, found: Mapping[str, Any], allowed: set[str]) -> None:
    """Pydantic passes over a dataclass's unknown keys; a misspelt setting must not be passed over."""
    for key in found:
        if key not in allowed:
            raise ConfigError(f"[{table}]: found the key {key!r}; allowed are {', '.join(sorted(allowed))}")


def read_federation(path: Path) -> FederationConfig:
    """Read `config.toml`.

    Raises:
        ConfigError: the file is missing, is no TOML, or a value does not fit.
    """
    found: FederationConfig = check(path.name, FederationConfig, read_toml(path))
    return found
