"""Images from an `.npz` file with MedMNIST's keys (Yang et al., Scientific Data 2023, medmnist.com).

    train_images, test_images    see `arrays`; also x_train, x_test, as Keras names them
    train_labels, test_labels    see `labels`; also y_train, y_test
    train_groups, test_groups    may be there: whose each image is, whole numbers or words
    val_images, val_labels       the test part where there is none; else left out: nothing is tuned on them
    images, labels, groups       in place of all these: one piece, from which a test part is split off here

A folder of `.npy` files with these names is read alike. A file is read as data only: arrays of Python objects, which
would have to be unpickled, are refused, and every array's header is checked against the file's own directory and the
limits before its memory is taken.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from codream_clients.data.arrays import Told, images_of
from codream_clients.data.datasets import DatasetError, Groups
from codream_clients.data.labels import groups_of, labels_of
from codream_clients.data.pixels import MAX_BYTES, RawImages, train_and_test, with_channels
from codream_clients.data.splits import Indices, split_off, split_one_by_one
from codream_clients.data.understanding import Notes, Understanding, understood
from codream_clients.words import visible

KEYS = ("train_images", "train_labels", "test_images", "test_labels")

_WHOLE = "images"  # the part of a file in one piece
_WHOSE = {"group", "groups", "id", "ids", "pid", "pids", "case", "cases"}
_KINDS = {"images": "biuf", "labels": "biufUS", "groups": "iuUS"}


def load_npz(
    path: str | Path,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    told: Told | None = None,
    seed: int = 0,
    test_share: float = 0.2,
    split: bool = True,
    one_by_one: bool = False,
    max_bytes: int = MAX_BYTES,
) -> tuple[RawImages, RawImages, Understanding]:
    """The images of `path` as (train, test, what was understood), not yet standardised; see `pixels` for the scale.

    `classes`: how many there are, in case this file lacks some; None takes one more than the largest label, where every
    label below it is on some image. `class_names`: all classes in their order, for labels that are words. `told`: what
    is known of the arrays. `test_share` of each class is split off by `seed` where the file is in one piece; without
    `split`, all images are then both parts, and a test part alone will do; `one_by_one` splits them by a coin for each,
    which differential privacy needs. `max_bytes` bounds the arrays that are read, together, unpacked.
    Raises `DatasetError`, which names the file and the key, says what was found (shape, type, range) and what is
    needed, if the file is missing or no archive, a key is missing, an array is of another type or shape, could be read
    in two ways, is larger than allowed or than the file says, holds objects, or labels are out of range.
    """
    path, notes = Path(path), Notes()
    try:
        with _opened(path) as arrays:
            held = _read_all(arrays, notes, max_bytes, alone=not split)
        parts = _parts(
            held,
            classes,
            class_names,
            told or Told(),
            notes,
            _splitter(test_share, seed, one_by_one) if split else None,
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise DatasetError(f"{path}: found no such file; an .npz with {', '.join(KEYS)} is needed") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{path}: found no sound .npz archive{_looks_like(path)} ({error})") from error
    kind = "a folder of arrays" if path.is_dir() else "a file of arrays"
    (_, train), (_, test) = parts[0], parts[-1]
    return train, test, understood(str(path), kind, parts, notes)


def holds_arrays(folder: Path) -> bool:
    """Whether a folder has `.npy` files with the names of this module."""
    return any((folder / f"{key}.npy").is_file() for key in ("train_images", "x_train", "images"))


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape of an `.npy` file's array, whether it is stored column by column, and its type, without any of the array.

    Raises `ValueError` for a file that is none, or of another version than 1.0 and 2.0.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}; (1, 0) or (2, 0) is needed")
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


# -- which arrays there are ---------------------------------------------


class _Arrays(Protocol):
    """Arrays by name, in an archive or a folder."""

    def names(self) -> list[str]:
        """Their names without `.npy`, one for each that is there."""

    def stored(self, name: str) -> int:
        """The bytes of its file, header included, as the directory says."""

    def open(self, name: str) -> Any:
        """Its file, to be read."""


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def stored(self, name: str) -> int:
        return self._archive.getinfo(f"{name}.npy").file_size

    def open(self, name: str) -> Any:
        return self._archive.open(f"{name}.npy")


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return sorted(file.stem for file in self._folder.glob("*.npy"))

    def stored(self, name: str) -> int:
        return (self._folder / f"{name}.npy").stat().st_size

    def open(self, name: str) -> Any:
        return (self._folder / f"{name}.npy").open("rb")


@contextmanager
def _opened(path: Path) -> Iterator[_Arrays]:
    if path.suffix.lower() == ".npy":
        raise DatasetError(
            "found a single array, without labels; an .npz with images and labels, or a folder with train_images.npy, "
            "train_labels.npy, test_images.npy and test_labels.npy, is needed"
        )
    if path.is_dir() and holds_arrays(path):
        yield _Folder(path)
        return
    with zipfile.ZipFile(path) as archive:
        yield _Archive(archive)


def _looks_like(path: Path) -> str:
    """What a file that is no archive seems to be."""
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError:
        return ""
    known = {
        b"\x93NUMPY": "a single array: .npy, renamed",
        b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
        b"<": "a web page",
        b"PK": "an archive cut short or damaged",
    }
    said = next((words for sign, words in known.items() if begin.lstrip().startswith(sign)), None)
    return "; it is empty" if not begin else f"; it looks like {said}" if said else ""


def _keys(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Part -> what it is ("images", "labels", "groups") -> key; with labels wherever there are images."""
    found: dict[str, dict[str, str]] = {}
    for part in ("train", "test", "val"):
        kinds = {
            "images": (f"{part}_images", f"x_{part}", f"X_{part}"),
            "labels": (f"{part}_labels", f"y_{part}"),
            "groups": (f"{part}_groups",),
        }
        found[part] = _of_part(kinds, names)
    found[_WHOLE] = _of_part({"images": ("images",), "labels": ("labels",), "groups": ("groups",)}, names)
    return {part: keys for part, keys in found.items() if keys}


def _of_part(kinds: dict[str, tuple[str, ...]], names: Sequence[str]) -> dict[str, str]:
    keys = {}
    for kind, possible in kinds.items():
        there = [name for name in names if name in possible]
        if len(there) > 1:
            raise DatasetError(f"found {' and '.join(there)}; one array is needed for them")
        if there:
            keys[kind] = there[0]
    return keys


def _read_all(arrays: _Arrays, notes: Notes, max_bytes: int, *, alone: bool) -> dict[str, dict[str, NDArray[Any]]]:
    """Part -> kind -> array, of the parts that are used: train and test, or one piece; test `alone` may be one."""
    names = arrays.names()
    parts = _keys(names)
    if _WHOLE in parts and len(parts) > 1:
        raise DatasetError(f"found {', '.join(sorted(names)[:12])}; images in one piece, or in parts, are needed")
    used = [_WHOLE] if _WHOLE in parts else ["train", "test" if "test" in parts else "val"]
    if alone and "train" not in parts and "test" in parts:
        used = ["test"]
    missing = [
        f"{part}_{kind}" if part != _WHOLE else kind
        for part in (used if used[-1] != "val" or "val" in parts else ["train", "test"])
        for kind in ("images", "labels")
        if kind not in parts.get(part, {})
    ]
    if missing:
        raise DatasetError(
            f"lacks {', '.join(missing)}; found {', '.join(sorted(set(names))[:12]) or 'nothing'}; "
            f"needed are {', '.join(KEYS)}"
        )
    if "val" in used:
        notes.reads(f"{parts['val']['images']} is the test part, since there is none for testing")
    left = max_bytes
    held: dict[str, dict[str, NDArray[Any]]] = {}
    for part in used:
        held[part] = {}
        for kind, key in parts[part].items():
            array = held[part][kind] = _read(arrays, key, kind, left, max_bytes)
            left -= array.nbytes
    _note_the_rest(names, [key for part in used for key in parts[part].values()], notes)
    return {"test" if part == "val" else part: of_part for part, of_part in held.items()}


def _note_the_rest(names: Sequence[str], used: Sequence[str], notes: Notes) -> None:
    for name in names:
        if name in used:
            continue
        words = set(re.split(r"[^a-z]+", name.casefold()))
        if name.startswith("val_") or name.casefold() in ("x_val", "y_val"):
            notes.leaves_out("arrays of the validation part", "nothing is tuned on them", name)
            continue
        notes.leaves_out("arrays under other names", f"known are {', '.join(KEYS)} and train_groups", name)
        if words & _WHOSE or any(word in name.casefold() for word in ("patient", "subject", "person")):
            notes.warns(
                f"the array {visible(name)} is not used: if it says whose each image is, name it groups, or "
                "train_groups and test_groups, so that no split divides a person"
            )


# -- from arrays to images ---------------------------------------------


def _parts(
    held: dict[str, dict[str, NDArray[Any]]],
    classes: int | None,
    class_names: Sequence[str] | None,
    told: Told,
    notes: Notes,
    split: Callable[[RawImages], tuple[Indices, Indices]] | None,
) -> list[tuple[str, RawImages]]:
    named = {part: "" if part == _WHOLE else f"{part}_" for part in held}
    images = images_of(
        {f"{named[part]}images": of_part["images"] for part, of_part in held.items()},
        told=told,
        notes=notes,
        may_be_standardised=False,
    )
    counts = {part: len(images[f"{named[part]}images"]) for part in held}
    labels, classes, names = labels_of(
        {f"{named[part]}labels": (of_part["labels"], counts[part]) for part, of_part in held.items()},
        classes=classes,
        class_names=class_names,
        notes=notes,
    )
    groups = {}
    if any("groups" in of_part for of_part in held.values()):
        if lacking := [f"{named[part]}groups" for part, of_part in held.items() if "groups" not in of_part]:
            raise DatasetError(f"lacks {', '.join(lacking)}; groups of all parts, or of none, are needed")
        groups = groups_of(
            {f"{named[part]}groups": (of_part["groups"], counts[part]) for part, of_part in held.items()}
        )
    pixels, numbers = list(images.values()), list(labels.values())
    whose: list[Groups | None] = list(groups.values()) or [None, None]
    if len(held) > 1:
        both = train_and_test(
            (pixels[0], numbers[0]), (pixels[1], numbers[1]), classes, class_names=names, groups=(whose[0], whose[1])
        )
        return list(zip(("training", "test"), both, strict=True))
    notes.one_piece = True
    whole = RawImages(with_channels(pixels[0]), numbers[0], classes, names, whose[0])
    if split is None:
        return [("whole", whole)]
    train, test = split(whole)
    notes.reads("a test part is split off, since the images are in one piece")
    return [("training", whole.subset(train)), ("test", whole.subset(test))]


def _splitter(share: float, seed: int, one_by_one: bool) -> Callable[[RawImages], tuple[Indices, Indices]]:
    if one_by_one:
        return lambda whole: split_one_by_one(whole.pixels, whole.groups, share, seed)
    return lambda whole: split_off(whole.pixels, whole.labels, whole.groups, share, seed)


def _read(arrays: _Arrays, key: str, kind: str, left: int, max_bytes: int) -> NDArray[Any]:
    with _member(arrays, key) as file:
        shape, dtype, header_bytes = _header(file, key)
    needed = prod(shape) * dtype.itemsize
    stored = arrays.stored(key) - header_bytes
    wanted = "uint8 (0 to 255)" if kind == "images" else "whole numbers or words"
    if dtype.hasobject:
        raise DatasetError(f"{key} holds Python objects; plain {wanted} are needed")
    if dtype.kind not in _KINDS[kind] or len(shape) not in ((3, 4) if kind == "images" else (1, 2)):
        form = "(N, H, W), (N, H, W, C) or (N, C, H, W)" if kind == "images" else "(N,) or (N, 1)"
        raise DatasetError(f"{key} is {dtype} of shape {shape}; {wanted} of shape {form} is needed")
    if needed != stored:
        raise DatasetError(f"{key} claims shape {shape} of {dtype}, {needed} bytes, but {stored} are stored")
    if needed > left:
        raise DatasetError(f"{key} of shape {shape} takes {needed} bytes; {max_bytes} are allowed for all arrays")
    with _member(arrays, key) as file:
        try:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise DatasetError(f"{key} is no sound array ({error})") from error
    return array


@contextmanager
def _member(arrays: _Arrays, key: str) -> Iterator[IO[bytes]]:
    try:
        with arrays.open(key) as file:
            yield file
    except KeyError:
        raise DatasetError(f"{key} is no array; {key}.npy is needed in the archive") from None


def _header(file: IO[bytes], key: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length of an array's header."""
    try:
        shape, _, dtype = header_of(file)
    except ValueError as error:
        raise DatasetError(f"{key} is no sound array ({error})") from error
    if any(side < 0 for side in shape):
        raise DatasetError(f"{key} claims shape {shape}; sides of at least 0 are needed")
    return shape, dtype, file.tell()
