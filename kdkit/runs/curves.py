"""The picture of a run's metrics: every loss term, and every node's accuracy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.runs.events import Told, without_absent
from kdkit.runs.moments import Moment
from kdkit.storage import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIGH = 3.2  # inches, of the axes
LONGEST = 40  # letters of a name that stand beside each other in half of the picture


def draw_curves(
    rows: Mapping[int, Mapping[str, float]],
    path: Path,
    title: str,
    frozen: Collection[str] = (),
    events: Sequence[Told] = (),
    marks: Sequence[Moment] = (),
) -> None:
    """Save a PNG with the mean of each loss term (log scale) and top-1 by epoch.

    Args:
        rows: metrics by epoch, as `MetricRows` keeps them.
        path: the PNG.
        title: what stands above it.
        frozen: nodes that do not change, whose accuracy is a level and no curve.
        events: who came and went; who is not there has no curve.
        marks: upright lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = without_absent(rows, events)
    figure = Figure()
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    positive = all(not v <= 0 for row in rows.values() for key, v in row.items() if key.startswith("loss/"))
    left.set_title("loss terms, unweighted", y=1.0)
    left.set_yscale("log" if positive else "linear")
    right.set_title("top-1 (%)", y=1.0)
    lines = 0
    for axes, prefix, suffix, factor in ((left, "loss/", "", 1.0), (right, "val/", "/top1", 100.0)):
        for column in _columns(rows, prefix, suffix):
            epochs = sorted(at for at, row in rows.items() if column in row)
            values = [rows[at][column] * factor for at in epochs]
            label = column.removeprefix(prefix).removesuffix(suffix)
            if suffix and label in frozen:
                axes.axhline(values[0], linestyle="--", color="0.5", label=_short(label))
            else:
                axes.plot(epochs, values, marker="o" if len(epochs) < 40 else "", markersize=4, label=_short(label))
        axes.set(xlabel="epoch", xlim=(min(rows) - 0.5, max(rows) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        _mark(axes, marks)
        if labels := axes.get_legend_handles_labels()[1]:
            columns = min(4, max(1, 55 // (max(map(len, labels)) + 8)))
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.5 / HIGH), "borderaxespad": 0.0}
            axes.legend(**place, ncols=columns, frameon=False, fontsize="small")
            lines = max(lines, -(-len(labels) // columns))
    _lay_out(figure, title, lines)
    with whole(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _short(name: str) -> str:
    """Both ends of a long one: the path and the class of a loss of the user's own."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def _lay_out(figure: Figure, title: str, lines: int) -> None:
    """Places in inches, a line of the legend being 0.19 high; matplotlib would draw it once more to find them."""
    below, above, wide = 0.6 + 0.19 * lines, 0.75, 10
    tall = below + HIGH + above
    figure.set_size_inches(wide, tall)
    figure.subplots_adjust(
        left=0.75 / wide, right=1 - 0.15 / wide, bottom=below / tall, top=1 - above / tall, wspace=0.16
    )
    figure.suptitle(title, y=1 - 0.12 / tall)


def _mark(axes: Any, marks: Sequence[Moment]) -> None:
    """One upright line for each moment at which something happened, with what it was."""
    for epoch, told in marks:
        axes.axvline(epoch, linestyle=":", color="0.5", linewidth=1)
        place = axes.get_xaxis_transform()
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
        words = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": "0.3", "bbox": paper}
        axes.text(epoch, 0.98, _short(told), transform=place, **words)


def _columns(rows: Mapping[int, Mapping[str, float]], prefix: str, suffix: str) -> list[str]:
    found = {key for row in rows.values() for key in row}
    return sorted(key for key in found if key.startswith(prefix) and key.endswith(suffix))
