"""What the commands of several files share: options, how their text is read, and how a failure ends the program.

A failure is one line on standard error and an exit code; see `cli` for what the codes mean.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console

from codream_clients.words import visible
from secure_codream.deployment.cores import usable_cores

WIDTH_OF_FILES = 200  # columns

Root = Annotated[Path | None, typer.Option(help="Where torchvision's files lie.")]
Out = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON and nothing else.")]
SummaryJson = Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else.")]


class LossesName(StrEnum):
    """Who is summed when somebody is missing."""

    BLOCKS = "blocks"
    ALLOW = "allow"


class GroupsIn(StrEnum):
    """Where it stands whose an image is."""

    FOLDER = "folder"


class Pages(StrEnum):
    """Of a stack."""

    FIRST = "first"
    EACH = "each"


class Channels(StrEnum):
    """Where they stand in an array."""

    FIRST = "first"
    LAST = "last"


class EngineName(StrEnum):
    """Where work is done."""

    LOCAL = "local"
    RAY = "ray"


InEngine = Annotated[EngineName, typer.Option("--engine", help="Processes of this machine, or a Ray cluster.")]
OfCluster = Annotated[
    str | None, typer.Option("--cluster", help="Of Ray: its address; one of this machine unless given.")
]


def check_cluster(engine: EngineName, cluster: str | None) -> None:
    """Refuse an address that nothing connects to."""
    if cluster is not None and engine is not EngineName.RAY:
        raise typer.BadParameter("found it with another engine than ray", param_hint="--cluster")


Groups = Annotated[GroupsIn | None, typer.Option(help="Folders below the class folders are persons.")]
OfStacks = Annotated[Pages | None, typer.Option("--pages", help="Which pages of a stack are images.")]
OfArrays = Annotated[Channels | None, typer.Option("--channels", help="Where an array's channels stand.")]


def as_source(text: str) -> str:
    """A source of images as it is written on the command line, where a path needs no slash."""
    from codream_clients.data.datasets import DatasetError
    from codream_clients.data.sources import kind_of

    try:
        kind_of(text)
    except DatasetError:
        return f"./{text}" if Path(text).exists() else text
    return text


def fail(text: str, code: int) -> NoReturn:
    """End with this exit code and one line on standard error."""
    say_failure(text)
    sys.exit(code)


def say_failure(text: str) -> None:
    """One line, or a few, on standard error."""
    say(console(stderr=True), f"secure-codream: {text}", style="red")


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Where commands write; a stranger's `:skull:` stays as it is, and no table is cut where there is no terminal."""
    made = Console(stderr=stderr, **{"highlight": False, "emoji": False, **options})
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH_OF_FILES
    return made


def say(where: Console, text: str, style: str | None = None) -> None:
    """Lines whose words may be a stranger's: they are text, and nothing in them moves a cursor or picks a colour."""
    shown = "\n".join(visible(line, most=None) for line in text.split("\n"))
    where.print(shown, markup=False, highlight=False, style=style, soft_wrap=True)


def say_json(content: Any) -> None:
    """What `--json` prints: one value on standard output, where nothing else goes.

    It is strict JSON of ASCII characters: a number that is none is null, and a stranger's word moves no cursor.

    Args:
        content: dataclasses, structs, and what JSON has.
    """
    typer.echo(json_text(content))


def json_text(content: Any) -> str:
    """See `say_json`."""
    return json.dumps(msgspec.json.decode(msgspec.json.encode(content)), indent=2)


def usual_jobs(device: str = "cpu") -> int:
    """How many processes work at a time unless it is given: one for each core that this one may use.

    On an accelerator, one.
    """
    if device != "cpu":
        return 1
    return usable_cores()


def listed(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",")]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in values.items() if value is not None}
