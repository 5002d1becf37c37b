"""Labelled images to measure a model on, from whatever a client's own data may come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codream_clients.data.arrays import Channels
from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.data.folder_layouts import GroupsIn
from codream_clients.data.pictures import Pages
from codream_clients.data.sources import DataSource, Reading, is_image_folder, load_source
from codream_clients.data.understanding import Understanding
from secure_codream.configuration.images import TEST_SIZE
from secure_codream.use.model import OpenedModel

Part = Literal["test", "train", "all"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images on a model's scale, which part of their source they are, how that was read, and the classes' names."""

    images: LabelledImages
    part: Part
    understanding: Understanding
    names: tuple[str, ...] | None


def labelled_images(
    model: OpenedModel,
    source: str,
    *,
    part: Part | None = None,
    root: Path | None = None,
    seed: int = 0,
    groups: GroupsIn | None = None,
    pages: Pages | None = None,
    channels: Channels | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Labelled:
    """The images of a source, as the model takes them.

    Args:
        model: what they are for: its shape, classes, names and scale.
        source: as `[data] source`: a name, a folder, an `.npz` or module:function, WHICH RUNS THAT CODE.
        part: of the source; unless given its test part, or all of what comes in one piece.
        root: where torchvision's sets lie.
        seed: what splits a source that comes in one piece, if a part of it is asked for.
        groups: as in `[data]`.
        pages: likewise.
        channels: likewise.
        class_names: what the model's numbers mean, in their order, where its file does not say.

    Raises:
        DatasetError, OwnPartError: the source cannot be read.
        UseError: its images are not such as the model takes, or names that the model's file has already.
    """
    expected, names = model.description, model.names_with(class_names)
    _, height, width = expected.shape
    reading = Reading(
        seed=seed,
        split=part in ("test", "train"),
        size=height if expected.resized and height == width and is_image_folder(source) else None,
        groups=groups,
        pages=pages,
        channels=channels,
        shape=expected.shape,
        classes=expected.classes,
        class_names=names,
    )
    found = load_source(source, reading, root=root, digits_test_size=TEST_SIZE)
    part = part or ("all" if found.understanding.one_piece else "test")
    return Labelled(_taken(model, found, part, names), part, found.understanding, names)


def _taken(model: OpenedModel, found: DataSource, part: Part, names: tuple[str, ...] | None) -> LabelledImages:
    if part != "all":
        return model.standardised(found.test if part == "test" else found.train, names)
    pieces = [found.train] if found.train is found.test else [found.train, found.test]
    return pool([replace(model.standardised(one, names), augment="none") for one in pieces], one_source=True)
