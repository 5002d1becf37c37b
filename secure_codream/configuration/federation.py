"""Configuration: one TOML file for the federation, one for each client, both checked before anything starts.

`config.toml` is what all parties agree on. All of it but `[timing]` goes, with every default resolved, into the charter
(`FederationConfig.settings`, `FederationConfig.charter`): a party that was given other settings is refused at its first
word. `client.toml` is a client's own: its model, its data, and its policy, which can only be stricter. Values that do
not fit are reported with the key, what was found and what is allowed. Nothing here needs a tensor library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, doc
from pydantic import Field, field_validator, model_validator

from codream_clients.data.class_names import one_spelling
from codream_clients.data.pixels import LEAST_STD
from codream_clients.learning.settings import PRIVATE_DISTILLATION, Learning, LearningSettings
from codream_clients.privacy.settings import PrivacySettings
from codream_protocols.charter import MAX_BLOCKS, MAX_EPOCHS, Aggregation, Charter, Predecessor, even_blocks
from codream_protocols.courses.codream import ClientPrivacy, Dreams, DreamSettings
from codream_protocols.courses.dp_sgd import DPSGDOptions
from codream_protocols.courses.generator import ADVERSARIAL_FROM, Fast
from codream_protocols.courses.parameters import CONTRAST, CONTRAST_TEMPERATURE, PROXIMAL, Averaging, FedAvg
from codream_protocols.courses.registry import COURSES
from codream_protocols.identity import MAX_MEMBERS, Roster
from codream_protocols.keyschedule import PROTOCOL, digest
from codream_protocols.settings import MOST, declared, out_of_range
from codream_protocols.specs import MAX_COORDINATES, MAX_COUNT
from codream_protocols.starts import PICTURES
from codream_server.settings import Timing
from secure_codream.configuration.reading import (
    DIGEST,
    MOST_LETTERS,
    REFERENCE,
    ConfigError,
    PartyName,
    Table,
    as_struct,
    canonical_json,
    check,
    read_toml,
)

MOST_IN_LOCKSTEP = 30  # members; the default mode beyond is the resilient one
DP_SGD = "dp-sgd"
PARAMETER_COURSES = tuple(name for name, course in COURSES.items() if issubclass(course, FedAvg))


class FederationTable(Table):
    """`[federation]`: what is computed together, and for how long."""

    name: Annotated[PartyName, doc("the federation's, as the roster has it")] = "federation"
    course: Annotated[
        str,
        doc(
            f"what is computed together: {', '.join(COURSES)}, or module:Class, WHICH RUNS THAT CODE, where `[code]` "
            "and a client's own policy name it with its source's digest"
        ),
    ] = "codream"
    rounds: Annotated[
        int, Field(ge=1, le=100_000), doc("rounds, in each of which something is learnt; the course sums has one")
    ] = 4
    stop_after: Annotated[
        int,
        Field(ge=0, le=100_000),
        doc(
            "of the course codream: the run ends once the sum of the held-back images that clients get right has not "
            "risen for so many rounds; 0 never"
        ),
    ] = 0
    seed: Annotated[int, Field(ge=0, lt=1 << 32), doc("of the adaptive student, which all parties train alike")] = 0

    @field_validator("course")
    @classmethod
    def _exists(cls, course: str) -> str:
        if ":" not in course and course not in COURSES:
            raise ValueError(f"found {course!r}; {', '.join(COURSES)} or module:name is allowed")
        return course


class TaskTable(Table):
    """`[task]`: the form of an image and the number of classes, which everybody's data share.

    `mean` and `std` are everybody's scale: give them where clients bring data of their own. Bytes are standardised by
    them, and images that are standardised already are brought to them where it is known by what; else their values are
    taken to be on that scale, as `client`, `doctor` and `data` say. Pictures that dreams start from (`strokes`,
    `shapes`, `photos`) are on it too, else in [-1, 1].
    """

    shape: Annotated[
        tuple[
            Annotated[int, Field(ge=1, le=16)],
            Annotated[int, Field(ge=1, le=1024)],
            Annotated[int, Field(ge=1, le=1024)],
        ],
        doc("channels, height and width of an image, in pixels"),
    ]
    classes: Annotated[int, Field(ge=2, le=10_000), doc("how many classes there are")]
    mean: Annotated[
        tuple[Annotated[float, Field(ge=-10, le=10)], ...] | None,
        doc(
            "of the pixels divided by 255, so 0 to 1 as a rule: a number for all channels, or a list with one for each"
        ),
    ] = None
    std: Annotated[
        tuple[Annotated[float, Field(ge=LEAST_STD, le=10)], ...] | None,
        doc("the pixels' deviation, in the same form; one grey level, 1/255, or more"),
    ] = None
    class_names: Annotated[
        tuple[str, ...] | None,
        doc(
            "the classes in the order of their labels; needed where a client's data name their classes, as folders and "
            "labels that are words do"
        ),
    ] = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _for_all_channels(cls, given: Any) -> Any:
        alone = isinstance(given, int | float) and not isinstance(given, bool)
        return (given,) if alone else given

    @model_validator(mode="after")
    def _fits(self) -> TaskTable:
        channels = self.shape[0]
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std; both or neither are needed")
        if self.mean is not None and self.std is not None:
            found = len(self.mean), len(self.std)
            if found not in {(1, 1), (channels, channels)}:
                raise ValueError(f"{found[0]} means and {found[1]} deviations; 1 or {channels} of both are allowed")
        if self.class_names is not None:
            spelt = Counter(map(one_spelling, self.class_names))
            if repeated := sorted(name for name, count in spelt.items() if count > 1):
                raise ValueError(
                    f"class_names has {', '.join(map(repr, repeated))} more than once; each name is allowed once"
                )
            if wrong := [len(name) for name in self.class_names if not 1 <= len(name) <= MOST_LETTERS]:
                raise ValueError(f"a class name of {wrong[0]} letters; 1 to {MOST_LETTERS} are allowed")
            if len(spelt) != self.classes:
                raise ValueError(f"{len(spelt)} class names; {self.classes} are needed")
        return self


Layout = tuple[tuple[str, tuple[Annotated[int, Ge(1), Le(MAX_COORDINATES)], ...]], ...]


class AveragingTable(Averaging):
    """`[averaging]`: what a course that averages parameters needs."""

    model: Annotated[str, doc("everybody's architecture")] = "cnn2"
    layout: Annotated[Layout | None, doc("its parameters' names and shapes; `provision` works it out")] = None
    proximal: Annotated[float, Ge(0), Le(MOST), doc("FedProx's mu")] = PROXIMAL
    contrast: Annotated[float, Ge(0), Le(MOST), doc("MOON's mu")] = CONTRAST
    temperature: Annotated[float, Gt(0), Le(MOST), doc("MOON's tau")] = CONTRAST_TEMPERATURE


class DPSGDTable(DPSGDOptions):
    """`[dp_sgd]`: DP-SGD through the ring, whose noise all clients share (docs/privacy.md)."""

    model: Annotated[str, doc("everybody's architecture, without batch norm")] = "cnn2_strided_gn"
    layout: Annotated[Layout | None, doc("its trained parameters' names and shapes; `provision` works it out")] = None


class FastTable(Fast):
    """`[fast]`: what CoDream-fast asks of its generator."""

    layout: Annotated[Layout | None, doc("the generator's parameters; `provision` works it out")] = None
    adversarial_from: Annotated[
        int, Ge(0), Le(100_000), doc("round, from 0, from which on the adversarial term counts")
    ] = ADVERSARIAL_FROM


class NumbersTable(Table):
    """One block of `[sums.vectors.NAME]`."""

    length: Annotated[int, Field(ge=1, le=MAX_COORDINATES), doc("how many numbers it has")] = 1
    bound: Annotated[
        float, Field(gt=0, le=MAX_COUNT), doc("reals lie within plus or minus this; counts from 0 to this")
    ] = 1.0
    count: Annotated[bool, doc("whether they are integers from 0 on, whose sum is exact, and no reals")] = False


class SumsTable(Table):
    """`[sums]`: what the course of that name adds up."""

    vectors: Annotated[dict[str, dict[str, NumbersTable]], doc("the vectors to sum: name, block, what it holds")]
    norm: Annotated[
        float,
        Field(gt=0, le=1e6),
        doc("with `[client_privacy]`: Euclidean bound of a client's vector, each block in units of its bound"),
    ] = 1.0


class AggregationTable(Table):
    """`[aggregation]`: how sums are made.

    What is not given follows from the number of members when the charter is made: lockstep up to 30 of them, and at
    least c + 2 survivors.
    """

    mode: str | None = None
    colluders: int = Aggregation().colluders
    least_survivors: int | None = None
    value_bits: int = Aggregation().value_bits
    suite: str = Aggregation().suite
    losses: str = Aggregation().losses
    attempts: int = Aggregation().attempts
    blocks: Annotated[
        tuple[tuple[PartyName, ...], ...] | None,
        doc(
            "lists of the names of clients who are only ever summed together, as a charter that follows another needs "
            "them to keep the old ones; as many and as even as they can be unless given"
        ),
    ] = None

    @model_validator(mode="after")
    def _safe(self) -> AggregationTable:
        if self.least_survivors is not None and self.least_survivors < self.colluders + 2:
            raise out_of_range("least_survivors", self.least_survivors, f"{self.colluders + 2} (colluders + 2) or more")
        given = self.model_dump(exclude={"blocks"}, exclude_none=True)
        as_struct(Aggregation, given)
        return self


class PredecessorTable(Table):
    """`[predecessor]`: the charter that this one follows; `secure-codream verify RECORD --successor` writes it."""

    charter: Annotated[str, Field(pattern=DIGEST), doc("the digest of the charter that ended")]
    head: Annotated[str, Field(pattern=DIGEST), doc("its last head")]
    certified: Annotated[int, Field(ge=0, lt=MAX_EPOCHS), doc("epochs certified until then, in all charters before")]
    blocks: Annotated[
        tuple[Annotated[tuple[Annotated[str, Field(pattern=DIGEST)], ...], Field(max_length=MAX_MEMBERS)], ...],
        Field(max_length=MAX_BLOCKS),
        doc("the blocks of all charters before, as lists of identity keys"),
    ] = ()
    colluders: Annotated[int, Field(ge=0, lt=MAX_MEMBERS), doc("the most that one of them was to bear")] = 0


class FederationConfig(Table):
    """The whole of `config.toml`: what all parties agree on."""

    federation: FederationTable = FederationTable()
    task: TaskTable
    dreams: Dreams = Dreams()  # of no meaning to `sums`, as are `task` and `learning`
    learning: Annotated[dict[str, Any], doc("how each client dreams, trains and learns from dreams")] = {}
    averaging: AveragingTable | None = None
    fast: FastTable | None = None
    dp_sgd: DPSGDTable | None = None
    sums: SumsTable | None = None
    aggregation: AggregationTable = AggregationTable()
    privacy: Annotated[dict[str, Any] | None, doc("differential privacy for each record of a client")] = None
    client_privacy: ClientPrivacy | None = None
    code: Annotated[
        dict[Annotated[str, Field(pattern=REFERENCE)], Annotated[str, Field(pattern=DIGEST)]],
        doc("code of one's own that the charter names: module:name, and the SHA-256 of its source"),
    ] = {}
    predecessor: PredecessorTable | None = None
    timing: Timing = Timing()

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
        if (self.federation.course == DP_SGD) is not (self.dp_sgd is not None):
            found = "without" if self.dp_sgd is None else "with"
            raise ValueError(
                f"course {self.federation.course!r} {found} [dp_sgd]; {DP_SGD!r} needs it, and no other course has it"
            )
        if learning_settings(self).held_back and self.dp_sgd is not None:
            raise ValueError("[learning] held_back above 0 with [dp_sgd]; 0 is allowed: nothing there is rolled back")
        if self.privacy is not None:
            privacy_settings(self.privacy)
        return self

    @property
    def record_private(self) -> bool:
        """Whether all that leaves a client is private for each of its records."""
        return self.privacy is not None or self.dp_sgd is not None

    @property
    def pictures_off_scale(self) -> bool:
        """Whether clients are shown pictures in [-1, 1] because the charter does not say what scale images have."""
        dreams = self.federation.course == "codream"
        pictures = (dreams or self.dp_sgd is not None) and self.dreams.start in PICTURES
        return pictures and self.task.mean is None and not (dreams and self.dreams.matched)

    @property
    def common_model(self) -> str | None:
        """The architecture that everybody trains; None where each client has its own, or nothing is trained."""
        if self.dp_sgd is not None:
            return self.dp_sgd.model
        return (self.averaging or AveragingTable()).model if self.federation.course in PARAMETER_COURSES else None

    # -- the charter ---------------------------------------------

    @property
    def earlier(self) -> int:
        """How many epochs the charter's predecessors had certified."""
        return 0 if self.predecessor is None else self.predecessor.certified

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
            tables["dreams"] = asdict(self.dreams)
            tables["learning"] = _own_learning(asdict(learning_settings(self)))
        if course in PARAMETER_COURSES:
            tables["averaging"] = asdict(self.averaging or AveragingTable())
        if course == "codream-fast":
            tables["fast"] = asdict(self.fast or FastTable())
        if self.dp_sgd is not None:
            tables["dp_sgd"] = asdict(self.dp_sgd)
        if self.sums is not None:
            tables["sums"] = self.sums.model_dump(mode="json")
        if self.privacy is not None:
            tables["privacy"] = asdict(privacy_settings(self.privacy))
        if self.client_privacy is not None:
            tables["client_privacy"] = asdict(self.client_privacy)
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
        given = table.model_dump(exclude={"blocks"}, exclude_none=True)
        return as_struct(Aggregation, {**given, "mode": mode, "least_survivors": least})

    # -- its parts ---------------------------------------------

    def dream_settings(self) -> DreamSettings:
        """The settings of the dreams, with the federation's rounds and the form of its images."""
        task = self.task
        return DreamSettings(**vars(self.dreams), rounds=self.federation.rounds, shape=task.shape, classes=task.classes)


_FROM_DREAMS = {setting.name for setting in declared(LearningSettings)} - {
    setting.name for setting in declared(Learning)
}


def learning_settings(federation: FederationConfig) -> LearningSettings:
    """The `[learning]` table as settings; `way`, views, clips and window follow `[dreams]`.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    # Where records are private, own images beside the dreams would be refused, and the budget is for training.
    own: dict[str, Any] = {"own_weight": 0.0, "held_back": 0.0} if federation.record_private else {}
    if federation.privacy is not None:
        own |= PRIVATE_DISTILLATION
    learning: Learning = check("[learning]", Learning, {**own, **federation.learning})
    return LearningSettings(**vars(learning), **{name: getattr(federation.dreams, name) for name in _FROM_DREAMS})


def privacy_settings(table: Mapping[str, Any]) -> PrivacySettings:
    """The `[privacy]` table as settings.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    found: PrivacySettings = check("[privacy]", PrivacySettings, table)
    return found


def _own_learning(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _FROM_DREAMS}


def read_federation(path: Path) -> FederationConfig:
    """Read `config.toml`.

    Raises:
        ConfigError: the file is missing, is no TOML, or a value does not fit.
    """
    found: FederationConfig = check(path.name, FederationConfig, read_toml(path))
    return found
