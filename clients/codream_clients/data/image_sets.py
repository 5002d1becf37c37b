"""The usual image sets by name, read through torchvision from files on this machine.

    mnist           LeCun et al., 1998                       60,000 + 10,000 of 1x28x28, 10 classes
    fashion-mnist   Xiao et al., arXiv 1708.07747            60,000 + 10,000 of 1x28x28, 10 classes
    emnist          Cohen et al., IJCNN 2017, "balanced"     112,800 + 18,800 of 1x28x28, 47 classes
    cifar10         Krizhevsky, 2009                         50,000 + 10,000 of 3x32x32, 10 classes
    cifar100        Krizhevsky, 2009, fine labels            50,000 + 10,000 of 3x32x32, 100 classes
    svhn            Netzer et al., 2011, cropped digits      73,257 + 26,032 of 3x32x32, 10 classes

Nothing is fetched unless asked for. Standardisation is by public constants: mean and deviation of the whole training
part, as published with each set. CIFAR's files are pickles; torchvision opens them only after their checksums fit.
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError, Labels
from codream_clients.data.pixels import RawImages, Scale, train_and_test


@dataclass(frozen=True)
class _Published:
    kind: str  # torchvision's name
    files: str  # what must lie under root
    classes: int
    scale: Scale


IMAGE_SETS: dict[str, _Published] = {
    "mnist": _Published("MNIST", "MNIST/raw/*-ubyte", 10, Scale((0.1307,), (0.3081,))),
    "fashion-mnist": _Published("FashionMNIST", "FashionMNIST/raw/*-ubyte", 10, Scale((0.2860,), (0.3530,))),
    "emnist": _Published("EMNIST", "EMNIST/raw/emnist-balanced-*-ubyte", 47, Scale((0.1751,), (0.3332,))),
    "cifar10": _Published(
        "CIFAR10", "cifar-10-batches-py/", 10, Scale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    ),
    "cifar100": _Published(
        "CIFAR100", "cifar-100-python/", 100, Scale((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    ),
    "svhn": _Published("SVHN", "{train,test}_32x32.mat", 10, Scale((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
}


def load_image_set(name: str, root: str | Path, *, download: bool = False) -> tuple[RawImages, RawImages, Scale]:
    """The set `name` as (train, test, its published scale), from torchvision's layout under `root`.

    With `download`, torchvision fetches what is missing into `root`; otherwise nothing touches the network.
    Raises `DatasetError` for a name outside `IMAGE_SETS`, and for files that are missing, damaged or out of reach.
    """
    if name not in IMAGE_SETS:
        raise DatasetError(f"unknown image set {name!r}; allowed are {', '.join(IMAGE_SETS)}")
    published = IMAGE_SETS[name]
    try:
        parts = [_read(published.kind, str(root), train, download) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, EOFError, AssertionError, KeyError, UnpicklingError) as error:
        hint = "it could not be fetched" if download else "nothing is downloaded unless `download = true`"
        raise DatasetError(
            f"no {published.kind} under {root!s}; the files {published.files} are needed, undamaged ({hint}): {error}"
        ) from error
    train, test = train_and_test(parts[0], parts[1], published.classes)
    return train, test, published.scale


def _read(kind: str, root: str, train: bool, download: bool) -> tuple[NDArray[np.uint8], Labels]:
    """Pixels (N, H, W) or (N, H, W, C) and labels of one part."""
    import torchvision.datasets

    options: dict[str, Any] = {"train": train}
    if kind == "SVHN":
        options = {"split": "train" if train else "test"}
    elif kind == "EMNIST":
        options["split"] = "balanced"
    source = getattr(torchvision.datasets, kind)(root=root, download=download, **options)
    pixels = np.asarray(source.data)
    if kind == "SVHN":
        pixels = pixels.transpose(0, 2, 3, 1)
    elif kind == "EMNIST":
        pixels = pixels.transpose(0, 2, 1)  # its files hold letters on their side
    return np.ascontiguousarray(pixels), np.asarray(source.labels if kind == "SVHN" else source.targets, dtype=np.int64)
