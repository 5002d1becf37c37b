"""Labelled images to measure a model on, from whatever a client's own data may come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.data.sources import DataSource, Reading, load_source
from secure_codream.configuration.images import TEST_SIZE
from secure_codream.use.model import OpenedModel

Part = Literal["test", "train", "all"]


def labelled_images(
    model: OpenedModel, source: str, *, part: Part | None = None, root: Path | None = None, seed: int = 0
) -> tuple[LabelledImages, Part]:
    """The images of a source, on the model's scale, and which part of it they are.

    Args:
        model: what they are for: its shape, classes, names and scale.
        source: as `[data] source`: a name, a folder, an `.npz` or module:function, WHICH RUNS THAT CODE.
        part: of the source; unless given its test part, or all where a folder has none.
        root: where torchvision's sets lie.
        seed: what splits a source that comes in one piece.

    Raises:
        DatasetError, OwnPartError: the source cannot be read.
        UseError: its images are not such as the model takes.
    """
    expected = model.description
    _, height, width = expected.shape
    reading = Reading(
        seed=seed,
        size=height if expected.resized and height == width else None,
        shape=expected.shape,
        classes=expected.classes,
        class_names=expected.class_names,
    )
    found = load_source(source, reading, root=root, digits_test_size=TEST_SIZE)
    part = part or ("all" if found.understanding.one_piece else "test")
    return _taken(model, found, part), part


def _taken(model: OpenedModel, found: DataSource, part: Part) -> LabelledImages:
    if part == "all":
        both = [replace(model.standardised(one), augment="none") for one in (found.train, found.test)]
        return pool(both)
    return model.standardised(found.test if part == "test" else found.train)
