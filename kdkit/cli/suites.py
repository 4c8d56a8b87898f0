"""The verbs of suites on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kdkit.cli.app import app
from kdkit.registry import KdkitError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to every run, beside the suite's own: data.root=/data"),
]


@app.command(epilog="Example: kdkit bench benchmarks/demo.yaml --hours 1")
def bench(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="Pairs, methods and seeds under one protocol.")],
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the runs, what is done, and the time left; run none.")
    ] = False,
    hours: Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")] = None,
    out: Annotated[Path | None, typer.Option(help="The runs' folder; left out: runs/SUITE.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="The file of rows; left out: results.jsonl among the runs.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side; they share the CPU's threads.")] = 1,
) -> None:
    """Run the methods, pairs and seeds of a suite.

    A row of each is kept. Every method gets one seed before any gets two. What has a row is skipped, what was begun
    goes on, and what fails is told and keeps nobody else from running.
    """
    from kdkit.bench.suite import load_suite

    read = load_suite(suite, overrides or [])
    from kdkit.bench.run import make_plan, results_of, run_suite

    out = out or Path("runs") / read.name
    rows = results_of(out, results)
    if plan:
        from kdkit.console import show

        show(make_plan(read, out, rows).shown(processes), sys.stdout)
        return
    try:
        outcome = run_suite(read, out, rows, hours=hours, processes=processes, tell=_say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every run keeps its last whole epoch; the same command goes on") from None
    if outcome.left:
        _say(f"the {hours:g} hours are over, {outcome.left} runs are left; the same command goes on with them")
    _say(f"rows are in {rows}; next: kdkit table {rows}")
    if outcome.failed:
        lines = "".join(f"\n  {name}: {why}" for name, why in outcome.failed.items())
        raise KdkitError(f"{len(outcome.failed)} of the runs failed; the same command tries them again{lines}")


def _say(text: str) -> None:
    from kdkit.console import tell

    tell(text, sys.stdout)
