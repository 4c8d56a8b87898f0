"""The command line's root: how verbs fail, and the words that several of them take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kdkit.consent import as_before, forbid_own_code
from kdkit.registry import KdkitError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes to the recipe: seed=1 losses.kd.weight=0.5 'lr={cosine: [0.1, 0]}'"
    ),
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name, or a .yaml file.")]
NoCustomCode = Annotated[
    bool,
    typer.Option(
        "--no-custom-code",
        callback=forbid_own_code,
        expose_value=False,
        help="Run no Python but kdkit's own: for recipes of strangers.",
    ),
]


ORDER = (
    *("fit", "eval", "check", "cache"),
    *("compare", "probe", "latency", "export", "report"),
    *("bench", "tune", "table"),
    *("losses", "models", "recipes", "init", "schema"),
)
"""The verbs in `--help`: what one begins with comes first."""


USAGE: Any = typer.BadParameter.__base__
"""What click says of a command line; typer carries a click of its own, and gives this class no name."""

BRACES = str.maketrans("", "", "{}")  # around what must be given


@contextmanager
def _usage() -> Iterator[None]:
    """A command line that cannot be read is told as all errors are, with the line that would be right."""
    try:
        yield
    except USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        told = error.format_message().rstrip(".")
        usage = " ".join(error.ctx.get_usage().split()).translate(BRACES) if error.ctx else ""
        line = f"\nusage:{usage.replace('…...', '…').partition(':')[2]}; -h explains it" if usage else ""
        say("error:", "red", f"{told[:1].lower()}{told[1:]}{line}")
        raise typer.Exit(2) from None


class Verbs(TyperGroup):
    """The verbs, and how they fail: what the user can mend is one message and exit code 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In `ORDER`."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def make_context(self, *args: Any, **words: Any) -> Any:
        """Read the words before the verb."""
        with _usage():
            return super().make_context(*args, **words)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an exception that is not the user's to mend keeps its traceback."""
        try:
            with as_before(), _usage():
                return super().invoke(ctx)
        except KdkitError as error:
            say("error:", "red", str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            say("stopped.", "yellow", str(stop))
            raise typer.Exit(getattr(stop, "code", 130)) from None


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


def say(word: str, style: str, text: str) -> None:
    """A message on standard error, whole and unwrapped."""
    from kdkit.console import tell

    tell(text, sys.stderr, word, f"bold {style}")
