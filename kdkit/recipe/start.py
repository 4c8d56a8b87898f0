"""For those who write recipes: a first one, and a JSON Schema for their editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.recipe.find import packaged
from kdkit.recipe.named import data_model, edge_model, optimizer_model
from kdkit.recipe.schema import Recipe
from kdkit.recipe.syntax import scalar
from kdkit.recipe.words import Words

HUBS = ("timm/", "torchvision/")


def init_text(teacher: str, student: str, data: str) -> str:
    """A commented recipe that distils one architecture into another.

    Args:
        teacher: its architecture, as in `arch`.
        student: likewise.
        data: a registered data set, or a folder of class folders.
    """
    from kdkit.data import DATA

    known = data in DATA
    name = data if known else "folder"
    where = "" if known else f", root: {_quoted(data)}, holdout: 0.15, image_size: 224"
    published = teacher.startswith(HUBS)
    own = f"teacher_{teacher}_{data}"
    if published:
        weights, fitted = "pretrained, tune: {epochs: 10, lr: 1.0e-4}", "published weights, fitted to your classes once"
    elif own in [info.name for info in packaged()]:
        weights, fitted = own, "a recipe: trained first"
    else:
        weights, fitted = "random, tune: {epochs: 60, lr: 1.0e-3}", "trained on your data once"
    begins = ", weights: pretrained" if student.startswith(HUBS) else ""
    held_out = "" if known else "      # holdout: the test set, 15 %; leave it out where there is a val/ folder"
    return f"""\
# {_last(teacher)} → {_last(student)} on {_last(data)}
# kdkit check THIS_FILE        shapes, sizes and cost, before an hour is spent
# kdkit fit THIS_FILE trainer.max_epochs=5
data: {{name: {name}, batch_size: 64{where}}}{held_out}
models:                        # a model whose name begins with `teacher` is frozen, every other one is trained
  # {fitted}, then kept; `weights: teacher.safetensors` takes your own instead
  teacher: {{arch: {_quoted(teacher)}, weights: {weights}}}
  student: {{arch: {_quoted(student)}{begins}}}
losses:                        # `kdkit losses` lists them, `kdkit losses kd` explains one
  - ce: {{weight: 0.1}}
  - kd: {{weight: 0.9, temperature: 4}}
  # - cosine: {{weight: 1, head: linear}}       # embeddings alike, whatever their widths
optimizer: {{name: {"adamw, weight_decay: 0.05" if begins else "sgd, momentum: 0.9, weight_decay: 5.0e-4"}}}
lr: {{warmup: {{to: {{cosine: [{"1.0e-3" if begins else "0.05"}, 0.0]}}, over: 0.05}}}}      # below 1: share of the run
trainer: {{max_epochs: 30}}      # precision: bf16-mixed, devices: 2, … go here
seed: 0
"""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, every loss, optimiser and data set with its own words."""
    import kdkit.losses  # noqa: F401  fills the registry
    from kdkit.data import DATA
    from kdkit.graph.optimizers import OPTIMIZERS
    from kdkit.registry import LOSSES

    schema = Recipe.model_json_schema(ref_template="#/$defs/{model}")
    defs = schema["$defs"]
    losses = {name: _inlined(edge_model(name), defs, {"loss"}) for name in LOSSES}
    for words in losses.values():
        words["type"] = ["object", "null"]
    own = {"type": ["object", "null"], "description": "your own: my_loss.py:MyLoss"}
    defs["Loss"] = {
        "anyOf": [
            {"type": "string", "examples": sorted(losses)},
            {
                "type": "object",
                "properties": losses,
                "patternProperties": {":": own},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }
    defs["OptimizerSpec"] = _choice([_named(name, optimizer_model(name), defs) for name in OPTIMIZERS])
    defs["DataSpec"] = _choice([_named(name, data_model(name), defs) for name in DATA])
    schema["properties"]["losses"]["items"] = {"$ref": "#/$defs/Loss"}
    schema["required"] = ["models", "losses"]  # a protocol may bring the rest
    defs.pop("EdgeSpec", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "kdkit recipe"}


def _choice(several: list[dict[str, Any]]) -> dict[str, Any]:
    return {"anyOf": several, "required": ["name"]}


def _named(name: str, model: type[Words], defs: dict[str, Any]) -> dict[str, Any]:
    words = _inlined(model, defs, set())
    words["properties"]["name"] = {"const": name}
    return words


def _inlined(model: type[Words], defs: dict[str, Any], without: set[str]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    defs.update(schema.pop("$defs", {}))
    schema["properties"] = {word: kind for word, kind in schema["properties"].items() if word not in without}
    schema["required"] = [word for word in schema.get("required", []) if word not in without]
    return schema


def _last(name: str) -> str:
    return Path(name).name


def _quoted(text: str) -> str:
    """Quoted where YAML would read it as something else."""
    plain = scalar(text) == text and not set(text) & set("{}[],:#&*!|>'\"%@` ")
    return text if plain else "'" + text.replace("'", "''") + "'"
