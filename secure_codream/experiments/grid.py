"""What is compared: one TOML file, or a few flags, become cells = algorithms x partitions x seeds.

A cell is one run of one algorithm on one partition with one seed; everything that defines its result is in it, and
its digest stands for all that. Where two configurations agree on a digest, they agree on the cell's rows, so a result
may be taken over; where anything differs (a learning rate, a line of code, an image in a file: `origins`), the digest
does. Where a known set lies is no part of it.

A variant is an algorithm under another name with other options, other `[learning]` and `[dreams]` values or models:

    [variants.codream-plain]
    algorithm = "codream"
    learning = { balanced = false, class_aware = false, loss = { alpha_target = 0.0 } }

Averaging of parameters needs one architecture. With a mix, such an algorithm is not applicable: it gets no cells, and
the results say why. Cells of `[communication]` measure bytes alone, by models of different sizes: one round with as
little training as there can be, since no byte depends on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tomli_w
from annotated_types import doc
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field

from codream_clients.data.sources import kind_of
from codream_clients.data.understanding import Understanding
from codream_clients.devices import DeviceError, pick_device
from codream_clients.learning.settings import PRIVATE_DISTILLATION, LearningSettings
from codream_clients.models.gate import trial_images
from codream_clients.models.names import UnknownModelError, model_mix
from codream_clients.models.refusals import ModelRefused
from codream_clients.models.zoo import ModelShapeError, build
from codream_clients.own_parts import OwnPartError
from codream_protocols.courses.codream import Dreams
from secure_codream.configuration.client import DataTable, ImagesTable
from secure_codream.configuration.federation import (
    AggregationTable,
    FederationConfig,
    TaskTable,
    learning_settings,
    privacy_settings,
)
from secure_codream.configuration.images import load_data, what_was_understood, who_holds_what
from secure_codream.configuration.reading import ConfigError, PartyName, Table, check, read_toml
from secure_codream.experiments.effects import effective, refuse_idle
from secure_codream.experiments.notation import PARTITIONS, parse_seeds, partition_fields
from secure_codream.experiments.origins import images_in, own_code, program
from secure_codream.experiments.problem import FROM_DREAMS, aggregation_among
from secure_codream.experiments.registry import ALGORITHMS, USUAL_PRIVACY, Entry, find
from secure_codream.experiments.sweep import SweepTable

SCHEMA = 3
MOST_CELLS = 100_000


def _known_partition(text: str) -> str:
    partition_fields(text)
    return text


def _no_twins(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twins := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twins)} more than once; each is allowed once")
    return values


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _seeds(value: Any) -> Any:
    return parse_seeds(value) if isinstance(value, str) else value


Partition = Annotated[str, AfterValidator(_known_partition)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class CompareTable(Table):
    """`[compare]`: algorithms x partitions x seeds, among so many clients, for so many rounds."""

    name: Annotated[PartyName, doc("a part of the run's folder's name")] = "comparison"
    algorithms: Annotated[
        Names,
        AfterValidator(_no_twins),
        doc(f"{', '.join(ALGORITHMS)}, a variant, or module:name, WHICH RUNS THAT CODE"),
    ] = ("isolated", "codream", "centralised")
    partitions: Annotated[
        tuple[Partition, ...],
        BeforeValidator(_listed),
        Field(min_length=1),
        AfterValidator(_no_twins),
        doc(f"how the data are dealt out: {PARTITIONS}"),
    ] = ("iid",)
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...],
        BeforeValidator(_seeds),
        Field(min_length=1),
        AfterValidator(_no_twins),
        doc('each of data, models and everything else; text such as "0-4" will do'),
    ] = (0, 1, 2, 3, 4)
    rounds: Annotated[int, Field(ge=1, le=100_000), doc("of communication")] = 4
    clients: Annotated[int, Field(ge=1, le=10_000), doc("how many there are")] = 4
    per_client: Annotated[
        Annotated[int, Field(ge=2)] | None, doc("images of each client; all, evenly, unless given")
    ] = None
    models: Annotated[Names, doc("one for all clients, or several, taken in turn")] = ("cnn2",)
    test_limit: Annotated[Annotated[int, Field(ge=1)] | None, doc("images of the test; all unless given")] = None
    against: Annotated[
        str | None, doc("one of the algorithms: tables say by how many points each stands above it, seed by seed")
    ] = None
    patience: Annotated[
        Annotated[int, Field(ge=1)] | None,
        doc(
            "a cell ends when its mean accuracy has not risen for so many rounds; that looks at the test images, so it "
            "is for exploring, not for figures to cite"
        ),
    ] = None
    device: Annotated[
        str, doc("where models are trained: auto, decided when the comparison is begun, cpu, cuda, cuda:INDEX or mps")
    ] = "cpu"


class SourceTable(ImagesTable):
    """`[data]`: what is dealt out; `[compare]` and its partitions stand for the other keys of a client's.

    Relative paths start at the folder where the process does. `root` is no part of a cell's digest.
    """


VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]


class VariantTable(Table):
    """`[variants.NAME]`: an algorithm under another name, with other settings."""

    algorithm: Annotated[str, doc("the algorithm, as under `[compare]`")]
    options: Annotated[dict[str, Any], doc("keyword arguments of the algorithm's class, over its own")] = {}
    learning: Annotated[dict[str, Any], doc("keys of `[learning]`, over the comparison's")] = {}
    dreams: Annotated[dict[str, Any], doc("keys of `[dreams]`, over the comparison's")] = {}
    models: Annotated[
        Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] | None,
        doc("as under `[compare]`, in place of the comparison's"),
    ] = None


class CommunicationTable(Table):
    """`[communication]`: whose bytes to measure, by models of different sizes."""

    algorithms: Annotated[Names, AfterValidator(_no_twins), doc("as under `[compare]`")] = ("codream", "fedavg")
    models: Annotated[
        tuple[str, ...], BeforeValidator(_listed), AfterValidator(_no_twins), doc("one row each; none, no rows")
    ] = ()


class CompareConfig(Table):
    """The whole of a comparison's file, or of a sweep's."""

    compare: CompareTable = CompareTable()
    data: SourceTable = SourceTable()
    dreams: Dreams = Dreams()
    learning: Annotated[
        dict[str, Any],
        doc("every client's, as in config.toml; algorithms with `privacy` have the defaults that it has there"),
    ] = {}
    aggregation: AggregationTable = AggregationTable()
    variants: Annotated[dict[VariantName, VariantTable], doc("algorithms under other names, with other settings")] = {}
    communication: CommunicationTable = CommunicationTable()
    sweep: SweepTable | None = None
    privacy: Annotated[
        dict[str, Any], doc("with `[sweep]`: as in config.toml, but for epsilon, which the sweep has")
    ] = {}

    @property
    def command(self) -> str:
        """Which command makes and resumes it."""
        return "compare" if self.sweep is None else "sweep"

    @property
    def order(self) -> tuple[str, ...]:
        """The algorithms as a table lists them: a sweep's by epsilon."""
        return self.compare.algorithms if self.sweep is None else self.sweep.names

    def swept(self) -> CompareConfig:
        """With a sweep's methods in place of algorithms; without `[sweep]` as it is.

        Raises:
            ConfigError: algorithms beside a sweep's, or an epsilon in `[privacy]`.
        """
        if self.sweep is None:
            if self.privacy:
                raise ConfigError("privacy: found it without [sweep]; a private algorithm's options take it")
            return self
        if "epsilon" in self.privacy:
            raise ConfigError("privacy.epsilon: found it beside [sweep], whose epsilons stand for it")
        variants = self.sweep.variants(self.privacy)
        others = set(self.compare.algorithms) - set(variants)
        if "algorithms" in self.compare.model_fields_set and others:
            raise ConfigError(f"compare.algorithms: found {', '.join(sorted(others))}; a sweep has [sweep] methods")
        tables = {name: VariantTable(**table) for name, table in variants.items() if table is not None}
        compare = self.compare.model_copy(update={"algorithms": tuple(variants)})
        return self.model_copy(update={"compare": compare, "variants": {**self.variants, **tables}})


Measure = Literal["learning", "communication"]
Elsewhere = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One run of one algorithm on one partition with one seed.

    Attributes:
        algorithm: its name in tables.
        entry: how it is made.
        partition: as it was written, such as `dirichlet:0.5`.
        seed: of data, models and everything else.
        measure: what the cell is for.
        rounds: of communication.
        models: each client's.
        data: the source and how it is dealt out.
        learning: every hyperparameter that `[dreams]` does not decide.
        dreams: the dreams' settings.
        aggregation: secure aggregation's settings.
        patience: see `CompareTable`.
        device: where models are trained.
        origins: what the rows follow from beside all these, see `origins`; as it was when the grid was made.
    """

    algorithm: str
    entry: Entry
    partition: str
    seed: int
    measure: Measure = "learning"
    rounds: int
    models: tuple[str, ...]
    data: DataTable
    learning: Mapping[str, Any]
    dreams: Dreams
    aggregation: AggregationTable
    patience: int | None
    device: str
    origins: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that defines the rows, hexadecimal."""
        definition = {
            "schema": SCHEMA,
            "origins": dict(self.origins),
            "algorithm": [self.entry.name, dict(self.entry.options)],
            "measure": self.measure,
            "partition": self.partition,
            "seed": self.seed,
            "rounds": self.rounds,
            "models": self.models,
            "data": self.data.model_dump(mode="json", exclude={"root", "download", "part"}),
            "learning": dict(self.learning),
            "dreams": asdict(self.dreams),
            "aggregation": self.aggregation.model_dump(mode="json"),
            "patience": self.patience,
            "device": self.device,
        }
        return hashlib.sha256(json.dumps(definition, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def title(self) -> str:
        """The readable part of `stem`, alike for cells that differ in settings or origins alone."""
        model = f"{self.models[0]}_" if self.measure == "communication" else ""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.algorithm}_{model}{self.partition}_seed-{self.seed}")

    @property
    def stem(self) -> str:
        """A file's name for it: readable, and different from every other cell's."""
        return f"{self.title}_{self.digest[:12]}"

    def origins_here(self) -> dict[str, str]:
        """`origins` as they are now, and on this machine.

        Raises:
            ConfigError: own code or images that are not there any more.
        """
        own = _own_code(self.entry, self.models, self.data, self.dreams)
        return {**program(), **images_in(self.data.source), **own}

    def __str__(self) -> str:
        if self.measure == "communication":
            return f"bytes of {self.algorithm}, {self.models[0]}"
        return f"{self.algorithm}, {self.partition}, seed {self.seed}"

    def settings(self, shape: tuple[int, int, int], classes: int) -> LearningSettings:
        """Every client's hyperparameters.

        Raises:
            ConfigError: a key or value that does not fit.
        """
        return _settings(self.learning, self.dreams, shape, classes)


@dataclass(frozen=True)
class Grid:
    """A checked comparison.

    Attributes:
        config: as it was given, complete with defaults.
        cells: what is to be run, in order: seed by seed, so that early results compare like with like.
        not_applicable: algorithm -> why it gets no cells.
        understood: how the source of all cells was read; of the first seed, where a seed makes a difference.
    """

    config: CompareConfig
    cells: tuple[Cell, ...]
    not_applicable: Mapping[str, str]
    understood: Understanding

    def to_toml(self) -> str:
        """The whole configuration; read again, it gives the same cells."""
        return tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True))

    def label_counts(self) -> dict[str, NDArray[np.int64]]:
        """Partition -> images of each class that each client holds, (clients, classes), of the first seed."""
        first: dict[str, DataTable] = {}
        for cell in self.cells:
            if cell.measure == "learning":
                first.setdefault(cell.partition, cell.data)
        return {partition: who_holds_what(data) for partition, data in first.items()}


def read_grid(
    path: Path | None,
    flags: Mapping[str, Mapping[str, Any]],
    usual: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    elsewhere: Elsewhere | None = None,
) -> Grid:
    """Read a comparison's file, put it over `usual` and the flags' values over both, and check all of it.

    Flags and usual values are table -> key -> value. `elsewhere` is the device that cells have where they run on other
    machines than this one.

    Raises:
        ConfigError: with the key, what was found and what is allowed.
    """
    content = _over(usual or {}, {} if path is None else read_toml(path))
    for table, values in flags.items():
        existing = content.get(table, {})
        if values and isinstance(existing, dict):
            content[table] = {**existing, **values}
    name = "flags" if path is None else path.name
    config: CompareConfig = check(name, CompareConfig, content)
    try:
        return _grid(config.swept(), elsewhere)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _grid(config: CompareConfig, elsewhere: Elsewhere | None) -> Grid:
    config = _on_its_device(config, elsewhere)
    table = config.compare
    here = "cpu" if elsewhere else table.device
    try:
        aggregation_among(table.clients, config.aggregation)
    except ConfigError as error:
        raise ConfigError(f"compare.clients: {error}") from error
    count = len(table.algorithms) * len(table.partitions) * len(table.seeds)
    if count > MOST_CELLS:
        raise ConfigError(f"compare: found {count} cells; at most {MOST_CELLS} are allowed")
    if table.against is not None and table.against not in config.order:
        raise ConfigError(f"compare.against: found {table.against!r}; allowed are {', '.join(config.order)}")
    data = {(partition, seed): _data(config, partition, seed) for partition in table.partitions for seed in table.seeds}
    understood = _try_data([data[partition, table.seeds[0]] for partition in table.partitions])
    shape, classes = understood.shape, understood.classes
    named = {"compare.models": table.models, "communication.models": config.communication.models}
    named |= {f"variants.{name}.models": variant.models for name, variant in config.variants.items() if variant.models}
    _try_models(named, shape, classes, here)
    learning = _whole_learning(config.learning, config.dreams, shape, classes)
    for key in PRIVATE_DISTILLATION.keys() - config.learning.keys():
        del learning[key]  # unnamed here it is unnamed where the run is resumed, for `[privacy]` to decide
    config = config.model_copy(update={"learning": learning, "data": _absolute(config.data)})
    common = {**program(), **images_in(config.data.source)}
    described = {
        name: _Recipe.of(config, name, shape, classes)
        for name in {**dict.fromkeys(table.algorithms), **config.variants}
    }
    recipes = {name: described[name] for name in table.algorithms}
    further = {key: (model,) for name, recipe in described.items() for key, model in recipe.further(name)}
    _try_models(further, shape, classes, here)
    private = {name: recipe for name, recipe in recipes.items() if recipe.entry.record_private}
    if private:
        trained = [pair for name, recipe in private.items() for pair in recipe.trained(name)]
        tables = [recipe.entry.options.get("privacy", USUAL_PRIVACY) for recipe in private.values()]
        _try_private_models(trained, shape, classes, here, tables)
    not_applicable = {
        name: f"it averages parameters, which needs one architecture; found {', '.join(dict.fromkeys(recipe.models))}"
        for name, recipe in recipes.items()
        if recipe.entry.one_architecture and len(set(recipe.models)) > 1
    }
    if len(not_applicable) == len(recipes):
        name, reason = next(iter(not_applicable.items()))
        raise ConfigError(f"compare.algorithms: no algorithm is left to run: {name}: {reason}")
    cells = [
        recipes[name].cell(config, name, partition, seed, data[partition, seed], common)
        for seed, partition, name in product(table.seeds, table.partitions, table.algorithms)
        if name not in not_applicable
    ]
    return Grid(config, (*cells, *_communication_cells(config, shape, classes, common)), not_applicable, understood)


def _on_its_device(config: CompareConfig, elsewhere: Elsewhere | None) -> CompareConfig:
    """With the device that `auto` is: decided once, it is part of every cell's digest and of the configuration kept."""
    device = config.compare.device
    if elsewhere is not None and device in ("auto", elsewhere):  # this machine may lack it
        found: str = elsewhere
    else:
        try:
            picked = pick_device(device)
        except DeviceError as error:
            raise ConfigError(f"compare.device: {error}") from error
        found = picked.type if device == "auto" else device
    return config.model_copy(update={"compare": config.compare.model_copy(update={"device": found})})


@dataclass(frozen=True)
class _Recipe:
    """An algorithm's entry, settings, and each client's model."""

    entry: Entry
    learning: Mapping[str, Any]
    dreams: Dreams
    models: tuple[str, ...]

    @classmethod
    def of(cls, config: CompareConfig, name: str, shape: tuple[int, int, int], classes: int) -> _Recipe:
        variant = config.variants.get(name)
        key = f"variants.{name}" if variant else "compare.algorithms"
        try:
            entry = find(variant.algorithm if variant else name, variant.options if variant else None)
            made = entry.make()
        except ConfigError as error:
            more = f" (and of [variants]: {', '.join(config.variants)})" if config.variants and not variant else ""
            raise ConfigError(f"{key}: {error}{more}") from error
        named = variant.models if variant else None
        try:
            models = model_mix(named or config.compare.models, config.compare.clients)
        except UnknownModelError as error:
            raise ConfigError(f"{key if named else 'compare'}.models: {error}") from error
        given, dreams = config.learning, config.dreams
        if variant is not None:
            given = _over(given, variant.learning)
            dreams = check(f"{key}.dreams", Dreams, {**vars(dreams), **variant.dreams})
        try:
            learning = _whole_learning(given, dreams, shape, classes, entry.options.get("privacy"))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        if variant is not None:
            own = {"dreams": variant.dreams, "learning": variant.learning}
            refuse_idle(key, variant.algorithm, own, effective(made, dreams, models))
        return cls(entry, learning, dreams, models)

    def further(self, name: str) -> list[tuple[str, str]]:
        """Architectures that options of a known algorithm name beside the clients': (key, model)."""
        known = self.entry.name in ALGORITHMS
        found = [(key, text) for key, text in self.entry.named_values if known and key.endswith(("model", "student"))]
        return [(f"variants.{name}.options.{key}", model) for key, model in found]

    def trained(self, name: str) -> list[tuple[str, str]]:
        """What is trained on records, (key, model): the clients' models, or the one that a ring's table has."""
        ring = [(key, model) for key, model in self.further(name) if key.endswith("model")]
        return ring or [("compare.models", model) for model in self.models]

    def cell(
        self,
        config: CompareConfig,
        name: str,
        partition: str,
        seed: int,
        data: DataTable,
        common: Mapping[str, str],
    ) -> Cell:
        return Cell(
            algorithm=name,
            entry=self.entry,
            partition=partition,
            seed=seed,
            rounds=config.compare.rounds,
            models=self.models,
            data=data,
            learning=self.learning,
            dreams=self.dreams,
            aggregation=config.aggregation,
            patience=config.compare.patience,
            device=config.compare.device,
            origins={**common, **_own_code(self.entry, self.models, data, self.dreams)},
        )


def _own_code(entry: Entry, models: Sequence[str], data: DataTable, dreams: Dreams) -> dict[str, str]:
    """Whatever of a cell may be module:name; of an algorithm's options too, such as a student."""
    options = [value for _, value in entry.named_values]
    return own_code([entry.name, *options, *models, data.source, dreams.start])


def _communication_cells(
    config: CompareConfig, shape: tuple[int, int, int], classes: int, common: Mapping[str, str]
) -> list[Cell]:
    """One round for each algorithm and model, without training; a round's bytes follow from sizes alone."""
    table, chosen = config.communication, config.compare
    cells = []
    idle = {"warm_up_epochs": 0, "distil_epochs": 0, "local_epochs": 0, "local_steps": 1}
    for model, name in product(table.models, table.algorithms):
        try:
            recipe = _Recipe.of(config, name, shape, classes)
        except ConfigError as error:
            raise ConfigError(str(error).replace("compare.algorithms", "communication.algorithms")) from error
        data = _data(config, "iid", chosen.seeds[0])
        cells.append(
            Cell(
                algorithm=name,
                entry=recipe.entry,
                partition="iid",
                seed=chosen.seeds[0],
                measure="communication",
                rounds=1,
                models=(model,) * chosen.clients,
                data=data.model_copy(update={"test_limit": min(data.test_limit or 64, 64)}),
                learning={**recipe.learning, **idle},
                dreams=recipe.dreams,
                aggregation=config.aggregation,
                patience=None,
                device=chosen.device,
                origins={**common, **_own_code(recipe.entry, (model,), data, recipe.dreams)},
            )
        )
    return cells


def _data(config: CompareConfig, partition: str, seed: int) -> DataTable:
    table = config.compare
    fields = _absolute(config.data).model_dump() | partition_fields(partition)
    fields |= {
        "clients": table.clients,
        "per_client": table.per_client,
        "test_limit": table.test_limit,
        "seed": seed,
    }
    return check("data", DataTable, fields)  # type: ignore[no-any-return]


def _absolute(data: SourceTable) -> SourceTable:
    """Paths that still hold when the run is resumed from another folder."""
    update: dict[str, Any] = {}
    if data.root is not None:
        update["root"] = data.root.expanduser().absolute()
    try:
        if kind_of(data.source) in ("npz", "folder"):
            update["source"] = str(Path(data.source).expanduser().absolute())
    except ValueError as error:
        raise ConfigError(f"data.source: {error}") from error
    return data.model_copy(update=update)


def _try_data(tables: Sequence[DataTable]) -> Understanding:
    """Read the data before anything starts, in every partition; returns how they were read in the first."""
    load_data(tables[0])
    understood = what_was_understood(tables[0])
    for data in tables[1:]:
        load_data(data)
    return understood


def _try_models(named: Mapping[str, Sequence[str]], shape: tuple[int, int, int], classes: int, device: str) -> None:
    for key, names in named.items():
        for name in dict.fromkeys(names):
            try:
                build(name, channels=shape[0], size=shape[1:], classes=classes, seed=0, device=pick_device(device))
            except (UnknownModelError, ModelShapeError, OwnPartError) as error:
                raise ConfigError(f"{key}: {error}") from error


def _try_private_models(
    trained: Sequence[tuple[str, str]],
    shape: tuple[int, int, int],
    classes: int,
    device: str,
    tables: Sequence[Mapping[str, Any]],
) -> None:
    """Every model, in every mode that the `[privacy]` tables of the algorithms name."""
    from codream_clients.privacy.gate import examine_private, modes_of

    settings = [privacy_settings(table) for table in tables]
    images = trial_images(shape, classes=classes, device=pick_device(device))
    for key, name in dict.fromkeys(trained):
        try:
            examine_private(
                build(name, channels=shape[0], size=shape[1:], classes=classes, seed=0, examined=True),
                images,
                classes=classes,
                name=name,
                modes=sorted({mode for privacy in settings for mode in modes_of(privacy)}),
                statistics=any(privacy.statistics_share for privacy in settings),
            )
        except ModelRefused as error:
            raise ConfigError(f"{key}: {error}") from error


def _settings(
    learning: Mapping[str, Any],
    dreams: Dreams,
    shape: tuple[int, int, int],
    classes: int,
    privacy: Mapping[str, Any] | None = None,
) -> LearningSettings:
    tables: dict[str, Any] = {"dreams": dreams, "learning": dict(learning), "privacy": privacy}
    task = TaskTable(shape=shape, classes=classes)  # not checked as a whole: `learning_settings` says what is wrong
    return learning_settings(FederationConfig.model_construct(task=task, **tables))


def _whole_learning(
    learning: Mapping[str, Any],
    dreams: Dreams,
    shape: tuple[int, int, int],
    classes: int,
    privacy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`[learning]` with every default spelt out, those of a federation with `privacy` if it is given.

    None is left out, which TOML cannot say.
    """
    whole = asdict(_settings(learning, dreams, shape, classes, privacy))
    return {key: value for key, value in whole.items() if key not in FROM_DREAMS and value is not None}


def _over(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`other` put over `base`, tables within too."""
    merged = dict(base)
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
