"""Labels in the shapes that people keep them in, as one whole number from 0 an image.

    (N,), (N, 1), (1, N)   whole numbers of any type, floats that are whole included; truth values; words
    (N, K)                 one-hot: one 1 a row and nothing else

Words name the classes, which are numbered in their order (`class_names`). Labels from 1, with gaps, below 0, broken,
missing, or several for an image are refused: which class is meant would be a guess.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.class_names import numbered, one_spelling, refuse_twins
from codream_clients.data.datasets import DatasetError, Groups, Labels
from codream_clients.data.pixels import MAX_CLASSES
from codream_clients.data.understanding import Notes

Found = tuple[dict[str, Labels], int, tuple[str, ...] | None]


def labels_of(
    parts: Mapping[str, tuple[NDArray[Any], int]],
    *,
    classes: int | None,
    class_names: Sequence[str] | None,
    notes: Notes,
) -> Found:
    """(labels by part, number of classes, names of the classes if the labels are words).

    Args:
        parts: name -> (labels, how many images there are); all parts are read alike.
        classes: how many there are; None takes one more than the largest label, if each below it is on some image.
        class_names: all classes in their order, for labels that are words.
        notes: takes what was read.

    Raises:
        DatasetError: naming the part; what was found, and what is needed.
    """
    shaped = {name: _shaped(labels, count, name) for name, (labels, count) in parts.items()}
    for name, labels in shaped.items():
        _refuse_several(labels, name)
    kinds = {_kind(labels) for labels in shaped.values()}
    if len(kinds) > 1:
        raise DatasetError(f"labels are {' in one part and '.join(sorted(kinds))} in another; one kind is needed")
    (kind,) = kinds
    if kind == "words":
        return _of_words(shaped, classes, class_names, notes)
    if kind == "rows":
        return _of_rows(shaped, classes, notes)
    numbers = {name: _whole(labels, name, notes) for name, labels in shaped.items()}
    for name, of_part in numbers.items():
        _check_range(of_part, name, classes)
    plain = {name: of_part.astype(np.int64) for name, of_part in numbers.items()}
    return plain, _count(list(plain.values())) if classes is None else classes, None


def groups_of(parts: Mapping[str, tuple[NDArray[Any], int]]) -> dict[str, Groups]:
    """Name -> whose each image is, (N,) int64, from whole numbers or words; one number is one group in all parts.

    Words have one spelling each, as classes have.
    Raises `DatasetError`, naming the part, for any other type or shape, and for two words that may be one.
    """
    flat = {}
    for name, (groups, count) in parts.items():
        if groups.dtype.kind not in "iuUS" or groups.shape not in ((count,), (count, 1), (1, count)):
            raise DatasetError(
                f"{name} is {groups.dtype} of shape {groups.shape}; whole numbers or words, one for each of {count} "
                "images, are needed"
            )
        flat[name] = groups.reshape(-1) if groups.dtype.kind in "iu" else _spelt(groups.reshape(-1), name)
    if len({groups.dtype.kind in "US" for groups in flat.values()}) > 1:
        raise DatasetError("groups are numbers in one part and words in another; one kind is needed")
    everything = np.concatenate(list(flat.values()))
    if everything.dtype.kind == "U":
        refuse_twins(set(everything.tolist()), "groups")
    _, inverse = np.unique(everything, return_inverse=True)
    ends = np.cumsum([len(groups) for groups in flat.values()])[:-1]
    return {name: part.astype(np.int64) for name, part in zip(flat, np.split(inverse, ends), strict=True)}


def _shaped(labels: NDArray[Any], count: int, name: str) -> NDArray[Any]:
    """Labels (N,), or (N, K) where there are several columns."""
    if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):
        labels = labels.astype(str)  # as pandas keeps words
    if labels.dtype.kind not in "biufUS":
        raise DatasetError(
            f"{name} is {labels.dtype} of shape {labels.shape}; whole numbers from 0, or words, one an image are needed"
        )
    if labels.ndim == 2 and 1 in labels.shape and labels.size == count and labels.shape != (1, 1):
        labels = labels.reshape(-1)
    elif labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2):
        raise DatasetError(f"{name} has shape {labels.shape}; one class for each image, (N,) or (N, 1), is needed")
    if len(labels) != count:
        raise DatasetError(f"{name} has shape {labels.shape}, for {count} images; one label for each image is needed")
    return labels


def _refuse_several(labels: NDArray[Any], name: str) -> None:
    """Rows that are not one-hot say several things about an image."""
    if labels.ndim == 1:
        return
    if labels.dtype.kind in "US" or not bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
        raise DatasetError(
            f"{name} has shape {labels.shape}; one class for each image, not several, is needed: (N,), (N, 1), or one "
            "1 a row (one-hot)"
        )


def _kind(labels: NDArray[Any]) -> str:
    if labels.ndim == 2:
        return "rows"
    return "words" if labels.dtype.kind in "US" else "numbers"


def _whole(labels: NDArray[Any], name: str, notes: Notes) -> NDArray[Any]:
    if labels.dtype.kind != "f":
        return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels
    if not np.isfinite(labels).all():
        raise DatasetError(f"{name} holds NaN or infinite values; one whole number from 0 an image is needed")
    if (broken := labels[labels != np.rint(labels)]).size:
        raise DatasetError(
            f"{name} is {labels.dtype} with fractions such as {broken[0]:g}; integers are needed, one class an image"
        )
    notes.reads("labels are floats that are whole numbers")
    return labels


def _check_range(labels: NDArray[Any], name: str, classes: int | None) -> None:
    most = MAX_CLASSES if classes is None else classes
    if len(labels) and (labels.min() < 0 or labels.max() >= most):
        low, high = (f"{value:.10g}" for value in (labels.min(), labels.max()))
        found = f"{name} lies in [{low}, {high}]; [0, {most - 1}] is allowed"
        found += "" if classes is None else f" for {classes} classes"
        if labels.min() < 0:
            raise DatasetError(f"{found}; images without a class must be left out of the file")
        if labels.min() == 1:
            raise DatasetError(f"{found}; if labels begin at 1, subtract 1 from all, test part included")
        raise DatasetError(found)


def _count(parts: list[Labels]) -> int:
    """One more than the largest label; 0, 1000 and 2000 are three classes, not 2,001."""
    found = np.unique(np.concatenate(parts))
    classes = int(found.max(initial=0)) + 1
    if 0 < len(found) < classes:
        missing = int(np.argmax(found != np.arange(len(found))))
        raise DatasetError(
            f"{len(found)} labels up to {classes - 1}, but none is {missing}; "
            f"labels 0 to {len(found) - 1}, each on at least one image, are needed"
        )
    return classes


def _of_words(
    parts: Mapping[str, NDArray[Any]], classes: int | None, class_names: Sequence[str] | None, notes: Notes
) -> Found:
    words: dict[str, list[str]] = {}
    for name, labels in parts.items():
        words[name] = _spelt(labels, name).tolist()
    distinct = {word for of_part in words.values() for word in of_part}
    if len(distinct) > MAX_CLASSES:
        raise DatasetError(f"found {len(distinct)} different words as labels; at most {MAX_CLASSES} are allowed")
    names = numbered(distinct, class_names, what="labels")
    if classes is not None and len(names) != classes:
        raise DatasetError(
            f"labels are words: {', '.join(map(repr, names[:12]))}, {len(names)} of {classes} classes; all classes "
            "must be named: class_names under [task]"
        )
    notes.reads("labels are words, numbered in the order of the classes")
    place = {name: number for number, name in enumerate(names)}
    return (
        {name: np.array([place[word] for word in of_part], np.int64) for name, of_part in words.items()},
        len(names),
        names,
    )


def _spelt(words: NDArray[Any], name: str) -> NDArray[np.str_]:
    """Words as text, each in one spelling."""
    try:
        decoded = np.char.decode(words, "utf-8") if words.dtype.kind == "S" else words
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name} holds bytes that are no text ({error}); words are needed") from error
    distinct, inverse = np.unique(decoded, return_inverse=True)
    return np.array([one_spelling(str(word)) for word in distinct], dtype=np.str_)[inverse]


def _of_rows(parts: Mapping[str, NDArray[Any]], classes: int | None, notes: Notes) -> Found:
    """The place of the 1 in each row."""
    widths = {labels.shape[1] for labels in parts.values()}
    if len(widths) > 1 or (classes is not None and widths != {classes}):
        needed = "one number of classes" if classes is None else f"{classes} classes"
        raise DatasetError(f"labels are one-hot of {', '.join(map(str, sorted(widths)))} classes; {needed} is needed")
    (width,) = widths
    if width > MAX_CLASSES:
        raise DatasetError(f"labels are one-hot of {width} classes; at most {MAX_CLASSES} are allowed")
    notes.reads("labels are one-hot: the class is the place of the 1")
    return {name: rows.argmax(axis=1).astype(np.int64) for name, rows in parts.items()}, width, None
