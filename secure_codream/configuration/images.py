"""From `[data]` and `[task]` to images: a client's own, all clients', and who holds what."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.class_names import one_spelling
from codream_clients.data.datasets import Augment, DatasetError, LabelledImages
from codream_clients.data.partitions import PartitionError, count_table, deal
from codream_clients.data.pixels import HALF, RawImages, Scale, on_scale
from codream_clients.data.sources import DataSource, Reading, load_source
from codream_clients.data.understanding import Understanding
from codream_clients.own_parts import OwnPartError
from secure_codream.configuration.client import DataTable
from secure_codream.configuration.federation import TaskTable
from secure_codream.configuration.reading import ConfigError

TEST_SIZE = 600
"""Test images of the digits, whose source has no test part."""


def load_data(
    table: DataTable, task: TaskTable | None = None, *, private: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """A client's own images, and test images that all share.

    `task` gives the scale, classes and channels, where a federation has agreed on them. `private`: what comes in one
    piece is split by a coin for each image.

    Raises:
        ConfigError: a part that does not exist, or a source that is missing or not as it should be.
    """
    if table.part >= table.clients:
        raise ConfigError(f"[data]: part {table.part} of {table.clients}; 0 to {table.clients - 1} is allowed")
    dealt = _deal_out(table, task, private)
    own = dealt.train.subset(dealt.parts[table.part])
    return standardised(own, task, dealt.scale, table.augment), dealt.test


def load_shards(table: DataTable, task: TaskTable | None = None) -> tuple[tuple[LabelledImages, ...], LabelledImages]:
    """All clients' images, in order, and the test images; raises as `load_data` does."""
    parts = [table.model_copy(update={"part": part}) for part in range(table.clients)]
    shards = tuple(load_data(part, task)[0] for part in parts)
    return shards, _deal_out(table, task).test


def who_holds_what(table: DataTable, task: TaskTable | None = None) -> NDArray[np.int64]:
    """How many images of each class each client takes, (clients, classes); raises as `load_data` does."""
    dealt = _deal_out(table, task)
    return count_table(dealt.train.labels, dealt.parts, dealt.train.classes)


def forget_what_was_read() -> None:
    """Sources are read anew when they are asked for: their files are others than they were."""
    _read.cache_clear()


def uncharged(source: str) -> str | None:
    """What to say of trainings on `source` that no ledger is charged for; None of a known set: it protects nobody."""
    from codream_clients.data.sources import kind_of

    return None if kind_of(source) == "name" else not_covered(f"{source} is no known set")


def not_covered(found: str) -> str:
    """The same of any images; `found` says why they count as private."""
    return (
        f"not covered: {found}, and what is trained on it here is charged to no ledger, so no client's epsilon covers "
        "it; models and figures of it are to stay where the images may be seen"
    )


def names_line(names: tuple[str, ...]) -> str:
    """The line of `[task]` that names the classes; JSON's texts are TOML's, too."""
    return f"class_names = {json.dumps(names, ensure_ascii=False)}"


def require_names(found: tuple[str, ...] | None, task: TaskTable) -> None:
    """What names the classes of a client's images must be what the federation has agreed on.

    Two sites that number the same classes differently would learn with swapped meanings, and no sum would show it.

    Raises:
        ConfigError: the federation names none, or others.
    """
    agreed = None if task.class_names is None else tuple(map(one_spelling, task.class_names))
    if found is None or found == agreed:
        return
    if task.class_names is None:
        raise ConfigError(
            "[data]: the images name their classes, and [task] does not; all parties must agree on the names. If all "
            f"sites mean the same by them, everybody's config.toml needs under [task]: {names_line(found)}"
        )
    raise ConfigError(
        f"[data]: the images' classes are {list(found)}; [task] class_names are {list(task.class_names)}: the same, in "
        "the same order, are needed"
    )


def source_of(table: DataTable, task: TaskTable | None = None) -> DataSource:
    """All that the source of `table` holds, before any limit or split; raises as `load_data` does."""
    try:
        return _load(table, task)
    except (DatasetError, OwnPartError) as error:
        raise ConfigError(f"[data]: {error}") from error


def what_was_understood(table: DataTable, task: TaskTable | None = None, *, private: bool = False) -> Understanding:
    """How the source of `table` was read, all of it, before any limit or deal; raises as `load_data` does."""
    return _deal_out(table, task, private).understanding


@dataclass(frozen=True, eq=False)
class _Dealt:
    """A source, reduced to its limits, and which images each client takes of its training part."""

    train: RawImages | LabelledImages
    test: LabelledImages
    scale: Scale
    parts: list[NDArray[np.int64]]
    understanding: Understanding


def _deal_out(table: DataTable, task: TaskTable | None, private: bool = False) -> _Dealt:
    """What all clients share: `part` and `augment` make no difference to it, so it is read once."""
    try:
        return _read(table.model_copy(update={"part": 0, "augment": "none"}), task, private)
    except (DatasetError, PartitionError, OwnPartError) as error:
        raise ConfigError(f"[data]: {error}") from error


def _load(table: DataTable, task: TaskTable | None, private: bool = False) -> DataSource:
    found = load_source(
        table.source,
        Reading(
            seed=table.seed,
            one_by_one=private,
            size=table.size,
            groups=table.groups,
            pages=table.pages,
            channels=table.channels,
            shape=task.shape if task is not None else None,
            classes=task.classes if task is not None else None,
            class_names=task.class_names if task is not None else None,
        ),
        root=table.root,
        download=table.download,
        digits_test_size=TEST_SIZE,
    )
    parts = ("training", found.train), ("test", found.test)
    return replace(found, understanding=with_scale_said(found.understanding, parts, task))


@lru_cache(maxsize=2)
def _read(table: DataTable, task: TaskTable | None, private: bool) -> _Dealt:
    source = _load(table, task, private)
    train = _limited(source.train, table.train_limit, [table.seed, 0])
    test = _limited(source.test, table.test_limit, [table.seed, 1])
    parts = deal(
        train.labels,
        table.partition,
        clients=table.clients,
        per_client=table.per_client,
        alpha=table.alpha,
        shards=table.shards,
        seed=table.seed,
        groups=train.groups,
    )
    scale = source.published or HALF
    if table.standardise == "train" and isinstance(train, RawImages):
        scale = Scale.of(train.pixels)
    return _Dealt(train, standardised(test, task, scale), scale, parts, source.understanding)


def agreed_scale(task: TaskTable | None) -> Scale | None:
    """The scale that the federation's task gives, if it does."""
    if task is None or task.mean is None or task.std is None:
        return None
    return Scale(task.mean, task.std)


def _limited(part: RawImages | LabelledImages, limit: int | None, seed: list[int]) -> RawImages | LabelledImages:
    if limit is None or limit >= len(part):
        return part
    return part.subset(np.random.default_rng(seed).permutation(len(part))[:limit])


def standardised(
    part: RawImages | LabelledImages, task: TaskTable | None, scale: Scale = HALF, augment: Augment = "none"
) -> LabelledImages:
    """Images on the scale that `task` gives; without one, bytes on `scale`, and what is standardised as it is.

    Values on a scale that nobody said are taken to be on the right one; `said_of_scale` says so.
    Raises `DatasetError` for a scale of other channels.
    """
    agreed = agreed_scale(task)
    if isinstance(part, RawImages):
        return part.standardised(agreed or scale, augment)
    if agreed is not None and part.scale is not None:
        part = on_scale(part, agreed)
    return replace(part, augment=augment)


def said_of_scale(
    parts: Iterable[tuple[str, RawImages | LabelledImages]], task: TaskTable | None
) -> tuple[list[str], list[str]]:
    """(readings, warnings): how parts that are standardised already come to the scale of `task`, and what denies it."""
    agreed, readings, warnings = agreed_scale(task), dict[str, None](), []
    for name, part in parts:
        if agreed is None or isinstance(part, RawImages):
            continue
        if part.scale is None:
            on = f"the scale of [task], {agreed}"
            readings[
                f"the images' values are taken to be on {on}, and used as they are: if they are not, give bytes, or "
                "LabelledImages with their scale"
            ] = None
        else:
            on = f"their scale, {part.scale}"
            if part.scale != agreed:
                readings[f"images standardised by {part.scale} are brought to the scale of [task], {agreed}"] = None
        if (beyond := (part.scale or agreed).beyond(part.images)) is not None:
            found, allowed = beyond
            warnings.append(
                f"values of the {name} part are {found}; on {on}, pixels are {allowed}: give bytes, or LabelledImages "
                "with the right scale"
            )
    return list(readings), warnings


def with_scale_said(
    found: Understanding, parts: Iterable[tuple[str, RawImages | LabelledImages]], task: TaskTable | None
) -> Understanding:
    """The same with what `said_of_scale` has to say of its parts."""
    readings, warnings = said_of_scale(parts, task)
    return replace(found, readings=(*found.readings, *readings), warnings=(*found.warnings, *warnings))
