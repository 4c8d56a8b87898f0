r"""Deep mutual learning against the same models on their own: the same first weights, batches and budget.

    python -m benchmarks.dml digits --out benchmarks/results/dml.jsonl --runs RUNS --threads 1
    python -m benchmarks.dml cifar100_10k --out benchmarks/results/dml.jsonl --runs RUNS --threads 1

`alone` trains the very same peers side by side on their labels, so that peer a of any cohort has its twin there: the
difference is paired by seed. A cell that has its row is left out, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from kdkit.recipe import Recipe, loads
from kdkit.recipe.write import dump
from kdkit.runs.fit import fit

Words = dict[str, Any]


def among(peers: Sequence[str], **words: Any) -> list[Words]:
    """Cross-entropy and mutual learning of all peers."""
    return [{"ce": {}}, {"dml": {"among": list(peers), **words}}]


METHODS: dict[str, tuple[str, list[Words], Words]] = {
    "alone": ("abcd", [{"ce": {}}], {}),
    "K=2": ("ab", among("ab"), {}),
    "K=3": ("abc", among("abc"), {}),
    "K=4": ("abcd", among("abcd"), {}),
    "CNN and ViT alone": ("av", [{"ce": {}}], {}),
    "CNN and ViT": ("av", among("av"), {}),
    "K=2, one after the other": ("ab", among("ab"), {"update": "sequential"}),
    "K=3, the others as one teacher": ("abc", among("abc", ensemble="arithmetic"), {}),
}
"""The peers, the losses between them, and words of the trainer; v is the ViT."""

SETS: dict[str, Words] = {
    "digits": {
        "peer": {"arch": "resnet8", "options": {"widths": [4, 4, 8, 16]}},
        "vit": {"arch": "timm/test_vit", "options": {"img_size": 16, "patch_size": 4}},
        "protocol": "digits_20",
        "data": {},
        "trainer": {"check_val_every_n_epoch": 20},
        "methods": list(METHODS),
        "seeds": [0, 1, 2],
    },
    "cifar100_10k": {
        "peer": {"arch": "resnet20"},
        "vit": {"arch": "timm/test_vit", "options": {"img_size": 32, "patch_size": 4}},
        "protocol": "cifar100_240",
        "data": {"subset": 10_000},
        "trainer": {"max_epochs": 6, "check_val_every_n_epoch": 6, "precision": "bf16-mixed"},
        "methods": ["alone", "K=2"],
        "peers": "ab",
        "seeds": [0, 1, 2],
    },
    "cifar100_10k_resnet8": {
        "peer": {"arch": "resnet8"},
        "vit": {"arch": "timm/test_vit", "options": {"img_size": 32, "patch_size": 4}},
        "protocol": "cifar100_240",
        "data": {"subset": 10_000},
        "trainer": {"max_epochs": 6, "check_val_every_n_epoch": 6, "precision": "bf16-mixed"},
        "methods": ["alone", "K=2", "K=3", "K=4", "CNN and ViT alone", "CNN and ViT"],
        "seeds": [0, 1, 2],
    },
    "cifar100": {
        "peer": {"arch": "resnet20"},
        "vit": {"arch": "timm/vit_tiny_patch16_224", "options": {"img_size": 32, "patch_size": 4}},
        "protocol": "cifar100_240",
        "data": {},
        "trainer": {},
        "methods": list(METHODS),
        "seeds": [0, 1, 2],
    },
}
"""The last wants an accelerator."""

VIT: Words = {
    "optimizer": {"name": "adamw", "weight_decay": 0.05},
    "lr": {"warmup": {"to": {"cosine": [1.0e-3, 0.0]}, "over": 0.1}},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def recipe(name: str, method: str, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The run of a cell."""
    its = SETS[name]
    peers, losses, trainer = METHODS[method]
    cohort = [peer for peer in peers if peer in its.get("peers", peers)]
    words: Words = {
        "protocol": its["protocol"],
        "models": {peer: {**its["vit"], **VIT} if peer == "v" else its["peer"] for peer in cohort},
        "losses": losses,
        "data": its["data"],
        "trainer": {**its["trainer"], **trainer},
        "seed": seed,
    }
    title = "".join(letter if letter.isalnum() else "_" for letter in method)
    return loads(dump(words), name=f"{name}-{title}", overrides=overrides)


def control(method: str) -> str:
    """The method in which the same peers train on their own."""
    return "CNN and ViT alone" if "v" in METHODS[method][0] else "alone"


def cells(name: str) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that what is stopped early is whole as far as it goes."""
    for seed in SETS[name]["seeds"]:
        for method in SETS[name]["methods"]:
            yield method, seed


QUICK = ["data.subset=64", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]


def run(args: argparse.Namespace) -> None:
    """A row for each cell that has none."""
    rows = timing.Rows(args, "dml accuracy")
    done = {(row["set"], row["method"], row["seed"]) for row in read(args.out) if ("quick" in row) == args.quick}
    for method, seed in cells(args.what):
        if (args.what, method, seed) in done:
            continue
        its = recipe(args.what, method, seed, QUICK if args.quick else ())
        result = fit(its, out=args.runs / f"{its.name}-seed{seed}{'-quick' * args.quick}", resume=True)
        peers = {peer: {k: round(v, 5) for k, v in result.last[peer].items()} for peer in its.models}
        archs = {peer: spec.arch for peer, spec in its.models.items()}
        rows.add(set=args.what, method=method, seed=seed, epochs=its.trainer.max_epochs, archs=archs, peers=peers)
        if args.quick:
            return


def read(path: Path | None) -> list[Words]:
    """The rows of a file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    return [json.loads(line) for line in lines]


def main(words: Sequence[str] | None = None) -> None:
    parser = timing.arguments(__doc__, rounds=1)
    parser.add_argument("what", choices=list(SETS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    run(timing.begin(parser, words))


if __name__ == "__main__":
    main()
