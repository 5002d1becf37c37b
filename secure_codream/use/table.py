"""An evaluation as tables on a screen of 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from codream_clients.words import visible
from secure_codream.use.evaluate import FEW, Evaluation
from secure_codream.use.intervals import Figure

MOST_CLASSES = 12
"""With more classes, the screen shows the confusions that happen most instead of all of them."""
_NAME = 14  # characters of a class's name, so that its figures fit beside it


def tables(found: Evaluation) -> Iterator[Table | Text]:
    """The figures of the whole, of persons, of each class, and what is taken for what."""
    yield _title(f"{found.images} images; in brackets {100 * found.confidence:.0f} % intervals")
    yield _whole(found)
    yield _title("Each class against all others, in %")
    yield _classes(found)
    if any(one.few for one in found.by_class):
        yield Text(f"* fewer than {FEW} images: these figures say little")
    if len(found.by_class) <= MOST_CLASSES:
        yield _title("Confusion: rows as they are, columns as they are taken")
        yield _confusion(found)
    else:
        yield _title("What is confused most")
        yield _confusions(found)


def percent(figure: Figure) -> str:
    """A share as 93.1 (90.2-95.4), in percent; a dash for what is undefined."""
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:.1f} (-)"
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table() -> Table:
    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)


def _whole(found: Evaluation) -> Table:
    table = _table()
    table.add_column("figure")
    table.add_column("%", justify="right")
    rows = [
        ("accuracy", found.accuracy),
        ("balanced accuracy", found.balanced_accuracy),
        ("AUC, mean of the classes", found.auc),
        ("Brier score (0 is best)", found.brier),
        ("calibration error (0 is best)", found.calibration_error),
    ]
    for name, figure in rows:
        table.add_row(name, percent(figure))
    table.add_row("  a calibrated model: at most", f"{100 * found.calibrated_up_to:.1f}")
    if found.persons is not None:
        persons = found.persons
        table.add_row(f"accuracy, each of {persons.groups} groups as one", percent(persons.accuracy))
        table.add_row("  balanced", percent(persons.balanced_accuracy))
        if persons.mixed:
            table.add_row("  groups of several classes, left out", str(persons.mixed))
    return table


def _classes(found: Evaluation) -> Table:
    table = _table()
    for column in ("class", "images", "sensitivity", "specificity", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=True)
    for one in found.by_class:
        images = f"{one.images}{'*' if one.few else ''}"
        table.add_row(
            Text(_short(one.name)), images, percent(one.sensitivity), percent(one.specificity), percent(one.auc)
        )
    return table


def _confusion(found: Evaluation) -> Table:
    """All of it: columns have the numbers that the rows show."""
    table = _table()
    table.add_column("class")
    for number in range(len(found.confusion)):
        table.add_column(str(number), justify="right")
    for number, (one, row) in enumerate(zip(found.by_class, found.confusion, strict=True)):
        name = _short(one.name)
        table.add_row(Text(name if name == str(number) else f"{number} {name}"), *map(str, row))
    return table


def _confusions(found: Evaluation) -> Table:
    table = _table()
    for column in ("images of", "taken for", "how many", "of its images"):
        table.add_column(column)
    wrong = [
        (count, number, other)
        for number, row in enumerate(found.confusion)
        for other, count in enumerate(row)
        if count and number != other
    ]
    for count, number, other in sorted(wrong, key=lambda one: (-one[0], one[1], one[2]))[:10]:
        one = found.by_class[number]
        names = (Text(_short(one.name)), Text(_short(found.by_class[other].name)))
        table.add_row(*names, str(count), f"{100 * count / one.images:.1f} %")
    return table


def _short(name: str) -> str:
    return visible(name, most=_NAME)
