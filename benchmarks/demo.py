"""A teacher, its student alone, and the student distilled, on real handwritten digits: three seeds, minutes on a CPU.

`python -m benchmarks.demo [--out DIR]`; what is finished already is read and not run again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdkit.recipe import load
from kdkit.runs.fit import fit

SEEDS = (0, 1, 2)
ROWS = (
    ("teacher: ResNet-20", "teacher_digits", "net"),
    ("student alone: a narrow ResNet-8", "student_digits", "student"),
    ("student distilled by KD", "kd_digits", "student"),
)


def accuracies(recipe: str, node: str, out: Path) -> list[float]:
    """Last-epoch test accuracy (%) of one recipe for each seed; a student has the teacher of its seed."""
    found = []
    for seed in SEEDS:
        words = [f"seed={seed}"]
        if recipe == "kd_digits":
            words.append(f"models.teacher.weights={out}/teacher_digits-seed{seed}/net.safetensors")
        result = fit(load(recipe, words), out=out / f"{recipe}-seed{seed}", resume=True)
        found.append(100 * result.last[node]["top1"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the runs are kept")
    try:
        show(parser.parse_args().out)
    except KeyboardInterrupt as stop:
        print(f"stopped. {stop}; the same command goes on")
        raise SystemExit(130) from None


def show(out: Path) -> None:
    """Run what is not there yet, and show all of it."""
    began = time.perf_counter()
    table = Table(title=f"1,797 UCI handwritten digits, last epoch, {len(SEEDS)} seeds")
    for column in ("", "top-1 (%)", "each seed"):
        table.add_column(column)
    for title, recipe, node in ROWS:
        got = accuracies(recipe, node, out)
        table.add_row(
            title,
            f"{statistics.mean(got):.2f} ± {statistics.stdev(got):.2f}",
            "  ".join(f"{value:.2f}" for value in got),
        )
    console = Console()
    console.print(table)
    console.print(f"{time.perf_counter() - began:.0f} s; runs, curves and weights are in {out}/")


if __name__ == "__main__":
    main()
