"""A model's `options`: arguments of its architecture, and none of what a recipe says elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from pydantic import ValidationError

from kdkit.recipe.errors import Problem
from kdkit.recipe.schema import ModelSpec, Origin
from kdkit.recipe.words import Words, options_model
from kdkit.registry import constructor

OURS = "is a word that kdkit itself gives to whatever it builds; call the model's argument something else"
ELSEWHERE = {
    "num_classes": "stands beside `arch`: {arch: resnet20, num_classes: 10}; left out, it follows from the data",
    "pretrained": "is said beside `arch`, as `weights: pretrained`",
    "arch": OURS,
    "base": OURS,
    "allow_custom": OURS,
}
HUBS = {
    "weights": "stands beside `arch`: `weights: pretrained`, or a file",
    "checkpoint_path": "is said beside `arch`, as `weights: FILE`",
}


def check_options(origin: Origin, name: str, spec: ModelSpec) -> Iterator[Problem]:
    """Options that cannot be, as far as it can be told without building the model.

    Args:
        origin: of the recipe.
        name: of the model.
        spec: of the model.
    """
    from kdkit.models import MODELS
    from kdkit.recipe.explain import problems

    arch, where = str(spec.arch), ("models", name, "options")
    refused = {**ELSEWHERE, **HUBS} if arch.startswith(("timm/", "torchvision/")) else ELSEWHERE
    for word in spec.options.keys() & refused:
        yield origin.problem((*where, word), refused[word])
    if arch not in MODELS:
        return  # their own code judges
    try:
        arch_words(arch).model_validate({word: value for word, value in spec.options.items() if word not in refused})
    except ValidationError as error:
        yield from problems(error, origin, where)


@cache
def arch_words(arch: str) -> type[Words]:
    """The options of a built-in architecture."""
    from kdkit.models import MODELS

    factory: Callable[..., Any] = MODELS[arch]
    fixed: list[str] = []
    if isinstance(factory, partial):
        fixed = list(constructor(factory.func))[: len(factory.args)]  # type: ignore[arg-type]  # its classes
        factory = factory.func
    return options_model(Words, arch, factory, skip=("num_classes", *fixed))
