"""Where recipes lie: beside each other, or packaged with kdkit and found by bare name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdkit.recipe.errors import Problem, RecipeError, shown
from kdkit.registry import nearest

ENDINGS = (".yaml", ".yml")
PROTOCOLS = "protocols"


@dataclass(frozen=True)
class RecipeInfo:
    """A packaged recipe.

    Attributes:
        name: what `kdkit fit` takes.
        path: its file.
        title: first line of its header comment.
    """

    name: str
    path: Path
    title: str


@cache
def home() -> Path:
    """The folder of packaged recipes: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def packaged() -> list[RecipeInfo]:
    """Every packaged recipe by name, protocols left out."""
    return [RecipeInfo(name, path, _title(path)) for name, path in packaged_files().items()]


@cache
def packaged_files() -> dict[str, Path]:
    """The file of every packaged recipe, by name."""
    top = home()
    paths = sorted(path for path in top.rglob("*.yaml") if PROTOCOLS not in path.relative_to(top).parts)
    return {path.stem: path for path in paths}


def is_file(name: str | os.PathLike[str]) -> bool:
    """Whether a recipe's name means a file: it has a folder or an ending."""
    return isinstance(name, os.PathLike) or "/" in name or os.sep in name or name.endswith(ENDINGS)


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe.

    Args:
        name: a path, or the bare name of a packaged recipe.

    Raises:
        RecipeError: no recipe has that name; the nearest ones are offered. No such file where a packaged recipe has
            its name.
    """
    if is_file(name):
        path = Path(name)
        if not os.path.lexists(path) and path.stem in packaged_files():
            message = f"no such file; the packaged recipe is given by its bare name, {path.stem}"
            raise RecipeError([Problem(shown(path), None, "", message)])
        return path
    name, known = str(name), packaged_files()
    if name in known:
        return known[name]
    hint = nearest(name, list(known)) or "; `kdkit recipes` lists them"
    if os.path.isfile(f"{name}.yaml"):
        hint = f"; did you mean {name}.yaml? A file is given with its ending"
    raise RecipeError([Problem(name, None, "", f"no recipe has this name{hint}")])


def find_protocol(name: str, beside: Path) -> Path | None:
    """The file of a protocol: in the recipe's folder, in `protocols/` there, or packaged; `None` if there is none."""
    if is_file(name):
        return beside / name
    places = (beside / PROTOCOLS, beside, home() / PROTOCOLS)
    return next((path for place in places if os.path.isfile(path := place / f"{name}.yaml")), None)


def protocol_names() -> list[str]:
    """Names of the packaged protocols."""
    return sorted(path.stem for path in (home() / PROTOCOLS).glob("*.yaml"))


def packaged_text(name: str) -> str:
    """What the file of a packaged recipe or protocol says.

    Raises:
        RecipeError: none has that name; the nearest ones are offered.
    """
    protocols = {its: home() / PROTOCOLS / f"{its}.yaml" for its in protocol_names()}
    known = {**protocols, **packaged_files()}
    if name not in known:
        hint = nearest(name, list(known)) or "; `kdkit recipes` lists them"
        raise RecipeError([Problem(name, None, "", f"no packaged recipe or protocol has this name{hint}")])
    return known[name].read_text(encoding="utf-8")


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    if not first.startswith("# "):
        raise RecipeError([Problem(shown(path), 1, "", "a packaged recipe begins with a comment that says what it is")])
    return first[2:].strip()
