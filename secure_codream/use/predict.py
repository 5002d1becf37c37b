"""What a model says of images nobody has labelled: one line of a CSV for each of them, in the order that they come.

    input       what was read; control characters are escaped, so that one input is one line
    predicted   the class of the largest probability: its name where the model knows names, else its number
    p_CLASS     for each class, its probability
    problem     why there is no prediction; empty where there is one

A cell that a spreadsheet would run as a formula, since it begins with = + - or @, gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from codream_clients.words import visible
from secure_codream.reports.files import written_whole
from secure_codream.use.inputs import Form, Input, read_inputs
from secure_codream.use.model import OpenedModel, UseError

_FORMULA = ("=", "+", "-", "@")
MOST_NAMED = 10
"""Inputs without a prediction that are kept to be named on a screen; the file names all."""


@dataclass
class Predicted:
    """How many inputs there were, how many of them got no prediction, and of those the first few, with the reason."""

    inputs: int = 0
    without: int = 0
    named: list[str] = field(default_factory=list)


def predict(model: OpenedModel, paths: Sequence[Path], out: Path, *, force: bool = False) -> Predicted:
    """Write what the model says of every input under `paths` to `out`, whole or not at all.

    Args:
        model: the model.
        paths: pictures, folders and `.npz` files, see `inputs`.
        out: the CSV to write.
        force: whether a file that is there is replaced.

    Raises:
        UseError: there is no input, or images cannot be standardised; as `check_out` does.
        InputsError: there is nothing at one of the paths.
    """
    check_out(out, [model.path, *paths], force=force)
    _ = model.scale_of_pixels  # told before anything is read
    counted = Predicted()
    form = Form(model.description.shape, model.description.resized)
    with written_whole(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        lines = csv.writer(text, lineterminator="\n")
        names = model.description.names
        lines.writerow(["input", "predicted", *(f"p_{visible(name, most=None)}" for name in names), "problem"])
        for batch in _batches(read_inputs(paths, form), model.batch):
            lines.writerows(_lines(model, batch, counted))
        if not counted.inputs:
            raise UseError(f"{', '.join(map(str, paths))}: found no input; at least one file is needed")
        text.detach()
    return counted


def check_out(out: Path, others: Iterable[Path], *, force: bool, option: str = "--out") -> None:
    """See that a file may be written to `out`: nothing finished is lost, and no input is made on the way.

    Raises:
        UseError: it exists and nobody said `force`, it is one of the `others`, or it lies in one that is a folder.
    """
    for other in others:
        if out.resolve() == other.resolve() or (other.is_dir() and out.resolve().is_relative_to(other.resolve())):
            raise UseError(f"found {option} {out}, which is or lies in {other}; a place outside what is read is needed")
    if out.is_dir() or (out.exists() and not force):
        raise UseError(f"{out}: found one that exists; another name, or --force to replace a file, is needed")


def _batches(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    iterator = iter(inputs)
    while batch := list(islice(iterator, size)):
        yield batch


def _lines(model: OpenedModel, batch: list[Input], counted: Predicted) -> Iterator[list[str]]:
    readable = [one.pixels for one in batch if one.pixels is not None]
    rows = iter(model.probabilities_of_pixels(np.stack(readable)) if readable else ())
    names = model.description.names
    for one in batch:
        problem, row = one.problem, next(rows) if one.pixels is not None else None
        if row is not None and not np.isfinite(row).all():
            problem, row = "the model's answer is not finite", None
        counted.inputs += 1
        if row is None:
            counted.without += 1
            if len(counted.named) < MOST_NAMED:
                counted.named.append(f"{one.name}: {problem}")
            yield [_cell(one.name), "", *("" for _ in names), _cell(problem)]
        else:
            yield [_cell(one.name), _cell(names[int(row.argmax())]), *(f"{share:.6g}" for share in row), ""]


def _cell(text: str) -> str:
    shown = visible(text, most=None)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
