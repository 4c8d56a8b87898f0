r"""SID and its controls: accuracy under label noise, and what a step costs in time and memory.

    python -m benchmarks.sid digits --out benchmarks/results/sid.jsonl --runs RUNS --threads 1
    python -m benchmarks.sid cifar100_10k --out benchmarks/results/sid.jsonl --runs RUNS --threads 1
    python -m benchmarks.sid cost --out benchmarks/results/sid.jsonl --threads 1

Extractor, modules and budget are the same for all methods of a set, but for `head`, which has one module. A cell that
has its row is left out, and a run that was stopped goes on, so that a grid may be stopped and started.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import kdkit
from benchmarks import timing
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.closing import closing
from kdkit.graph.graph import Graph
from kdkit.models import build, seeded
from kdkit.recipe import Recipe, loads
from kdkit.recipe.write import dump
from kdkit.runs.fit import fit

Words = dict[str, Any]

LABELS_ALONE: Words = {"sid": {"alpha": 1.0}}
THROUGH: Words = {"mode": "joint", "chain": "through"}
METHODS: dict[str, tuple[Words, Words]] = {
    "head": ({"modules": 1}, {"ce": {}}),
    "bp": (THROUGH, {"ce": {}}),
    "heads": ({"chain": "uniform"}, LABELS_ALONE),
    "bp_deep": (THROUGH, LABELS_ALONE),
    "sid": ({}, {"sid": {"alpha": 0.5}}),
    "sid_labels": ({}, LABELS_ALONE),
    "sid_isolated": ({"modules": 2, "isolate": ["layer1", "layer2"]}, {"sid": {"alpha": 0.5}}),
}
"""Options of `arch: sid`, and the loss."""

BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)][:-1]
COSTS: dict[str, tuple[str, Words]] = {
    "head": ("head", {}),
    "bp": ("bp", {}),
    "heads": ("heads", {}),
    "bp_deep": ("bp_deep", {}),
    "sid parallel": ("sid", {}),
    "sid joint": ("sid", {"mode": "joint"}),
    "sid lean": ("sid", {"mode": "lean"}),
    "sid lean, recomputed": ("sid", {"mode": "lean", "recompute": True}),
    "sid_isolated parallel": ("sid_isolated", {}),
    "sid_isolated lean": ("sid_isolated", {"mode": "lean"}),
    "sid_isolated, each block": ("sid_isolated", {"mode": "lean", "modules": 1, "isolate": BLOCKS}),
}
"""What a step's cost is measured of: the method, and more options."""

MODULES: Words = {"modules": 6, "kind": "mlp", "hidden": 64}
SETS: dict[str, Words] = {
    "digits": {
        "backbone": {"arch": "resnet8", "widths": [4, 4, 8, 16]},
        "protocol": "digits_20",
        "data": {},
        "trainer": {"check_val_every_n_epoch": 20},
        "noise": [0.0, 0.2, 0.4],
        "seeds": [0, 1, 2],
    },
    "cifar100_10k": {
        "backbone": {"arch": "resnet8"},
        "protocol": "cifar100_240",
        "data": {"subset": 10_000},
        "trainer": {"max_epochs": 8, "check_val_every_n_epoch": 8, "precision": "bf16-mixed"},
        "noise": [0.0, 0.2, 0.4],
        "seeds": [0, 1, 2],
    },
    "cifar100": {
        "backbone": {"arch": "resnet20"},
        "protocol": "cifar100_240",
        "data": {},
        "trainer": {},
        "noise": [0.0, 0.2, 0.4],
        "seeds": [0, 1, 2],
    },
}
"""`accuracy` on each; the last wants an accelerator."""


def recipe(name: str, method: str, noise: float, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The run of a cell."""
    its = SETS[name]
    options, loss = METHODS[method]
    words: Words = {
        "protocol": its["protocol"],
        "models": {"student": {"arch": "sid", "options": {"backbone": its["backbone"], **MODULES, **options}}},
        "losses": [loss],
        "data": {**its["data"], **({"label_noise": noise} if noise else {})},
        "trainer": its["trainer"],
        "seed": seed,
    }
    return loads(dump(words), name=f"{name}-{method}-noise{noise:g}", overrides=overrides)


def cells(name: str) -> Iterator[tuple[str, float, int]]:
    """Method, noise, seed: seed by seed for each noise, so that what is stopped early is whole as far as it goes."""
    for noise in SETS[name]["noise"]:
        for seed in SETS[name]["seeds"]:
            for method in METHODS:
                yield method, noise, seed


def accuracy(args: argparse.Namespace) -> None:
    """A row for each cell that has none."""
    rows = timing.Rows(args, "sid accuracy")
    done = {
        tuple(row.get(word) for word in ("set", "method", "noise", "seed"))
        for row in _rows(args.out)
        if ("quick" in row) == args.quick
    }
    for method, noise, seed in cells(args.what):
        if (args.what, method, noise, seed) in done:
            continue
        run = recipe(args.what, method, noise, seed, QUICK if args.quick else ())
        result = fit(run, out=args.runs / f"{run.name}-seed{seed}{'-quick' * args.quick}", resume=True)
        found = {word: round(value, 5) for word, value in result.last["student"].items()}
        last = max(_metrics(result.folder.metrics))
        rows.add(
            set=args.what,
            method=method,
            noise=noise,
            seed=seed,
            epochs=last,
            parameters=sum(p.numel() for p in _net(args.what, method).parameters()),
            **found,
            **_monitored(result.folder.metrics),
        )
        if args.quick:
            return


QUICK = ["data.subset=64", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]


def _metrics(path: Path) -> dict[int, dict[str, float]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["epoch"]): {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)}


def _monitored(path: Path) -> Words:
    """What the losses say of themselves at the end, by depth."""
    rows = _metrics(path)
    last = rows[max(rows)]
    found: dict[str, list[float]] = {}
    for key in sorted((key for key in last if key.startswith("monitor/")), key=_depth):
        found.setdefault(key.split("/")[3], []).append(round(last[key], 5))
    return {"by_depth": found} if found else {}


def _depth(key: str) -> tuple[str, int]:
    *_, what, depth = key.split("/")
    return what, int(depth) if depth.isdigit() else 0


def _rows(path: Path | None) -> list[Words]:
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    return [json.loads(line) for line in lines]


def _net(name: str, method: str, **options: Any) -> torch.nn.Module:
    words = {"backbone": SETS[name]["backbone"], **MODULES, **METHODS[method][0], **options}
    with seeded(0, "student"):
        return build("sid", num_classes=10 if name == "digits" else 100, **words)


# -- cost ----------------------------------------------------------------------------------------------------------


def step(method: str, options: Words, batch: Batch) -> Callable[[], None]:
    """One training step, as the Distiller makes it, with SGD."""
    net = _net("cifar100", method, **options).to(batch.x.device)
    loss = [kdkit.Edge(name, **words) for name, words in METHODS[method][1].items()]
    graph = Graph({"student": net}, loss).to(batch.x.device)
    graph.bind(Batch(batch.x[:4], batch.labels[:4]), Facts(num_classes=100), 1)  # type: ignore[index]
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    graph.train()

    def run() -> None:
        with closing(graph, batch, lambda loss: loss.backward()):
            outputs = graph.outputs(batch)
        graph.weighted(graph.terms(graph.now.updates, outputs, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def cost(args: argparse.Namespace) -> None:
    """A row for each way: milliseconds and peak megabytes of a step, and both as ratios to back-propagation."""
    rows = timing.Rows(args, "sid cost")
    made = torch.Generator().manual_seed(0)
    size = 8 if args.quick else 128
    batch = Batch(
        torch.randn(size, 3, 32, 32, generator=made).to(args.device),
        torch.randint(100, (size,), generator=made).to(args.device),
    )
    calls = {name: step(method, options, batch) for name, (method, options) in COSTS.items()}
    if args.device.type == "cuda":
        calls = {name: partial(_waiting, call) for name, call in calls.items()}
    peaks = {name: timing.peak_bytes(call, args.device) for name, call in calls.items()}
    times = timing.in_turns(calls, args.rounds)
    for name, mine in times.items():
        rows.add(
            what=name,
            extractor=SETS["cifar100"]["backbone"]["arch"],
            batch=size,
            ms=timing.quartiles([1e3 * t for t in mine]),
            time_to_bp=timing.quartiles([t / bp for t, bp in zip(mine, times["bp"], strict=True)]),
            peak_mb=timing.megabytes(peaks[name]),
            memory_to_bp=round(peaks[name] / peaks["bp"], 4),
        )


def _waiting(call: Callable[[], None]) -> None:
    call()
    torch.cuda.synchronize()


def main(words: Sequence[str] | None = None) -> None:
    parser = timing.arguments(__doc__, rounds=9)
    parser.add_argument("what", choices=[*SETS, "cost"])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    args = timing.begin(parser, words)
    (cost if args.what == "cost" else accuracy)(args)


if __name__ == "__main__":
    main()
