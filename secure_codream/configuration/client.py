"""`client.toml`: one client's own data, model, budget and policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import doc
from pydantic import Field, field_validator, model_validator

from codream_clients.models.names import GROUP_NORM_SUFFIX, MODELS, split_norm
from codream_protocols.charter import Policy
from secure_codream.configuration.reading import DIGEST, PLACE, REFERENCE, PartyName, Table, as_struct, check, read_toml

SOURCE = (
    "digits; a set of torchvision's (mnist, fashion-mnist, emnist, cifar10, cifar100, svhn); a path to an .npz with "
    "MedMNIST's keys or to a folder of image folders (./scans); or module:function, WHICH RUNS THAT CODE; "
    "`secure-codream data` says what is understood of it"
)


class ImagesTable(Table):
    """Where images are, and how they are read: what every `[data]` has."""

    source: Annotated[str, doc(SOURCE)] = "digits"
    root: Annotated[Path | None, doc("the folder where torchvision's sets lie")] = None
    download: Annotated[bool, doc("whether a set that is not there is fetched into it")] = False
    size: Annotated[
        Annotated[int, Field(ge=8, le=1024)] | None, doc("pixels to which each side of a folder's images is resized")
    ] = None
    groups: Annotated[
        Literal["folder"] | None,
        doc("folder: the folders right below a folder's class folders are persons, whose images are never divided"),
    ] = None
    pages: Annotated[
        Literal["first", "each"] | None,
        doc("of picture files with several pages: the first, or each as an image of its own; refused unless given"),
    ] = None
    channels: Annotated[
        Literal["first", "last"] | None,
        doc("where the channels of arrays stand, (N, C, H, W) or (N, H, W, C), where that is in doubt"),
    ] = None
    standardise: Annotated[
        Literal["public", "train"],
        doc(
            "public takes the constants published for a set, or mean and deviation 1/2; train measures the whole "
            "training part, for experiments that deal one source out; a federation's `[task]` overrules both"
        ),
    ] = "public"
    train_limit: Annotated[
        Annotated[int, Field(ge=2)] | None, doc("random images to which the training part is reduced before the split")
    ] = None
    augment: Annotated[Literal["none", "shift", "affine", "flip-crop"], doc("how images are varied in training")] = (
        "none"
    )


class DataTable(ImagesTable):
    """`[data]`: where a client's images are, and which of them it takes.

    The source is split among `clients`, and this client takes one part; with one client, the default, it takes all.
    """

    source: Annotated[
        str, doc(f"{SOURCE}; relative paths, this and `root`, start at this file's folder, wherever the client does")
    ] = "digits"
    partition: Annotated[
        Literal["iid", "dirichlet", "dirichlet-by-label", "shards"], doc("how the source is split among the clients")
    ] = "iid"
    alpha: Annotated[
        float, Field(gt=0, le=1e6), doc("concentration of both Dirichlet partitions; the smaller, the more skew")
    ] = 0.5
    shards: Annotated[int, Field(ge=1, le=10_000), doc("shards that each client gets, of that partition")] = 2
    clients: Annotated[int, Field(ge=1, le=10_000), doc("among how many the source is split")] = 1
    part: Annotated[int, Field(ge=0), doc("which part is this client's, from 0")] = 0
    per_client: Annotated[
        Annotated[int, Field(ge=1)] | None, doc("images of each client; all of them, evenly, unless given")
    ] = None
    test_limit: Annotated[
        Annotated[int, Field(ge=1)] | None, doc("random images to which the test part is reduced")
    ] = None
    seed: Annotated[int, Field(ge=0), doc("of every random choice among the images")] = 0

    @property
    def public(self) -> bool:
        """Whether the source is a known set, whose images protect nobody."""
        from codream_clients.data.sources import kind_of

        return kind_of(self.source) == "name"

    @property
    def dealt(self) -> bool:
        """Whether this client takes a part of the source, as the sites of an experiment do."""
        return self.clients > 1 or self.per_client is not None

    @field_validator("source")
    @classmethod
    def _exists(cls, source: str) -> str:
        from codream_clients.data.sources import kind_of

        kind_of(source)
        return source


class PolicyTable(Table):
    """`[policy]`: what a client permits, whatever the charter says.

    What is not given is as strict as the default, or as the charter.
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
    shared_noise: bool | None = None
    uncharged: Annotated[
        bool | None,
        doc(
            "whether images with a privacy ledger may be trained on in a federation that charges nothing to it and "
            "bounds nothing of what it is told; the statements of that ledger say so from then on"
        ),
    ] = None
    code: Annotated[
        dict[Annotated[str, Field(pattern=REFERENCE)], Annotated[str, Field(pattern=DIGEST)]],
        doc("code of a charter that this client is willing to RUN: module:name, and the SHA-256 of its source"),
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
        given = self.model_dump(exclude={"code", "uncharged"}, exclude_none=True)
        given["least_noise"] = max(given.get("least_noise", 0.0), least_noise)
        return as_struct(Policy, {**given, "most_rho": most_rho})


class BudgetTable(Table):
    """`[budget]`: the most that all training may cost a client's records, whatever federations plan.

    Relative paths start at the folder of `client.toml`. With it, the client takes part in federations with `[privacy]`,
    `[dp_sgd]` or, of the course `codream`, `[client_privacy]` alone.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e6), doc("what all training together may cost a record, at `delta`")]
    delta: Annotated[float, Field(gt=0, lt=1), doc("chance that the bound fails; from 1/n on, n images, a warning")]
    accountant: Annotated[Literal["prv", "rdp"], doc("what adds up the costs")] = "prv"
    records: Annotated[
        Annotated[int, Field(ge=1)] | None,
        doc("the number of this client's images as it may be known, in place of the one under `[privacy]`"),
    ] = None
    ledger: Annotated[
        Path | None,
        doc(
            "the ledger of these images, one for all federations that train on them; privacy.jsonl in the client's "
            "folder unless given"
        ),
    ] = None
    anchor: Annotated[
        Path | None,
        doc("what remembers how far the ledger had got, best on another disk; beside the ledger unless given"),
    ] = None
    parts: Annotated[
        tuple[Path, ...],
        doc(
            "where data grow: the ledgers of their earlier parts, none of whose images are among these, so that each "
            "part spends its own"
        ),
    ] = ()


class ClientConfig(Table):
    """The whole of `client.toml`: what is one client's own."""

    name: Annotated[PartyName, doc("the client's, as the roster has it")]
    model: Annotated[
        str,
        doc(
            f"{', '.join(MODELS)}, each also with {GROUP_NORM_SUFFIX} (group norm), or "
            "module:function, WHICH RUNS THAT CODE; modules are looked for where the client is started, and among "
            "installed ones"
        ),
    ]
    weights: Annotated[
        Literal["random", "public", "charged"] | None,
        doc(
            "where the first weights of a model of one's own come from, asked for where records are private: random "
            "draws; a training on public images; or one on these, which their ledger was charged for"
        ),
    ] = None
    tell_accuracy: Annotated[
        bool | None,
        doc(
            "whether this client's accuracies, without noise, go into the masked sum that the server takes the mean "
            "of, and into its model's file; unless given, only where there is no `[privacy]`, with which that file "
            "never has them; its own metrics.jsonl has them in any case"
        ),
    ] = None
    seed: Annotated[int, Field(ge=0), doc("of the model's first weights and of training")] = 0
    device: Annotated[str, doc("auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:INDEX or mps")] = "auto"
    weight: Annotated[
        float, Field(gt=0, le=1), doc("this client's secret weight in means; of no effect where there is noise")
    ] = 1.0
    patience: Annotated[
        Annotated[float, Field(gt=0, le=604_800)] | None,
        doc("seconds of listening without a word from the server before this client gives up; without it, never"),
    ] = None
    proxy: Annotated[
        Annotated[str, Field(pattern=PLACE)] | None,
        doc("HOST:PORT of a SOCKS5 proxy by which the server is reached; without it, directly"),
    ] = None
    least_roster_serial: Annotated[
        int, Field(ge=1), doc("rosters with a smaller serial number are refused, such as one with a revoked member")
    ] = 1
    data: DataTable = DataTable()
    policy: PolicyTable = PolicyTable()
    answers: Annotated[
        Annotated[str, Field(pattern=REFERENCE)] | None,
        doc("for the course sums: module:function, (task) -> {block: numbers}, WHICH RUNS THAT CODE"),
    ] = None
    budget: BudgetTable | None = None

    @field_validator("model")
    @classmethod
    def _exists(cls, model: str) -> str:
        split_norm(model)
        return model


def read_client(path: Path) -> ClientConfig:
    """Read `client.toml`, whose relative paths start at its own folder; raises as `read_federation` does."""
    from codream_clients.data.sources import kind_of

    found: ClientConfig = check(path.name, ClientConfig, read_toml(path))
    data, folder, places = found.data, path.absolute().parent, dict[str, object]()
    if kind_of(data.source) in ("npz", "folder") and not data.source.startswith("~"):
        places["source"] = str(folder / data.source)
    if data.root is not None and not str(data.root).startswith("~"):
        places["root"] = folder / data.root
    own = found.budget
    if own is not None:
        own = own.model_copy(
            update={
                "ledger": _from(folder, own.ledger),
                "anchor": _from(folder, own.anchor),
                "parts": tuple(folder / part.expanduser() for part in own.parts),
            },
        )
    return found.model_copy(update={"data": data.model_copy(update=places), "budget": own})


def _from(folder: Path, path: Path | None) -> Path | None:
    return path if path is None else folder / path.expanduser()
