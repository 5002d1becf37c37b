"""The report of a comparison: one self-contained HTML page, in the looks of a run's report.

This module turns results into facts and figures; the words are in `templates/compare.html.j2`. Plots come as inline
SVG from `plots`; without matplotlib the page has tables alone, and says so. No script, nothing loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from numpy.typing import NDArray

from secure_codream.experiments.cell import CellRecord
from secure_codream.experiments.grid import Grid
from secure_codream.experiments.plots import (
    Plot,
    Style,
    XAxis,
    accuracy_plot,
    communication_plot,
    epsilon_plot,
    styles_of,
)
from secure_codream.experiments.registry import ALONE, CENTRAL
from secure_codream.experiments.results import Line, Results, clearly_best, curve_of, grouped, in_words, share_in_words
from secure_codream.experiments.sweep import SweepTable, is_reference, name_of, split_name
from secure_codream.reports.files import write_whole
from secure_codream.reports.pages import page_environment
from secure_codream.reports.words import duration, percent, size

METHODS = {"isolated": "each client alone", "codream": "CoDream", "centralised": "all data in one place"}
AXES: tuple[XAxis, ...] = ("round", "bytes", "steps")


@dataclass(frozen=True)
class PartitionView:
    """One partition: its table, its plots, who holds what."""

    name: str
    lines: list[Line]
    best: str | None
    plots: list[Plot]
    holdings: list[list[tuple[int, float]]]


def draw(grid: Grid, records: Sequence[CellRecord], results: Results) -> dict[str, list[Plot]]:
    """All plots: partition -> its own, and under "" that of the communication."""
    styles = _styles(grid, results)
    if grid.config.sweep is not None:
        return {
            partition: [plot for plot in (epsilon_plot(partition, _of(results, partition), styles),) if plot]
            for partition in dict.fromkeys(line.partition for line in results.lines)
        }
    groups = grouped([record for record in records if record.measure == "learning"])
    plots: dict[str, list[Plot]] = {}
    for partition in dict.fromkeys(partition for partition, _ in groups):
        curves = {name: curve_of(group) for (where, name), group in groups.items() if where == partition}
        drawn = (accuracy_plot(partition, axis, curves, styles) for axis in AXES)
        plots[partition] = [plot for plot in drawn if plot is not None]
    communication = communication_plot(results.communication, styles)
    plots[""] = [communication] if communication else []
    return plots


def write_comparison_report(path: Path, grid: Grid, results: Results, plots: Mapping[str, list[Plot]] | None) -> Path:
    """Write `report.html`; `plots` is None where they were not wanted."""
    counts = grid.label_counts()
    partitions = []
    for name in dict.fromkeys(line.partition for line in results.lines):
        lines = _of(results, name)
        best = clearly_best(lines)
        partitions.append(
            PartitionView(
                name=name,
                lines=lines,
                best=best.algorithm if best else None,
                plots=(plots or {}).get(name, []),
                holdings=_shades(counts[name]) if name in counts else [],
            )
        )
    page = _environment().get_template("compare.html.j2")
    html = page.render(
        r=results,
        c=grid.config,
        headline=headline(results) if grid.config.sweep is None else sweep_headline(results, grid.config.sweep),
        partitions=partitions,
        communication=(plots or {}).get("", []),
        keys={name: _key(name, style) for name, style in _styles(grid, results).items()},
        is_reference=is_reference,
        legend=_legend(grid),
        with_plots=plots is not None,
        config=grid.to_toml(),
    )
    return write_whole(path, html.encode())


def headline(results: Results) -> str:
    """The result in words: on each partition, what came out best, and between which bounds."""
    sentences = []
    for partition in dict.fromkeys(line.partition for line in results.lines):
        lines = {line.algorithm: line for line in results.lines if line.partition == partition}
        best = _best(list(lines.values()))
        if best is None:
            continue
        words = f"{partition}: {best.algorithm} reaches {percent(best.accuracy.mean)} of unseen examples"
        if ALONE in lines and CENTRAL in lines:
            words += (
                f", between {percent(lines[ALONE].accuracy.mean)} alone and "
                f"{percent(lines[CENTRAL].accuracy.mean)} with all data in one place"
            )
        sentences.append(words + ".")
    return " ".join(sentences)


def sweep_headline(results: Results, sweep: SweepTable) -> str:
    """The result in words: on each partition, each method at each epsilon."""
    sentences = []
    for partition in dict.fromkeys(line.partition for line in results.lines):
        lines = {line.algorithm: line for line in _of(results, partition)}
        reached = [
            f"{METHODS[method]} " + ", ".join(percent(lines[name].accuracy.mean) for name in names)
            for method in sweep.methods
            if (names := [name for e in sweep.epsilons if (name := name_of(method, e)) in lines])
        ]
        sentences.append(f"{partition}: {'; '.join(reached)}.")
    budgets = ", ".join(f"{epsilon:g}" if epsilon != "none" else "none" for epsilon in sweep.epsilons)
    return f"Accuracy on unseen examples at epsilon {budgets}. {' '.join(sentences)}"


def _of(results: Results, partition: str) -> list[Line]:
    return [line for line in results.lines if line.partition == partition]


def _legend(grid: Grid) -> list[str]:
    """What the plots of a partition show: algorithms, or a sweep's methods."""
    sweep = grid.config.sweep
    return list(sweep.methods) if sweep is not None else list(grid.config.compare.algorithms)


def _best(lines: Sequence[Line]) -> Line | None:
    return max(
        (line for line in lines if not is_reference(line.algorithm)),
        key=lambda line: line.accuracy.mean,
        default=None,
    )


def _styles(grid: Grid, results: Results) -> dict[str, Style]:
    names = [*grid.config.compare.algorithms, *(point.algorithm for point in results.communication)]
    if grid.config.sweep is None:
        return styles_of(list(dict.fromkeys(names)))
    of_methods = styles_of(grid.config.sweep.methods)
    return {**of_methods, **{name: of_methods[split_name(name)[0]] for name in names}}


def _key(name: str, style: Style) -> str:
    """The classes of the algorithm's key in legends and tables."""
    colour = f"c{style.number}" if style.number is not None else "mean" if split_name(name)[0] == CENTRAL else "grey"
    return colour if style.dash == "-" else f"{colour} dashed"


def _shades(counts: NDArray[np.int64]) -> list[list[tuple[int, float]]]:
    most = max(1, int(counts.max()))
    return [[(int(count), float(count) / most) for count in row] for row in counts]


def _environment() -> Environment:
    return page_environment(
        percent=percent,
        size=size,
        duration=duration,
        estimate=in_words,
        share=share_in_words,
        # matplotlib escapes what it draws, and no text but numbers and our own labels is drawn.
        svg=lambda plot: Markup(plot.for_page()),  # noqa: S704
    )
