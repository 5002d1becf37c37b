"""The commands that use what a federation made: predict, evaluate, export.

MODEL is a `model.safetensors`, or a client's folder. Nothing that is there is overwritten without `--force`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codream_clients.words import visible
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
    listed,
    say,
    say_json,
)
from secure_codream.reports.words import counted

if TYPE_CHECKING:
    from secure_codream.use.model import OpenedModel


class Part(StrEnum):
    """Of a source of labelled images."""

    TEST = "test"
    TRAIN = "train"
    ALL = "all"


Model = Annotated[Path, typer.Argument(metavar="MODEL", exists=True, help="A model.safetensors, or a client's folder.")]
Builder = Annotated[
    str | None,
    typer.Option("--model", help="module:function that builds a model which is not of the zoo; RUNS THAT CODE."),
]
Mean = Annotated[str | None, typer.Option(help="Of pixels divided by 255, where the model's file knows none; commas.")]
Std = Annotated[str | None, typer.Option(help="Their deviation, in the same form.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures, folders of them, .npz files; repeat.")],
    out: Annotated[Path, typer.Option(help="The CSV to write: a line for each input.")],
    builder: Builder = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Say of each image what it is: class and probabilities, a line each; what cannot be read is named with the reason.

    Exit code 1 if nothing can be read.
    """
    from secure_codream.use.predict import predict as write

    opened = _opened(model, builder, mean, std, device)
    found = write(opened, images, out, force=force)
    screen = console(stderr=True)
    for line in found.named:
        say(screen, f"not read: {line}", style="yellow")
    if found.without > len(found.named):
        say(screen, f"and {found.without - len(found.named)} more, in {out}")
    if found.without == found.inputs:
        fail(f"none of {counted(found.inputs, 'input')} could be read; {out} says why", 1)
    if json:
        say_json({"file": str(out), "inputs": found.inputs, "read": found.inputs - found.without})
        return
    console().print(f"{found.inputs - found.without} of {counted(found.inputs, 'input')}: {out}", soft_wrap=True)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="digits, mnist, ..., a path to a folder or .npz, or module:function.")],
    part: Annotated[Part | None, typer.Option(help="The test part, unless given; all of what has none.")] = None,
    root: Root = None,
    groups: Groups = None,
    pages: OfStacks = None,
    channels: OfArrays = None,
    class_names: Annotated[
        str | None, typer.Option(help="What the model's numbers mean, in order, where its file has no names; commas.")
    ] = None,
    builder: Builder = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what splits a source in one piece, and of resampling.")] = 0,
    resamples: Annotated[int, typer.Option(min=200, max=100_000, help="Samples of each resampled interval.")] = 1000,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure a model on labelled images: accuracy, balanced accuracy, AUC, each class, calibration, with intervals."""
    from codream_clients.data.understanding import lines
    from secure_codream.use.evaluate import evaluate as measure
    from secure_codream.use.labelled import labelled_images
    from secure_codream.use.table import tables

    opened = _opened(model, builder, mean, std, device)
    read = labelled_images(
        opened,
        as_source(data),
        part=None if part is None else part.value,
        root=root,
        seed=seed,
        groups="folder" if groups is not None else None,
        pages=None if pages is None else pages.value,
        channels=None if channels is None else channels.value,
        class_names=None if class_names is None else tuple(listed(class_names)),
    )
    found = measure(opened, read.images, resamples=resamples, seed=seed, names=read.names)
    if json:
        described = {
            "model": str(opened.path),
            "description": opened.description,
            "data": data,
            "part": read.part,
            "understood": read.understanding.as_json(),
        }
        say_json({**described, "figures": found})
        return
    screen = console()
    say(screen, f"{opened.path}: {_what(opened)}")
    for line in lines(read.understanding):
        say(screen, line)
    of_it = "all of it" if read.part == "all" else f"its {read.part} part"
    say(screen, f"{data}, {of_it}: {counted(len(read.images), 'image')}")
    for table in tables(found):
        screen.print(table)


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="A file ending in .pt2 (torch.export) or .onnx.")],
    builder: Builder = None,
    mean: Mean = None,
    std: Std = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a model for other programs: it takes pixels from 0 to 255, standardises them, and gives probabilities."""
    from secure_codream.use.export import export as write

    opened = _opened(model, builder, mean, std, "cpu")
    write(opened, out, force=force)
    if json:
        say_json({"file": str(out), "shape": opened.description.shape, "standardises": opened.scale is not None})
        return
    takes = "images standardised as in training" if opened.scale is None else "pixels from 0 to 255"
    shape = ", ".join(map(str, opened.description.shape))
    console().print(f"{out}: {takes}, (N, {shape}), to logits and probabilities", soft_wrap=True)


def _opened(model: Path, builder: str | None, mean: str | None, std: str | None, device: str) -> OpenedModel:
    from codream_clients.data.pixels import Scale
    from secure_codream.use.model import open_model

    if (mean is None) != (std is None):
        raise typer.BadParameter("found one of --mean and --std; both or neither are needed", param_hint="--mean")
    scale = None if mean is None or std is None else Scale(_numbers(mean, "--mean"), _numbers(std, "--std"))
    return open_model(model, builder=builder, scale=scale, device=device)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, listed(text)))
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; numbers with commas between are needed", param_hint=option) from None


def _what(opened: OpenedModel) -> str:
    about = opened.description
    model = about.model or "a model of a script"
    return visible(
        f"{model} of {about.client}, federation {about.federation}, after {counted(about.learnt, 'epoch')}", most=None
    )
