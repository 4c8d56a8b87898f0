"""Optimisers by name: torch's own, in lower case, but for LBFGS, which wants to call the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from kdkit.registry import KdkitError, Registry, constructor, nearest

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("optimizer")
for _name, _cls in sorted(vars(torch.optim).items()):
    if inspect.isclass(_cls) and issubclass(_cls, torch.optim.Optimizer) and _name not in ("Optimizer", "LBFGS"):
        OPTIMIZERS.add(_name.lower(), _cls)


def _shown(spec: Any) -> str:
    return repr(spec) if isinstance(spec, (str, int, float)) else f"a {type(spec).__name__}"


def check_optimizer(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`{"name": "sgd", "momentum": 0.9, …}`: name and options checked against `torch.optim`.

    Raises:
        KdkitError: unknown name or option, each with the nearest right word.
    """
    if not isinstance(spec, Mapping):
        raise KdkitError(f'optimizer must be a mapping such as {{"name": "sgd", "momentum": 0.9}}, got {_shown(spec)}')
    options = dict(spec)
    name = str(options.pop("name", "sgd")).lower()
    known = [p for p in constructor(OPTIMIZERS[name]) if p not in ("params", "lr")]
    for word in options:
        if word == "lr":
            raise KdkitError("optimizer: the learning rate stands beside the optimizer, as `lr`")
        if word not in known:
            raise KdkitError(f"optimizer: {name} has no option {word!r}{nearest(word, known)}")
    return {"name": name, **options}
