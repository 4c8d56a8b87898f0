"""The picture of what modules tell of themselves, one after the other: how beliefs sharpen with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdkit.storage import whole

Rows = Mapping[int, Mapping[str, float]]
UNITS = {
    "accuracy": "share of images",
    "entropy": "nats, mean over images",
    "belief": "probability of the label",
    "improved": "share of images",
}
"""What the words of `sid` are measured in; a loss of one's own names its words so that they say it."""


def depth_of(key: str) -> int | None:
    """The depth that a column of metrics.csv is of, `monitor/<model>/<loss>/<word>/<depth>`; of others `None`."""
    parts = key.split("/")
    return int(parts[4]) if len(parts) == 5 and parts[0] == "monitor" and parts[4].isdigit() else None


def by_depth(rows: Rows) -> dict[str, dict[str, dict[int, list[float]]]]:
    """What has a depth, as `{"<model> <loss>": {word: {epoch: by depth}}}`."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for epoch, row in sorted(rows.items()):
        told = [(depth, key.split("/"), value) for key, value in row.items() if (depth := depth_of(key)) is not None]
        for _, (_, model, loss, word, _), value in sorted(told, key=lambda part: part[0]):
            found.setdefault(f"{model} {loss}", {}).setdefault(word, {}).setdefault(epoch, []).append(value)
    return found


def draw_depth(
    rows: Rows, path: Path, title: str, cuts: Mapping[str, Sequence[str]] | None = None, curves: int = 5
) -> None:
    """Save a PNG with a row for each model and a panel for each word, by depth, at the first, the last and some epochs.

    Nothing is drawn where no loss told anything by depth.

    Args:
        rows: metrics by epoch, as `MetricRows` keeps them.
        path: the PNG.
        title: what stands above it.
        cuts: by model, the layers at which it is cut into isolated stages of equally many modules: upright lines.
        curves: how many epochs are drawn.
    """
    told = by_depth(rows)
    if not told:
        return
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wide = max(len(words) for words in told.values())
    figure = Figure(figsize=(3.3 * wide, 3.2 * len(told) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(told), wide, squeeze=False)
    for line, (who, words) in zip(grid, told.items(), strict=True):
        for axes, (word, epochs) in zip(line, words.items(), strict=False):
            chosen = _some(list(epochs), curves)
            for i, epoch in enumerate(chosen):
                colour = colormaps["viridis"](0.9 * (1 - i / max(1, len(chosen) - 1)))
                depths = range(1, len(epochs[epoch]) + 1)
                axes.plot(depths, epochs[epoch], marker="o", markersize=3, color=colour, label=f"epoch {epoch}")
            axes.set(title=word, xlabel="module", ylabel=UNITS.get(word, ""))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)
            stages = (cuts or {}).get(who.partition(" ")[0], ())
            for i, layer in enumerate(stages, 1):
                end = i * len(epochs[chosen[-1]]) / (len(stages) + 1) + 0.5
                axes.axvline(end, linestyle=":", color="0.5", linewidth=1)
                place = axes.get_xaxis_transform()
                axes.text(end, 0.02, layer, transform=place, rotation=90, ha="right", fontsize=7, color="0.3")
        line[0].set_ylabel("\n".join(filter(None, (who, line[0].get_ylabel()))))
        line[0].legend(frameon=False, fontsize="small")
        for axes in line[len(words) :]:
            axes.set_axis_off()
    figure.suptitle(title)
    with whole(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _some(epochs: list[int], count: int) -> list[int]:
    """The first, the last, and what lies evenly between."""
    if len(epochs) <= count:
        return epochs
    return [epochs[round(i * (len(epochs) - 1) / (count - 1))] for i in range(count)]
