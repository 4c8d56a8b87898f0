"""Neuron selectivity transfer: the teacher's distribution of what its channels respond to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import equal_size, inverse_length, unit
from kdkit.losses.precision import full_precision, in_one_type
from kdkit.losses.squares import diagonal, gram
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(4, 3, 4, 4), "teacher": torch.randn(4, 5, 4, 4)}


@register_loss(
    "nst",
    paper="Huang, Wang, arXiv 1707.01219",
    tap="stages",
    weight=50.0,
    weight_source="RepDistiller, over the last three stages",
    zero_at_match=True,
    example=_example,
)
class NSTLoss(nn.Module):
    """Channels that respond to the same places, as two distributions (neuron selectivity transfer).

    Formula: squared maximum mean discrepancy with the kernel k(a, b) = ⟨a, b⟩²: for each sample
    mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) − 2 · mean_ij k(s_i, t_j), mean over B, where s_i and t_j are the maps of
    single channels as vectors of length 1.

    `forward(student, teacher)` takes maps (B, C, H, W); channels may differ. Of unequal sizes the larger map is brought
    to the smaller by adaptive average pooling. The teacher's is detached. There is no forward-mode derivative.

    Returns:
        A scalar without unit in [0, 2]; neither the order nor the scale nor the sign of the channels counts.

    Differs:
        Known code forms all products of two maps, (B, C, C, H·W) numbers; here they are one matrix product. Where a map
        has fewer positions than channels it goes through Gram matrices of positions, ‖SᵀS/C_s − TᵀT/C_t‖², which is
        the same number.

    Reference:
        Huang, Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. arXiv 1707.01219.
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W), each of its own width and size."""
        checks.dims("nst", "(B, C, H, W)", student=student, teacher=teacher)
        checks.same_batch("nst", student, teacher)
        s, t = (maps.flatten(2) for maps in equal_size(*in_one_type(student, teacher.detach())))
        (C_s, positions), C_t = s.shape[1:], t.shape[1]
        if positions * (C_s + C_t) < C_s**2 + C_t**2 + C_s * C_t:
            s, t = unit(s), unit(t)
            difference = s.mT @ s / C_s - t.mT @ t / C_t
            return difference.square().sum((1, 2)).mean()
        ss, tt = gram(s), gram(t)
        by_s, by_t = (inverse_length(diagonal(products)) for products in (ss, tt))  # (B, C) each
        return (_kernel(tt, by_t, by_t) + _kernel(ss, by_s, by_s) - 2 * _kernel(s @ t.mT, by_s, by_t)).mean()


def _kernel(products: Tensor, by_a: Tensor, by_b: Tensor) -> Tensor:
    """Mean of ⟨a_i, b_j⟩² over all pairs of channels, from the products of channels as they are: (B,)."""
    return (products * by_a[:, :, None] * by_b[:, None]).square().mean((1, 2))
