"""Reading a recipe, stage by stage: syntax; words and values; the graph. Each stage tells all its problems together."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from kdkit.consent import own_code_runs
from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.find import find, find_protocol, home, protocol_names
from kdkit.recipe.own_code import known_of, refused, strays
from kdkit.recipe.schema import RECIPE_ENDINGS, WEIGHTS_ENDINGS, Origin, Recipe
from kdkit.recipe.syntax import Item, parse, read
from kdkit.recipe.tree import merge, normalise, override
from kdkit.registry import nearest


def load(
    path_or_name: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    allow_custom: bool = True,
    above: tuple[Path, ...] = (),
) -> Recipe:
    """Read, merge, override and check a recipe.

    Args:
        path_or_name: a file, or the bare name of a packaged recipe.
        overrides: `key=value` words: `trainer.max_epochs=30`, `losses.crd.weight=0.5`, `models.student.arch=resnet32`.
        allow_custom: whether the recipe may bring its own Python (`my_loss.py:MyLoss`, `package.nets:make_net`).
        above: files of the recipes that wait for this one's weights.

    Raises:
        RecipeError: everything wrong with it, each with file, line, what was found and what would be right.
    """
    path = find(path_or_name)
    root, above = read(path), (*above, path.resolve())
    return _read(root, path.stem, path.parent, overrides, allow_custom, above, known_of(path))


def loads(
    text: str,
    *,
    name: str = "recipe",
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    lines: Item | None = None,
) -> Recipe:
    """A recipe from its text; what it names beside it is looked up in `folder`, by default the working directory.

    Errors name the lines of the text, or those of `lines`: the tree that a text of no file was made from.
    """
    root = parse(text, name)
    return _read(root if lines is None else root.marked(lines), name, folder or Path(), overrides, True, ())


def of_tree(
    root: Item,
    *,
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    allow_custom: bool = True,
    known: Collection[str] | None = None,
) -> Recipe:
    """A recipe from a tree whose items know their lines; the rest as in `load` and `loads`.

    Of files of code that lie elsewhere it may name those that are `known`; `None`: any.
    """
    return _read(root, name, folder, overrides, allow_custom, (), known)


def _read(
    root: Item,
    name: str,
    folder: Path,
    overrides: Sequence[str],
    allow_custom: bool,
    above: tuple[Path, ...],
    known: Collection[str] | None = None,
) -> Recipe:
    from kdkit.recipe.check import check
    from kdkit.recipe.explain import problems

    early = [text for text in overrides if re.match(r"\s*(protocol|stages)\b", text)]  # what is unfolded or merged
    root, protocol = with_protocol(override(root, early), folder)
    root = override(normalise(root), [text for text in overrides if text not in early])
    if found := list(strays(root, folder, known)):
        raise RecipeError(found)
    root = _anchored(root, folder)
    origin = Origin(name, folder, protocol, allow_custom := allow_custom and own_code_runs(), root)
    if not allow_custom and (found := refused(origin)):
        raise RecipeError(found)
    try:
        recipe = Recipe.model_validate(root.plain, context={"folder": folder})
    except ValidationError as error:
        raise RecipeError(problems(error, origin)) from None
    recipe._origin = origin
    if found := check(recipe, above):
        raise RecipeError(found)
    return recipe


def with_protocol(root: Item, folder: Path) -> tuple[Item, str | None]:
    """The recipe with its protocol's words underneath, and the protocol's name."""
    rest = dict(root.value)
    word = rest.pop("protocol", None)
    if word is None or word.value is None:
        return Item(rest, root.mark), None
    name, mark = word.value, word.mark
    if not isinstance(name, str):
        raise RecipeError([Problem.at(mark, "protocol", f"must be a protocol's name or file, got {word.plain!r}")])
    path = find_protocol(name, folder)
    if path is None:
        hint = nearest(name, protocol_names()) or f"; known: {', '.join(protocol_names())}"
        raise RecipeError([Problem.at(mark, "protocol", f"no protocol is called {name!r}{hint}")])
    try:
        under = read(path)
    except RecipeError as error:
        raise RecipeError([Problem.at(mark, "protocol", str(error))]) from None
    if "protocol" in under.value:
        inner = under.value["protocol"].mark
        raise RecipeError([Problem.at(inner, "protocol", "a protocol stands on no other; write its words out here")])
    return merge(Item(rest, root.mark), under), name


def _anchored(root: Item, folder: Path) -> Item:
    """Files that the recipe names, made absolute: its resolved text means the same anywhere on this machine."""
    value = dict(root.value)
    losses, models = value.get("losses"), value.get("models")
    if losses is not None and isinstance(losses.value, list):
        value["losses"] = Item([_anchor(edge, "loss", folder) for edge in losses.value], losses.mark)
    if models is not None and isinstance(models.value, dict):
        anchored = {k: _model(_anchor(v, "weights", folder), folder) for k, v in models.value.items()}
        value["models"] = Item(anchored, models.mark)
    data = value.get("data")
    root_of = data.value.get("root") if data is not None and isinstance(data.value, dict) else None
    if data is not None and root_of is not None and isinstance(root_of.value, str):
        from kdkit.data import data_root

        where = Item(str(data_root(root_of.value).absolute()), root_of.mark)
        value["data"] = Item({**data.value, "root": where}, data.mark)
    return Item(value, root.mark)


def _model(item: Item, folder: Path) -> Item:
    """One model, with the files of the nets inside it (`backbone: FILE:NAME`, `backbone: {arch: FILE:NAME}`)."""
    item = _anchor(_anchor(item, "arch", folder), "backbone", folder)
    inner = {word: item.child(word) for word in ("options", "backbone")}
    nets = {word: _model(net, folder) for word, net in inner.items() if net is not None}
    return Item({**item.value, **nets}, item.mark) if nets else item


def _anchor(item: Item, word: str, folder: Path) -> Item:
    found = item.value.get(word) if isinstance(item.value, dict) else None
    if found is None or not isinstance(found.value, str):
        return item
    file, colon, name = found.value.rpartition(":") if word != "weights" else (found.value, "", "")
    endings = (*WEIGHTS_ENDINGS, *RECIPE_ENDINGS) if word == "weights" else (".py",)
    if word == "weights" and not file.endswith(endings) and "/" not in file:
        if os.path.isfile(folder / f"{file}.yaml") and folder.resolve() != home():
            file = f"{file}.yaml"  # a recipe beside this one
        else:
            return item
    elif not file.endswith(endings) and word != "weights":
        return item
    places: tuple[Path, ...] = (folder, Path())
    if word != "weights" and not found.mark.is_override:  # code comes from beside the recipe, or whence the user says
        places = (folder,)
    there = next((base / file for base in places if os.path.exists(base / file)), None)
    there = there or (Path() if found.mark.is_override else folder) / file
    return Item({**item.value, word: Item(f"{there.resolve()}{colon}{name}", found.mark)}, item.mark)
