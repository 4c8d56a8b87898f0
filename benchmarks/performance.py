"""Writes docs/performance.md from the rows of speed: `python -m benchmarks.performance`.

A test fails where the page is stale. Of rows about the same thing on the same machine the last one counts; those of
`--quick` never do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.bars import Quartiles, Row, Rows, bars, select, spread

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "benchmarks" / "results" / f"speed_{name}.jsonl" for name in ("losses", "step", "data", "scaling")]
PAGE = ROOT / "docs" / "performance.md"
PEERS = ("by hand", "repdistiller", "torchdistill")
NOT_RUN = "Not yet run."

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
$ python -m benchmarks.step --epoch --images 640 --rounds 3 --methods kd crd --repdistiller RepDistiller \\
    --out benchmarks/results/speed_step.jsonl
$ python -m benchmarks.step --epoch --rounds 3 --methods kd crd --device cuda --repdistiller RepDistiller \\
    --out benchmarks/results/speed_step.jsonl
$ pip install --target DALI nvidia-dali-cuda130
$ python -m benchmarks.data --roots tiny-imagenet-20 imagenet-1k-samples --sizes 64 224 \\
    --enlarged imagenet-1k-samples --dali DALI --out benchmarks/results/speed_data.jsonl
$ python -m benchmarks.scaling --out benchmarks/results/speed_scaling.jsonl
```

Each takes `--device cuda`, `--quick` and `--help`.
"""
LOSSES = """## Losses

Forward and backward, fp32, on the tensors of ResNet-56 → ResNet-20. *Bound*: reading all inputs and writing all
gradients once, or the fewest products, at the rates of its machine. *Dispatch*: as many operations as kdkit makes on a
single number each; what is small is bound by that and not by its work. *Peers*: how many times kdkit's time each takes;
above 1 kdkit is faster.
"""
STEPS = """## A step and an epoch

ResNet-56 → ResNet-20, batch 64. kdkit runs under a Lightning Trainer, channels_last, in bf16 but where told, timed from
batch to batch. *By hand* is the least loop with the same settings and the same loss modules. RepDistiller's is its own
loop, torchdistill's the box and loop of its examples, both fp32; torchdistill's CRD is not measured, for it wants data
sets of its own. The columns tell how many times kdkit's time each takes. A *cached* teacher is kdkit's alone: all
others run theirs. In an epoch images are cropped and mirrored anew, for everybody by kdkit's loader, and RepDistiller
draws its negatives for one image after the other, as its data set does.

The bars of the step that are missed on a CPU are missed by the loop by hand, too: with a live teacher it takes as long
as kdkit, within the machine's spread. On the Xeon the rows in fp32 are the faster ones: time a few steps of both before
a long run on a CPU.
"""
DATA = """## Images

How many images a second the loaders hand out, batch 64. *resident*: CIFAR's shape, out of memory, random crops and
flips where the images live. The rest are JPEGs in a folder, random crops and flips: parts of the work on one core, then
through the loaders with so many worker processes. *To a device* is the host's share of it where an accelerator trains:
kdkit sends uint8 and normalises there. *Cores*: an accelerator that trains on 1,000 images a second wants so many of
these; these machines have two, which workers and the loop that reads from them share. *torchvision*: how many times
kdkit's time the usual `DataLoader` of `RandomResizedCrop`, `ToTensor` and `Normalize` takes for the same images.
*DALI*: likewise NVIDIA's, on the CPU with as many threads as workers: decoding the part of an image that its crop
needs, then decoding all of it. *Enlarged* images have as many pixels as ImageNet's in the mean, and less detail than
photographs of that size. On the EPYC kdkit still decoded by PIL, and drew and cropped by torchvision.
"""
WORTH = 1.3
"""How many times as fast a loader has to be that pays for another library."""
SCALING = """## As the work grows

kdkit alone. *Peak* is what a loss holds at most beyond what lies there between calls; a step's memory is not measured.
"""


# -- rows ----------------------------------------------------------------------------------------------------------


WHERE = ("threads", "machine")
SAME = (
    "bench",
    "device",
    "loss",
    "batch",
    "shape",
    "contender",
    "method",
    "teacher",
    "precision",
    "axis",
    "value",
    "what",
    "workers",
    "images",
    *WHERE,
)


def load(files: Iterable[Path]) -> list[Row]:
    """All rows that count, oldest first."""
    lines = [line for path in files if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]
    return last([row for row in map(json.loads, lines) if "quick" not in row])


def last(rows: Rows) -> list[Row]:
    """Of rows about the same thing the last one; what several machines say of one thing stands together."""
    found = {repr([row.get(word) for word in SAME]): row for row in rows}
    things: dict[str, list[Row]] = {}
    for row in found.values():
        things.setdefault(repr([row.get(word) for word in SAME if word not in WHERE]), []).append(row)
    return [row for several in things.values() for row in several]


# -- the page ------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """The whole document."""
    heads = ["what", "where", "bar", "machine", "kdkit", "met"]
    bar_table = table(heads, [line for bar in bars() for line in bar.lines(rows)])
    parts = [INTRODUCTION, f"## The bars\n\n{bar_table}\n\n{origins(rows)}\n"]
    for device in ("cpu", "cuda"):
        here = select(rows, device=device)
        name = "CPU" if device == "cpu" else "GPU"
        for text, make in ((LOSSES, losses), (STEPS, steps), (DATA, images), (SCALING, scaling)):
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
    """A line for each loss, size and machine, then those where another one is faster."""
    lines, lost = [], []
    for row in select(rows, bench="losses"):
        if not (name := row.get("contender", "")).startswith("kdkit"):
            continue
        what = f"`{row['loss']}`" + name.removeprefix("kdkit")
        peers: dict[str, Quartiles] = row.get("faster", {})
        told = ", ".join(f"{peer} {spread(found)}" for peer, found in peers.items())
        figures = [spread(row["ms"], ""), *(f"{row[word]:.3g}" for word in ("bound_ms", "dispatch_ms", "peak_mb"))]
        lines.append(f"| {' | '.join([what, str(row['batch']), row['shape'], machine(row), *figures, told])} |")
        size = f"{what}, B = {row['batch']}, {row['shape']}, {machine(row)}"
        lost += [f"- {size}: {peer} takes {f[1]:.2f} of its time" for peer, f in peers.items() if f[1] < 1]
    if not lines:
        return NOT_RUN
    heads = ["loss", "B", "of a sample", "machine", "ms", "bound ms", "dispatch ms", "peak MB", "peers"]
    return f"{table(heads, lines)}\n\nWhere kdkit loses:\n\n" + ("\n".join(lost) or "- nowhere")


def steps(rows: Rows) -> str:
    """A line for each method and machine."""
    lines = []
    for bench in ("step", "epoch"):
        for row in select(rows, bench=bench, contender="kdkit"):
            faster = row["faster"]
            peers = [spread(faster[peer]) if peer in faster else "" for peer in PEERS]
            part = f", its first {row['images']:,} images" if "images" in row else ""
            total = f"{spread([ms * row['steps'] / 1e3 for ms in row['ms']], '')} s" if bench == "epoch" else ""
            part += ", fp32" if "precision" in row else ""
            cells = [
                bench + part,
                row["method"],
                row["teacher"],
                machine(row),
                spread(row["ms"], ""),
                total,
                *peers,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    heads = ["what", "method", "teacher", "machine", "ms a step", "in all", *PEERS]
    return table(heads, lines) if lines else NOT_RUN


def images(rows: Rows) -> str:
    """A line for each part, loader and machine."""
    lines, lost = [], []
    for row in select(rows, bench="data", contender="kdkit"):
        rate = [1e3 / ms for ms in reversed(row["ms"])]
        cores = f"{row['ms'][1]:.2g}" if row["what"] == "decode, crop, mirror" else ""
        told = ", ".join(
            f"{who.removeprefix('torchvision, ')} {spread(f)}"
            for who, f in row["faster"].items()
            if who.startswith("torchvision")
        )
        told = told.removeprefix("torchvision ")
        beside = ", ".join(spread(f) for f in dali(row))
        what = [row["shape"], row["what"], str(row.get("workers", ""))]
        lines.append(f"| {' | '.join([*what, machine(row), spread(rate, ''), cores, told, beside])} |")
        lost += [
            f"- {', '.join(what[:2])}, {machine(row)}: {who} takes {f[1]:.2f} of its time"
            for who, f in row["faster"].items()
            if f[1] < 1
        ]
    if not lines:
        return NOT_RUN
    heads = ["images", "what", "workers", "machine", "images a second", "cores", "torchvision", "DALI"]
    parts = [table(heads, lines), verdict(rows), "Where kdkit loses:", "\n".join(lost) or "- nowhere"]
    return "\n\n".join(part for part in parts if part)


def dali(row: Row) -> list[Quartiles]:
    """DALI's times to kdkit's: by the crop's part, by the whole image."""
    return [found for who, found in row["faster"].items() if who.startswith("DALI")]


def verdict(rows: Rows) -> str:
    """What is concluded about DALI."""
    asked = {"bench": "data", "contender": "kdkit", "what": "to a device", "workers": 0}
    found = [row for row in select(rows, **asked) if dali(row)]
    best = {row["shape"]: min(dali(row), key=lambda quartiles: quartiles[1]) for row in found}
    if not best:
        return ""
    told = "; ".join(f"{spread(quartiles)} at {shape}" for shape, quartiles in best.items())
    worth = [shape for shape, (_, middle, _) in best.items() if WORTH * middle <= 1]
    return (
        f"DALI's better way takes, to a device and without workers, of kdkit's time {told}. It is at least {WORTH} "
        f"times as fast at {'; '.join(worth) or 'none of them'}. It is no extra of kdkit: that would pay for small "
        "images alone; its draws do not follow from (seed, epoch, sample)."
    )


def scaling(rows: Rows) -> str:
    """A line for each value and machine."""
    lines = [
        f"| {row['axis']} | {row['value']:,} | {row['what']} | {machine(row)} | {spread(row['ms'], '')} | "
        f"{row.get('peak_mb', '')} | {row.get('banks_mb', '')} |"
        for row in select(rows, bench="scaling")
    ]
    return table(["axis", "value", "what", "machine", "ms", "peak MB", "banks MB"], lines) if lines else NOT_RUN


def machine(row: Row) -> str:
    """What it ran on, in short."""
    return str(row["machine"]).removesuffix(" Processor")


def table(heads: Sequence[str], lines: Sequence[str]) -> str:
    """In Markdown."""
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(load(FILES)), encoding="utf-8")
