"""What is to be predicted, one after the other: picture files, folders of them, and arrays in `.npz` files.

Every input is answered for: a file that is no picture, an array of another type, a dead link are inputs that come with
the reason why they cannot be read, in their place and in a fixed order. Pictures are read as for training: made grey or
coloured as the model needs, and resized only where the model's own images were.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError
from codream_clients.data.npz_files import header_of
from codream_clients.data.pictures import pages_of, pixels_of
from codream_clients.data.pixels import MAX_BYTES
from codream_clients.data.understanding import Notes
from secure_codream.reports.words import first_line

Pixels = NDArray[np.uint8]


class InputsError(ValueError):
    """Inputs of which it cannot even be said which they are."""


@dataclass(frozen=True)
class Form:
    """What a model takes: pictures of this shape, (channels, height, width), or resized to it."""

    shape: tuple[int, int, int]
    resized: bool


@dataclass(frozen=True, eq=False)
class Input:
    """One input: its name, and its pixels (H, W, C) or why there are none."""

    name: str
    pixels: Pixels | None = None
    problem: str = ""


def read_inputs(paths: Iterable[Path], form: Form) -> Iterator[Input]:
    """Every input under `paths`, in order; a folder's by name, folders within it last.

    A folder's inputs are all the files in it. Those of an `.npz` are the images of its arrays named `images` or
    ending in `_images`: uint8, (N, H, W), (N, H, W, C) or (N, C, H, W).

    Raises:
        InputsError: a path that does not exist, or an archive whose arrays cannot be told apart.
    """
    for path in paths:
        if path.is_dir():
            yield from _of_folder(path, form)
        elif not path.exists():
            raise InputsError(f"{path}: found nothing there; a picture, a folder or an .npz is needed")
        else:
            yield from _of_file(path, form)


def _of_folder(folder: Path, form: Form) -> Iterator[Input]:
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            yield from _of_file(Path(place, name), form)
        for name in folders:
            if (path := Path(place, name)).is_symlink():
                yield Input(str(path), problem="a link to a folder, which is not followed")


def _refuse(error: OSError) -> None:
    raise InputsError(f"{error.filename}: {error.strerror}")


def _of_file(path: Path, form: Form) -> Iterator[Input]:
    if path.suffix.lower() == ".npz":
        yield from _of_archive(path, form)
    else:
        yield _picture(path, form)


def _picture(path: Path, form: Form) -> Input:
    channels, height, width = form.shape
    if channels not in (1, 3):
        return Input(
            str(path), problem=f"a picture has 1 or 3 channels, this model takes {channels}: an .npz is needed"
        )
    if not path.is_file():  # opened, a pipe would wait for ever
        return Input(str(path), problem="no file" if path.exists() else "a link that leads nowhere")
    notes = Notes()
    try:
        (page,) = pages_of(path, None, notes)
        if (page.height, page.width) != (height, width) and not form.resized:
            found, needed = f"{page.height} x {page.width}", f"{height} x {width}"
            return Input(str(path), problem=f"{found} pixels; {needed} are needed, as in training")
        (pixels,) = pixels_of(path, [page], (height, width, channels), notes)
    except DatasetError as error:
        return Input(str(path), problem=first_line(error).removeprefix(f"{path}: "))
    return Input(str(path), pixels)


def _of_archive(path: Path, form: Form) -> Iterator[Input]:
    """The archive's images, read one at a time."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith("images.npy")]
            names = [name for name in names if name == "images" or name.endswith("_images")]
            if not names:
                yield Input(str(path), problem="no array named images, or ending in _images")
            for name in names:
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as file:
                    yield from _of_array(f"{path}:{name}", file, info.file_size, form)
    except Exception as error:  # whatever an archive that is none leads its readers to raise
        yield Input(str(path), problem=f"no sound .npz archive ({first_line(error)})")


def _of_array(name: str, file: IO[bytes], size: int, form: Form) -> Iterator[Input]:
    shape, fortran, dtype = header_of(file)
    stored = size - file.tell()
    if dtype.hasobject or len(shape) not in (3, 4) or min(shape[1:]) < 1 or not shape[0] >= 0:
        yield Input(name, problem=f"{dtype} of shape {shape}; uint8 of shape (N, H, W) or (N, H, W, C) is needed")
        return
    if not prod(shape) * dtype.itemsize == stored <= MAX_BYTES:
        yield Input(name, problem=f"shape {shape} of {dtype}, and {stored} bytes; what fits, and {MAX_BYTES} at most")
        return
    channels, height, width = form.shape
    one = (*shape[1:], 1)[:3]
    problem = ""
    if dtype != np.uint8:
        problem = f"{dtype}; uint8 (0 to 255) is needed"
    elif fortran:
        problem = "stored column by column (Fortran order); np.ascontiguousarray before it is saved is needed"
    elif one not in ((height, width, channels), form.shape):
        problem = f"images of shape {one}; {(height, width, channels)} (height, width, channels) is needed"
    for number in range(shape[0]):
        if problem:
            yield Input(f"{name}:{number}", problem=problem)
            continue
        content = _exactly(file, prod(one))
        pixels = np.frombuffer(content, np.uint8).reshape(one)
        yield Input(f"{name}:{number}", pixels if one == (height, width, channels) else np.moveaxis(pixels, 0, 2))


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError("ends too early")
    return content
