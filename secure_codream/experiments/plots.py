"""Plots with matplotlib, as SVG: accuracy by round, by bytes, by secure step and by epsilon; bytes by model size.

Each algorithm keeps its colour in all plots; bands are 95 % intervals over seeds. References (alone, all data in one
place) send nothing, so on an axis of bytes or of secure steps they are dashed levels. Those axes are logarithmic and
begin with the first round, since there is no place for 0 on them.

In a page, colours are the page's own (`report.css`), so that the plots follow its light and dark looks: matplotlib
draws with stand-ins, and `for_page` puts CSS variables in their place. Files for a paper keep the light colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.registry import ALONE, CENTRAL
from secure_codream.experiments.results import Communication, CurvePoint, Line
from secure_codream.experiments.sweep import split_name

XAxis = Literal["round", "bytes", "steps"]
TITLES: Mapping[XAxis, str] = {
    "round": "Accuracy by round",
    "bytes": "Accuracy by bytes sent",
    "steps": "Accuracy by secure step",
}
X_LABELS: Mapping[XAxis, str] = {
    "round": "round",
    "bytes": "bytes sent by a client so far",
    "steps": "secure steps so far",
}

# The colours of report.css in its light look -> the variables that they stand for.
COLOURS = ("#2f6fc4", "#c9701b", "#2a8f5f", "#a5479f", "#b08a12", "#3f9bb0", "#c04a55", "#6b6f7a")
INK, SOFT, RULE = "#1d2430", "#5d6675", "#dedbd3"
VARIABLES = {
    **{colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)},
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    RULE: "var(--rule)",
}
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
SIZE = (4.1, 3.2)  # inches, of 72 units each


@dataclass(frozen=True)
class Style:
    """How an algorithm is drawn: `number` is its colour in the page's palette, None the references' grey."""

    colour: str
    number: int | None
    dash: Any


@dataclass(frozen=True)
class Plot:
    """A finished plot."""

    name: str
    title: str
    svg: str

    def for_page(self) -> str:
        """The `<svg>` element, in the page's colours and fonts."""
        svg = self.svg[self.svg.index("<svg") :]
        for colour, variable in VARIABLES.items():
            svg = svg.replace(colour, variable)
        # What follows would reach beyond the plot: a global style, identifiers of groups, fixed sizes.
        svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
        svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
        svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1; font-family: inherit", svg)
        return svg.replace("<svg", '<svg class="figure" style="stroke-linejoin: round; stroke-linecap: butt"', 1)


class MissingMatplotlib(ConfigError):
    """Plots need a package that is not there."""

    def __init__(self) -> None:
        super().__init__(
            "plots: found no matplotlib; install it with `pip install 'secure-codream[experiments]'`, "
            "or give --no-plots"
        )


def require_matplotlib() -> Any:
    """Import matplotlib, without any display.

    Raises:
        MissingMatplotlib: it is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise MissingMatplotlib from error
    return matplotlib


def styles_of(algorithms: Sequence[str]) -> dict[str, Style]:
    """A colour and a dash for each algorithm, the same in every plot."""
    styles, number = {}, 0
    for name in algorithms:
        if name in (ALONE, CENTRAL):
            styles[name] = Style(SOFT if name == ALONE else INK, None, (0, (4, 3)))
            continue
        index = number % len(COLOURS)
        styles[name] = Style(COLOURS[index], index, DASHES[(number // len(COLOURS)) % len(DASHES)])
        number += 1
    return styles


def accuracy_plot(
    partition: str, axis: XAxis, curves: Mapping[str, Sequence[CurvePoint]], styles: Mapping[str, Style]
) -> Plot | None:
    """Accuracy of the clients on one partition; None if no algorithm has anything to show on that axis."""
    drawn = {name: [(_x(point, axis), point) for point in curve] for name, curve in curves.items()}
    if axis != "round":
        drawn = {name: [(x, point) for x, point in points if x > 0] for name, points in drawn.items()}
        if not any(drawn.values()):
            return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"accuracy-by-{axis}-{partition}")
    figure, axes = _frame(name)
    for algorithm, points in drawn.items():
        style = styles[algorithm]
        if not points:
            if algorithm in (ALONE, CENTRAL):
                level = 100 * curves[algorithm][-1].accuracy.mean
                axes.axhline(level, color=style.colour, linestyle=style.dash, linewidth=1.2, zorder=1)
            continue
        xs = [x for x, _ in points]
        means = [100 * point.accuracy.mean for _, point in points]
        halves = [100 * (point.accuracy.half or 0.0) for _, point in points]
        lows = [mean - half for mean, half in zip(means, halves, strict=True)]
        highs = [mean + half for mean, half in zip(means, halves, strict=True)]
        few = len(xs) <= 25
        if any(halves) and len(xs) > 1:
            axes.fill_between(
                xs, lows, highs, color=style.colour, alpha=0.13 if style.number is not None else 0.06, linewidth=0
            )
        elif any(halves):
            axes.errorbar(xs, means, yerr=halves, color=style.colour, alpha=0.4, capsize=3, linewidth=1.2)
        axes.plot(
            xs, means, color=style.colour, linestyle=style.dash, linewidth=1.8, marker="o" if few else "", markersize=4
        )
    if axis == "round":
        axes.xaxis.set_major_locator(require_matplotlib().ticker.MaxNLocator(integer=True, nbins=8))
    else:
        _logarithmic(axes.xaxis, [x for points in drawn.values() for x, _ in points], _bytes if axis == "bytes" else _g)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2.0), min(high, 102.0))
    axes.set_xlabel(X_LABELS[axis])
    return _finish(figure, name, TITLES[axis])


def epsilon_plot(partition: str, lines: Sequence[Line], styles: Mapping[str, Style]) -> Plot | None:
    """Accuracy of each method against epsilon, with intervals; without privacy it is a dotted level. None if empty."""
    found: dict[str, list[tuple[float, Line]]] = {}
    levels: dict[str, Line] = {}
    for line in lines:
        method, epsilon = split_name(line.algorithm)
        if epsilon is None:
            levels[method] = line
        else:
            found.setdefault(method, []).append((epsilon, line))
    epsilons = sorted({epsilon for points in found.values() for epsilon, _ in points})
    if not epsilons:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"accuracy-by-epsilon-{partition}")
    figure, axes = _frame(name, (SIZE[0] * 1.5, SIZE[1] * 1.1))
    for method, points in found.items():
        style = styles[method]
        xs, values = [epsilon for epsilon, _ in points], [line.accuracy for _, line in points]
        means = [100 * value.mean for value in values]
        halves = [100 * (value.half or 0.0) for value in values]
        if any(halves):
            axes.errorbar(xs, means, yerr=halves, color=style.colour, linestyle="", capsize=3, elinewidth=1.2)
        axes.plot(xs, means, color=style.colour, linestyle=style.dash, linewidth=1.8, marker="o", markersize=4.5)
    for method, line in levels.items():
        level = 100 * line.accuracy.mean
        axes.axhline(level, color=styles[method].colour, linestyle=DASHES[2], linewidth=1.4, zorder=1)
    _logarithmic(axes.xaxis, epsilons, _g)
    axes.xaxis.set_major_locator(require_matplotlib().ticker.FixedLocator(epsilons))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("epsilon of each client")
    return _finish(figure, name, "Accuracy by epsilon")


def communication_plot(points: Sequence[Communication], styles: Mapping[str, Style]) -> Plot | None:
    """Bytes of one client in one round against its model's parameters, both logarithmic; None for one size of model."""
    if len({point.parameters for point in points}) < 2:
        return None
    name = "communication"
    figure, axes = _frame(name, (SIZE[0] * 1.5, SIZE[1] * 1.1))
    for algorithm in dict.fromkeys(point.algorithm for point in points):
        own = [point for point in points if point.algorithm == algorithm]
        style = styles[algorithm]
        xs, ys = [point.parameters for point in own], [point.bytes_up for point in own]
        axes.plot(xs, ys, color=style.colour, linestyle=style.dash, linewidth=1.8, marker="o", markersize=4.5)
    _logarithmic(axes.xaxis, [point.parameters for point in points], _count)
    _logarithmic(axes.yaxis, [point.bytes_up for point in points], _bytes)
    axes.set_xlabel("parameters of a client's model")
    return _finish(figure, name, "Bytes sent by a client in a round")


def _x(point: CurvePoint, axis: XAxis) -> float:
    return {"round": float(point.round), "bytes": point.bytes_up, "steps": point.secure_steps}[axis]


def _frame(name: str, size: tuple[float, float] = SIZE) -> tuple[Any, Any]:
    matplotlib = require_matplotlib()
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=SOFT, labelsize=10, length=3)
    axes.tick_params(axis="y", which="both", length=0)
    axes.xaxis.label.set_color(SOFT)
    axes.xaxis.label.set_size(10)
    return figure, axes


def _logarithmic(axis: Any, values: Sequence[float], words: Any) -> None:
    """A logarithmic axis with a few round numbers, however little of it is used."""
    ticker = require_matplotlib().ticker
    across = axis.axis_name == "x"
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log")
    low, high = min(values), max(values)
    spread = (high / low) ** 0.06 if high > low * 1.01 else 1.6
    limits = (low / max(spread, 1.08), high * max(spread, 1.08))
    (axis.axes.set_xlim if across else axis.axes.set_ylim)(*limits)
    decades = limits[1] / limits[0]
    steps = (1.0,) if decades > 2e3 else (1.0, 3.0) if decades > 30 else (1.0, 2.0, 5.0) if decades > 4 else None
    if steps is None:
        axis.set_major_locator(ticker.MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: words(value))


def _bytes(value: float) -> str:
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"), " ")


def _count(value: float) -> str:
    return _scaled(value, ("", "k", "M", "G"), "")


def _g(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _scaled(value: float, units: Sequence[str], space: str) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g}{space}{unit}"
        value /= 1000
    return f"{value:.3g}{space}{units[-1]}"


def _finish(figure: Any, name: str, title: str) -> Plot:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(name, title, out.getvalue())
