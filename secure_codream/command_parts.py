"""What the commands of several files share: options, how their text is read, and how a failure ends the program.

A failure is one line on standard error and an exit code; see `cli` for what the codes mean.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

Root = Annotated[Path | None, typer.Option(help="Where torchvision's files lie.")]
Out = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
Json = Annotated[bool, typer.Option("--json", help="Print summary.json and nothing else.")]


def fail(text: str, code: int) -> NoReturn:
    """End the program with a line on standard error and this exit code."""
    Console(stderr=True, highlight=False).print(f"secure-codream: {text}", markup=False, style="red", soft_wrap=True)
    sys.exit(code)


def listed(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",")]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in values.items() if value is not None}
