"""Verbs about a trained model on its own: latency, export."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdkit.cli.app import NoCustomCode, app


@app.command(epilog="Example: kdkit latency runs/kd_digits-seed0 --batch 1 --mode eager")
def latency(
    what: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="Runs' folders, weights files, or models' names.")
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images in a pass; left out: 1, 64 and 256.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="eager, compiled or exported (ONNX); left out: all three.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, gpu, or auto: the accelerator where there is one.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; left out: as many as torch takes.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; left out: the run's, or what the model was made for.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of a model given by name; left out: its own, or 100.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Timed passes, after 20 that are not.")] = 100,
    seconds: Annotated[float, typer.Option(min=0, help="No longer than this for each line; 5 passes at least.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Write it as JSON, too.")] = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Time models, side by side.

    Median and 90th percentile of a forward pass, images a second, parameters, multiply-accumulates and peak memory. Of
    a run every model is timed, its teachers too.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, else tells of itself
    import torch

    from kdkit.console import show
    from kdkit.deploy.latency import BATCHES, MODES, write_latency
    from kdkit.deploy.latency import latency as measure
    from kdkit.deploy.subjects import subjects

    if threads is not None:
        torch.set_num_threads(threads)
    found = subjects(what, image_size=image_size, num_classes=num_classes)
    words = {"batches": batch or BATCHES, "modes": mode or MODES, "repeats": repeats, "seconds": seconds}
    report = measure(found, device=device, **words)  # type: ignore[arg-type]
    show(report, sys.stdout)
    if out is not None:
        write_latency(report, out)


@app.command(epilog="Example: kdkit export runs/kd_digits-seed0 --format onnx")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its .safetensors files.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other images to check on: data.fake=true takes noise."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="onnx, torch (torch.export), safetensors or timm.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The folder; left out: exports/RUN-FORMAT.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Which of several models; left out: the only one, or student.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder of class folders to check on; as data.root=FOLDER.")
    ] = None,
    int8: Annotated[
        str | None, typer.Option(help="dynamic or static: a quantised ONNX file, too, and the accuracy it costs.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former export.")] = False,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Write a trained model to a folder of its own.

    The model alone, without teachers, heads and losses: its file, its configuration and a card with recipe and numbers.
    The file is opened again and has to say of real images what the model says.
    """
    from kdkit.console import show, table
    from kdkit.deploy.export import export as write
    from kdkit.deploy.export import exported_cells

    words = [*(overrides or []), *([f"data.root={data}"] if data else [])]
    found = write(run, form, out=out, model=model, overrides=words, int8=int8, overwrite=overwrite)
    heads = ("file", ">MB", ">largest difference", "on", ">top-1 %", ">same class %")
    show(table(heads, exported_cells(found)), sys.stdout)
    typer.echo(f"everything is in {found.folder}")
