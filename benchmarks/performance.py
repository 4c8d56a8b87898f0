"""Writes docs/performance.md from the rows of speed: `python -m benchmarks.performance`.

A test fails where the page is stale. Of rows about the same thing the last one counts; those of `--quick` never do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "benchmarks" / "results" / f"speed_{name}.jsonl" for name in ("losses", "step", "scaling")]
PAGE = ROOT / "docs" / "performance.md"
PEERS = ("by hand", "repdistiller", "torchdistill")
NOT_RUN = "Not yet run."

Row = dict[str, Any]
Rows = Sequence[Row]
Quartiles = list[float]
Figure = Callable[[Rows], Quartiles | None]

INTRODUCTION = """# Performance

Made from rows under [`benchmarks/results/`](../benchmarks/results) by `python -m benchmarks.performance`. Contenders
take turns in one process; a figure is the median over the rounds, a ratio that of the ratios within each round, with
the quartiles in brackets. What is compared was found to compute the same before it was timed.

```console
$ pip install --no-deps --target SITE torchdistill
$ git clone https://github.com/HobbitLong/RepDistiller && git clone https://github.com/megvii-research/mdistiller
$ python -m benchmarks.losses --torchdistill SITE --repdistiller RepDistiller --mdistiller mdistiller \\
    --out benchmarks/results/speed_losses.jsonl
$ python -m benchmarks.step --torchdistill SITE --repdistiller RepDistiller \\
    --out benchmarks/results/speed_step.jsonl
$ python -m benchmarks.step --epoch --rounds 1 --methods kd crd --teacher live --repdistiller RepDistiller \\
    --out benchmarks/results/speed_step.jsonl
$ python -m benchmarks.scaling --out benchmarks/results/speed_scaling.jsonl
```

Each takes `--device cuda`, `--quick` and `--help`.
"""
LOSSES = """## Losses

Forward and backward, fp32, on the tensors of ResNet-56 → ResNet-20. *Bound*: reading all inputs and writing all
gradients once, or the fewest products, at the rates of this machine. *Dispatch*: as many operations as kdkit makes on a
single number each; what is small is bound by that and not by its work. *Peers*: how many times kdkit's time each takes;
above 1 kdkit is faster.
"""
STEPS = """## A step and an epoch

ResNet-56 → ResNet-20, batch 64. kdkit runs under a Lightning Trainer, bf16 autocast, channels_last, and is timed from
batch to batch. *By hand* is the least loop with the same settings and the same loss modules. RepDistiller's is its own
loop, torchdistill's the box and loop of its examples, both fp32; torchdistill's CRD is not measured, for it wants data
sets of its own. The columns tell how many times kdkit's time each takes. A *cached* teacher is kdkit's alone: all
others run theirs.
"""
SCALING = """## As the work grows

kdkit alone. *Peak* is what a loss holds at most beyond what lies there between calls; a step's memory is not measured.
"""


# -- rows ----------------------------------------------------------------------------------------------------------


def load(files: Iterable[Path]) -> list[Row]:
    """All rows that count."""
    words = ["bench", "device", "loss", "batch", "shape", "contender", "method", "teacher", "axis", "value", "what"]
    found: dict[str, Row] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            if "quick" not in row:
                found[repr([row.get(word) for word in words])] = row
    return list(found.values())


def select(rows: Iterable[Row], **words: Any) -> list[Row]:
    """Rows that say this."""
    return [row for row in rows if all(row.get(word) == value for word, value in words.items())]


# -- figures of the bars: quartiles, or None where the rows do not tell --------------------------------------------


def ratio(than: str, **words: Any) -> Figure:
    """Another's time to kdkit's, in the one row that these words mean."""

    def figure(rows: Rows) -> Quartiles | None:
        return next((row["faster"][than] for row in select(rows, **words) if than in row.get("faster", {})), None)

    return figure


def memory(rows: Rows) -> Quartiles | None:
    """Kdkit's peak to RepDistiller's in the CRD loss, fp32 banks."""
    crd = select(rows, bench="losses", loss="crd", batch=64, device="cpu")
    ours, theirs = (select(crd, contender=name) for name in ("kdkit sampled float32", "repdistiller"))
    return [ours[0]["peak_mb"] / theirs[0]["peak_mb"]] * 3 if ours and theirs else None


def by_hand(device: str) -> Figure:
    """Kdkit's time to that of a loop by hand, where it is worst."""

    def figure(rows: Rows) -> Quartiles | None:
        steps = select(rows, bench="step", device=device, teacher="live", contender="kdkit")
        found = [[1 / value for value in reversed(row["faster"]["by hand"])] for row in steps]
        return max(found, key=lambda quartiles: quartiles[1], default=None)

    return figure


def imagenet(rows: Rows) -> Quartiles | None:
    """GB beyond the banks, at most, of the CRD loss."""
    found = [row["peak_mb"] * 2**20 / 1e9 for row in select(rows, axis="samples", value=1_281_167, device="cpu")]
    return [max(found)] * 3 if found else None


def minutes(teacher: str) -> Figure:
    """240 epochs of the CRD run, from one."""

    def figure(rows: Rows) -> Quartiles | None:
        words = {"bench": "epoch", "method": "crd", "teacher": teacher, "device": "cuda", "contender": "kdkit"}
        found = select(rows, **words)
        return [240 * ms * found[0]["steps"] / 6e4 for ms in found[0]["ms"]] if found else None

    return figure


def eight(rows: Rows) -> Quartiles | None:
    """Students trained a second, eight in one process to one."""
    times = [row["ms"][1] for n in (1, 8) for row in select(rows, axis="students", value=n, device="cuda")]
    return [8 * times[0] / times[1]] * 3 if len(times) == 2 else None


@dataclass(frozen=True)
class Bar:
    """What is asked for: at least, or at most, this figure."""

    what: str
    where: str
    limit: float
    figure: Figure
    least: bool = True
    unit: str = "×"

    def line(self, rows: Rows) -> str:
        """Of the table."""
        found = self.figure(rows)
        head = f"| {self.what} | {self.where} | {'≥' if self.least else '≤'} {self.limit:g}{self.unit} | "
        if found is None:
            return head + "not yet run | |"
        met = found[1] >= self.limit if self.least else found[1] <= self.limit
        return head + f"{spread(found, self.unit)} | {'yes' if met else '**no**'} |"


def bars() -> list[Bar]:
    """All of them."""
    loss: Row = {"bench": "losses", "device": "cpu"}
    crd = {"sampled float32": 15, "sampled bfloat16": 20, "shared float32": 30, "shared bfloat16": 40}
    found = [
        Bar(
            f"CRD loss, {variant} banks: RepDistiller's time to kdkit's",
            "CPU, B = 64",
            limit,
            ratio("repdistiller", **loss, loss="crd", batch=64, contender=f"kdkit {variant}"),
        )
        for variant, limit in crd.items()
    ]
    angle = ratio("plain torch", **loss, loss="rkd_angle", batch=128, shape="512", contender="kdkit")
    nst = ratio("plain torch", **loss, loss="nst", batch=64, shape="64x32x32", contender="kdkit")
    found += [
        Bar("CRD loss, sampled float32 banks: memory to RepDistiller's", "CPU, B = 64", 0.1, memory, least=False),
        Bar("RKD angle: the broadcast form's time to kdkit's", "CPU, B = 128, D = 512", 15, angle),
        Bar("NST: the broadcast form's time to kdkit's", "CPU, 64×64×32²", 30, nst),
    ]
    for method, *limits in (("kd", 2.2, 4.4), ("crd", 6, 9), ("crd shared", 8, 13)):
        for teacher, limit in zip(("live", "cached"), limits, strict=True):
            words = {"bench": "step", "device": "cpu", "method": method, "teacher": teacher, "contender": "kdkit"}
            what = f"step, {method}, {teacher} teacher: RepDistiller's time to kdkit's"
            found.append(Bar(what, "CPU, one run", limit, ratio("repdistiller", **words)))
    theirs = ratio("repdistiller", bench="epoch", method="crd", device="cuda", teacher="live", contender="kdkit")
    run = "crd, 240 epochs without evaluation, {} teacher"
    return [
        *found,
        Bar("step: kdkit's time to a loop by hand, worst method", "CPU", 1.03, by_hand("cpu"), least=False),
        Bar("step: kdkit's time to a loop by hand, worst method", "GPU", 1.03, by_hand("cuda"), least=False),
        Bar("CRD loss, n = 1,281,167, B = 256: most beyond the banks", "CPU", 1.5, imagenet, least=False, unit=" GB"),
        Bar(run.format("live"), "H200", 5, minutes("live"), least=False, unit=" min"),
        Bar(run.format("cached"), "H200", 4, minutes("cached"), least=False, unit=" min"),
        Bar("epoch, crd: RepDistiller's time to kdkit's", "H200", 10, theirs),
        Bar("eight students at once: throughput to one's", "H200", 3, eight),
    ]


# -- the page ------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """The whole document."""
    bar_table = table(["what", "where", "bar", "kdkit", "met"], [bar.line(rows) for bar in bars()])
    parts = [INTRODUCTION, f"## The bars\n\n{bar_table}\n\n{origins(rows)}\n"]
    for device in ("cpu", "cuda"):
        here = select(rows, device=device)
        name = "CPU" if device == "cpu" else "GPU"
        for text, make in ((LOSSES, losses), (STEPS, steps), (SCALING, scaling)):
            title, _, body = text.partition("\n\n")
            parts.append(f"{title}: {name}\n\n{body + chr(10) if device == 'cpu' else ''}{make(here)}\n")
    return "\n".join(parts)


def origins(rows: Rows) -> str:
    """Where the rows come from."""
    words = ("machine", "threads", "torch", "commit", "date")
    found = sorted({tuple(str(row[word]) for word in words) for row in rows})
    lines = [
        f"- {machine}, {n} threads, torch {torch}, commit {commit}, {date}" for machine, n, torch, commit, date in found
    ]
    return "Rows of\n\n" + "\n".join(lines) if lines else NOT_RUN


def losses(rows: Rows) -> str:
    """A line for each loss and size, then those where another one is faster."""
    lines, lost = [], []
    for row in select(rows, bench="losses"):
        if not (name := row.get("contender", "")).startswith("kdkit"):
            continue
        what = f"`{row['loss']}`" + name.removeprefix("kdkit")
        peers: dict[str, Quartiles] = row.get("faster", {})
        told = ", ".join(f"{peer} {spread(found)}" for peer, found in peers.items())
        figures = [spread(row["ms"], ""), *(f"{row[word]:.3g}" for word in ("bound_ms", "dispatch_ms", "peak_mb"))]
        lines.append(f"| {' | '.join([what, str(row['batch']), row['shape'], *figures, told])} |")
        size = f"{what}, B = {row['batch']}, {row['shape']}"
        lost += [f"- {size}: {peer} takes {f[1]:.2f} of its time" for peer, f in peers.items() if f[1] < 1]
    if not lines:
        return NOT_RUN
    heads = ["loss", "B", "of a sample", "ms", "bound ms", "dispatch ms", "peak MB", "peers"]
    return f"{table(heads, lines)}\n\nWhere kdkit loses:\n\n" + ("\n".join(lost) or "- nowhere")


def steps(rows: Rows) -> str:
    """A line for each method."""
    lines = []
    for bench in ("step", "epoch"):
        for row in select(rows, bench=bench, contender="kdkit"):
            faster = row["faster"]
            peers = [spread(faster[peer]) if peer in faster else "" for peer in PEERS]
            total = f"{spread([ms * row['steps'] / 1e3 for ms in row['ms']], '')} s" if bench == "epoch" else ""
            cells = [bench, row["method"], row["teacher"], spread(row["ms"], ""), total, *peers]
            lines.append(f"| {' | '.join(cells)} |")
    heads = ["what", "method", "teacher", "ms a step", "epoch", *PEERS]
    return table(heads, lines) if lines else NOT_RUN


def scaling(rows: Rows) -> str:
    """A line for each value."""
    lines = [
        f"| {row['axis']} | {row['value']:,} | {row['what']} | {spread(row['ms'], '')} | "
        f"{row.get('peak_mb', '')} | {row.get('banks_mb', '')} |"
        for row in select(rows, bench="scaling")
    ]
    return table(["axis", "value", "what", "ms", "peak MB", "banks MB"], lines) if lines else NOT_RUN


def table(heads: Sequence[str], lines: Sequence[str]) -> str:
    """In Markdown."""
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines])


def spread(quartiles: Quartiles, unit: str = "×") -> str:
    """The median and, where they differ, the quartiles."""
    low, middle, high = (f"{value:.3g}" for value in quartiles)
    return f"{middle}{unit}" + (f" ({low}–{high})" if low != high else "")


if __name__ == "__main__":
    PAGE.write_text(page(load(FILES)), encoding="utf-8")
