"""A batch whose loss is not finite: told by its samples, and saved with all that it takes to see it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.graph.batch import Batch, inputs
from kdkit.storage import whole

SHOWN = 12
SMALL = 64 * 2**20
"""Bytes of weights that are saved with a batch."""


def samples(data: Batch) -> str:
    """Which samples a batch holds, and which of their images are not finite."""
    wrong = sorted({row for x in inputs(data.x) for row in _wrong_rows(x)})
    size = next((len(x) for x in inputs(data.x)), 0)
    if data.index is None:
        told = f"a batch of {size} samples, whose ids the data do not tell"
        return f"{told}; its images {_listed(wrong)} are not finite" if wrong else told
    ids = data.index.tolist()
    told = f"samples {_listed(ids)}"
    spoilt = [ids[row] for row in wrong if row < len(ids)]
    return f"{told}; the images of {_listed(spoilt)} are not finite" if spoilt else told


def spoilt(data: Batch) -> bool:
    """Whether the images themselves are not finite."""
    return any(_wrong_rows(x) for x in inputs(data.x))


def save(
    path: Path, facts: Mapping[str, Any], data: Batch, models: Mapping[str, nn.Module], *, in_turns: bool = False
) -> str:
    """Write a batch for `torch.load(path, weights_only=True)`; what is said of it.

    Args:
        path: of the file.
        facts: step, epoch, values of the terms.
        data: the batch.
        models: those whose weights are saved with it.
        in_turns: whether models whose turn came before the one that is not finite have moved already.
    """
    size = sum(value.nbytes for model in models.values() for value in model.state_dict().values())
    content = {**facts, "x": data.x, "labels": data.labels, "index": data.index}
    content["models"] = {name: model.state_dict() for name, model in models.items()} if size <= SMALL else {}
    try:
        with whole(path) as file:
            torch.save(_on_cpu(content), file)
    except (OSError, RuntimeError) as error:  # torch tells a full disk in its own words
        return f"the batch could not be saved to {path} ({' '.join(str(error).split())[:120]})"
    but = ", with models whose turn came before as they are after it" if in_turns and content["models"] else ""
    return f"the batch lies in {path}{but}"


def _wrong_rows(x: Tensor) -> list[int]:
    if not x.is_floating_point() or x.ndim == 0:
        return []
    found: list[int] = (~x.reshape(len(x), -1).isfinite()).any(1).nonzero().flatten().tolist()
    return found


def _listed(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:SHOWN]))
    return f"{shown}, … ({len(ids)} in all)" if len(ids) > SHOWN else shown


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, (list, tuple)) else value
