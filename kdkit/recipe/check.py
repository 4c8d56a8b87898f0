"""What can be wrong although every word is right: who teaches whom, and what a run of this length ever reaches."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdkit.recipe.blame import without_edge
from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.find import packaged_files
from kdkit.recipe.named import EdgeSpec
from kdkit.recipe.options import check_options
from kdkit.recipe.schema import ModelSpec, Recipe
from kdkit.recipe.stages import of_stage
from kdkit.recipe.trial import refused
from kdkit.recipe.words import Moving
from kdkit.registry import KdkitError, nearest

Found = Iterator[Problem]
TAPS = re.compile(r"(logits|embedding|beliefs|stem|stages|stage-?\d+)(:.*)?")
LR, WEIGHT = 1e4, 1e12  # at most; published ones go to 30 (a linear probe of MoCo's) and to 30,000 (PKT's)


def check(recipe: Recipe, above: tuple[Path, ...] = ()) -> list[Problem]:
    """Everything about the graph that can be told without data and without building a model."""
    found = [p for name, spec in recipe.models.items() for p in _model(recipe, name, spec, above)]
    found += _rates(recipe)
    if recipe.cohort is not None:
        told = recipe.cohort.problems(recipe.trained, recipe.trainer)
        found += [recipe.origin.problem(("cohort", *path), text) for path, text in told]
    if recipe.trained:
        return [*found, *_edges(recipe), *_balance(recipe)]
    return [
        *found,
        recipe.origin.problem(("models",), "no model is trained; say `frozen: false` for the one that learns"),
    ]


def _model(recipe: Recipe, name: str, spec: ModelSpec, above: tuple[Path, ...]) -> Found:
    def problem(message: str, *words: str) -> Problem:
        return recipe.origin.problem(("models", name, *words), message)

    kind = recipe.kind(name)
    if not name.isidentifier():
        yield problem(f"a model's name must be a plain word, got {name!r}")
    if spec.ema is not None:
        if spec.ema not in recipe.trained:
            known = nearest(spec.ema, recipe.trained) or f"; trained: {', '.join(recipe.trained) or 'none'}"
            yield problem(f"must name a trained model, got {spec.ema!r}{known}", "ema")
        yield from _schedule(recipe, ("models", name, "decay"), spec.decay, 0, 1)
    if spec.cache is not None and kind != "frozen":
        yield problem(f"{name} learns, so what it says changes and cannot be cached; leave it out", "cache")
    if kind == "frozen":
        for word in sorted(spec.model_fields_set & {"optimizer", "lr", "when"}):
            yield problem(f"{name} is frozen and takes no {word}; say `frozen: false` to train it", word)
        if spec.weights is None:
            right = "a file, `pretrained` or a recipe; `random` if you mean it, or `frozen: false` to train it"
            yield problem(f"{name} is frozen and has no weights; give it `weights:` {right}")
    elif spec.tune is not None:
        yield problem(f"tune fits a frozen model, and {name} is trained anyway; leave it out", "tune")
    if message := _classifier(recipe, name, spec):
        yield problem(message, "classifier")
    if spec.arch is not None:
        yield from _arch(recipe, name, spec)
        yield from check_options(recipe.origin, name, spec)
    if spec.tune is not None:
        yield from _schedule(recipe, ("models", name, "tune", "lr"), spec.tune.lr, 0, LR, epochs=spec.tune.epochs)
    if spec.source == "file" and not os.path.isfile(str(spec.weights)):
        what = "does not exist"
        if os.path.isdir(str(spec.weights)):
            inside = sorted(path.name for path in Path(str(spec.weights)).glob("*.safetensors"))
            what = f"is a folder; name a file in it{': ' * bool(inside)}{', '.join(inside)}"
        yield problem(f"the weights file {spec.weights} {what}", "weights")
    if spec.source == "recipe":
        from kdkit.recipe.sources import source

        try:
            source(recipe, name, above)
        except RecipeError as error:
            yield problem(f"no weights from {spec.weights!r}: {error}", "weights")


def _classifier(recipe: Recipe, name: str, spec: ModelSpec) -> str:
    """What is wrong with whose last layer a model predicts by."""
    frozen = [other for other in recipe.models if other != name and recipe.kind(other) == "frozen"]
    told = f"frozen: {', '.join(frozen) or 'none'}"
    if spec.classifier is None:
        wanted = spec.arch == "simkd" and recipe.kind(name) != "frozen" and frozen
        return f"simkd predicts by its teacher's last layer; say `classifier: {frozen[0]}`" if wanted else ""
    if recipe.kind(name) == "frozen":
        return f"{name} is frozen and predicts by its own; leave it out"
    return "" if spec.classifier in frozen else f"must name a frozen model, got {spec.classifier!r}; {told}"


def _arch(recipe: Recipe, name: str, spec: ModelSpec) -> Found:
    arch = str(spec.arch)
    if ":" in arch or "/" in arch:
        return  # their own libraries know; `build` asks them
    from kdkit.models import builtin

    try:
        builtin(arch)
    except KdkitError as error:
        known = f"{arch} is a recipe; say which net it trains, and it as the weights: {{arch: …, weights: {arch}}}"
        message = known if arch in packaged_files() else str(error)
        yield recipe.origin.problem(("models", name, "arch"), message)
        return
    if spec.source == "pretrained":
        message = f"there are no published weights of {arch} to fetch; give a file or a recipe"
        yield recipe.origin.problem(("models", name, "weights"), message)


def _rates(recipe: Recipe) -> Found:
    yield from _schedule(recipe, ("lr",), recipe.lr, 0, LR)
    for word, example in (("lr", "0.05, or a schedule"), ("optimizer", "{name: sgd, momentum: 0.9}")):
        missing = [name for name in recipe.trained if getattr(recipe.models[name], word) is None]
        if missing and getattr(recipe, word) is None:
            yield recipe.origin.problem(
                (word,), f"must be given, such as {example}; {missing[0]!r} has none of its own"
            )
    for name in recipe.trained:
        yield from _schedule(recipe, ("models", name, "lr"), recipe.models[name].lr, 0, LR)
        yield from _when(recipe, ("models", name, "when"), recipe.models[name].when)


def _balance(recipe: Recipe) -> Found:
    from kdkit.graph.balance import check_balance, check_company

    if recipe.balance is not None:
        try:
            check_balance(recipe.balance, [edge.edge() for edge in recipe.losses])
            turns = len(recipe.trained) if recipe.trainer.update == "sequential" else 1
            check_company(recipe.balance, turns=turns, cohort=recipe.cohort is not None)
        except KdkitError as error:
            yield recipe.origin.problem(("balance",), str(error).removeprefix("balance: "))


def _edges(recipe: Recipe) -> Found:
    from torch import nn

    from kdkit.graph import Node
    from kdkit.graph.links import links

    nodes = {
        name: Node(None, "ema", of=spec.ema) if spec.ema else Node(nn.Identity(), recipe.kind(name))
        for name, spec in recipe.models.items()
    }
    titles = [edge.title for edge in recipe.losses]
    reached: set[str] = set()
    sound = True
    for i, spec in enumerate(recipe.losses):
        here = ("losses", i)
        if spec.title in titles[:i]:
            loc = (*here, "name") if spec.name else here
            yield recipe.origin.problem(loc, f"two losses are called {spec.title!r}; give one of them a `name`")
        wrong = [*_ends(recipe, i, spec), *_values(recipe, i, spec), *_when(recipe, (*here, "when"), spec.when)]
        yield from wrong
        try:
            found = [] if wrong else links(spec.edge(), nodes)
            reached |= {link.target.node for link in found}
        except KdkitError as error:
            text = without_edge(str(error))
            wrong.append(recipe.origin.problem((*here, *_blamed(spec, text)), text))
            yield wrong[-1]
        sound = sound and not wrong
    if sound:
        for name in recipe.trained:
            if name not in reached:
                yield recipe.origin.problem(
                    ("models", name), "is trained, but no loss reaches it; name it in a loss's `to`"
                )


def _ends(recipe: Recipe, i: int, spec: EdgeSpec) -> Found:
    """An end that is no model is a tap of the default one, unless it nearly is a model's name."""
    from kdkit.taps.places import SIDES

    for word, end in spec.ends:
        side = end.partition(":")[2]
        if ":" in end and side not in SIDES:
            hint = nearest(side, list(SIDES)) or f"; known: {', '.join(SIDES)}"
            yield recipe.origin.problem(("losses", i, word), f"unknown side {side!r} of {end!r}{hint}")
        head = end.partition(".")[0]
        if head in recipe.models or word == "taps" or (word != "among" and TAPS.fullmatch(head)):
            continue
        if word == "among" or difflib.get_close_matches(head, recipe.models, cutoff=0.75):
            hint = nearest(head, list(recipe.models)) or f"; models: {', '.join(recipe.models)}"
            yield recipe.origin.problem(("losses", i, word), f"no model is called {head!r}{hint}")


def _blamed(spec: EdgeSpec, text: str) -> tuple[str, ...]:
    """The word of an edge that a sentence about it is about, if it can be told."""
    for word, end in spec.ends:
        if text.startswith(word) or f"'{end.partition('.')[0]}'" in text or f"`{word}`" in text:
            return (word,)
    return ()


def _values(recipe: Recipe, i: int, spec: EdgeSpec) -> Found:
    """Every schedule over the run's length, and what the constructor says to both ends of each."""
    epochs = recipe.trainer.max_epochs
    wrong = [
        *_schedule(recipe, ("losses", i, "weight"), spec.weight, 0, WEIGHT),
        *_schedule(recipe, ("losses", i, "clip"), spec.clip, 0),
    ]
    for word, value in spec.arguments.items():
        if isinstance(value, Moving) and "control" not in value:
            wrong += _schedule(recipe, ("losses", i, word), value)
    yield from [*wrong, *_held_out(recipe, i, spec)]
    if not wrong:
        for word, message in refused(spec, epochs):
            yield recipe.origin.problem(("losses", i, *([word] if word else [])), message)


def _held_out(recipe: Recipe, i: int, spec: EdgeSpec) -> Found:
    """What follows held-out training samples has some."""
    asking = ["coordinate"] if spec.coordinate else []
    asking += [word for word, value in spec.arguments.items() if isinstance(value, Moving) and "control" in value]
    if asking and not recipe.data.arguments.get("val_split"):
        message = "follows held-out training samples, and none are held out; say `val_split: 0.1` under `data`"
        yield recipe.origin.problem(("losses", i, asking[0]), message)


def _schedule(
    recipe: Recipe,
    loc: tuple[int | str, ...],
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    epochs: int | None = None,
) -> Found:
    """Times that never come, and values outside [low, high]."""
    from kdkit.graph.share import Share

    if value is None:
        return
    try:
        said = Share.parse(value)
        if isinstance(said, Share):
            return
        least, most = said.extremes(epochs or recipe.trainer.max_epochs)
    except KdkitError as error:
        yield recipe.origin.problem(loc, str(error))
        return
    if low is not None and least < low:
        yield recipe.origin.problem(loc, f"must be at least {low:g} all the time, got {least:g}")
    if high is not None and most > high:
        yield recipe.origin.problem(loc, f"must be at most {high:g} all the time, got {most:g}")


def _when(recipe: Recipe, loc: tuple[int | str, ...], value: Any) -> Found:
    from kdkit.graph import Span

    try:
        Span.parse(value).bind(recipe.trainer.max_epochs)
    except KdkitError as error:
        yield of_stage(recipe.origin.tree, loc, str(error)) or recipe.origin.problem(loc, str(error))
