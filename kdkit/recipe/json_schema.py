"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from kdkit.recipe.cohort import health_model
from kdkit.recipe.named import data_model, edge_model, optimizer_model
from kdkit.recipe.schema import Recipe
from kdkit.recipe.words import Words


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
    defs["HealthWords"] = _inlined(health_model(), defs, set())
    defs["DataSpec"] = _choice([_named(name, data_model(name), defs) for name in DATA])
    schema["properties"]["losses"]["items"] = {"$ref": "#/$defs/Loss"}
    stage = defs["StageSpec"]["properties"]
    stage["losses"] = {"type": "array", "items": {"$ref": "#/$defs/Loss"}}
    stage["epochs"] = {"type": "number", "exclusiveMinimum": 0, "description": "its length; below 1 a share of the run"}
    defs["StageSpec"]["required"] = []
    schema["required"] = ["models"]  # a protocol may bring the rest, stages the losses
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
