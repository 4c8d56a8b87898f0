r"""What kdkit costs as the work grows: time and peak memory along one axis at a time.

    python -m benchmarks.scaling --out benchmarks/results/speed_scaling.jsonl

- `batch`: a step of ResNet-56 → ResNet-20 by kd and by crd, 32 to 1024 images of 32².
- `image`: the same by kd, a batch of 16 from 32² to 224².
- `students`: the same by kd, 1 to 8 ResNet-20 that learn from one teacher in one Distiller, batch 64.
- `negatives`: the CRD loss at B = 64, n = 50,000, for K from 1,024 to 65,536.
- `samples`: the CRD loss at B = 256, K = 16384, for n from 50,000 to 1,281,167 (ImageNet's).

A loss's `peak_mb` is what one call, forward and backward, holds at most beyond what lies there between calls: its banks
(`banks_mb`), inputs and the list of samples by class. A step's `ms` runs from batch to batch under a Trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import timing
from benchmarks.losses import Case, step
from benchmarks.step import Size, run

STEPS: dict[str, list[int]] = {
    "batch": [32, 64, 128, 256, 512, 1024],
    "image": [32, 64, 128, 224],
    "students": [1, 2, 4, 8],
}
LOSSES: dict[str, list[int]] = {
    "negatives": [1024, 4096, 16_384, 65_536],
    "samples": [50_000, 200_000, 655_360, 1_281_167],
}
CRD = [("sampled", "float32"), ("sampled", "bfloat16"), ("shared", "float32")]


def steps(axis: str, values: Sequence[int], size: Size, device: torch.device, rows: timing.Rows) -> None:
    """A row for each value of an axis of the step."""
    for method in ("kd", "crd") if axis == "batch" else ("kd",):
        for value in values:
            times, _ = run(method, replace(size, **{axis: value}), device)
            rows.add(axis=axis, value=value, what=method, **timing.summary(times)["kdkit"])


def losses(axis: str, values: Sequence[int], sizes: dict[str, int], rounds: int, rows: timing.Rows) -> None:
    """A row for each value of an axis of the CRD loss, in each variant."""
    for value in values:
        words: dict[str, Any] = sizes | {axis: value}
        for negatives, dtype in CRD:
            case = Case("crd", shapes=[(64,)], device=rows.device, **words)
            call = step(case.ours(negatives=negatives, bank_dtype=dtype), case)
            times = timing.summary(timing.in_turns({"kdkit": call}, rounds))["kdkit"]
            peak = timing.peak_bytes(call, rows.device)
            bank = words["samples"] * 128 * (2 if dtype == "bfloat16" else 4)
            row = {"axis": axis, "value": value, "what": f"crd {negatives} {dtype}", "batch": words["batch"]}
            rows.add(**row, **times, peak_mb=timing.megabytes(peak), banks_mb=timing.megabytes(2 * bank))


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = timing.arguments(__doc__, rounds=7)
    axes = [*STEPS, *LOSSES]
    parser.add_argument("--axes", nargs="+", default=axes, choices=axes, help="default: all")
    args = timing.begin(parser, words)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = timing.Rows(args, "scaling")
    for axis in args.axes:
        values = (STEPS | LOSSES)[axis]
        if axis in STEPS:
            size = Size(rounds=args.rounds, block=20 if args.device.type == "cuda" else 1)
            if axis == "image":
                size = replace(size, batch=16, samples=512)
            if args.quick:
                size = replace(size, batch=4, samples=200, negatives=64, warm=2)
                values = [32, 40] if axis == "image" else [2, 4]
            steps(axis, values, size, args.device, rows)
        else:
            sizes = {"batch": 64 if axis == "negatives" else 256, "samples": 50_000, "negatives": 16_384}
            if args.quick:
                sizes, values = {"batch": 8, "samples": 2_000, "negatives": 64}, [100, 3_000]
            losses(axis, values, sizes, args.rounds, rows)


if __name__ == "__main__":
    main()
