"""Images from folders, one for each class, in the layout of torchvision's `ImageFolder`.

    folder/train/<class>/...png   and folder/test/<class>/...png      or, split here by a seed,
    folder/<class>/...png

Classes are numbered by the order of their names. Clients with folders of their own must number them alike: give the
names in the federation's configuration, or let each have all class folders, empty ones included.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, Labels
from codream_clients.data.pixels import MAX_BYTES, MAX_SIDE, RawImages, train_and_test

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_FILE_SIDE = 8192
"""Pixels a side that a file may have before it is resized; larger ones are refused before they are unpacked."""

_GREY_MODES, _COLOUR_MODES = ("1", "L", "LA"), ("RGB", "RGBA", "P", "CMYK", "YCbCr")


def load_image_folder(
    path: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.2,
    size: int | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[RawImages, RawImages]:
    """The images under `path` as (train, test), not yet standardised; see `pixels` for the scale.

    `test_share` of each class, rounded, is split off by `seed` where there is no test folder. `size` resizes all
    images to size x size pixels (bilinear, antialiased; the aspect ratio is not kept); None wants them of one size.
    `channels`: 1 (grey) or 3 (colour) converts all; None takes grey if all are grey. `class_names` are the classes in
    their order; None takes the folders there are. `max_bytes` bounds the unpacked images.
    Raises `DatasetError`, which names the file or folder, for a missing layout, unknown classes, files that are no
    images, sizes that differ, or too much of it.
    """
    path = Path(path)
    if not path.is_dir():
        raise DatasetError(f"{path}: found no such folder; one folder of images for each class is needed there")
    if not 0 < test_share < 1 or channels not in (None, 1, 3) or (size is not None and not 1 <= size <= MAX_SIDE):
        raise DatasetError(
            f"test_share={test_share}, channels={channels}, size={size}; needed are a share between 0 and 1, "
            f"1 or 3 channels or none given, and 1 to {MAX_SIDE} pixels or none given"
        )
    parted = (path / "train").is_dir() and (path / "test").is_dir()
    roots = [path / "train", path / "test"] if parted else [path]
    names = list(class_names) if class_names is not None else _class_names(roots)
    listed = [_list(root, names) for root in roots]
    if not parted:
        listed = list(_split(listed[0], test_share, seed))
    for name, part in zip(("training", "test"), listed, strict=True):
        if not part:
            raise DatasetError(f"{path}: no {name} images; files ending in {', '.join(SUFFIXES)} are needed")
    form = _form([file for part in listed for file, _ in part], size, channels, max_bytes)
    train, test = (_read(part, form) for part in listed)
    return train_and_test(train, test, len(names))


def _class_names(roots: Sequence[Path]) -> list[str]:
    names = sorted({entry.name for root in roots for entry in root.iterdir() if entry.is_dir()})
    if len(names) < 2:
        raise DatasetError(f"{roots[0]}: found class folders {names}; at least 2 are needed")
    return names


def _list(root: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """The image files of one part with their labels, in a fixed order."""
    if unknown := sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name not in names):
        raise DatasetError(f"{root}: found folders {unknown}; the classes are {list(names)}")
    return [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]


def _split(
    listed: list[tuple[Path, int]], test_share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """(train, test), stratified: of each class `test_share`, rounded, are for testing."""
    rng = np.random.default_rng(seed)
    labels = np.array([label for _, label in listed], dtype=np.int64)
    chosen: set[int] = set()
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        chosen.update(of_class[: round(test_share * len(of_class))].tolist())
    return (
        [entry for number, entry in enumerate(listed) if number not in chosen],
        [entry for number, entry in enumerate(listed) if number in chosen],
    )


def _form(files: Sequence[Path], size: int | None, channels: int | None, max_bytes: int) -> tuple[int, int, int]:
    """(height, width, channels) that all images will have, from the files' headers alone."""
    from PIL import Image

    modes: set[str] = set()
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                mode, (width, height) = image.mode, image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{file}: found no image that can be read ({error})") from error
        if mode not in _GREY_MODES + _COLOUR_MODES:
            raise DatasetError(f"{file}: found mode {mode!r}; 8 bits a channel, grey or colour, are needed")
        if width > MAX_FILE_SIDE or height > MAX_FILE_SIDE:
            raise DatasetError(f"{file}: found {width} x {height} pixels; at most {MAX_FILE_SIDE} a side are allowed")
        modes.add(mode)
        sizes.setdefault((height, width), file)
    if size is None and len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise DatasetError(
            f"{first} has {one[1]} x {one[0]} pixels, {second} has {two[1]} x {two[0]}; "
            "one size is needed, or `size` to resize them all"
        )
    height, width = (size, size) if size is not None else next(iter(sizes))
    if channels is None:
        channels = 1 if modes <= set(_GREY_MODES) else 3
    if len(files) * height * width * channels > max_bytes:
        raise DatasetError(
            f"{len(files)} images of {height} x {width} in {channels} channels; {max_bytes} bytes are allowed"
        )
    return height, width, channels


def _read(listed: Sequence[tuple[Path, int]], form: tuple[int, int, int]) -> tuple[NDArray[np.uint8], Labels]:
    from PIL import Image

    height, width, channels = form
    pixels = np.empty((len(listed), height, width, channels), np.uint8)
    for number, (file, _) in enumerate(listed):
        try:
            with Image.open(file) as image:
                converted = image.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{file}: found no image that can be read ({error})") from error
        if converted.size != (width, height):
            converted = converted.resize((width, height), Image.Resampling.BILINEAR)
        pixels[number] = np.asarray(converted).reshape(height, width, channels)
    return pixels, np.array([label for _, label in listed], dtype=np.int64)
