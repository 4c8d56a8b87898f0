"""Pictures of a table as SVG that takes the page's colours: training curves with seed bands, accuracy against cost."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.bench.table import Block

COLOURS = ("#3b82d0", "#e0782f", "#2e9e5b", "#d64550", "#8f6bd1", "#a3714f", "#d163b0", "#7a8a99", "#a5a520", "#1fa5b5")
INK = "#010203"  # stands for the page's own colour of text
SIZE = (6.4, 4.2)
FONT, LONGEST = 8, 24  # of a point's name: points, and letters


def colour(i: int) -> str:
    """Of the i-th line."""
    return COLOURS[i % len(COLOURS)]


def curves(block: Block, name: str) -> str:
    """Top-1 by epoch: mean over seeds, and one standard deviation around it.

    Args:
        block: the table.
        name: begins the names of the picture's parts, which a page has once.
    """
    from matplotlib.ticker import MaxNLocator

    axes, figure = _axes("epoch", "top-1 %")
    for i, line in enumerate(block.lines):
        epochs, mean, deviation = band(line.curves)
        if len(epochs):
            style = "-" if i < len(COLOURS) else "--"
            axes.plot(epochs, mean, style, color=colour(i), gid=f"line-{i}", linewidth=1.6)
            if deviation is not None:
                low, high = np.maximum(mean - deviation, 0), np.minimum(mean + deviation, 100)
                axes.fill_between(
                    epochs,
                    low,
                    high,
                    color=colour(i),
                    alpha=0.18 if len(block.lines) <= 8 else 0.07,
                    linewidth=0,
                    gid=f"line-{i}",
                )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return _svg(figure, name)


def cost(block: Block, name: str) -> str:
    """Top-1 after the last epoch against the minutes of a run; likewise."""
    axes, figure = _axes("minutes of a run", "top-1 % after the last epoch")
    known = [line.minutes for line in block.lines if line.minutes]
    if known and max(known) > 10 * min(known):
        axes.set_xscale("log")
    for i, line in enumerate(block.lines):
        if line.minutes:
            mean, deviation = (100 * value for value in line.last)
            words: dict[str, Any] = {"color": colour(i), "gid": f"line-{i}"}
            if not math.isnan(deviation):
                axes.plot([line.minutes] * 2, [mean - deviation, mean + deviation], linewidth=1.2, **words)
            axes.plot([line.minutes], [mean], "o" if i < len(COLOURS) else "s", markersize=5, **words)
    _name(axes, block)
    return _svg(figure, name)


def _name(axes: Any, block: Block) -> None:
    """Names beside the points: each at the first place around its own where no other stands."""
    axes.autoscale_view()
    axes.figure.get_layout_engine().execute(axes.figure)  # now it is known where points lie
    taken: list[tuple[float, ...]] = []
    for i, line in enumerate(block.lines):
        if line.minutes:
            text = line.method if len(line.method) <= LONGEST else f"{line.method[: LONGEST - 1]}…"
            at = (line.minutes, 100 * line.last[0])
            x, y = axes.transData.transform(at) * 72 / axes.figure.dpi
            wide = 0.6 * FONT * len(text)
            places = [(dx, dy) for dy in (4, -10, 13, -19, 22, -28, 31, -37) for dx in (5, -5 - wide)]
            boxes = [(x + dx, y + dy, x + dx + wide, y + dy + FONT) for dx, dy in places]
            inside = [j for j, box in enumerate(boxes) if box[0] > 0 and box[2] < 72 * SIZE[0]] or [0]
            j = next((j for j in inside if not any(_meet(boxes[j], other) for other in taken)), inside[0])
            taken.append(boxes[j])
            words: dict[str, Any] = {"color": colour(i), "gid": f"line-{i}", "fontsize": FONT, "parse_math": False}
            axes.annotate(text, at, places[j], textcoords="offset points", **words).set_in_layout(False)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def band(runs: Sequence[Sequence[Sequence[float]]]) -> tuple[list[int], Any, Any]:
    """Epochs that all runs validated, with mean and standard deviation of top-1 in percent; `None` for one run."""
    found = [{int(epoch): 100 * top1 for epoch, top1 in run} for run in runs]
    epochs = sorted(set.intersection(*(set(run) for run in found))) if found else []
    values = np.array([[run[epoch] for epoch in epochs] for run in found])
    return epochs, values.mean(axis=0) if epochs else values, values.std(axis=0, ddof=1) if len(found) > 1 else None


def _axes(across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK, labelpad=8)  # a browser's letters are wider
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    return axes, figure


def _svg(figure: Any, name: str) -> str:
    """Its names begin with `name`; lines are classes, which a page can hide."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdkit"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r'id="line-(\d+)"', r'class="line-\1"', svg)
    svg = re.sub(r'\bid="|url\(#|href="#', lambda found: f"{found[0]}{name}-", svg)
    return svg.replace(INK, "currentColor")
