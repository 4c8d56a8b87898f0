"""The gradient of one loss term by itself, as the step would have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit import ranks
from kdkit.train.sync import average


def gradient(term: Tensor | None, weight: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """∂(weight · term)/∂θ for every θ in fp32 at least, the mean over ranks; `None` where the term does not reach.

    Under several ranks every θ has one, for all must exchange alike.
    """
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if term is not None and term.requires_grad and parameters:
        with torch.autocast(term.device.type, enabled=False):
            found = torch.autograd.grad(term * weight, parameters, retain_graph=True, allow_unused=True)
    if ranks.speak():
        found = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        average(g for g in found if g is not None)
    return [None if g is None else g.to(torch.promote_types(g.dtype, torch.float32)) for g in found]


def norm(found: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """‖g‖ over all θ, in the kind of `like`."""
    whole = [g for g in found if g is not None]
    if not whole:
        return torch.zeros_like(like)
    length: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(whole)))
    return length.to(like.dtype)


def dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """⟨a, b⟩ over all θ."""
    parts = [(g * h).sum() for g, h in zip(a, b, strict=True) if g is not None and h is not None]
    return torch.stack(parts).sum().to(like.dtype) if parts else torch.zeros_like(like)
