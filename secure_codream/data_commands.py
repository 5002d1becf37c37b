"""The command that says what is understood of a source of images, as `client` and `compare` would read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secure_codream.command_parts import (
    Force,
    Groups,
    Json,
    OfArrays,
    OfStacks,
    Root,
    as_source,
    console,
    fail,
    given,
    say,
    say_json,
)


def data(
    source: Annotated[str, typer.Argument(metavar="PATH", help="A folder, .npz, known name, or module:function.")],
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The federation's config.toml, to read by its task."),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a PNG of images with their labels to this file.")] = None,
    size: Annotated[int | None, typer.Option(min=8, max=1024, help="Resize a folder's images to this side.")] = None,
    groups: Groups = None,
    pages: OfStacks = None,
    channels: OfArrays = None,
    root: Root = None,
    seed: Annotated[int, typer.Option(min=0, help="Splits what comes in one piece.")] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Say what is understood of images: classes, parts, sizes, duplicates, what is left out and why.

    Nothing is written but --sheet. Options are keys of a client's own table of data.
    """
    from codream_clients.data.sheet import write_sheet
    from codream_clients.data.survey import survey
    from codream_clients.data.understanding import lines
    from secure_codream.configuration.client import DataTable, read_client
    from secure_codream.configuration.federation import read_federation
    from secure_codream.configuration.images import names_line, source_of
    from secure_codream.configuration.reading import check
    from secure_codream.deployment.files import CLIENT_FILE
    from secure_codream.reports.files import written_whole
    from secure_codream.use.predict import check_out

    if (Path(source) / CLIENT_FILE).is_file():
        own = read_client(Path(source) / CLIENT_FILE).data.source
        fail(f"{source}: found a client's own folder; its images are needed: secure-codream data {own}", 2)
    flags = {"size": size, "groups": groups, "pages": pages, "channels": channels, "root": root}
    if sheet is not None:
        check_out(sheet, [Path(source)], force=force, option="--sheet")
    table: DataTable = check("data", DataTable, {"source": as_source(source), "seed": seed, **given(flags)})
    task = read_federation(config).task if config is not None else None
    found = source_of(table, task)
    understood = found.understanding
    figures = survey(found.train, found.test, understood)
    if sheet is not None:
        with written_whole(sheet) as file:
            write_sheet(file, found.train, understood)
    if json:
        say_json({**understood.as_json(), "survey": figures.as_json()})
        return
    screen = console()
    for line in lines(understood):
        say(screen, line)
    _say_by_class(screen, understood)
    for form, count in understood.forms:
        say(screen, f"  stored as: {form}: {count}")
    for name, count in figures.duplicates.items():
        say(screen, f"  duplicates within the {name} part: {count}")
    say(screen, f"  duplicates of training images in the test part: {figures.in_both}")
    if figures.mean is not None and figures.std is not None:
        say(screen, f"  training pixels, divided by 255: mean {_each(figures.mean)}, deviation {_each(figures.std)}")
    if figures.two_labels:
        say(screen, f"  warning: {figures.two_labels} images are there with more than one label")
    if figures.few:
        few = ", ".join(f"{name} ({count})" for name, count in figures.few.items())
        say(screen, f"  warning: classes with few training images: {few}")
    if understood.class_names is not None:
        say(screen, f"under [task] in config.toml: {names_line(understood.class_names)}")
    if sheet is not None:
        say(screen, f"The sheet: {sheet}")


def _each(channels: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in channels)


def _say_by_class(screen: Any, understood: Any) -> None:
    """Counts by class and part, which the few lines cut short."""
    from rich.table import Table
    from rich.text import Text

    from codream_clients.words import visible

    table = Table("label", "class", *(part.name for part in understood.parts))
    for label in range(understood.classes):
        counts = [str(part.by_class[label]) for part in understood.parts]
        table.add_row(str(label), Text(visible(understood.name_of(label))), *counts)
    screen.print(table)
