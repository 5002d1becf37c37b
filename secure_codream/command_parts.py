"""What the commands of several files share: options, how their text is read, and how a failure ends the program.

A failure is one line on standard error and an exit code; see `cli` for what the codes mean.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from codream_clients.words import visible

WIDTH_OF_FILES = 200  # columns

Root = Annotated[Path | None, typer.Option(help="Where torchvision's files lie.")]
Out = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
Json = Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else.")]


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


def listed(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",")]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in values.items() if value is not None}
