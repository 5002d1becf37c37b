"""From `[data]` and `[task]` to images: a client's own, all clients', and who holds what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import Augment, DatasetError, LabelledImages
from codream_clients.data.partitions import PartitionError, count_table, deal
from codream_clients.data.pixels import HALF, RawImages, Scale
from codream_clients.data.sources import load_source
from codream_clients.own_parts import OwnPartError
from secure_codream.configuration.client import DataTable
from secure_codream.configuration.federation import TaskTable
from secure_codream.configuration.reading import ConfigError

TEST_SIZE = 600
"""Test images of the digits, whose source has no test part."""


def load_data(table: DataTable, task: TaskTable | None = None) -> tuple[LabelledImages, LabelledImages]:
    """A client's own images, and test images that all share.

    `task` gives the scale, classes and channels, where a federation has agreed on them.

    Raises:
        ConfigError: a part that does not exist, or a source that is missing or not as it should be.
    """
    if table.part >= table.clients:
        raise ConfigError(f"[data]: part {table.part} of {table.clients}; 0 to {table.clients - 1} is allowed")
    dealt = _deal_out(table, task)
    own = dealt.train.subset(dealt.parts[table.part])
    return _standardised(own, dealt.scale, table.augment), dealt.test


def load_shards(table: DataTable, task: TaskTable | None = None) -> tuple[tuple[LabelledImages, ...], LabelledImages]:
    """All clients' images, in order, and the test images; raises as `load_data` does."""
    parts = [table.model_copy(update={"part": part}) for part in range(table.clients)]
    shards = tuple(load_data(part, task)[0] for part in parts)
    return shards, _deal_out(table, task).test


def who_holds_what(table: DataTable, task: TaskTable | None = None) -> NDArray[np.int64]:
    """How many images of each class each client takes, (clients, classes); raises as `load_data` does."""
    dealt = _deal_out(table, task)
    return count_table(dealt.train.labels, dealt.parts, dealt.train.classes)


@dataclass(frozen=True, eq=False)
class _Dealt:
    """A source, reduced to its limits, and which images each client takes of its training part."""

    train: RawImages | LabelledImages
    test: LabelledImages
    scale: Scale
    parts: list[NDArray[np.int64]]


def _deal_out(table: DataTable, task: TaskTable | None) -> _Dealt:
    """What all clients share: `part` and `augment` make no difference to it, so it is read once."""
    try:
        return _read(table.model_copy(update={"part": 0, "augment": "none"}), task)
    except (DatasetError, PartitionError, OwnPartError) as error:
        raise ConfigError(f"[data]: {error}") from error


@lru_cache(maxsize=2)
def _read(table: DataTable, task: TaskTable | None) -> _Dealt:
    source = load_source(
        table.source,
        root=table.root,
        download=table.download,
        seed=table.seed,
        size=table.size,
        channels=task.shape[0] if task is not None and task.shape[0] in (1, 3) else None,
        classes=task.classes if task is not None else None,
        class_names=task.class_names if task is not None else None,
        digits_test_size=TEST_SIZE,
    )
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
    )
    if task is not None and task.mean is not None and task.std is not None:
        scale = Scale(task.mean, task.std)
    elif table.standardise == "train" and isinstance(train, RawImages):
        scale = Scale.of(train.pixels)
    else:
        scale = source.published or HALF
    return _Dealt(train, _standardised(test, scale, "none"), scale, parts)


def _limited(part: RawImages | LabelledImages, limit: int | None, seed: list[int]) -> RawImages | LabelledImages:
    if limit is None or limit >= len(part):
        return part
    return part.subset(np.random.default_rng(seed).permutation(len(part))[:limit])


def _standardised(part: RawImages | LabelledImages, scale: Scale, augment: Augment) -> LabelledImages:
    return part.standardised(scale, augment) if isinstance(part, RawImages) else replace(part, augment=augment)
