"""The picture of a run's metrics: every loss term, and every node's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def draw_curves(rows: Mapping[int, Mapping[str, float]], path: Path, title: str) -> None:
    """Save a PNG with the mean of each loss term (log scale) and top-1 by epoch.

    Args:
        rows: metrics by epoch, as `MetricRows` keeps them.
        path: the PNG.
        title: what stands above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    columns = sorted({key for row in rows.values() for key in row})
    for axes, prefix, suffix, factor in ((left, "loss/", "", 1.0), (right, "val/", "/top1", 100.0)):
        for column in columns:
            if column.startswith(prefix) and column.endswith(suffix):
                points = [(epoch + 1, row[column] * factor) for epoch, row in sorted(rows.items()) if column in row]
                label = column.removeprefix(prefix).removesuffix(suffix)
                if len(points) == 1 and suffix:
                    axes.axhline(points[0][1], linestyle="--", color="0.5", label=label)
                else:
                    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=label)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    left.set_title("loss terms, unweighted")
    if all(line.get_ydata().min() > 0 for line in left.lines):
        left.set_yscale("log")
    right.set_title("top-1 (%)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
