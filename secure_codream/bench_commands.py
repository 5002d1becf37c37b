"""The command that measures what the sum costs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from secure_codream.command_parts import Json, LossesName, console, json_text, listed, say, say_json
from secure_codream.extras import require

if TYPE_CHECKING:
    from secure_codream.reports.spans import Shares


class Rival(StrEnum):
    """What to compare with."""

    FLOWER = "flower"


def bench(
    members: Annotated[str, typer.Option(help="Clients; several with commas between.")] = "20",
    dimension: Annotated[str, typer.Option(help="Coordinates of a vector; several with commas between.")] = "1000000",
    bits: Annotated[str, typer.Option(help="Bits of a ring element; several with commas between.")] = "16,21",
    dropped: Annotated[str, typer.Option(help="Clients that fall silent in each step; commas between.")] = "0",
    modes: Annotated[str, typer.Option(help="lockstep, resilient; commas between.")] = "lockstep,resilient",
    losses: Annotated[LossesName, typer.Option(help="In resilient mode: sums over any, or over whole blocks.")] = (
        LossesName.ALLOW
    ),
    steps: Annotated[int, typer.Option(min=1, max=100, help="Steps of an epoch.")] = 10,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="MEMBERS:DIMENSION:BITS:DROPPED", help="One more, in resilient mode; repeat."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="A run's folder whose parties kept spans; repeat."),
    ] = None,
    against: Annotated[Rival | None, typer.Option(help="Measure this too; flower needs the extra \\[flower].")] = None,
    plot: Annotated[bool, typer.Option(help="Draw a picture, which needs matplotlib.")] = True,
    out: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    write_document: Annotated[Path | None, typer.Option(help="Write this page anew, such as docs/performance.md.")] = (
        None
    ),
    json: Json = False,
) -> None:
    """Measure what the sum costs on this machine, beside the machine's limit: client, server, set-up and bytes."""
    from rich.progress import Progress

    from secure_codream.bench.results import WORDS, page, table
    from secure_codream.bench.run import cases_of, run_bench
    from secure_codream.reports.files import write_whole
    from secure_codream.reports.run_folder import RunFolder

    if against is not None:
        require("flwr")
    if plot:
        require("matplotlib")
    cases = cases_of(
        modes=_modes(modes),
        clients=_numbers(members, "--members"),
        lengths=_numbers(dimension, "--dimension"),
        bits=_numbers(bits, "--bits"),
        drops=_numbers(dropped, "--dropped"),
        losses=losses.value,
        steps=steps,
    )
    for text in case or []:
        n, d, m, drops = _four(text)
        cases += cases_of(
            modes=["resilient"], clients=[n], lengths=[d], bits=[m], drops=[drops], losses=losses.value, steps=steps
        )
    shares = tuple(_shares(path) for path in run or [])
    folder = RunFolder.create(out, "bench", datetime.now()).path
    screen = console(stderr=json)
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task("Measuring", total=len(cases))
        found = run_bench(cases, "flower" if against is Rival.FLOWER else None, lambda case: progress.advance(task))
    found = replace(found, shares=shares)
    write_whole(folder / "bench.json", f"{json_text(found)}\n".encode())
    if plot:
        from secure_codream.bench.plot import draw

        draw(found, folder / "bench.svg")
    if write_document is not None:
        flags = f"--members {members} --dimension {dimension} --bits {bits} --dropped {dropped} --modes {modes}"
        flags += f" --losses {losses.value} --steps {steps}"
        flags += "".join(f" --case {text}" for text in case or [])
        write_whole(write_document, page(found, flags + ("" if against is None else " --against flower")).encode())
    if json:
        say_json(found)
        return
    screen.print(table(found.rows))
    for wall in found.walls:
        times = f"{wall.one:.3g} ms on one thread and {wall.two:.3g} on two"
        say(screen, f"By the clock on the wall, {WORDS[wall.what]}, {wall.mode}, m = {wall.m}: {times}")
    for one in shares:
        say(screen, f"{one.name}: the sum took {one.share:.4f} of {one.processor:.1f} s of processor time")
    say(screen, f"The folder: {folder}")


def _shares(path: Path) -> Shares:
    from secure_codream.reports.run_folder import RunFolder
    from secure_codream.reports.spans import shares_of, spans_of

    spans = spans_of(RunFolder(path))
    if not spans:
        raise typer.BadParameter(
            f"found no spans of all parties in {path}; run server and clients with --spans", param_hint="--run"
        )
    return shares_of(path.name, spans)


def _numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in listed(text)]
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; whole numbers with commas between", param_hint=flag) from None


def _four(text: str) -> tuple[int, int, int, int]:
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"found {text!r}; MEMBERS:DIMENSION:BITS:DROPPED, four whole numbers, is allowed", param_hint="--case"
        )
    n, d, m, dropped = map(int, parts)
    return n, d, m, dropped


def _modes(text: str) -> list[Literal["lockstep", "resilient"]]:
    found: list[Literal["lockstep", "resilient"]] = []
    for part in listed(text):
        if part not in ("lockstep", "resilient"):
            raise typer.BadParameter(f"found {part!r}; lockstep and resilient are allowed", param_hint="--modes")
        found.append("lockstep" if part == "lockstep" else "resilient")
    return found
