"""Where the classes are in a folder, and which files are theirs.

    <class>/...                           one folder for each class, split later
    train/<class>/..., test/<class>/...   the parts of a split, by any of their usual names (`PARTS`), in any case

Class folders may have folders of their own, which are persons where `groups` says so. Links are followed, each place
once. Hidden files and the folders of tools are no classes. Everything that is not taken is counted and named; a layout
with two readings is refused.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codream_clients.data.class_names import numbered, one_spelling
from codream_clients.data.datasets import DatasetError
from codream_clients.data.pictures import SUFFIXES
from codream_clients.data.understanding import Notes

GroupsIn = Literal["folder"]
PARTS = {
    "training": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
MAX_ENTRIES, MAX_DEPTH = 5_000_000, 32

_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_TOOLS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
_MASKS = ("mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "ground_truth", "groundtruth")
_MASK_ENDINGS = ("_mask", "-mask", " mask", "_seg", "_segmentation")
_FOR_CLASSES = "one folder of images for each class is needed"


@dataclass(frozen=True)
class Listed:
    """An image file, its label, and whose it is, where that is asked for."""

    file: Path
    label: int
    group: str | None


@dataclass(frozen=True)
class Layout:
    """The classes in the order of their labels, and the files of each part; a test part of None is yet to be split.

    `below` counts the folders below the class folders that hold images.
    """

    names: tuple[str, ...]
    train: list[Listed]
    test: list[Listed] | None
    below: int


def layout_of(root: Path, *, class_names: Sequence[str] | None, groups: GroupsIn | None, notes: Notes) -> Layout:
    """The layout of `root`; `class_names` are all classes in their order, where they are known.

    Raises `DatasetError`, which names the folder, for a layout that is none of those above or more than one.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: found no such folder; {_FOR_CLASSES} there")
    walk = _Walk(root, notes)
    parts = _parts(walk, class_names or ())
    if parts == {"training": root} and groups is None and class_names is None:
        _refuse_what_may_be_parts(walk)
    folders: dict[str, dict[str, list[Path]]] = {}  # part -> class -> its folders, several by spellings of Unicode
    for part, place in parts.items():
        folders[part] = _class_folders(walk, place, part)
    if class_names is None:
        _leave_out_empty(walk, folders)
    found = [folder.name for of_part in folders.values() for same in of_part.values() for folder in same]
    if class_names is None and len({one_spelling(name) for name in found}) < 2:
        raise _too_few(walk, root, found)
    for name in sorted({one_spelling(name) for name in found}):
        if len(spellings := {other for other in found if one_spelling(other) == name}) > 1:
            notes.reads(f"{len(spellings)} spellings of {name!r} that Unicode calls the same are one class")
    try:
        names = numbered(found, class_names, what="folders")
    except DatasetError as error:
        raise DatasetError(f"{root}: {error}") from error
    listed = {part: _list(walk, part, folders[part], names, groups) for part in parts}
    for part in parts:
        _refuse_masks({names[label]: files for label, files in listed[part].items()}, told=class_names is not None)
    _say_what_is_empty(walk, listed, names)
    train, test = (
        None if part not in listed else [one for files in listed[part].values() for one in files]
        for part in ("training", "test")
    )
    assert train is not None  # noqa: S101 - `_parts` has one
    own = [one.file.parent for one in (*train, *(test or ()))]
    classes = {folder for of_part in folders.values() for same in of_part.values() for folder in same}
    return Layout(names, train, test, len(set(own) - classes))


def _parts(walk: "_Walk", told: Sequence[str]) -> dict[str, Path]:
    """The folders of the training and the test part; the root for both of them together."""
    root, notes = walk.root, walk.notes
    folders, files = walk.entries(root)
    split: dict[str, Path] = {}
    others = []
    for folder in folders:
        part = _part_of(folder)
        if part is None or folder.name in told:
            others.append(folder)
        elif part in split:
            raise DatasetError(
                f"{root}: found {split[part].name!r} and {folder.name!r}; one folder is needed for the {part} part"
            )
        else:
            split[part] = folder
    full = [folder for folder in others if walk.holds_images(folder)] if split else []
    if len(split) == 1 and full and not walk.quietly(*split.values())[0]:  # such as vehicles: bus, car, train
        notes.reads(f"{_names(split.values())} is a class, since it holds images and no class folders")
        split, full = {}, []
    if full:
        raise DatasetError(
            f"{root}: found {_names(split.values())} and beside them {_names(full)}; move away what is neither, or "
            "give the folder that has the classes alone"
        )
    for file in files:
        walk.leaves_out_file(file, "files beside the class folders", "they are in no class")
    if not split:
        return {"training": root}
    for folder in others:
        notes.leaves_out("folders beside the parts", "they hold no images", walk.told(folder))
    if "training" not in split:
        raise DatasetError(
            f"{root}: found {_names(split.values())}, but no training part; a folder train beside them is needed"
        )
    if "validation" in split and "test" in split:
        val = split.pop("validation")
        notes.leaves_out(
            "images of the validation part",
            "nothing is tuned on them",
            walk.told(val),
            walk.count_images(val),
        )
    elif "validation" in split:
        split["test"] = split.pop("validation")
        notes.reads(f"{split['test'].name} is the test part, since there is no folder for testing")
    elif "test" not in split:
        notes.reads("a test part is split off the training part, since there is no folder for testing")
    return {part: split[part] for part in ("training", "test") if part in split}


def _part_of(folder: Path) -> str | None:
    return _PART_OF.get(folder.name.casefold().strip())


def _refuse_what_may_be_parts(walk: "_Walk") -> None:
    """Folders without images of their own, and with the same folders in each: parts, classes of parts, or persons?"""
    within: dict[str, list[str]] = defaultdict(list)  # inner name -> the outer ones
    for folder in walk.quietly(walk.root)[0]:
        inner, files = walk.quietly(folder)
        if not any(file.suffix.lower() in SUFFIXES for file in files):
            for name in sorted({one_spelling(one.name).casefold().strip() for one in inner if walk.holds_images(one)}):
                within[name].append(folder.name)
    shared = [name for name, outer in within.items() if len(outer) > 1]
    if len(shared) > 1:
        raise DatasetError(
            f"{walk.root}: found {_shown(within[shared[0]])} with folders of one name in each, {_shown(shared)}; if "
            "the outer ones are parts, they must be named train and test (val); if the inner ones are persons, groups "
            '= "folder" says so; if the outer ones are the classes in any case, class_names says so'
        )


def _refuse_parts_below(walk: "_Walk", folder: Path) -> None:
    if found := [one for one in walk.quietly(folder)[0] if _part_of(one) and walk.holds_images(one)]:
        raise DatasetError(
            f"{folder}: found {_names(found)} below a class folder, which would be pooled and split anew; a folder for "
            "each part, with the class folders in it, is needed"
        )


def _class_folders(walk: "_Walk", place: Path, part: str) -> dict[str, list[Path]]:
    """Class -> its folders in this part; spellings of one name that Unicode calls the same are one class."""
    folders, files = walk.entries(place) if place != walk.root else walk.quietly(place)
    if not folders:
        raise DatasetError(f"{place}: found no class folders; {_FOR_CLASSES} in the {part} part")
    if place != walk.root:
        for file in files:
            walk.leaves_out_file(file, "files beside the class folders", "they are in no class")
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        _refuse_parts_below(walk, folder)
        found[one_spelling(folder.name)].append(folder)
    return found


def _leave_out_empty(walk: "_Walk", folders: dict[str, dict[str, list[Path]]]) -> None:
    """Folders in which there is nothing, in any part, are no classes unless somebody has named them."""
    for name in sorted({name for of_part in folders.values() for name in of_part}):
        same = [folder for of_part in folders.values() for folder in of_part.get(name, ())]
        if all(walk.is_empty(folder) for folder in same):
            for folder in same:
                walk.notes.leaves_out("empty folders", "there is nothing in them", walk.told(folder))
            for of_part in folders.values():
                of_part.pop(name, None)


def _too_few(walk: "_Walk", root: Path, found: Sequence[str]) -> DatasetError:
    within = ""
    if len(found) == 1:
        inner = [folder.name for folder in walk.quietly(root / found[0])[0]] if (root / found[0]).is_dir() else []
        within = f"; if {root / found[0]} is the folder that is meant, with {_shown(inner)}, name it" if inner else ""
    return DatasetError(f"{root}: found class folders {sorted(found)}; at least 2 are needed{within}")


def _list(
    walk: "_Walk", part: str, folders: dict[str, list[Path]], names: Sequence[str], groups: GroupsIn | None
) -> dict[int, list[Listed]]:
    """The image files of one part by class, each class in the order of its paths."""
    listed: dict[int, list[Listed]] = {}
    for label, name in enumerate(names):
        listed[label] = [
            Listed(file, label, None if groups is None else _person(folder, file))
            for folder in folders.get(name, ())
            for file in sorted(walk.images_below(folder, part, name), key=lambda file: file.parts)
        ]
    return listed


def _person(folder: Path, file: Path) -> str:
    inner = file.relative_to(folder).parts
    if len(inner) < 2:
        raise DatasetError(
            f'{file}: found in no person\'s folder; with groups = "folder" each image lies in <class>/<person>/'
        )
    return one_spelling(inner[0])


def _refuse_masks(listed: dict[str, list[Listed]], *, told: bool) -> None:
    """Masks of images are no images: beside them by another ending, in a folder of theirs, or as if a class."""
    for name in [] if told else [name for name in listed if name.casefold() in _MASKS and listed[name]]:
        others = {one.file.stem for other, files in listed.items() if other != name for one in files}
        if {_unmasked(one.file.stem) for one in listed[name]} <= others:
            raise DatasetError(
                f"{listed[name][0].file.parent}: found the file names of other classes; if these are masks, move them "
                "away, and if they are a class, name all classes in class_names"
            )
    for files in listed.values():
        by_folder: dict[Path, set[str]] = defaultdict(set)
        for one in files:
            by_folder[one.file.parent].add(one.file.stem)
        plain = set().union(*(found for folder, found in by_folder.items() if folder.name.casefold() not in _MASKS))
        for one in files:
            beside = by_folder[one.file.parent]
            masked = one.file.parent.name.casefold() in _MASKS and _unmasked(one.file.stem) in plain
            if masked or (_unmasked(one.file.stem) != one.file.stem and _unmasked(one.file.stem) in beside):
                raise DatasetError(
                    f"{one.file}: found a mask, as it seems, of {_unmasked(one.file.stem)!r}; it would be read as one "
                    "more image: move masks out of the class folders"
                )


def _unmasked(stem: str) -> str:
    for ending in _MASK_ENDINGS:
        if stem.casefold().endswith(ending):
            return stem[: -len(ending)]
    return stem


def _say_what_is_empty(walk: "_Walk", listed: dict[str, dict[int, list[Listed]]], names: Sequence[str]) -> None:
    """A class whose files are all of another kind is lost, not empty."""
    for label, name in enumerate(names):
        if any(of_part[label] for of_part in listed.values()):
            continue
        if endings := walk.endings.get(name):
            raise DatasetError(
                f"{walk.root}: class {name!r} has no image, but {_shown(sorted(endings))} files; those ending in "
                f"{', '.join(SUFFIXES)} can be read: convert the others first"
            )


@dataclass(frozen=True)
class _Look:
    """What is in a folder, by name, and of what is left out: what it is, why, and where."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)


class _Walk:
    """Folders read once and in order, however often they are looked at, without what is hidden or dead."""

    def __init__(self, root: Path, notes: Notes) -> None:
        self.root, self.notes = root, notes
        self.endings: dict[str, set[str]] = defaultdict(set)  # class -> endings of its files that are not taken
        self._reached: dict[str, tuple[str, str]] = {}  # a real place -> the part and class it belongs to
        self._looks: dict[Path, _Look] = {}
        self._entries = 0

    def told(self, place: Path) -> str:
        """A place, as it is told: below the root."""
        return str(place.relative_to(self.root))

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """(folders, files) in a folder, by name; what is hidden, dead or neither is left out and counted."""
        look = self._look(folder)
        for what, why, place in look.left_out:
            self.notes.leaves_out(what, why, place)
        return look.folders, look.files

    def quietly(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The same, for a look ahead."""
        look = self._look(folder)
        return look.folders, look.files

    def _look(self, folder: Path) -> "_Look":
        if folder not in self._looks:
            self._looks[folder] = self._sorted_out(folder)
        return self._looks[folder]

    def _sorted_out(self, folder: Path) -> "_Look":
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DatasetError(f"{folder}: cannot be read ({error.strerror or error})") from error
        self._entries += len(entries)
        if self._entries > MAX_ENTRIES or len(folder.parts) - len(self.root.parts) > MAX_DEPTH:
            raise DatasetError(
                f"{folder}: found more than {MAX_ENTRIES} files or {MAX_DEPTH} folders within each other; a folder of "
                "images alone is needed"
            )
        look = _Look()
        for entry in entries:
            path, name = folder / entry.name, entry.name
            left_out = None
            if name.startswith(".") or name.casefold().strip() in _TOOLS:
                left_out = "hidden entries or entries of a tool", "they are no data"
            elif _asks(entry.is_dir):
                look.folders.append(path)
            elif _asks(entry.is_file):
                look.files.append(path)
            elif entry.is_symlink():
                left_out = "links that lead nowhere", "there is nothing behind them"
            else:
                left_out = "entries that are neither files nor folders", "they cannot be read"
            if left_out:
                look.left_out.append((*left_out, self.told(path)))
        return look

    def leaves_out_file(self, file: Path, what: str, why: str) -> None:
        """A file is not taken."""
        self.notes.leaves_out(what, why, self.told(file))

    def images_below(self, folder: Path, part: str, name: str) -> list[Path]:
        """The image files of a class at any depth, each real place once."""
        meaning, images, waiting = (part, name), [], [folder]
        while waiting:
            here = waiting.pop()
            real = os.path.realpath(here)
            if self._reached_before(here, real, meaning):
                continue
            folders, files = self.entries(here)
            waiting += reversed(folders)
            for file in files:
                if file.suffix.lower() not in SUFFIXES:
                    ending = file.suffix.lower()
                    self.endings[name].add(ending or "nothing")
                    self.leaves_out_file(
                        file,
                        f"files ending in {ending}" if ending else "files without an ending",
                        "they are no images that can be read here",
                    )
                    continue
                place = os.path.realpath(file) if file.is_symlink() else os.path.join(real, file.name)  # noqa: PTH118
                if not self._reached_before(file, place, meaning):
                    images.append(file)
        return images

    def _reached_before(self, place: Path, real: str, meaning: tuple[str, str]) -> bool:
        before = self._reached.get(real)
        if before is None:
            self._reached[real] = meaning
            return False
        if before != meaning:
            raise DatasetError(
                f"{place}: leads to what is {before[1]!r} of the {before[0]} part already; it cannot be {meaning[1]!r} "
                f"of the {meaning[0]} part too"
            )
        self.notes.leaves_out(
            "linked files or folders that are reached again", "they are counted where they were first", self.told(place)
        )
        return True

    def is_empty(self, folder: Path) -> bool:
        """Whether there is no file at any depth."""
        return next(self._files(folder), None) is None

    def holds_images(self, folder: Path) -> bool:
        """Whether there is an image file at any depth."""
        return next(self._images(folder), None) is not None

    def count_images(self, folder: Path) -> int:
        """How many image files there are at any depth."""
        return sum(1 for _ in self._images(folder))

    def _images(self, folder: Path) -> Iterator[Path]:
        return (file for file in self._files(folder) if file.suffix.lower() in SUFFIXES)

    def _files(self, folder: Path) -> Iterator[Path]:
        seen, waiting = set(), [folder]
        while waiting:
            here = waiting.pop()
            if (real := os.path.realpath(here)) in seen:
                continue
            seen.add(real)
            folders, files = self.quietly(here)
            waiting += folders
            yield from files


def _asks(question: Callable[[], bool]) -> bool:
    """What an entry answers; False for a link that turns in a circle."""
    try:
        return question()
    except OSError:
        return False


def _names(folders: Iterable[Path]) -> str:
    return _shown([folder.name for folder in folders])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
