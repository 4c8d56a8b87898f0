"""What is drawn over the epochs: one chart for each kind of number that the run noted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

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


def charts(rows: Rows, frozen: Collection[str], models: Sequence[str], losses: Sequence[str]) -> list[Chart]:
    """The charts of a run, in the order in which one wants to see them.

    Args:
        rows: metrics by epoch, as `metrics.csv` has them.
        frozen: models that do not change.
        models: all of them, in the recipe's order.
        losses: likewise.
    """
    found = []
    for key, title, caption in (
        ("top1", "Accuracy", "Top-1 on the validation images after every epoch; dashed: does not change."),
        ("top5", "Top-5 accuracy", "Likewise, the right class among the first five."),
        ("nll", "Validation loss", "Mean negative log-likelihood of the validation images."),
    ):
        series = _series(rows, "val/", f"/{key}", 100.0 if key.startswith("top") else 1.0)
        levels = tuple(name for name in series if name in frozen)
        for name in levels:
            known = [value for value in series[name] if value is not None]
            series[name] = [known[0]] * len(rows) if known else series[name]
        unit = " %" if key.startswith("top") else ""
        found.append(Chart(title, caption, unit, series, not unit and _positive(series), levels))
    each = _series(rows, "loss/")
    terms = Chart("Loss terms", "Mean of each term over an epoch, before its weight.", "", each, log=_positive(each))
    found.insert(1, terms)
    rates = _series(rows, "lr/")
    found.append(Chart("Learning rate", "At the beginning of each epoch.", "", rates))
    for prefix in sorted({key.partition("/")[0] for row in rows.values() for key in row if "/" in key}):
        if prefix not in ("val", "loss", "lr"):
            title, caption = OTHERS.get(prefix, (prefix, "As it stands in metrics.csv."))
            found.append(Chart(title, caption, "", _series(rows, f"{prefix}/")))
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


OTHERS = {"weight": ("Weights of losses", "Those that are no plain numbers, as the last step of each epoch had them.")}


def _series(rows: Rows, prefix: str, suffix: str = "", factor: float = 1.0) -> Series:
    columns = sorted({key for row in rows.values() for key in row if key.startswith(prefix) and key.endswith(suffix)})
    return {
        column.removeprefix(prefix).removesuffix(suffix): [
            None if column not in row else row[column] * factor for _, row in sorted(rows.items())
        ]
        for column in columns
    }


def _positive(series: Series) -> bool:
    """Whether a logarithm can be taken, and is worth it."""
    values = [value for one in series.values() for value in one if value is not None]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)
