"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def merged(tensors: Sequence[Tensor], weights: Tensor | None, *, probabilities: bool, T: float) -> Tensor:
    """Their mean.

    Args:
        tensors: what each says, of one shape; what weighs 0 may be anything.
        weights: of each, 0 or more; `None`: alike.
        probabilities: the mean of p_i = softmax(z_i / T), said as logits, so that the loss's own softmax(z / T) gives
            it back; else the mean of the tensors themselves.
        T: the temperature.
    """
    if weights is None:
        if not probabilities:
            return torch.stack(list(tensors)).mean(0)
        exact = torch.promote_types(tensors[0].dtype, torch.float32)
        return T * torch.stack([F.log_softmax(z.to(exact) / T, -1) for z in tensors]).logsumexp(0)
    weights = weights.to(torch.promote_types(tensors[0].dtype, torch.float32))
    heard = [torch.where(w == 0, 0.0, z).to(weights.dtype) for w, z in zip(weights, tensors, strict=True)]
    if probabilities:
        logs = [F.log_softmax(z / T, -1) + w.log() for w, z in zip(weights, heard, strict=True)]
        return T * torch.stack(logs).logsumexp(0)
    total = sum((w * z for w, z in zip(weights, heard, strict=True)), torch.zeros_like(heard[0]))
    return (total / weights.sum()).to(tensors[0].dtype)
