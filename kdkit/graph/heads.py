"""Heads bound to an edge: built from the recipe's words, sized by the shapes at both ends, shared by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError

Shape = tuple[int, ...]


def bind_head(
    spec: str | Mapping[str, Any] | None,
    student: Shape,
    teacher: Shape | None,
    *,
    key: int,
    shared: dict[str, nn.Module],
) -> tuple[nn.Module | None, Shape, Shape | None]:
    """The head and the shapes behind it; `{linear: {share: p}}` gives every edge that says `p` the same one."""
    if spec is None:
        return None, student, teacher
    if teacher is None:
        raise KdkitError("a head maps the student to the teacher's shape; a loss that reads no teacher takes none")
    from kdkit.models.heads import build_head

    name: str | None = None
    if isinstance(spec, Mapping):
        spec = {
            word: dict(options or {}) if isinstance(options, Mapping) or options is None else options
            for word, options in spec.items()
        }
        for options in spec.values():
            if isinstance(options, dict):
                name = options.pop("share", name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        head = shared.get(name) if name else None
        if head is None:
            head = build_head(spec, student, teacher)
        if name:
            shared[name] = head
    mode = head.training
    with torch.no_grad():
        try:
            s, t = head.eval()(torch.zeros(2, *student), torch.zeros(2, *teacher))
        except RuntimeError as error:
            raise KdkitError(f"head {spec!r} does not fit {student} → {teacher}: {error}") from error
    head.train(mode)
    return head, tuple(s.shape[1:]), tuple(t.shape[1:])


def charge(head: nn.Module) -> Tensor | None:
    """The `penalty` of a head's last forward, once: to keep it would be to keep that step's graph."""
    penalty: Tensor | None = getattr(head, "penalty", None)
    for part in head.modules() if penalty is not None else ():
        if "penalty" in part.__dict__:
            part.__dict__["penalty"] = None
    return penalty
