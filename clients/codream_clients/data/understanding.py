"""What a loader understood of a source: what it found, how it read it, what it left out and why.

Loaders write into `Notes` while they read; `understood` makes an `Understanding` of it, which never changes. Its words
(`lines`) are those of `secure-codream data`, of a client's screen and of a comparison's alike.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import RawImages
from codream_clients.data.units import copies_of, copies_within, digests
from codream_clients.words import visible


class DataWarning(UserWarning):
    """Images that are used, and may not be what was meant."""


MOST_EXAMPLES = 3
MOST_CLASSES_SHOWN = 12
FEW = 10
"""Fewer training images of a class than this are few."""


@dataclass(frozen=True)
class LeftOut:
    """Something that is there and is not used: what it is, how often, why, and a few places."""

    what: str
    count: int
    why: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartFound:
    """One part as it was understood: its name, its images by class, and how many groups they are of, if known."""

    name: str
    by_class: tuple[int, ...]
    groups: int | None = None

    @property
    def images(self) -> int:
        """All images of the part."""
        return sum(self.by_class)


@dataclass(frozen=True)
class Understanding:
    """A source as it was understood.

    Attributes:
        source: as it was named.
        kind: what it is, in words.
        shape: of an image: channels, height, width.
        class_names: in the order of the labels, where the source names them.
        parts: the training part, and the test part where there is one.
        forms: sizes and depths of the images as they are stored -> how many.
        readings: what was read in one way and could have been in another, a sentence each.
        left_out: what is not used.
        warnings: what is used and may be a mistake.
        one_piece: whether the source has no test part, so that one was split off here.
    """

    source: str
    kind: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    parts: tuple[PartFound, ...]
    forms: tuple[tuple[str, int], ...] = ()
    readings: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    one_piece: bool = False

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.parts[0].by_class)

    def name_of(self, label: int) -> str:
        """A class's name, or its number."""
        return self.class_names[label] if self.class_names is not None else str(label)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        return asdict(self)


@dataclass
class Notes:
    """What a loader notices while it reads."""

    one_piece: bool = False
    forms: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    _readings: list[str] = field(default_factory=list)
    _counted: Counter[str] = field(default_factory=Counter)
    _left_out: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def leaves_out(self, what: str, why: str, place: str, count: int = 1) -> None:
        """Something is not used, `count` times more."""
        entry = self._left_out.setdefault((what, why), [0])
        entry[0] += count
        if len(entry) <= MOST_EXAMPLES:
            entry.append(place)

    def reads(self, sentence: str) -> None:
        """Something could have been read in another way."""
        if sentence not in self._readings:
            self._readings.append(sentence)

    def counts(self, what: str, count: int = 1) -> None:
        """Some images were read so; the sentence begins with their number."""
        self._counted[what] += count

    def warns(self, text: str) -> None:
        """Something is used and may be a mistake."""
        if text not in self.warnings:
            self.warnings.append(text)

    @property
    def readings(self) -> tuple[str, ...]:
        """All sentences."""
        return (*self._readings, *(f"{what}: {count} images" for what, count in sorted(self._counted.items())))

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """All that is not used, by kind."""
        return tuple(
            LeftOut(what, count, why, tuple(places)) for (what, why), (count, *places) in self._left_out.items()
        )


Part = RawImages | LabelledImages


def understood(source: str, kind: str, parts: Sequence[tuple[str, Part]], notes: Notes) -> Understanding:
    """What was understood of the parts, the training part first; warns of what can be seen in them alone."""
    first = parts[0][1]
    names = first.class_names
    found = Understanding(
        source,
        kind,
        first.shape,
        names,
        tuple(
            PartFound(
                name,
                tuple(np.bincount(part.labels, minlength=part.classes).tolist()),
                None if part.groups is None else len(np.unique(part.groups)),
            )
            for name, part in parts
        ),
    )
    for warning in _warnings(found, parts):
        notes.warns(warning)
    return replace(
        found,
        forms=tuple(notes.forms.most_common()),
        readings=notes.readings,
        left_out=notes.left_out,
        warnings=tuple(notes.warnings),
        one_piece=notes.one_piece,
    )


def _warnings(found: Understanding, parts: Sequence[tuple[str, Part]]) -> Iterator[str]:
    for part in found.parts:
        if lacking := [found.name_of(label) for label, count in enumerate(part.by_class) if count == 0]:
            yield f"the {part.name} part has no image of {_shown(lacking)}"
    groups = {name: part.groups for name, part in parts if part.groups is not None}
    if len(groups) > 1:
        one, other = list(groups.values())[:2]
        if len(both := np.intersect1d(one, other)):
            of_them = int(np.isin(other, both).sum())
            yield (
                f"{len(both)} of {len(np.unique(other))} groups of the test part, {of_them} of its images, are in the "
                "training part too: its accuracy will say more than it should"
            )
    yield from _copies(parts)
    for name, images in parts:
        values = _values(images)
        if len(values) and values.min() == values.max():
            yield f"all pixels of the {name} part have one value: there is nothing to learn from"


def _copies(parts: Sequence[tuple[str, Part]]) -> Iterator[str]:
    """Copies, pixel by pixel; what is split here keeps them on one side."""
    found = [digests(_values(images)) for _, images in parts]
    for (name, _), of_part in zip(parts, found, strict=True):
        if copies := copies_within(of_part):
            yield f"{copies} images of the {name} part are copies of others in it"
    if len(found) > 1 and (both := copies_of(found[0], found[1])):
        yield (
            f"{both} images of the {parts[1][0]} part are in the {parts[0][0]} part too: its accuracy will say more "
            "than it should"
        )


def _values(images: Part) -> NDArray[Any]:
    return images.pixels if isinstance(images, RawImages) else images.images


def lines(found: Understanding) -> list[str]:
    """A few lines for a person; names of files and classes are a stranger's, so nothing in them moves a cursor."""
    channels, height, width = found.shape
    told = [
        f"data: {found.source}, {found.kind}: {found.classes} classes, images of {channels} x {height} x {width} "
        "(channels, height, width)"
    ]
    for part in found.parts:
        counts = _shown([f"{found.name_of(label)} {count}" for label, count in enumerate(part.by_class)])
        groups = "" if part.groups is None else f", of {part.groups} groups"
        told.append(f"  {part.name}: {part.images} images{groups} ({counts})")
    told += [f"  read: {reading}" for reading in found.readings]
    told += [f"  left out: {of_kind(one)}" for one in found.left_out]
    told += [f"  warning: {warning}" for warning in found.warnings]
    return [visible(line, most=None) for line in told]


def numbers_mean(names: Sequence[str]) -> str:
    """How labels that are numbers are read where the classes have names."""
    return "labels are numbers, in the order of class_names: " + _shown(
        [f"{number} is {name!r}" for number, name in enumerate(names)]
    )


def of_kind(one: LeftOut) -> str:
    """One line of what is left out."""
    places = ", ".join(one.examples) + (", ..." if one.count > len(one.examples) else "")
    return f"{one.what}: {one.count} ({places}), since {one.why}"


def _shown(words: Sequence[str]) -> str:
    more = f", and {len(words) - MOST_CLASSES_SHOWN} more" if len(words) > MOST_CLASSES_SHOWN else ""
    return ", ".join(words[:MOST_CLASSES_SHOWN]) + more
