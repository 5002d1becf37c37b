"""Where images come from, by one text: a name, a file, a folder, or a user's own function.

    digits                         scikit-learn's, in the package
    mnist, cifar10, ...            torchvision's layout under a root (`image_sets`)
    scans.npz                      MedMNIST's keys (`npz_files`); a folder of .npy files with them, too
    scans/                         one folder for each class (`image_folders`)
    my_module:load                 runs this code (`own_parts`, `own_data`)

All come out alike: a training and a test part, what was understood of them, and the scale that was published for them,
if any. This is the one gate of data: `client`, `compare`, `run_local` and `secure-codream data` read through it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codream_clients.data.arrays import Channels, Told
from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data
from codream_clients.data.folder_layouts import GroupsIn
from codream_clients.data.image_folders import load_image_folder
from codream_clients.data.image_sets import IMAGE_SETS, load_image_set
from codream_clients.data.npz_files import holds_arrays, load_npz
from codream_clients.data.own_data import load_own_data
from codream_clients.data.pictures import Pages
from codream_clients.data.pixels import RawImages, Scale
from codream_clients.data.understanding import Notes, Understanding, numbers_mean, understood
from codream_clients.own_parts import is_reference

NAMES = ("digits", *IMAGE_SETS)


@dataclass(frozen=True, eq=False)
class DataSource:
    """A training and a test part: both still pixels, or both standardised already (digits, a user's own).

    `understanding` says how they were read, and `published` is the scale that goes with a named set, or None.
    Of a source in one piece that was not to be split, both parts are all of it.
    """

    train: RawImages | LabelledImages
    test: RawImages | LabelledImages
    understanding: Understanding
    published: Scale | None = None


def kind_of(source: str) -> Literal["name", "own", "npz", "folder"]:
    """What `source` is, by its form alone; a path needs a slash, a leading dot or tilde, or the ending `.npz`.

    Raises `DatasetError`, with what is allowed, for a text that is none of them.
    """
    if source in NAMES:
        return "name"
    if is_reference(source):
        return "own"
    if source.lower().endswith((".npz", ".npy")):
        return "npz"
    if "/" in source or "\\" in source or source.startswith((".", "~")):
        return "folder"
    raise DatasetError(
        f"unknown data source {source!r}; allowed are {', '.join(NAMES)}, a path (a folder here is written "
        f"./{source}), or module:function"
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read, where it leaves a choice.

    Attributes:
        seed: splits what comes in one piece (digits, a folder or file without a test part).
        split: whether a folder or file in one piece is split.
        one_by_one: whether it is then split by a coin for each image, as differential privacy needs it.
        size: to which a folder's images are resized.
        groups: "folder" takes the folders below the class folders as persons.
        pages: which pages of a stack are images.
        channels: where an array's channels stand.
        shape: of an image, (C, H, W), where a federation has agreed on it.
        classes: how many there are, where that is agreed on.
        class_names: the classes in their order, where they are agreed on.
    """

    seed: int = 0
    split: bool = True
    one_by_one: bool = False
    size: int | None = None
    groups: GroupsIn | None = None
    pages: Pages | None = None
    channels: Channels | None = None
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    class_names: tuple[str, ...] | None = None


def load_source(
    source: str,
    reading: Reading | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    digits_test_size: int = 600,
) -> DataSource:
    """Everything that `source` holds.

    `root`, `download`: for torchvision's sets, see `load_image_set`.
    Raises `DatasetError` or `OwnPartError`, as the loaders do, and `DatasetError` if a root is missing or `reading` has
    a choice that such a source does not leave.
    """
    reading = reading or Reading()
    _refuse_what_does_not_apply(source, reading)
    found = _loaded(source, reading, root, download, digits_test_size)
    if reading.class_names is None or found.understanding.class_names is not None:
        return found
    readings = (*found.understanding.readings, numbers_mean(reading.class_names))
    return replace(found, understanding=replace(found.understanding, readings=readings))


def is_image_folder(source: str) -> bool:
    """Whether `source` is a folder of pictures; raises as `kind_of` does."""
    return _read_as(source) == "pictures"


def _read_as(source: str) -> Literal["name", "own", "arrays", "pictures"]:
    kind = kind_of(source)
    if kind == "folder":
        return "arrays" if holds_arrays(Path(source).expanduser()) else "pictures"
    return "arrays" if kind == "npz" else kind


def _refuse_what_does_not_apply(source: str, reading: Reading) -> None:
    kind = _read_as(source)
    folder = kind == "pictures"
    for name, applies, where in (
        ("size", folder, "folders of pictures"),
        ("groups", folder, "folders of pictures; an .npz has groups, or train_groups and test_groups"),
        ("pages", folder, "folders of pictures"),
        ("channels", kind in ("own", "arrays"), "arrays"),
    ):
        if not applies and (value := getattr(reading, name)) is not None:
            raise DatasetError(f"found {name} = {value!r} for {source}; it says nothing there: it is for {where}")


def _loaded(source: str, reading: Reading, root: Path | None, download: bool, digits_test_size: int) -> DataSource:
    kind = _read_as(source)
    told = Told(reading.channels, reading.shape)
    names, classes = reading.class_names, reading.classes
    if kind == "own":
        return DataSource(*load_own_data(source, classes=classes, class_names=names, told=told))
    path = Path(source).expanduser()
    if kind == "arrays":
        return DataSource(
            *load_npz(
                path,
                classes=classes,
                class_names=names,
                told=told,
                seed=reading.seed,
                split=reading.split,
                one_by_one=reading.one_by_one,
            )
        )
    if kind == "pictures":
        found = load_image_folder(
            path,
            seed=reading.seed,
            split=reading.split,
            one_by_one=reading.one_by_one,
            size=reading.size,
            channels=reading.shape[0] if reading.shape is not None and reading.shape[0] in (1, 3) else None,
            class_names=names,
            groups=reading.groups,
            pages=reading.pages,
        )
        return DataSource(*found)
    published = None
    train: RawImages | LabelledImages
    test: RawImages | LabelledImages
    if source == "digits":
        train, test = load_digits_data(reading.seed, digits_test_size)
    elif root is None:
        raise DatasetError(
            f"root is missing; the folder that holds {IMAGE_SETS[source].files} is needed for source {source!r}"
        )
    else:
        train, test, published = load_image_set(source, root, download=download)
    words = understood(source, "a known set", (("training", train), ("test", test)), Notes())
    return DataSource(train, test, words, published)
