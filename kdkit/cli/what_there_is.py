"""Verbs about what there is, and about beginning: losses, models, recipes, init, schema."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from kdkit.cli.app import app
from kdkit.registry import KdkitError


@app.command(epilog="Example: kdkit losses crd")
def losses(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Explain this one, or one of yours: my_loss.py:MyLoss.")
    ] = None,
) -> None:
    """List the losses and the heads, or explain a loss."""
    from kdkit.catalogue import explained, heads_table, losses_table
    from kdkit.console import show

    if name is not None:
        typer.echo(explained(name))
        return
    show(losses_table(), sys.stdout)
    show(heads_table(), sys.stdout)
    typer.echo("\nkdkit losses NAME explains one: formula, options, paper; a head: its options")


@app.command(epilog="Example: kdkit models 'timm/*vit_tiny*'")
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern with * and ?.")
    ] = None,
) -> None:
    """List what a recipe's `arch` can be.

    Without a pattern kdkit's own nets, made for small images; with one timm's and torchvision's too.
    """
    from kdkit.models import MODELS, list_models

    if pattern is None:
        typer.echo(f"{fill('  '.join(MODELS), 80)}\n\ntimm/… and torchvision/…: kdkit models PATTERN finds them")
        return
    if not (found := list_models(pattern)):
        raise KdkitError(f"no model's name matches {pattern!r}; part of a name is enough: kdkit models vit_tiny")
    typer.echo("\n".join(name for name, _ in found))


@app.command(epilog="Example: kdkit recipes crd_cifar100 > mine.yaml")
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this recipe or protocol, to begin one's own with.")
    ] = None,
) -> None:
    """List the packaged recipes, or print one.

    `kdkit fit NAME` runs one; what stands in brackets is the paper and its number, in percent.
    """
    from kdkit.console import show, table
    from kdkit.recipe.find import packaged, packaged_text, protocol_names

    if name is not None:
        typer.echo(packaged_text(name), nl=False)
        return
    show(table(("recipe", "what it is"), [(info.name, info.title) for info in packaged()]), sys.stdout)
    typer.echo(f"\nprotocols: {', '.join(protocol_names())}\nkdkit recipes NAME prints one: a file to begin with")


@app.command(
    epilog="Example: kdkit init --teacher timm/vit_base_patch16_224 --student timm/mobilenetv3_large_100 --data photos"
)
def init(
    teacher: Annotated[str, typer.Option(help="Architecture of the teacher: resnet56, timm/NAME, torchvision/NAME.")],
    student: Annotated[str, typer.Option(help="Architecture of the student; `kdkit models` lists them.")],
    data: Annotated[
        str, typer.Option(help="A folder: photos/CLASS/*.jpg, or photos/train/ and photos/val/; or cifar100, …")
    ],
    out: Annotated[Path, typer.Option(help="The recipe's file.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from.

    It fits the two architectures and the images: their folders, classes and sizes are looked at, nothing is fetched.
    """
    from kdkit.recipe import start

    made = start(teacher, student, data, shlex.quote(str(out)))
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(made.text)
    except OSError as error:
        why = "exists already" if isinstance(error, FileExistsError) else f"cannot be written: {error.strerror}"
        raise KdkitError(f"{out} {why}; name another file with --out") from None
    typer.echo(f"{data}: {made.found}\nwrote {out}; next: kdkit check {shlex.quote(str(out))}")


@app.command(epilog="Example: kdkit schema > kdkit.schema.json")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from kdkit.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
