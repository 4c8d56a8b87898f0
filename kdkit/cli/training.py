"""Verbs about runs: fit, eval, check, cache."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdkit.cli.app import NoCustomCode, Overrides, RecipeName, app, say

if TYPE_CHECKING:
    from kdkit.runs.result import Result


@app.command(
    epilog="Example: kdkit fit crd_cifar100 trainer.max_epochs=30 losses.crd.weight=0.5 data.root=/data seed=1"
)
def fit(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run's folder; left out: runs/RECIPE-seedN.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that the folder holds and start anew.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure where a step's time goes; the run goes on meanwhile.")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Tell each loss's share of the gradient and the angles between them.")
    ] = False,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Train what a recipe says.

    A folder with weights, metrics and their provenance comes out; a teacher that is a recipe itself is trained first.
    """
    from kdkit.runs.folder import RunFolder, first_rank
    from kdkit.runs.lock import check_free

    if profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler else tells of itself
    if out is not None and first_rank():  # before the seconds that everything else costs
        check_free(RunFolder(out), resume=resume, overwrite=overwrite)
    from kdkit.recipe import load

    loaded = load(recipe, overrides or [])
    from kdkit.runs.fit import fit as run  # seconds, which a recipe that is not there need not cost
    from kdkit.runs.interrupt import Interrupted, interruptible

    folder = RunFolder(out or Path("runs") / f"{loaded.name}-seed{loaded.seed}")
    if resume and not folder.begun and first_rank():
        typer.echo(f"{folder.path} holds no epoch to go on from; the run begins anew")
    try:
        with interruptible(folder):
            result = run(
                loaded, out=folder.path, resume=resume, overwrite=overwrite, profile=profile, diagnose=diagnose
            )
    except Interrupted as stop:
        stop.args = (f"{stop}; {_go_on(stop.folder.teacher)}",)
        raise
    if first_rank():  # with several devices each has this command run for itself
        _show_result(result)


@app.command(name="eval", epilog="Example: kdkit eval runs/crd_cifar100-seed0 --data /data")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its .safetensors files.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other data, or another way to read them: data.image_size=64"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder of class folders, scored whole; as data.root=FOLDER.")
    ] = None,
    split: Annotated[str, typer.Option(help="test, or train: the training images without augmentation.")] = "test",
    classes: Annotated[bool, typer.Option("--classes", help="Show every class, not only the ten hardest.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file to write; left out: eval.json in the run's folder.")
    ] = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Score the models that a run trained.

    On the run's own test images, or on others of the same classes: top-1, top-5, mean negative log-likelihood, Brier's
    score, calibration errors, and top-1 by class.
    """
    from kdkit.console import show
    from kdkit.recipe.errors import told_as
    from kdkit.runs.afterwards import log_found, short
    from kdkit.runs.evaluate import classes_table, precision_of, results_table, score, write_evaluation
    from kdkit.runs.teacher import own_run
    from kdkit.runs.trained import FULL

    root = f"data.root={data}"
    words = [*(overrides or []), *([root] if data else [])]
    with told_as(root, f"--data {data}"):
        found = score(run, words, split=split)
    show(results_table(found.figures), sys.stdout)
    typer.echo()
    show(classes_table(found.by_class, None if classes else 10), sys.stdout)
    if (precision := precision_of(run)) != FULL:
        typer.echo(f"scored in {FULL}; the run scored itself in {precision}, whose rounding moves a few images")
    own = own_run(run)
    if path := out or (own and own.evaluation):
        write_evaluation(path, found, split, words, str(run) if out else "")
    else:
        typer.echo(f"nothing is kept: {run} is no folder of a run of yours; --out names a file")
    if own is not None:
        log_found(own, "eval", {short([split, *words]): found.whole})


@app.command(epilog="Example: kdkit check crd_cifar100 losses.crd.negatives=all")
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    images: Annotated[
        bool, typer.Option("--images", help="Read every image of a folder, too, and name those that are broken.")
    ] = False,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Show shapes, sizes and cost of a recipe.

    It needs no GPU, and no images but a folder's, which tell its classes. What would fail in training fails here.
    """
    from kdkit.console import show
    from kdkit.recipe import load

    loaded = load(recipe, overrides or [])
    from kdkit.runs.check import check as examine

    show(examine(loaded), sys.stdout)
    if images:
        from kdkit.runs.images import read_images

        count = read_images(loaded)
        typer.echo(f"images  all {count:,} are whole" if count else "images  none is read from a file of its own")


@app.command(epilog="Example: kdkit cache crd_cifar100 models.teacher.cache=true")
def cache(
    recipe: RecipeName,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute again what is there and compare; nothing is written.")
    ] = False,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Compute what the teachers say of every view of every image, once.

    A fit whose models say `cache` reads it, and fills in what is missing by itself.
    """
    from kdkit.console import show, table
    from kdkit.recipe import load

    loaded = load(recipe, overrides or [])
    from kdkit.runs.cache import cache as fill

    found = fill(loaded, verify=verify)
    columns = ["model", ">rows", ">there", ">GB", ">largest difference", "folder"]
    show(table(columns, [report.cells() for report in found]), sys.stdout)


def _go_on(of_a_teacher: bool) -> str:
    """The command that goes on: the same one; `--resume` is for the run itself, a teacher needs no word."""
    words = sys.argv[1:]
    if not of_a_teacher:
        words = [*(word for word in words if word not in ("--resume", "--overwrite")), "--resume"]
    return f"go on with: kdkit {shlex.join(words)}"


def _show_result(result: Result) -> None:
    from kdkit.console import show
    from kdkit.runs.evaluate import results_table
    from kdkit.runs.result import NOT_FINITE

    if result.last:
        show(results_table(result.last, "after the last epoch"), sys.stdout)
    else:
        typer.echo("nothing was scored: there are no labelled test images")
    for node, metrics in result.best.items():
        if result.folder.weights(node).exists():
            typer.echo(f"{node}: best epoch {metrics['epoch']:.0f}, top-1 {100 * metrics['top1']:.2f} %")
    for name in result.not_finite:
        say("warning:", "yellow", f"{name} is not finite, {NOT_FINITE}; it is null in {result.folder.result}")
    typer.echo(f"everything is in {result.folder.path}")
