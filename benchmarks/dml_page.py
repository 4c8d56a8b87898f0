"""docs/dml.md and its plot, made from benchmarks/results/dml.jsonl: `python -m benchmarks.dml_page`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dml import METHODS, SETS, control
from kdkit.bench.stats import spread, t_quantile

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "dml.jsonl"
WORDS = ROOT / "benchmarks" / "dml_words.md"
PAGE = ROOT / "docs" / "dml.md"
PLOT = ROOT / "docs" / "dml.svg"

Row = dict[str, Any]
WHAT = {
    "digits": "The bundled digits, 20 epochs, ResNet-8 of widths 4, 4, 8, 16; the ViT is timm's `test_vit`. "
    "360 test images: one is 0.28 points",
    "cifar100_10k": "10,000 images of CIFAR-100, 6 epochs in bf16, a pair of ResNet-20: as far as a CPU went; "
    "the full test set. Far from converged: it says how learning begins, not where it ends",
    "cifar100_10k_resnet8": "10,000 images of CIFAR-100, 6 epochs in bf16, ResNet-8 and timm's `test_vit`; "
    "the full test set, as far from converged",
    "cifar100": "CIFAR-100, 240 epochs",
}


def load(path: Path = ROWS) -> list[Row]:
    """All rows that count."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if not row.get("quick")]


def pairs(rows: Sequence[Row], name: str, method: str, word: str = "top1") -> dict[int, dict[str, tuple[float, float]]]:
    """By seed and peer: the value in the cohort, and that of the same peer on its own."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    alone = {row["seed"]: row["peers"] for row in rows if (row["set"], row["method"]) == (name, control(method))}
    for row in rows:
        if (row["set"], row["method"]) == (name, method) and row["seed"] in alone:
            theirs = alone[row["seed"]]
            found[row["seed"]] = {p: (its[word], theirs[p][word]) for p, its in row["peers"].items()}
    return found


def gains(rows: Sequence[Row], name: str, method: str, peers: str) -> list[float]:
    """Points that a mean over peers gains, by seed."""
    found = pairs(rows, name, method)
    return [100 * sum(its[p][0] - its[p][1] for p in peers) / len(peers) for _, its in sorted(found.items())]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval of Student's distribution."""
    mean, deviation = spread(values)
    n = len(values)
    return mean, t_quantile(0.975, n - 1) * deviation / math.sqrt(n) if n > 1 else math.nan


def cohorts(rows: Sequence[Row], name: str) -> list[tuple[str, str]]:
    """Methods that have rows, with the peers that a mean is taken over: all, or CNN and ViT each by itself."""
    found = []
    for method in METHODS:
        if method != control(method) and (its := pairs(rows, name, method)):
            peers = "".join(next(iter(its.values())))
            found += [(method, p) for p in peers] if "v" in peers else [(method, peers)]
    return found


def table(rows: Sequence[Row], name: str) -> str:
    """Accuracy, NLL and paired gain of every cohort."""
    lines = [
        "| cohort | peers | seeds | alone, top-1 | together, top-1 | gain in points | NLL, alone → together |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, peers in cohorts(rows, name):
        by_seed, nll = pairs(rows, name, method), pairs(rows, name, method, "nll")
        alone, together = ([its[p][i] for its in by_seed.values() for p in peers] for i in (1, 0))
        before, after = (sum(its[p][i] for its in nll.values() for p in peers) / len(alone) for i in (1, 0))
        gain, half = interval(gains(rows, name, method, peers))
        shown = f"{gain:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")
        who = {"a": "the CNN", "v": "the ViT"}[peers] if len(peers) == 1 else str(len(peers))
        lines.append(
            f"| {method} | {who} | {len(by_seed)} | {100 * sum(alone) / len(alone):.2f} | "
            f"{100 * sum(together) / len(together):.2f} | {shown} | {before:.3f} → {after:.3f} |"
        )
    return "\n".join(lines)


def clear(rows: Sequence[Row], name: str) -> str:
    """Which gains their intervals tell from none."""
    who = {"a": ", the CNN", "v": ", the ViT"}
    told = []
    for method, peers in cohorts(rows, name):
        mean, half = interval(gains(rows, name, method, peers))
        if abs(mean) > half:
            told.append(f"{method}{who[peers] if len(peers) == 1 else ''} ({mean:+.2f})")
    return f"Told from no gain at all by its interval: {'; '.join(told) or 'none of them'}."


def origins(rows: Sequence[Row]) -> str:
    """Where rows come from."""
    found = {f"{row['machine']}, {row['threads']} thread(s), torch {row['torch']}, {row['date']}" for row in rows}
    return "; ".join(sorted(found))


def page(rows: Sequence[Row]) -> str:
    """The whole document."""
    parts = [WORDS.read_text(encoding="utf-8").rstrip()]
    for name in SETS:
        here = [row for row in rows if row["set"] == name]
        if cohorts(here, name):
            parts.append(f"### {WHAT[name]}\n\n{table(here, name)}\n\n{clear(here, name)} Rows: {origins(here)}.")
        else:
            parts.append(f"### {WHAT[name]}\n\nNot yet run.")
    return "\n\n".join(parts) + "\n"


def plot(rows: Sequence[Row]) -> None:
    """The gains with their intervals, one row of dots for each set."""
    import matplotlib
    from matplotlib.figure import Figure

    sets = [name for name in SETS if cohorts(rows, name)]
    figure = Figure(
        figsize=(7, 0.5 + 0.38 * sum(len(cohorts(rows, name)) + 1.8 for name in sets)), layout="constrained"
    )
    sizes = [len(cohorts(rows, name)) + 0.5 for name in sets]
    for axes, name in zip(figure.subplots(len(sets), squeeze=False, height_ratios=sizes)[:, 0], sets, strict=True):
        for y, (method, peers) in enumerate(its := cohorts(rows, name)):
            values = gains(rows, name, method, peers)
            mean, half = interval(values)
            axes.errorbar(mean, -y, xerr=0 if math.isnan(half) else half, fmt="o", color="tab:blue", capsize=3)
            axes.plot(values, [-y] * len(values), "|", color="tab:gray", markersize=9)
        who = [m + ("" if len(p) > 1 else {"a": ": the CNN", "v": ": the ViT"}[p]) for m, p in its]
        axes.set_yticks([-y for y in range(len(its))], who)
        axes.set_ylim(-len(its) + 0.5, 0.5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(name, fontsize="medium", loc="left")
        axes.set_xlabel("top-1 gained over the same peers alone, in points")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdkit"}):
        figure.savefig(PLOT, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    its_rows = load()
    PAGE.write_text(page(its_rows), encoding="utf-8")
    plot(its_rows)
