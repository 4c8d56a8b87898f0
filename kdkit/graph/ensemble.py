"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merged(tensors: Sequence[Tensor], weights: Tensor | None, *, probabilities: bool, T: float) -> Tensor:
    """Their mean; where all say the same, that.

    Args:
        tensors: what each says, of one shape; what weighs 0 may be anything.
        weights: of each, 0 or more; `None`: alike.
        probabilities: the mean of p_i = softmax(z_i / T), said as logits, so that the loss's own softmax(z / T) gives
            it back; their level T·log Σ_c exp(z_c / T), which a softmax does not see, is the mean of the levels. Else
            the mean of the tensors themselves.
        T: the temperature.
    """
    if weights is None:
        if not probabilities:
            return torch.stack(list(tensors)).mean(0)
        weights = tensors[0].new_ones(len(tensors))
    weights = weights.to(torch.promote_types(tensors[0].dtype, torch.float32))
    heard = [torch.where(w == 0, 0.0, z).to(weights.dtype) for w, z in zip(weights, tensors, strict=True)]
    if not probabilities:
        return (_sum(weights, heard) / weights.sum()).to(tensors[0].dtype)
    levels = [(z / T).logsumexp(-1, keepdim=True) for z in heard]
    logs = [z / T - level + w.log() for w, z, level in zip(weights, heard, levels, strict=True)]
    return T * (torch.stack(logs).logsumexp(0) - weights.sum().log() + _sum(weights, levels) / weights.sum())


def _sum(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return sum((w * x for w, x in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
