"""Names of classes and of persons: one spelling for each, and the order that numbers classes.

Two spellings that Unicode calls the same ("é" as one sign or as two; file systems differ in it) are one class. Names
that differ in case or in spaces at their ends alone are refused: they may be one class or two, and a wrong guess moves
every label behind them, or puts a person on both sides of a split. Names that are all whole numbers are ordered by
their numbers, all others as texts.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from codream_clients.data.datasets import DatasetError


def one_spelling(name: str) -> str:
    """The name in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


def numbered(found: Iterable[str], told: Sequence[str] | None = None, *, what: str = "classes") -> tuple[str, ...]:
    """The classes in the order of their labels: those `told`, else those found.

    Args:
        found: names as they were found, in any spelling and any number of times.
        told: all classes in their order, where a federation has agreed on them; some may not be found.
        what: what was found, for errors.

    Raises:
        DatasetError: a name that is empty or no text, two that may be one class, or one that is not told.
    """
    names = {one_spelling(name) for name in found}
    for name in sorted(names):
        if not name.strip() or any("\ud800" <= char <= "\udfff" for char in name):
            raise DatasetError(f"found {what} with the name {name!r}; names of letters that can be read are needed")
    order = tuple(map(one_spelling, told)) if told is not None else in_order(names)
    refuse_twins({*names, *order}, what)
    if unknown := sorted(names - set(order)):
        raise DatasetError(f"found {what} {unknown}; the classes are {list(order)}")
    return order


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order that numbers them."""
    texts = sorted(names)
    numbers = all(name.isascii() and name.isdecimal() and len(name) < 19 for name in texts)
    return tuple(sorted(texts, key=lambda name: (int(name), name)) if numbers else texts)


def refuse_twins(names: Iterable[str], what: str) -> None:
    """Raises `DatasetError` for two names that differ in case or in spaces at their ends alone."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        twin = seen.setdefault(name.casefold().strip(), name)
        if twin != name:
            raise DatasetError(
                f"found {what} {twin!r} and {name!r}, which differ in case or spaces alone; give them one name if they "
                "are one, and names that cannot be mistaken if they are two"
            )
