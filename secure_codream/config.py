"""Configuration: one TOML file for the federation, one for each client, both checked before anything starts.

`config.toml` is what all parties agree on; the digest of its `[dreams]` and `[learning]` tables (the recipe) is
part of every plan, so a client that was given other settings refuses instead of spoiling the dreams. `client.toml`
is a client's own: its model, its data, and its policy, which has the last word. Values that do not fit are reported
with the key, what was found and what is allowed. Nothing here needs a tensor library: the learning settings are
checked by the client.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.keyschedule import digest
from codream_protocols.masks import SUITES
from codream_protocols.plan import MAX_STEPS
from codream_server.settings import AggregationSettings, ClientPrivacySettings, DreamSettings, SettingsError, Timing

MAX_CONFIG_BYTES = 1 << 20


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the key, what was found and what is allowed."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


PartyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # what a roster takes, and a folder


class FederationTable(_Table):
    """`[federation]`: its name, its length and its seed."""

    name: PartyName = "federation"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 4
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0


class TaskTable(_Table):
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


class DreamsTable(_Table):
    """`[dreams]`: see `DreamSettings`."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS - 2)] = 10
    half_way: bool = False
    batch: Annotated[int, Field(ge=2, le=65_536)] = 128
    views: Annotated[int, Field(ge=0, le=64)] = 0
    way: Literal["update", "gradient"] = "update"
    optimiser: Literal["average", "fedadam", "adam", "distadam"] = "average"
    server_lr: Annotated[float, Field(gt=0, le=100)] = 1.0
    update_clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    logit_clip: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    adapt_clip: bool = False
    window: Annotated[int, Field(ge=1, le=1000)] = 10
    adaptive_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    adaptive_from: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_a_middle(self) -> DreamsTable:
        if self.half_way and not 2 <= self.steps <= MAX_STEPS - 3:
            raise ValueError(f"steps {self.steps} with half_way; 2 to {MAX_STEPS - 3} are allowed")
        if self.half_way and self.views:
            raise ValueError(f"views {self.views} with half_way; choose one of them")
        return self


class AggregationTable(_Table):
    """`[aggregation]`: see `AggregationSettings`."""

    value_bits: Annotated[int, Field(ge=2, le=24)] = 16
    suite: Literal["aes-256-ctr", "chacha20"] = "aes-256-ctr"
    colluders: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)] = 1
    least_survivors: Annotated[int, Field(ge=2, le=MAX_MEMBERS)] = 3
    threshold: Annotated[int, Field(ge=2, le=MAX_MEMBERS)] | None = None

    @model_validator(mode="after")
    def _safe(self) -> AggregationTable:
        if self.least_survivors < self.colluders + 2:
            raise ValueError(f"least_survivors {self.least_survivors}; {self.colluders + 2} (colluders + 2) or more")
        return self


class ClientPrivacyTable(_Table):
    """`[client_privacy]`: noise that hides whether a client took part; see `ClientPrivacySettings`."""

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, le=0.01)]
    update_norm: Annotated[float, Field(ge=1e-6, le=1e6)]
    logit_norm: Annotated[float, Field(ge=1e-6, le=1e6)]
    spare_rounds: Annotated[int, Field(ge=0, le=100_000)] = 0


class TimingTable(_Table):
    """`[timing]`, in seconds: see `Timing`."""

    join: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    step: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    beat: Annotated[float, Field(gt=0, le=3_600)] = 1.0
    lost_after: Annotated[float, Field(gt=0, le=86_400)] = 5.0
    attempts: Annotated[int, Field(ge=1, le=1000)] = 5


class FederationConfig(_Table):
    """The whole of `config.toml`. `[learning]` and `[privacy]` (differential privacy for each record of a client) stay
    plain tables here: the client's side knows their keys, see `LearningSettings` and `PrivacySettings`.
    """

    federation: FederationTable = FederationTable()
    task: TaskTable
    dreams: DreamsTable = DreamsTable()
    learning: dict[str, Any] = {}
    aggregation: AggregationTable = AggregationTable()
    privacy: dict[str, Any] | None = None
    client_privacy: ClientPrivacyTable | None = None
    timing: TimingTable = TimingTable()

    @model_validator(mode="after")
    def _has_what_it_adapts_to(self) -> FederationConfig:
        if self.client_privacy is not None and self.dreams.adapt_clip:
            raise ValueError(
                "dreams.adapt_clip with [client_privacy]; false is allowed, as no fraction clipped is sent"
            )
        return self

    @field_validator("learning", "privacy")
    @classmethod
    def _has_a_digest(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(table, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("only finite numbers, texts, true, false, lists and tables are allowed") from None
        return table

    @property
    def recipe(self) -> bytes:
        """Digest of what all parties must share to dream together, 32 bytes."""
        shared: dict[str, Any] = {
            "task": self.task.model_dump(mode="json"),
            "dreams": self.dreams.model_dump(mode="json"),
            "learning": self.learning,
        }
        if self.privacy is not None:
            shared["privacy"] = self.privacy
        if self.client_privacy is not None:
            shared["client_privacy"] = self.client_privacy.model_dump(mode="json")
        return digest("recipe", json.dumps(shared, sort_keys=True, allow_nan=False).encode())

    def dream_settings(self) -> DreamSettings:
        """The server's settings of the dreams.

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

    def aggregation_settings(self) -> AggregationSettings:
        """The server's settings of secure aggregation."""
        return AggregationSettings(**self.aggregation.model_dump())

    def client_privacy_settings(self) -> ClientPrivacySettings | None:
        """Client-level privacy; None without that table."""
        return None if self.client_privacy is None else ClientPrivacySettings(**self.client_privacy.model_dump())

    def timing_settings(self) -> Timing:
        """The server's patience."""
        return Timing(**self.timing.model_dump())


class DataTable(_Table):
    """`[data]` of a client: where its images are, and which of them it takes.

    `source`: `digits`, a set of torchvision's (`mnist`, `fashion-mnist`, `emnist`, `cifar10`, `cifar100`, `svhn`) that
    lies under `root`, or is fetched into it with `download`; a path to an `.npz` with MedMNIST's keys or to a folder
    of image folders; or `module:function`, WHICH RUNS THAT CODE. Relative paths start at the folder where the process
    was started. `size` resizes the images of a folder.
    `standardise`: "public" takes the constants published for a set, or mean and deviation 1/2; "train" measures the
    whole training part, for experiments that deal one source out; `[task]` overrules both.
    The source is split among `clients` by `partition`, and this client takes part `part`, from 0; with one client, the
    default, it takes all. `per_client`: how many images each gets; all of them, evenly, unless given. `alpha` is
    Dirichlet's concentration; `shards` are how many each client gets. `train_limit` and `test_limit` first reduce the
    source to so many random images. `seed` fixes every choice. `augment` varies the images in training.
    """

    source: str = "digits"
    root: Path | None = None
    download: bool = False
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    standardise: Literal["public", "train"] = "public"
    partition: Literal["iid", "dirichlet", "dirichlet-by-label", "shards"] = "iid"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    shards: Annotated[int, Field(ge=1, le=10_000)] = 2
    clients: Annotated[int, Field(ge=1, le=10_000)] = 1
    part: Annotated[int, Field(ge=0)] = 0
    per_client: Annotated[int, Field(ge=1)] | None = None
    train_limit: Annotated[int, Field(ge=2)] | None = None
    test_limit: Annotated[int, Field(ge=1)] | None = None
    augment: Literal["none", "shift", "affine", "flip-crop"] = "none"
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("source")
    @classmethod
    def _exists(cls, source: str) -> str:
        from codream_clients.data_sources import kind_of

        kind_of(source)
        return source


class PolicyTable(_Table):
    """`[policy]` of a client: see `Policy`. What is left out follows from the federation's configuration.

    `least_noise` is the least noise multiplier of everything that this client sends of its data: above 0, it takes part
    only under `[client_privacy]`, which may demand more.
    """

    least_cohort: Annotated[int, Field(ge=2, le=MAX_MEMBERS)] = 3
    least_survivors: Annotated[int, Field(ge=2, le=MAX_MEMBERS)] = 3
    least_threshold: Annotated[int, Field(ge=1, le=MAX_MEMBERS)] = 1
    colluders: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)] = 1
    most_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = MAX_STEPS
    most_total_steps: Annotated[int, Field(ge=1)] = 1_000_000
    most_value_bits: Annotated[int, Field(ge=1, le=31)] = 24
    suites: tuple[Literal["aes-256-ctr", "chacha20"], ...] = ("aes-256-ctr", "chacha20")
    least_noise: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class BudgetTable(_Table):
    """`[budget]` of a client: the most that all its training may cost its records, whatever a federation plans.

    With it, the client takes part in federations with `[privacy]` alone. `records` is the number of its images as it
    may be known, if `[privacy]` does not say it for all. See `Budget` and `PrivacySettings`.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e6)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: Literal["prv", "rdp"] = "prv"
    records: Annotated[int, Field(ge=1)] | None = None


class ClientConfig(_Table):
    """The whole of `client.toml`.

    `model` is a name of the zoo (`codream_clients.model_names`), or `module:function`, WHICH RUNS THAT CODE.
    `tell_accuracy`: whether the client's accuracies, without noise, go into the masked sum that the server takes the
    mean of; unless given, only where the federation has no `[privacy]`. Its own `metrics.jsonl` has them in any case.
    """

    name: PartyName
    model: str
    tell_accuracy: bool | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience: Annotated[float, Field(gt=0, le=604_800)] = 600.0
    least_roster_serial: Annotated[int, Field(ge=1)] = 1
    data: DataTable = DataTable()
    policy: PolicyTable = PolicyTable()
    budget: BudgetTable | None = None

    @field_validator("model")
    @classmethod
    def _exists(cls, model: str) -> str:
        from codream_clients.model_names import split_norm

        split_norm(model)
        return model


def read_federation(path: Path) -> FederationConfig:
    """Read `config.toml`.

    Raises:
        ConfigError: the file is missing, is no TOML, or a value does not fit.
    """
    return FederationConfig.model_validate(_Checked(path, FederationConfig).content)


def read_client(path: Path) -> ClientConfig:
    """Read `client.toml`; raises as `read_federation` does."""
    return ClientConfig.model_validate(_Checked(path, ClientConfig).content)


class _Checked:
    """A TOML file whose content fits a model."""

    def __init__(self, path: Path, model: type[BaseModel]) -> None:
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ConfigError(f"{path}: found {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are allowed")
            self.content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: found no such file; a TOML file is needed") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: found no valid TOML ({error})") from None
        check(path.name, model, self.content)


def check(name: str, kind: Any, content: Any) -> Any:
    """Validate `content` as `kind` (a model or a dataclass).

    Raises:
        ConfigError: with one line for each value that does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(whole)"
            if problem["type"] == "value_error":  # one of our own, which says itself what was found
                text = str(problem["ctx"]["error"])
            else:
                found = "" if problem["type"] == "missing" else f"found {problem['input']!r:.80}; "
                text = f"{found}{problem['msg'][:1].lower()}{problem['msg'][1:]}"
            lines.append(f"{name}: {key}: {text}")
        raise ConfigError("\n".join(lines)) from None


assert set(SUITES) == {"aes-256-ctr", "chacha20"}  # noqa: S101 - the tables above spell them out
