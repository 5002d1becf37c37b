"""A picture of a bench: for each figure in time, ours, Flower's and the limit as bars on one logarithmic axis."""

from __future__ import annotations

from pathlib import Path

from secure_codream.bench.results import WORDS, Bench


def draw(bench: Bench, path: Path) -> None:
    """Write an SVG. Needs matplotlib."""
    from matplotlib.figure import Figure

    rows = [row for row in bench.rows if row.unit == "ms"]
    figure = Figure(figsize=(8, 1 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    kinds = (("ours", "#2f6fc4"), ("flower", "#c9701b"), ("limit", "#6b6f7a"))
    for place, (kind, colour) in enumerate(kinds):
        found = [(number, getattr(row, kind)) for number, row in enumerate(rows) if getattr(row, kind) is not None]
        if found:
            places = [number + 0.26 * (place - 1) for number, _ in found]
            axes.barh(places, [figure for _, figure in found], 0.24, color=colour, label=kind.capitalize())
    labels = [f"{WORDS[row.what]}, {row.mode}\nn = {row.n}, d = {row.d:,}, m = {row.m}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of processor time")
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
