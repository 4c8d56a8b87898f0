"""What is drawn over the epochs: one chart for each kind of number that the run noted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kdkit.runs.depth import depth_of

Rows = Mapping[int, Mapping[str, float]]
Series = dict[str, list[float | None]]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: above it.
        caption: below it.
        unit: of its values, as text behind them.
        series: values by name, one for each epoch.
        log: whether a logarithmic axis suits it.
        levels: names of those that do not change: dashed.
        colours: of each series, as numbers: a model, and a loss, has one throughout.
    """

    title: str
    caption: str
    unit: str
    series: Series
    log: bool = False
    levels: tuple[str, ...] = field(default=())
    colours: tuple[int, ...] = field(default=())


class _Kind(NamedTuple):
    """Columns of metrics.csv that stand in one chart; what is between prefix and suffix is a series' name."""

    prefix: str
    suffix: str
    title: str
    caption: str

    def holds(self, column: str) -> bool:
        """Whether a column is of it."""
        return column.startswith(self.prefix) and column.endswith(self.suffix)

    def series(self, column: str) -> str:
        """The name of a column of it."""
        return column.removeprefix(self.prefix).removesuffix(self.suffix)


PROBED = "On the probe images, after every epoch"
KINDS = (
    _Kind("val/", "/top1", "Accuracy", "Top-1 on the validation images after every epoch; dashed: does not change."),
    _Kind("loss/", "", "Loss terms", "Mean of each term over an epoch, before its weight."),
    _Kind("val/", "/top5", "Top-5 accuracy", "Likewise, the right class among the first five."),
    _Kind("val/", "/nll", "Validation loss", "Mean negative log-likelihood of the validation images."),
    _Kind("lr/", "", "Learning rate", "At the beginning of each epoch."),
    _Kind(
        "weight/", "", "Weights of losses", "Those that are no plain numbers, as the last step of each epoch had them."
    ),
    _Kind("temperature/", "", "Temperatures", "Those that follow held-out samples."),
    _Kind("gradient/", "/mean", "Norms of gradients", "Mean over an epoch's steps, before clipping."),
    _Kind("gradient/", "/max", "Largest norms of gradients", "Of an epoch, before clipping."),
    _Kind("scale/", "", "Scale of the loss", "What fp16 multiplies it with, after every epoch."),
    _Kind("monitor/", "", "What losses tell of themselves", "On the validation images; by depth: see the figures."),
    _Kind("cohort/", "", "Presence", "0: away, 1: whole; between them a model comes or goes."),
    _Kind("health/nll/", "", "Loss of the cohort", f"{PROBED}: the loss by which health is judged."),
    _Kind("health/z/", "", "Losses that stick out", "Robust deviations of that loss above the others' median."),
    _Kind("health/rung/", "", "Treatment", "How far a model is up the ladder; 0 is well."),
    _Kind("health/kar/", "", "Accuracy gained", f"{PROBED}: points per epoch (KAR)."),
    _Kind("health/mci/", "", "Divergence", f"{PROBED}: mean KL(first ‖ second) (MCI)."),
    _Kind("health/js/", "", "Distance", f"{PROBED}: Jensen-Shannon divergence, at most ln 2."),
    _Kind("health/disagreement/", "", "Disagreement", f"{PROBED}: share of them that both put into different classes."),
)
LINEAR = ("lr/", "cohort/")


def charts(rows: Rows, frozen: Collection[str], models: Sequence[str], losses: Sequence[str]) -> list[Chart]:
    """The charts of a run, in the order in which one wants to see them.

    Args:
        rows: metrics by epoch, as `metrics.csv` has them.
        frozen: models that do not change.
        models: all of them, in the recipe's order.
        losses: likewise.
    """
    columns = sorted({key for row in rows.values() for key in row if "/" in key and not _elsewhere(key)})
    kinds = {column: next((kind for kind in KINDS if kind.holds(column)), _other(column)) for column in columns}
    found = []
    for kind in (*KINDS, *dict.fromkeys(kind for kind in kinds.values() if kind not in KINDS)):
        names = {kind.series(column): column for column in columns if kinds[column] == kind}
        percent = kind.suffix.startswith("/top")
        factor = 100.0 if percent else 1.0
        series: Series = {
            name: [row[column] * factor if column in row else None for _, row in sorted(rows.items())]
            for name, column in names.items()
        }
        levels = tuple(name for name in series if kind.prefix == "val/" and name in frozen)
        for name in levels:
            known = [value for value in series[name] if value is not None]
            series[name] = [known[0]] * len(rows) if known else series[name]
        log = not percent and kind.prefix not in LINEAR and _positive(series)
        found.append(Chart(kind.title, kind.caption, " %" if percent else "", series, log, levels))
    return [_coloured(chart, models, losses) for chart in found if chart.series]


def gradient_charts(table: Sequence[Mapping[str, str]], epochs: Sequence[int], losses: Sequence[str]) -> list[Chart]:
    """Each loss's share of what a model is told, and whether losses pull together.

    Args:
        table: rows of `gradients.csv`.
        epochs: those of the run.
        losses: in the recipe's order.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in table):
        shares: dict[str, dict[int, float]] = {}
        angles: dict[str, dict[int, float]] = {}
        for row in (row for row in table if row["model"] == model):
            epoch, loss = int(row["epoch"]), row["loss"]
            shares.setdefault(loss, {})[epoch] = 100 * float(row["share"])
            for other in (name.removeprefix("cosine ") for name in row if name.startswith("cosine ")):
                if f"{other} and {loss}" not in angles:
                    angles.setdefault(f"{loss} and {other}", {})[epoch] = float(row[f"cosine {other}"])
        for title, caption, unit, series in (
            (f"Shares of the gradient: {model}", "Norm of each weighted loss's gradient, of all norms.", " %", shares),
            (f"Do losses pull together? {model}", "Cosine between their gradients; below 0 they fight.", "", angles),
        ):
            known = {name: {at: v for at, v in one.items() if math.isfinite(v)} for name, one in series.items()}
            values = {name: [at.get(epoch) for epoch in epochs] for name, at in known.items()}
            found.append(_coloured(Chart(title, caption, unit, values), (), losses))
    return [chart for chart in found if chart.series]


def _coloured(chart: Chart, models: Sequence[str], losses: Sequence[str]) -> Chart:
    known = models if set(chart.series) & set(models) else losses
    order = [*dict.fromkeys(known), *(name for name in chart.series if name not in known)]
    series = {name: chart.series[name] for name in order if name in chart.series}
    return replace(chart, series=series, colours=tuple(order.index(name) for name in series))


def _elsewhere(key: str) -> bool:
    """Whether it stands in a figure, or in the table alone."""
    told = key.partition("/")[0] == "val" and not any(kind.holds(key) for kind in KINDS)
    return told or depth_of(key) is not None or (key.startswith("gradient/") and key.endswith("/spike"))


def _other(column: str) -> _Kind:
    """Of a column that nobody foresaw."""
    first = column.partition("/")[0]
    return _Kind(f"{first}/", "", first, "As it stands in metrics.csv.")


def _positive(series: Series) -> bool:
    """Whether a logarithm can be taken, and is worth it."""
    values = [value for one in series.values() for value in one if value is not None]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)
