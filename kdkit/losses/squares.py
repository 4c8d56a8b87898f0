"""Sums of squares and products whose gradient is one product, where autograd's own makes two or three.

They can be differentiated again, mapped and compiled; there is no forward-mode derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def energy(maps: Tensor) -> Tensor:
    """Mean over the channels of A_c²: (B, C, H, W) → (B, H, W)."""
    return _Energy.apply(maps)  # type: ignore[no-any-return]


def gram(x: Tensor) -> Tensor:
    """Products of all rows: (…, C, P) → (…, C, C)."""
    return _Gram.apply(x)  # type: ignore[no-any-return]


def diagonal(products: Tensor) -> Tensor:
    """Their diagonals, copied: (…, C, C) → (…, C).

    Of views beside them Inductor takes no notice: it writes into saved products, and then reads those (torch 2.11 to
    2.15).
    """
    own = torch.eye(products.shape[-1], dtype=torch.bool, device=products.device)
    return torch.where(own, products, 0.0).sum(-1)


class _Kept(torch.autograd.Function):
    """A function of one tensor, which its gradient is a product with."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Energy(_Kept):
    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        return maps.square().mean(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        found: Tensor = maps * (2 * grad / maps.shape[1]).unsqueeze(1)
        return found


class _Gram(_Kept):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = (grad + grad.mT) @ x
        return found
