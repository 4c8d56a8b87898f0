"""Recipes as text: resolved, and hashed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from kdkit.recipe.code_text import digest_of_code, own_module
from kdkit.recipe.named import EdgeSpec
from kdkit.recipe.schema import Recipe
from kdkit.recipe.syntax import scalar
from kdkit.registry import KdkitError

# Where and how fast a recipe runs, and what becomes of a run that would fail: no part of what comes out.
MACHINE: tuple[str, ...] = ("accelerator", "devices", "strategy", "num_nodes", "channels_last", "compile")
GUARDS = ("on_nonfinite", "check_teachers")
MACHINE += ("deterministic", "benchmark", "logger", *GUARDS)
LIMITS = ("limit_train_batches", "limit_val_batches")
READING = ("root", "download", "num_workers", "eval_batch_size")


def document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain mappings in its own words: protocol merged, defaults of losses written out."""
    whole: dict[str, Any] = {
        "models": {name: spec.model_dump(by_alias=True, exclude_unset=True) for name, spec in recipe.models.items()},
        "losses": [_edge(edge) for edge in recipe.losses],
        "data": recipe.data.model_dump(by_alias=True, exclude_unset=True),
    }
    if recipe.optimizer is not None:
        whole["optimizer"] = recipe.optimizer.model_dump(by_alias=True, exclude_unset=True)
    if recipe.lr is not None:
        whole["lr"] = recipe.lr
    whole["trainer"] = recipe.trainer.model_dump(exclude_unset=True)
    whole["seed"] = recipe.seed
    if recipe.balance is not None:
        whole["balance"] = recipe.balance
    if recipe.stages:
        whole["stages"] = [stage.model_dump(exclude_unset=True) for stage in recipe.stages]
    if recipe.cohort is not None:
        whole["cohort"] = recipe.cohort.model_dump(by_alias=True, exclude_unset=True)
    return whole


def resolved(recipe: Recipe) -> str:
    """YAML text of the recipe as it runs; it loads again, anywhere on this machine, to an equal recipe."""
    protocol = f", protocol {recipe.origin.protocol} merged" if recipe.origin.protocol else ""
    return f"# {recipe.name}, resolved{protocol}\n{dump(document(recipe))}"


def dump(content: dict[str, Any]) -> str:
    """Mappings, lists and scalars as YAML that `syntax.parse` reads back as they are."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def fingerprint(recipe: Recipe) -> str:
    """A hash of everything but the method: recipes that differ in losses, heads, stages and cohort alone share it.

    The machine and where things lie are left out as in `content_key`, for they change nothing, and so is where a
    teacher's answers are read from, unless as some of their logits alone. What `float16` rounds is no more than another
    machine changes.
    """
    whole = {k: v for k, v in _content(recipe).items() if k not in ("losses", "stages", "cohort", "balance")}
    for spec in whole["models"].values():
        if not (spec.get("cache") or {}).get("top_k"):
            spec.pop("cache", None)
    return _hash(whole)


def content_key(recipe: Recipe) -> str:
    """A hash of everything that determines the result: files by what is in them, recipes by their key.

    Images of a folder count by their names and sizes, wherever they lie.
    """
    return _hash(_content(recipe))


def _content(recipe: Recipe) -> dict[str, Any]:
    from kdkit.recipe.sources import source

    whole, folder = document(recipe), recipe.origin.folder
    for name, spec in whole["models"].items():
        if recipe.models[name].source == "recipe":
            spec["weights"] = content_key(source(recipe, name))
        elif recipe.models[name].source == "file":
            spec["weights"] = _file(spec["weights"])
        for word in ("arch", "options"):
            if word in spec:
                spec[word] = _code(spec[word], folder)
    whole["losses"] = [{_code(loss, folder): words for loss, words in edge.items()} for edge in whole["losses"]]
    whole["data"] = {k: v for k, v in whole["data"].items() if k not in READING}
    if (images := _images(recipe)) is not None:
        whole["data"]["images"] = images
    whole["trainer"] = {k: _share(v) if k in LIMITS else v for k, v in whole["trainer"].items() if k not in MACHINE}
    turns = list(recipe.trained) if recipe.trainer.update == "sequential" else []
    if turns != sorted(turns):  # the order of their names says nothing
        whole["turns"] = turns
    return whole


def _edge(edge: EdgeSpec) -> dict[str, Any]:
    """Its words and its loss's arguments; what is nothing by default is left out."""
    given = edge.model_dump(by_alias=True, exclude_unset=True)
    words = {k: v for k, v in edge.model_dump(by_alias=True).items() if k in given or v not in (None, False)}
    return {words.pop("loss"): words}


def _code(value: Any, folder: Path) -> Any:
    """One's own code by its text, also that of a net inside another."""
    if isinstance(value, dict):
        return {word: _code(part, folder) for word, part in value.items()}
    place, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon:
        return value
    own = (Path(place), Path(place).parent) if place.endswith(".py") else own_module(place, folder)
    try:
        return value if own is None else f"{digest_of_code(*own)}:{name}"
    except OSError:
        return value


def _share(limit: int | float | None) -> int | float | str | None:
    """1 is one batch, and 1.0 all of them."""
    return f"{limit}" if limit == 1 and isinstance(limit, float) else limit


def _images(recipe: Recipe) -> str | None:
    from kdkit import data

    if recipe.data.fake:
        return None
    try:
        return data.build(recipe.data.name, **recipe.data.arguments).own_images()
    except (OSError, KdkitError):  # told where they are read
        return None


def _file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return path


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(_canonical(content), sort_keys=True).encode(), digest_size=8).hexdigest()


def _canonical(value: Any) -> Any:
    """1 and 1.0 are the same number."""
    if isinstance(value, dict):
        return {key: _canonical(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Quoted where it would be read as something else."""
    style = None if scalar(value) == value else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)
