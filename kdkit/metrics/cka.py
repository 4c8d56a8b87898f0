"""Centred kernel alignment: how alike layers of any widths arrange the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from kdkit.metrics.sample_mean import exact, moves


class LinearCKA(Metric):
    """Linear CKA between every layer of one model and every layer of another, from minibatches without bias.

    CKA = Σ_b HSIC₁(K_b, L_b) / √(Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b)) (Nguyen, Raghu, Kornblith, ICLR 2021, arXiv
    2010.15327; Kornblith et al., ICML 2019, arXiv 1905.00414), K = XXᵀ. HSIC₁ is unbiased (Song et al., JMLR 2012), so
    that the size of the batches changes no expectation. A batch counts by its samples; one of three or fewer, for
    which HSIC₁ is not defined, is left out. Maps and tokens are flattened, not pooled.

    1 for X and XQ·c (Q orthogonal), about 0 for independent ones; slightly negative values are chance.

    Args:
        first: layers of the first model.
        second: layers of the second.
    """

    full_state_update = False
    cross: Tensor
    own_first: Tensor
    own_second: Tensor

    def __init__(self, first: int = 1, second: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("cross", torch.zeros(first, second), dist_reduce_fx="sum")
        self.add_state("own_first", torch.zeros(first), dist_reduce_fx="sum")
        self.add_state("own_second", torch.zeros(second), dist_reduce_fx="sum")

    def update(self, first: Tensor | Sequence[Tensor], second: Tensor | Sequence[Tensor]) -> None:
        """Take in one batch: (B, …) of each layer, one tensor or one for each layer."""
        left, right = ([x] if isinstance(x, Tensor) else list(x) for x in (first, second))
        if (given := (len(left), len(right))) != tuple(self.cross.shape):
            raise ValueError(f"LinearCKA: must be given {tuple(self.cross.shape)} layers, got {given}")
        sizes = {len(x) for x in (*left, *right)}
        if len(sizes) != 1:
            raise ValueError(f"LinearCKA: every layer must have the same samples, got batches of {sorted(sizes)}")
        if (n := sizes.pop()) > 3:
            k, l = _grams(left), _grams(right)  # noqa: E741  the paper's letter
            self.cross += (n * _hsic(k, l)).to(self.cross)
            self.own_first += (n * _hsic(k, k).diagonal()).to(self.cross)
            self.own_second += (n * _hsic(l, l).diagonal()).to(self.cross)

    def compute(self) -> Tensor:
        """(first, second), or a number for one layer of each; NaN for a layer that says the same of every sample."""
        whole = self.own_first.clamp(min=0).sqrt()[:, None] * self.own_second.clamp(min=0).sqrt()
        found = self.cross / torch.where(whole > 0, whole, torch.nan)
        return found[0, 0] if found.numel() == 1 else found


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC₁ of two (B, …) of the same samples under linear kernels, without bias; B > 3."""
    return _hsic(_grams([x]), _grams([y]))[0, 0]


def _grams(layers: Sequence[Tensor]) -> Tensor:
    """Gram matrices with zero diagonals, (layers, B, B). Centring first changes no HSIC₁ and saves digits.

    A feature that says the same of every sample is zero, not the rounding of its mean.
    """
    found = []
    for layer in layers:
        x = exact(layer.detach()).flatten(1)
        mean = x.mean(0)
        x = x - mean
        x = torch.where(moves(x.square().sum(0), mean, len(x)), x, 0)
        gram = (x @ x.T).fill_diagonal_(0)
        found.append(gram if gram.device.type == "mps" else gram.double())  # mps knows no float64
    return torch.stack(found)


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """[tr(KL) + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2/(n−2)·1ᵀKL1] / (n(n−3)) of every pair, (layers of k, layers of l)."""
    n = k.shape[-1]
    rows, columns = k.sum(-1), l.sum(-1)
    trace = k.flatten(1) @ l.flatten(1).T
    sums = rows.sum(-1)[:, None] * columns.sum(-1) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * rows @ columns.T) / (n * (n - 3))
