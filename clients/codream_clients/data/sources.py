"""Where images come from, by one text: a name, a file, a folder, or a user's own function.

    digits                         scikit-learn's, in the package
    mnist, cifar10, ...            torchvision's layout under a root (`image_sets`)
    scans.npz                      MedMNIST's keys (`npz_files`)
    scans/                         one folder for each class (`image_folders`)
    my_module:load                 runs this code (`own_parts`, `own_data`)

All come out alike: a training and a test part, and the scale that was published for them, if any.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data
from codream_clients.data.image_folders import load_image_folder
from codream_clients.data.image_sets import IMAGE_SETS, load_image_set
from codream_clients.data.npz_files import load_npz
from codream_clients.data.own_data import load_own_data
from codream_clients.data.pixels import RawImages, Scale
from codream_clients.own_parts import is_reference

NAMES = ("digits", *IMAGE_SETS)


@dataclass(frozen=True, eq=False)
class DataSource:
    """A training and a test part: both still pixels, or both standardised already (digits, a user's own).

    `published` is the scale that goes with a named set, or None.
    """

    train: RawImages | LabelledImages
    test: RawImages | LabelledImages
    published: Scale | None = None


def kind_of(source: str) -> Literal["name", "own", "npz", "folder"]:
    """What `source` is, by its form alone; a path needs a slash, a leading dot or tilde, or the ending `.npz`.

    Raises `DatasetError`, with what is allowed, for a text that is none of them.
    """
    if source in NAMES:
        return "name"
    if is_reference(source):
        return "own"
    if source.lower().endswith(".npz"):
        return "npz"
    if "/" in source or "\\" in source or source.startswith((".", "~")):
        return "folder"
    raise DatasetError(
        f"unknown data source {source!r}; allowed are {', '.join(NAMES)}, a path (./scans.npz or ./scans/), "
        "or module:function"
    )


def load_source(
    source: str,
    *,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
    size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    digits_test_size: int = 600,
) -> DataSource:
    """Everything that `source` holds.

    `root`, `download`: for torchvision's sets, see `load_image_set`. `seed` splits what comes in one piece (digits, a
    folder without train and test). `size`, `channels`, `class_names`: for folders, see `load_image_folder`.
    `classes`: for files and own functions that may lack some.
    Raises `DatasetError` or `OwnPartError`, as the loaders do, and `DatasetError` if a root is missing.
    """
    kind = kind_of(source)
    if kind == "own":
        return DataSource(*load_own_data(source, classes=classes))
    if kind == "npz":
        return DataSource(*load_npz(Path(source).expanduser(), classes=classes))
    if kind == "folder":
        folder = Path(source).expanduser()
        return DataSource(*load_image_folder(folder, seed=seed, size=size, channels=channels, class_names=class_names))
    if source == "digits":
        return DataSource(*load_digits_data(seed, digits_test_size))
    if root is None:
        raise DatasetError(
            f"root is missing; the folder that holds {IMAGE_SETS[source].files} is needed for source {source!r}"
        )
    return DataSource(*load_image_set(source, root, download=download))
