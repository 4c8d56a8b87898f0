"""Errors of the rooms below, which know no recipe, get the line of the words that they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kdkit.recipe.errors import RecipeError
from kdkit.recipe.schema import Recipe
from kdkit.registry import KdkitError

TIMMS_SIZE = re.compile(r"(Input (?:height|width) \((\d+)\) doesn't match model \((\d+)\))\.?")
RIGHT_SIZE = r"\1; say data.image_size=\3, `image_size: \3` at the model alone, or `options: {img_size: \2}` there"


@contextmanager
def blaming(recipe: Recipe, *loc: str) -> Iterator[None]:
    """Whatever a model, the data or the graph refuses inside is raised as a `RecipeError` with its line.

    Args:
        recipe: what is being built or run.
        loc: the words it is about; left out, they follow from the text, which begins with the edge, a model or `data`.
    """
    try:
        yield
    except RecipeError:
        raise
    except KdkitError as error:
        loc = loc or tuple(word for word in ("data", "optimizer") if str(error).startswith(f"{word}: "))
        text = str(error).removeprefix(f"{loc[0]}: ").removeprefix("node: ") if loc else str(error)
        place = (*loc, *_word(recipe, loc, text)) or _guess(recipe, text)
        said = without_edge(text)
        if place and said.startswith(f"{place[-1]} must "):
            said = said.removeprefix(f"{place[-1]} ")
        raise RecipeError([recipe.origin.problem(place, TIMMS_SIZE.sub(RIGHT_SIZE, said))]) from error


def _word(recipe: Recipe, loc: tuple[str, ...], text: str) -> tuple[str, ...]:
    """The word below `loc` that a sentence about it is about, if it can be told."""
    if loc == ("data",):  # an argument of the data module, or the folder that a path lies in
        word = re.match(r"\S+(?= must )", text)
        arguments = {field.alias or name for name, field in type(recipe.data).model_fields.items()}
        if word and word[0] in arguments:
            return (word[0],)
        root = recipe.data.arguments.get("root")
        return ("root",) if root and text.startswith(str(root)) else ()
    if loc[:1] == ("models",) and loc[2:] == ():
        word = re.match(r"\S+(?= must )", text)
        if word and word[0] in recipe.models[loc[1]].model_fields_set:
            return (word[0],)
        options = recipe.models[loc[1]].options
        quoted = [word for word, value in options.items() if f"'{word}'" in text or f"{word}={value!r}" in text]
        return (
            ("options", *(quoted if len(quoted) == 1 else []))
            if quoted or (options and not text.startswith("unknown "))
            else ("arch",)
        )
    return ()


def without_edge(text: str) -> str:
    """A sentence about an edge, or who learns in a stage, without its beginning: the words before it say which."""
    return re.sub(r"^(edge '[^']*'|stage '[^']*': train): ", "", text)


def _guess(recipe: Recipe, text: str) -> tuple[int | str, ...]:
    """The stage or edge that a sentence begins with, the edge whose tap it quotes, or the model that it begins with."""
    if stage := re.match(r"stage '([^']*)': train: ", text):
        return next((("stages", i, "train") for i, its in enumerate(recipe.stages) if its.name == stage[1]), ())
    named = dict(re.findall(r"^(edge|model) '([^']*)'", text))
    model = named.get("model", "")
    for i, edge in enumerate(recipe.losses):
        taps = {end.removeprefix(f"{model}.") for _, end in edge.ends}
        if edge.title == named.get("edge") or any(f"{tap!r}" in text for tap in taps - recipe.models.keys()):
            return ("losses", i)
    return ("models", model) if model in recipe.models else ()
