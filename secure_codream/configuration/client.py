"""`client.toml`: one client's own data, model, budget and policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from codream_protocols.charter import Policy
from secure_codream.configuration.reading import DIGEST, REFERENCE, PartyName, Table, as_struct, check, read_toml


class DataTable(Table):
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
        from codream_clients.data.sources import kind_of

        kind_of(source)
        return source


class PolicyTable(Table):
    """`[policy]` of a client: see `Policy`. What is left out is as strict as `Policy` has it, or as the charter.

    `code` maps each `module:name` of a charter that this client is willing to RUN to the SHA-256 of its source.
    `least_noise` is the least noise multiplier of everything that this client sends: above 0, it takes part only under
    `[client_privacy]`, which may demand more.
    """

    least_cohort: int | None = None
    least_survivors: int | None = None
    colluders: int | None = None
    modes: tuple[str, ...] | None = None
    suites: tuple[str, ...] | None = None
    most_steps: int | None = None
    most_total_steps: int | None = None
    most_coordinates: int | None = None
    most_value_bits: int | None = None
    losses: bool | None = None
    cuts: bool | None = None
    least_noise: float | None = None
    most_wrong_sums: int | None = None
    code: dict[
        Annotated[str, Field(pattern=REFERENCE)],
        Annotated[str, Field(pattern=DIGEST)],
    ] = {}

    @model_validator(mode="after")
    def _within(self) -> PolicyTable:
        self.policy()
        return self

    def policy(self, *, most_rho: float | None = None, least_noise: float = 0.0) -> Policy:
        """The policy; what the federation's privacy asks for can only make it stricter.

        Raises:
            ValueError: a limit out of its range.
        """
        given = self.model_dump(exclude={"code"}, exclude_none=True)
        given["least_noise"] = max(given.get("least_noise", 0.0), least_noise)
        return as_struct(Policy, {**given, "most_rho": most_rho})


class BudgetTable(Table):
    """`[budget]` of a client: the most that all its training may cost its records, whatever a federation plans.

    With it, the client takes part in federations with `[privacy]` alone. `records` is the number of its images as it
    may be known, if `[privacy]` does not say it for all. See `Budget` and `PrivacySettings`.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e6)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: Literal["prv", "rdp"] = "prv"
    records: Annotated[int, Field(ge=1)] | None = None


class ClientConfig(Table):
    """The whole of `client.toml`.

    `model` is a name of the zoo (`codream_clients.models.names`), or `module:function`, WHICH RUNS THAT CODE.
    `answers` is `module:function`, WHICH RUNS THAT CODE: for the course "sums", (task) -> {block: numbers}.
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
    answers: Annotated[str, Field(pattern=REFERENCE)] | None = None
    budget: BudgetTable | None = None

    @field_validator("model")
    @classmethod
    def _exists(cls, model: str) -> str:
        from codream_clients.models.names import split_norm

        split_norm(model)
        return model


def read_client(path: Path) -> ClientConfig:
    """Read `client.toml`; raises as `read_federation` does."""
    found: ClientConfig = check(path.name, ClientConfig, read_toml(path))
    return found
