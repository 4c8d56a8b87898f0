"""Writes docs/sid.md and docs/sid.svg from the rows of SID: `python -m benchmarks.sid_page`.

A test fails where they are stale. Of rows about the same thing the last one counts; those of `--quick` never do.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance import NOT_RUN, origins, select, spread, table
from benchmarks.sid import COSTS, METHODS, SETS
from kdkit.bench.stats import spread as mean_and_deviation
from kdkit.bench.stats import t_quantile

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "sid.jsonl"
PAGE, PLOT = ROOT / "docs" / "sid.md", ROOT / "docs" / "sid.svg"
TEXT = ROOT / "benchmarks" / "sid_page.md"
NAMES = {
    "head": "one head, cross-entropy",
    "bp": "back-propagation through the chain",
    "heads": "independent heads",
    "bp_deep": "back-propagation + deep supervision",
    "sid": "SID, α = ½",
    "sid_labels": "SID, α = 1",
    "sid_isolated": "SID, isolated stages, α = ½",
}

Row = dict[str, Any]


def load(path: Path = FILE) -> list[Row]:
    """All rows that count."""
    words = ("bench", "set", "method", "noise", "seed", "what", "device", "extractor")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {repr([row.get(word) for word in words]): row for row in map(json.loads, lines) if "quick" not in row}
    return list(found.values())


def figures(rows: Sequence[Row], **words: Any) -> dict[int, float]:
    """Top-1 in percent by seed."""
    return {row["seed"]: 100 * row["top1"] for row in select(rows, bench="sid accuracy", **words)}


def gain(rows: Sequence[Row], method: str, than: str, **words: Any) -> tuple[float, float, int] | None:
    """Mean of the differences of runs of one seed, half the width of its 95 % interval, and how many there are."""
    ours, theirs = (figures(rows, method=name, **words) for name in (method, than))
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(found) < 2:
        return None
    mean, deviation = mean_and_deviation(found)
    return mean, t_quantile(0.975, len(found) - 1) * deviation / math.sqrt(len(found)), len(found)


def verdict(found: tuple[float, float, int] | None) -> str:
    """A difference, and whether it is one."""
    if found is None:
        return "not yet run"
    mean, half, seeds = found
    told = "above" if mean - half > 0 else "below" if mean + half < 0 else "not told apart"
    return f"{mean:+.2f} ± {half:.2f} points, {seeds} seeds: {told}"


def claims(rows: Sequence[Row]) -> str:
    """What the paper claims beside what the rows say."""
    lines = []
    for name in SETS:
        for noise in SETS[name]["noise"]:
            if select(rows, set=name, noise=noise, method="sid"):
                where = {"set": name, "noise": noise}
                against = [f"{NAMES[than]}: {verdict(gain(rows, 'sid', than, **where))}" for than in ("bp", "heads")]
                lines.append(f"| more accurate than BP | {name}, {noise:.0%} of labels wrong | {'; '.join(against)} |")
    for row in select(rows, bench="sid cost"):
        if row["what"] in ("sid parallel", "sid lean", "sid lean, recomputed", "sid_isolated lean"):
            memory, speed = 1 / row["memory_to_bp"], [1 / value for value in reversed(row["time_to_bp"])]
            what = f"120 times less memory, 2 to 3 times faster | `{row['what']}`, {row['device']}"
            lines.append(f"| {what} | {memory:.2f} times less memory, {spread(speed, '')} times as fast |")
    return table(["the paper's claim", "where", "found, against back-propagation"], lines) if lines else NOT_RUN


def tally(rows: Sequence[Row]) -> str:
    """How often SID is told apart from a control."""
    controls = ("head", "bp", "heads", "bp_deep")
    where = sorted({(row["set"], row["noise"]) for row in select(rows, bench="sid accuracy")})
    found = [gain(rows, "sid", than, set=name, noise=noise) for name, noise in where for than in controls]
    words = [verdict(one).rpartition(": ")[2] for one in found if one is not None]
    counts = {word: words.count(word) for word in ("above", "below", "not told apart")}
    return (
        f"Of {len(words)} comparisons with four controls SID is above in {counts['above']}, below in {counts['below']} "
        f"and not told apart in {counts['not told apart']}, each at the level of 5 %, not corrected for their number."
    )


def accuracy(rows: Sequence[Row]) -> str:
    """A table for each set of images."""
    parts = []
    for name, its in SETS.items():
        mine = select(rows, bench="sid accuracy", set=name)
        noises = [noise for noise in its["noise"] if select(mine, noise=noise)]
        lines = []
        for method in METHODS:
            row = next(iter(select(mine, method=method)), None)
            if row is not None:
                cells = [_cell(mine, method, noise) for noise in noises]
                size = f"{row['parameters']:,}"
                lines.append(f"| {' | '.join([NAMES[method], size, *cells])} |")
        if lines:
            epochs, net = sorted({row["epochs"] for row in mine}), its["backbone"]["arch"]
            if "widths" in its["backbone"]:
                net += f" of widths {', '.join(map(str, its['backbone']['widths']))}"
            size = f"{its['data']['subset']:,} images, " if "subset" in its["data"] else ""
            heads = ["method", "parameters", *(f"{noise:.0%} wrong" for noise in noises)]
            kind = its["trainer"].get("precision", "fp32").removesuffix("-mixed")
            parts.append(f"### {name}\n\n{net}, {size}{epochs[-1]} epochs in {kind}\n\n{table(heads, lines)}")
    return "\n\n".join(parts) or NOT_RUN


def _cell(rows: Sequence[Row], method: str, noise: float) -> str:
    values = list(figures(rows, method=method, noise=noise).values())
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} ± {deviation:.2f} ({len(values)})" if len(values) > 1 else f"{mean:.2f} (1)"


def cost(rows: Sequence[Row]) -> str:
    """A line for each way to compute a step."""
    lines = []
    for device in ("cpu", "cuda"):
        for what in COSTS:
            for row in select(rows, bench="sid cost", what=what, device=device):
                low, ms, high = (f"{value:,.0f}" for value in row["ms"])
                times = [f"{ms} ({low}–{high})", spread(row["time_to_bp"])]
                cells = [device, row["extractor"], what, *times, f"{row['peak_mb']:.1f}", f"{row['memory_to_bp']:.2f}×"]
                lines.append(f"| {' | '.join(cells)} |")
    heads = ["device", "extractor", "step", "ms", "time to BP", "peak MB", "memory to BP"]
    return table(heads, lines) if lines else NOT_RUN


def hypothesis(rows: Sequence[Row]) -> str:
    """What Proposition 2 supposes, as the runs' last epoch tells it."""
    lines = []
    for row in select(rows, bench="sid accuracy"):
        told = row.get("by_depth", {})
        if "slack" in told and row["method"] in ("sid", "sid_isolated") and row["seed"] == 2:
            words = [" ".join(f"{value:.2f}" for value in told[word]) for word in ("improved", "accuracy", "entropy")]
            where = f"{row['set']}, {row['noise']:.0%} wrong"
            words.append(f"{told['slack'][0]:.2f}")
            lines.append(f"| {' | '.join([NAMES[row['method']], where, *words])} |")
    heads = ["method", "where", "share improved, by module", "accuracy", "entropy (nats)", "slack (nats)"]
    return table(heads, lines) if lines else NOT_RUN


def page(rows: Sequence[Row]) -> str:
    """The whole document: the text beside this file, with its tables."""
    text = TEXT.read_text(encoding="utf-8")
    made = {
        "claims": claims,
        "tally": tally,
        "accuracy": accuracy,
        "cost": cost,
        "hypothesis": hypothesis,
        "origins": origins,
    }
    for word, make in made.items():
        text = text.replace(f"{{{{{word}}}}}", make(rows))
    return text


def plot(rows: Sequence[Row]) -> str:
    """Accuracy by label noise for each set that has rows, then time and memory of a step."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = [name for name in SETS if select(rows, bench="sid accuracy", set=name)]
    figure = Figure(figsize=(4.2 * len(sets) + 5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    *lefts, right = figure.subplots(1, len(sets) + 1)
    for axes, where in zip(lefts, sets, strict=True):
        for method, name in NAMES.items():
            found = [
                (noise, list(figures(rows, set=where, method=method, noise=noise).values())) for noise in (0, 0.2, 0.4)
            ]
            points = [(100 * noise, *mean_and_deviation(values)) for noise, values in found if values]
            if points:
                x, y, error = zip(*points, strict=True)
                axes.errorbar(x, y, [0 if math.isnan(e) else e for e in error], marker="o", capsize=3, label=name)
        axes.set(title=where, xlabel="training labels that are wrong (%)", ylabel="top-1 (%)")
    if lefts:
        lefts[0].legend(fontsize="x-small", loc="lower left")
    steps = [row for what in reversed(COSTS) for row in select(rows, bench="sid cost", what=what, device="cpu")]
    for shift, word, values in (
        (0.2, "time", [row["time_to_bp"][1] for row in steps]),
        (-0.2, "peak memory", [row["memory_to_bp"] for row in steps]),
    ):
        right.barh([i + shift for i in range(len(steps))], values, height=0.38, label=word)
    right.set_yticks(range(len(steps)), [row["what"] for row in steps], fontsize="small")
    right.axvline(1, color="0.4", linewidth=0.8)
    right.set(title="a step on a CPU", xlabel="as a multiple of back-propagation's")
    if steps:
        right.legend(fontsize="x-small")
    for axes in (*lefts, right):
        axes.grid(alpha=0.3)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdkit"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    found = load()
    PAGE.write_text(page(found), encoding="utf-8")
    PLOT.write_text(plot(found), encoding="utf-8")
