"""Images from folders, one for each class: `folder_layouts` says where they are, `pictures` what is in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.class_names import refuse_twins
from codream_clients.data.datasets import DatasetError, Groups, Labels
from codream_clients.data.folder_layouts import GroupsIn, Layout, Listed, layout_of
from codream_clients.data.pictures import SUFFIXES, Page, Pages, pages_of, pixels_of
from codream_clients.data.pixels import MAX_BYTES, MAX_SIDE, RawImages
from codream_clients.data.splits import split_off, split_one_by_one
from codream_clients.data.understanding import Notes, Understanding, understood


@dataclass(frozen=True)
class _Image:
    """One page of one file, with its label and whose it is."""

    file: Path
    page: Page
    label: int
    group: str | None


def load_image_folder(
    path: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.2,
    split: bool = True,
    one_by_one: bool = False,
    size: int | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
    groups: GroupsIn | None = None,
    pages: Pages | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[RawImages, RawImages, Understanding]:
    """The images under `path` as (train, test, what was understood), not yet standardised; see `pixels` for the scale.

    `test_share` of each class, rounded, is split off by `seed` where there is no test folder; without `split`, all
    images are then both parts; `one_by_one` splits them by a coin for each, which differential privacy needs.
    `size` resizes all
    images to size x size pixels (bilinear, antialiased; the aspect ratio is not kept); None wants them of one size.
    `channels`: 1 (grey) or 3 (colour) converts all; None takes grey if all are grey. `class_names` are the classes in
    their order; None takes the folders there are. `groups`: "folder" takes the folders right below the class folders
    as persons, whose images are never divided. `pages`: of files with several, the "first", or "each" as an image of
    its own. `max_bytes` bounds the unpacked images.
    Raises `DatasetError`, which names the file or folder, for a layout that is missing or has two readings, unknown
    classes, files that are no images or have two readings, sizes that differ, or too much of it.
    """
    path, notes = Path(path), Notes()
    if not 0 < test_share < 1 or channels not in (None, 1, 3) or (size is not None and not 1 <= size <= MAX_SIDE):
        raise DatasetError(
            f"test_share={test_share}, channels={channels}, size={size}; needed are a share between 0 and 1, "
            f"1 or 3 channels or none given, and 1 to {MAX_SIDE} pixels or none given"
        )
    layout = layout_of(path, class_names=class_names, groups=groups, notes=notes)
    of_parts = {"training": _images(layout.train, pages, notes)}
    if layout.test is None:
        notes.one_piece = True
        _warn_of_persons(layout, groups, notes)
    else:
        of_parts["test"] = _images(layout.test, pages, notes)
    for name, images in of_parts.items():
        if not images:
            raise DatasetError(f"{path}: no {name} images; files ending in {', '.join(SUFFIXES)} are needed")
    everything = [image for images in of_parts.values() for image in images]
    form, numbers = _form(everything, size, channels, max_bytes, notes), _numbered_groups(path, everything)
    read = [
        RawImages(
            _pixels(images, form, notes), _labels(images), len(layout.names), layout.names, _groups(images, numbers)
        )
        for images in of_parts.values()
    ]
    kind = "a folder of image folders"
    if layout.test is None and not split:
        return read[0], read[0], understood(str(path), kind, (("whole", read[0]),), notes)
    train, test = read if len(read) == 2 else _split(path, read[0], test_share, seed, one_by_one)
    return train, test, understood(str(path), kind, (("training", train), ("test", test)), notes)


def _images(listed: Sequence[Listed], pages: Pages | None, notes: Notes) -> list[_Image]:
    found = []
    for one in listed:
        of_file = pages_of(one.file, pages, notes)
        group = one.group if one.group is not None or pages != "each" else str(one.file)  # a stack is one person's
        found += [_Image(one.file, page, one.label, group) for page in of_file]
    return found


def _warn_of_persons(layout: Layout, groups: GroupsIn | None, notes: Notes) -> None:
    if groups is None and layout.below > 1:
        notes.warns(
            f'{layout.below} folders lie below the class folders: if each is a person, groups = "folder" under [data] '
            "keeps each on one side of the split"
        )


def _numbered_groups(path: Path, images: Sequence[_Image]) -> dict[str, int]:
    names = sorted({image.group for image in images if image.group is not None})
    try:
        refuse_twins(names, "groups")
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    return {name: number for number, name in enumerate(names)}


def _groups(images: Sequence[_Image], numbers: dict[str, int]) -> Groups | None:
    if not numbers:
        return None
    return np.array([numbers[image.group] for image in images if image.group is not None], np.int64)


def _labels(images: Sequence[_Image]) -> Labels:
    return np.array([image.label for image in images], np.int64)


def _split(
    path: Path, images: RawImages, test_share: float, seed: int, one_by_one: bool
) -> tuple[RawImages, RawImages]:
    try:
        if one_by_one:
            train, test = split_one_by_one(images.pixels, images.groups, test_share, seed)
        else:
            train, test = split_off(images.pixels, images.labels, images.groups, test_share, seed)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    return images.subset(train), images.subset(test)


def _form(
    images: Sequence[_Image], size: int | None, channels: int | None, max_bytes: int, notes: Notes
) -> tuple[int, int, int]:
    """(height, width, channels) that all images will have, from the files' headers alone."""
    sizes: dict[tuple[int, int], Path] = {}
    for image in images:
        sizes.setdefault((image.page.height, image.page.width), image.file)
    if size is None and len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise DatasetError(
            f"{first} has {one[1]} x {one[0]} pixels, {second} has {two[1]} x {two[0]}; "
            "one size is needed, or `size` to resize them all"
        )
    height, width = (size, size) if size is not None else next(iter(sizes))
    if size is not None and set(sizes) != {(size, size)}:
        notes.reads(f"images are resized to {size} x {size} pixels")
    grey = sum(image.page.grey for image in images)
    if channels is None:
        channels = 1 if grey == len(images) else 3
    if 0 < grey < len(images):
        notes.warns(
            f"{grey} of {len(images)} images are grey; all are taken as {'grey' if channels == 1 else 'colour'}"
        )
    if len(images) * height * width * channels > max_bytes:
        raise DatasetError(
            f"{len(images)} images of {height} x {width} in {channels} channels; {max_bytes} bytes are allowed"
        )
    return height, width, channels


def _pixels(images: Sequence[_Image], form: tuple[int, int, int], notes: Notes) -> NDArray[np.uint8]:
    pixels = np.empty((len(images), *form), np.uint8)
    number = 0
    while number < len(images):
        file, pages = images[number].file, [images[number].page]
        while number + len(pages) < len(images) and images[number + len(pages)].file == file:
            pages.append(images[number + len(pages)].page)
        for of_page in pixels_of(file, pages, form, notes):
            pixels[number] = of_page
            number += 1
    return pixels
