"""The verbs of suites on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdkit.cli.app import NoCustomCode, app
from kdkit.registry import KdkitError, nearest

if TYPE_CHECKING:
    from kdkit.bench.engines import Engine
    from kdkit.bench.run import Outcome

ENGINES = ("processes", "here", "ray")
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to every run, beside the suite's own: data.root=/data"),
]
SuiteFile = Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="Pairs, methods and seeds under one protocol.")]
Hours = Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")]
Out = Annotated[Path | None, typer.Option(help="The runs' folder; left out: runs/SUITE.")]
Results = Annotated[Path | None, typer.Option(help="The file of rows; left out: results.jsonl among the runs.")]
Width = Annotated[int, typer.Option(min=1, help="Runs side by side; they share CPU threads and GPUs.")]
Where = Annotated[str, typer.Option(help="Where runs run: processes, here (in this process) or ray.")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster; left out: RAY_ADDRESS, else a new one.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="Ray: a run's share of a GPU; left out: 1.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="Ray: a run's CPUs; left out: 1.")]


@app.command(epilog="Example: kdkit bench benchmarks/demo.yaml --hours 1")
def bench(
    suite: SuiteFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the runs, what is done, the time left, and what cannot run; run none.")
    ] = False,
    hours: Hours = None,
    out: Out = None,
    results: Results = None,
    processes: Width = 1,
    engine: Where = "processes",
    address: Address = None,
    gpus_per_run: Gpus = None,
    cpus_per_run: Cpus = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Run the methods, pairs and seeds of a suite.

    A row of each is kept. Every method gets one seed before any gets two. What has a row is skipped, what was begun
    goes on, and what fails is told and keeps nobody else from running; what cannot run is found before anything is
    trained.
    """
    from kdkit.bench.suite import load_suite

    read = load_suite(suite, overrides or [])
    from kdkit.bench.live import progress
    from kdkit.bench.run import cannot_run, make_plan, results_of, run_suite

    out = out or Path("runs") / read.name
    rows = results_of(out, results)
    if plan:
        from kdkit.console import show

        _check_engine(engine, processes, address, gpus_per_run, cpus_per_run)
        planned = make_plan(read, out, rows)
        show(planned.shown(processes), sys.stdout)
        if engine != "ray" and (wrong := list(cannot_run(planned, read, out))):  # whose runs may see other disks
            lines = "".join(f"\n  {cell.pair} {cell.method}: {why}" for cell, why in wrong)
            raise KdkitError(f"{len(wrong)} of the lines cannot run; mend them, or leave them out{lines}")
        return
    chosen = _engine(engine, processes, address, gpus_per_run, cpus_per_run, out)
    try:
        with progress() as (tell, watch):
            watch = None if engine == "here" else watch  # a run in this process shows its own progress
            outcome = run_suite(read, out, rows, hours=hours, engine=chosen, tell=tell, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every run keeps its last whole epoch; the same command goes on") from None
    finally:
        chosen.close()
    _conclude(outcome, hours, read.name, out, rows)


@app.command(epilog="Example: kdkit tune benchmarks/demo.yaml --trials 16 --hours 8")
def tune(
    suite: SuiteFile,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Of every method; the first is the recipe as it is.")] = 16,
    hours: Hours = None,
    out: Out = None,
    results: Results = None,
    processes: Width = 1,
    engine: Where = "processes",
    address: Address = None,
    gpus_per_run: Gpus = None,
    cpus_per_run: Cpus = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Give every method of a suite the same number of trials.

    Loss weights, temperatures and the like are moved; a trial trains on 90 % of the training images and is scored on
    the others. Then every method is trained on all of them, as published and as its best trial was, on all seeds.
    """
    from kdkit.bench.suite import load_suite

    read = load_suite(suite, overrides or [])
    from kdkit.bench.live import progress
    from kdkit.bench.run import results_of
    from kdkit.bench.tune import ledger_of
    from kdkit.bench.tune import tune as tune_suite

    out = out or Path("runs") / read.name
    rows = results_of(out, results)
    chosen = _engine(engine, processes, address, gpus_per_run, cpus_per_run, out)
    try:
        with progress() as (tell, watch):
            watch = None if engine == "here" else watch  # a run in this process shows its own progress
            outcome = tune_suite(read, out, rows, trials=trials, hours=hours, engine=chosen, tell=tell, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every run keeps its last whole epoch; the same command goes on") from None
    finally:
        chosen.close()
    _conclude(outcome, hours, read.name, out, rows, ledger_of(rows))


def _conclude(outcome: Outcome, hours: float | None, suite: str, out: Path, *files: Path) -> None:
    """What is left, what failed, and how it is looked at.

    Raises:
        KdkitError: something failed.
    """
    from kdkit.bench.page import write_report

    told = " ".join(str(file) for file in files if file.exists())
    if outcome.left:
        over = "" if hours is None else f"the {hours:g} hours are over, "
        _say(f"{over}{outcome.left} runs are left; the same command goes on with them")
    page = write_report(suite, files[0], out / "report.html", outcome.keys)
    look = f", or look at {page}" if page else ""
    if told:
        _say(f"rows are in {told.replace(' ', ' and ')}; next: kdkit table {told}{look}")
    if outcome.failed:
        lines = "".join(f"\n  {name}: {why}" for name, why in outcome.failed.items())
        raise KdkitError(f"{len(outcome.failed)} of the runs failed; the same command tries them again{lines}")


def _check_engine(name: str, processes: int, address: str | None, gpus: float | None, cpus: int | None) -> None:
    """Refuses an engine that there is not, and a word that it has no use for."""
    words = {"--address": address, "--gpus-per-run": gpus, "--cpus-per-run": cpus}
    if name not in ENGINES:
        raise KdkitError(f"--engine must be one of {', '.join(ENGINES)}, got {name!r}{nearest(name, list(ENGINES))}")
    if name != "ray" and (useless := [word for word, value in words.items() if value is not None]):
        raise KdkitError(f"{', '.join(useless)} goes with --engine ray")
    if name != "processes" and processes > 1:
        raise KdkitError(f"--processes goes with --engine processes, not with {name}")


def _engine(name: str, processes: int, address: str | None, gpus: float | None, cpus: int | None, out: Path) -> Engine:
    """The engine that the words mean."""
    from kdkit.bench.engines import Here, Processes

    _check_engine(name, processes, address, gpus, cpus)
    if name == "here":
        return Here()
    if name == "processes":
        return Processes(processes)
    from kdkit.bench.engines.on_ray import OnRay

    return OnRay(address, gpus, cpus or 1, out)


@app.command(epilog="Example: kdkit table mine.jsonl --with shipped --format latex > table.tex")
def table(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS…", help="Files of rows that `kdkit bench` wrote.")],
    form: Annotated[str, typer.Option("--format", help="md, csv, latex or html.")] = "md",
    beside: Annotated[
        str | None, typer.Option("--with", help="shipped: rows of kdkit's own under the same protocol, too.")
    ] = None,
) -> None:
    """Set the rows of suites as tables.

    One table for each pair and protocol: mean ± deviation over seeds after the last epoch and at the best one, tests
    against the student alone, published numbers with their source, and notes on whatever does not compare.
    """
    if beside not in (None, "shipped"):
        raise KdkitError(f"--with must be `shipped`, got {beside!r}")
    from kdkit.bench.kinds import whole_rows
    from kdkit.bench.ledger import ledger
    from kdkit.bench.render import render
    from kdkit.bench.rows import read_rows
    from kdkit.bench.shipped import shipped_rows
    from kdkit.bench.table import blocks, under

    rows, theirs = [row for path in results for row in read_rows(path)], shipped_rows() if beside else []
    if not rows:
        raise KdkitError(f"no rows in {', '.join(map(str, results))}; `kdkit bench` writes them")
    mine, trials = [row for row in rows if "trial" not in row], [row for row in rows if "trial" in row]
    if form == "csv" and mine and trials:
        raise KdkitError(
            "a CSV is one table, and runs and trials are two; give the file of each to a `kdkit table` of its own"
        )
    if beside and not {row["fingerprint"] for row in mine} & {row["fingerprint"] for row in theirs}:
        ours, own = ("; ".join(sorted({under(row) for row in some})) or "none" for some in (mine, theirs))
        raise KdkitError(
            "no row that comes with kdkit has the same models, protocol, epochs and overrides; leave --with out, or "
            f"run your suite as kdkit's was\n  your rows: {ours}\n  kdkit's: {own}"
        )
    with whole_rows(results, rows):
        made = render(blocks(mine, theirs), form) if mine else ""
        made += "\n" * bool(mine) + ledger(trials, form) if trials else ""
    typer.echo(made, nl=False)


def _say(text: str) -> None:
    from kdkit.console import tell

    tell(text, sys.stdout)
