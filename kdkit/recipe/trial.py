"""A loss's constructor, tried before there are models and data: what does it say of the recipe's values?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdkit.recipe.named import EdgeSpec
from kdkit.recipe.words import Moving
from kdkit.registry import FILLED_WORDS, KdkitError, constructor

# Its values are judged on the meta device, where nothing is allocated.
FILLED: dict[str, Any] = {
    "student_dim": 8,
    "teacher_dim": 8,
    "student_dims": (8, 8),
    "teacher_dims": (8, 8),
    "student_shape": (8,),
    "teacher_shape": (8,),
    "num_samples": 1 << 20,
    "num_classes": 10,
    "sample_labels": None,
    "seed": 0,
}
_ACCEPTED: set[tuple[type, str]] = set()  # a suite asks for the same loss a hundred times


def refused(spec: EdgeSpec, epochs: float) -> Iterator[tuple[str, str]]:
    """What the loss's constructor refuses: the argument it names, and its sentence."""
    from kdkit.graph.control import moving

    def at(end: int, value: Any) -> Any:
        return float(f"{moving(value).extremes(epochs)[end]:.6g}") if isinstance(value, Moving) else value

    cls = spec.cls
    options = {word: FILLED[word] for word in constructor(cls) if word in FILLED_WORDS} | spec.arguments
    if spec.head is not None and "head" in constructor(cls):
        options["head"] = spec.head
    ends = [0, 1]
    while ends:
        values = {word: at(ends[-1], value) for word, value in options.items()}
        if (cls, repr(values)) in _ACCEPTED:
            ends.pop()
            continue
        try:
            _try(cls, values)
        except (ValueError, KdkitError) as error:
            told = re.match(r"[\w .]+: (\w+) (.*)", str(error), re.DOTALL)
            word = told[1] if told and told[1] in constructor(cls) else ""
            filled = {word: value for word, value in values.items() if word in FILLED_WORDS}
            if filled and word not in values.keys() - filled.keys() and not _content(cls, filled):
                return  # with what stands in for the models; the graph will build it for real
            yield word, told[2] if told and word else str(error)
            if options.pop(word, None) is None:
                return
            continue
        except Exception:  # it looks at tensors, which the meta device has none of; the graph will build it for real
            return
        _ACCEPTED.add((cls, repr(values)))
        ends.pop()


def _try(cls: type, values: Mapping[str, Any]) -> None:
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        cls(**values)


def _content(cls: type, values: Mapping[str, Any]) -> bool:
    """Whether the constructor takes these alone: what it refuses besides them is theirs who gave it."""
    try:
        _try(cls, values)
    except Exception:  # whatever it is
        return False
    return True
