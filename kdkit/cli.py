"""The command line: one thin function for each verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from kdkit.runs.result import Result

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes to the recipe: seed=1 losses.kd.weight=0.5 'lr={cosine: [0.1, 0]}'"
    ),
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name, or a .yaml file.")]
NoCustomCode = Annotated[
    bool, typer.Option("--no-custom-code", help="Refuse recipes that bring their own Python: for recipes of strangers.")
]


class Verbs(TyperGroup):
    """The verbs, and how they fail: what the user can mend is one message and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an exception that is not the user's to mend keeps its traceback."""
        try:
            return super().invoke(ctx)
        except KdkitError as error:
            _say("error:", "red", str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            _say("stopped.", "yellow", str(stop))
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs,
    help="Knowledge distillation: models are nodes, losses are edges, a recipe is that graph written down.",
    epilog="Example: kdkit fit crd_cifar100 trainer.max_epochs=30",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script `kdkit`."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from kdkit import __version__

        typer.echo(f"kdkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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
    no_custom_code: NoCustomCode = False,
) -> None:
    """Train what a recipe says.

    A folder with weights, metrics and their provenance comes out; a teacher that is a recipe itself is trained first.
    """
    from kdkit.runs.folder import RunFolder, first_rank

    if out is not None and first_rank():  # before the seconds that everything else costs
        RunFolder(out).check(resume=resume, overwrite=overwrite)
    from kdkit.recipe import load

    loaded = load(recipe, overrides or [], allow_custom=not no_custom_code)
    from kdkit.runs.fit import fit as run  # seconds, which a recipe that is not there need not cost
    from kdkit.runs.interrupt import Interrupted, interruptible

    folder = RunFolder(out or Path("runs") / f"{loaded.name}-seed{loaded.seed}")
    try:
        with interruptible(folder):
            result = run(loaded, out=folder.path, resume=resume, overwrite=overwrite)
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; {_go_on(stop.folder.teacher)}") from None
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
) -> None:
    """Score the models that a run trained.

    On the run's own test images, or on others of the same classes: top-1, top-5 and mean negative log-likelihood.
    """
    from kdkit.console import show
    from kdkit.runs.evaluate import evaluate as score
    from kdkit.runs.evaluate import results_table

    words = [*(overrides or []), *([f"data.root={data}"] if data else [])]
    show(results_table(score(run, words, split=split)), sys.stdout)


@app.command(epilog="Example: kdkit check crd_cifar100 losses.crd.negatives=all")
def check(recipe: RecipeName, overrides: Overrides = None, no_custom_code: NoCustomCode = False) -> None:
    """Show shapes, sizes and cost of a recipe.

    It needs neither data nor a GPU. What would fail in training fails here.
    """
    from kdkit.console import show
    from kdkit.recipe import load

    loaded = load(recipe, overrides or [], allow_custom=not no_custom_code)
    from kdkit.runs.check import check as examine

    show(examine(loaded), sys.stdout)


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

    loaded = load(recipe, overrides or [], allow_custom=not no_custom_code)
    from kdkit.runs.cache import cache as fill

    found = fill(loaded, verify=verify)
    columns = ["model", ">rows", ">there", ">GB", ">largest difference", "folder"]
    show(table(columns, [report.cells() for report in found]), sys.stdout)


@app.command(epilog="Example: kdkit losses crd")
def losses(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Explain this one: formula, options, paper.")
    ] = None,
) -> None:
    """List the losses, or explain one."""
    from kdkit.catalogue import explained, losses_table
    from kdkit.console import show
    from kdkit.registry import LOSSES

    if name is not None:
        typer.echo(explained(LOSSES[name]))
        return
    show(losses_table(), sys.stdout)
    typer.echo("\nkdkit losses NAME explains one: formula, options, paper")


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


@app.command(epilog="Example: kdkit recipes")
def recipes() -> None:
    """List the packaged recipes.

    `kdkit fit NAME` runs one; what stands in brackets is the paper and its number, in percent.
    """
    from kdkit.console import show, table
    from kdkit.recipe import packaged

    show(table(("recipe", "what it is"), [(info.name, info.title) for info in packaged()]), sys.stdout)


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


def _say(word: str, style: str, text: str) -> None:
    """A message on standard error, whole and unwrapped."""
    from kdkit.console import tell

    tell(text, sys.stderr, word, f"bold {style}")


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
        _say("warning:", "yellow", f"{name} is not finite, {NOT_FINITE}; it is null in {result.folder.result}")
    typer.echo(f"everything is in {result.folder.path}")


if __name__ == "__main__":
    main()
