"""The verb that shows a run: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdkit.cli.app import NoCustomCode, app


@app.command(epilog="Example: kdkit report runs/kd_digits-seed0")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; left out: report.html in the run's folder, or here for a shared teacher."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="What `kdkit compare` wrote; left out: compare in the run's folder.")
    ] = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Write a run's page: one HTML file that needs no network.

    Its recipe as a graph, curves to hover over and zoom into, figures of comparisons, provenance, and how it is made
    again.
    """
    from kdkit.report.page import write_report

    typer.echo(f"wrote {write_report(run, out, compare)}")
