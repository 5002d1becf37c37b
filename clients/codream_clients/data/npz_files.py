"""Images from an `.npz` file with MedMNIST's keys (Yang et al., Scientific Data 2023, medmnist.com).

    train_images, test_images   uint8, (N, H, W) or (N, H, W, C)
    train_labels, test_labels   integers, (N, 1) or (N,), from 0
    val_images, val_labels      may be there and are left alone: nothing is tuned on them

A file is read as data only: arrays of Python objects, which would have to be unpickled, are refused, and every
array's header is checked against the file's own directory and the limits before its memory is taken.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError
from codream_clients.data.pixels import MAX_BYTES, RawImages, flat_labels, train_and_test

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(
    path: str | Path, *, classes: int | None = None, max_bytes: int = MAX_BYTES
) -> tuple[RawImages, RawImages]:
    """The images of `path` as (train, test), not yet standardised; see `pixels` for the scale.

    `classes`: how many there are, in case this file lacks some; None takes one more than the largest label, where every
    label below it is on some image.
    `max_bytes` bounds the arrays that are read, together, unpacked.
    Raises `DatasetError`, which names the file and the key, says what was found (shape, type, range) and what is
    needed, if the file is missing or no archive, a key is missing, an array is of another type or shape, is larger
    than allowed or than the file says, holds objects, or labels are out of range.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_keys(archive)
            arrays: dict[str, NDArray[Any]] = {}
            left = max_bytes
            for key in KEYS:
                arrays[key] = _read(archive, key, left, max_bytes)
                left -= arrays[key].nbytes
        return train_and_test(
            (arrays["train_images"], flat_labels(arrays["train_labels"], "train_labels")),
            (arrays["test_images"], flat_labels(arrays["test_labels"], "test_labels")),
            classes,
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise DatasetError(f"{path}: found no such file; an .npz with {', '.join(KEYS)} is needed") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{path}: found no sound .npz archive ({error})") from error


def _check_keys(archive: zipfile.ZipFile) -> None:
    found = {name.removesuffix(".npy") for name in archive.namelist()}
    if missing := [key for key in KEYS if key not in found]:
        raise DatasetError(
            f"lacks {', '.join(missing)}; found {', '.join(sorted(found)[:12]) or 'nothing'}; "
            f"needed are {', '.join(KEYS)}"
        )


def _read(archive: zipfile.ZipFile, key: str, left: int, max_bytes: int) -> NDArray[Any]:
    with _member(archive, key) as file:
        shape, dtype, header_bytes = _header(file, key)
    needed = prod(shape) * dtype.itemsize
    stored = archive.getinfo(f"{key}.npy").file_size - header_bytes
    images = key.endswith("images")
    if dtype.hasobject:
        raise DatasetError(f"{key} holds Python objects; plain {'uint8' if images else 'integers'} are needed")
    if images and (dtype != np.uint8 or len(shape) not in (3, 4)):
        raise DatasetError(
            f"{key} is {dtype} of shape {shape}; uint8 (0 to 255) of shape (N, H, W) or (N, H, W, C) is needed"
        )
    if not images and (dtype.kind not in "iu" or len(shape) not in (1, 2)):
        raise DatasetError(f"{key} is {dtype} of shape {shape}; integers of shape (N,) or (N, 1) are needed")
    if needed != stored:
        raise DatasetError(f"{key} claims shape {shape} of {dtype}, {needed} bytes, but {stored} are stored")
    if needed > left:
        raise DatasetError(f"{key} of shape {shape} takes {needed} bytes; {max_bytes} are allowed for all arrays")
    with _member(archive, key) as file:
        try:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise DatasetError(f"{key} is no sound array ({error})") from error
    return array


@contextmanager
def _member(archive: zipfile.ZipFile, key: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(f"{key}.npy") as file:
            yield file
    except KeyError:
        raise DatasetError(f"{key} is no array; {key}.npy is needed in the archive") from None


def _header(file: IO[bytes], key: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length of an array's header, without any of the array."""
    try:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = npy.read_array_header_2_0(file)
        else:
            raise DatasetError(f"{key} is of npy version {version}; (1, 0) or (2, 0) is needed")
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{key} is no sound array ({error})") from error
    if any(side < 0 for side in shape):
        raise DatasetError(f"{key} claims shape {shape}; sides of at least 0 are needed")
    return shape, dtype, file.tell()
