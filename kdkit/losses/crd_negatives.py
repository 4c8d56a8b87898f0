"""Scores of CRD's negatives and the sums that their gradient needs, never by way of a (B, K, d) tensor.

An excluded pair scores −∞ and so adds nothing to any sum: e^x, softplus(x) and sigmoid(x) are zero there.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

CHUNK = 2**24
"""Numbers in one intermediate tensor, 64 MB in fp32; what would need more is done for a part of the batch at a time."""

GATHER_BEYOND = 40
"""Bank rows per negative beyond which gathering is cheaper than the product with the whole bank (measured on a CPU)."""


class Negatives(Protocol):
    """Some rows of a bank for each of B anchors.

    Attributes:
        width: columns of the scores.
        kept: how many of them count for each anchor, (B,) int64; a sum over them times K/kept stands for K.
    """

    width: int
    kept: Tensor

    def cost(self, dim: int) -> int:
        """Numbers that one anchor's scores take on their way."""
        ...

    def block(self, bank: Tensor) -> Tensor:
        """What of the bank the other two methods take."""
        ...

    def scores(self, anchor: Tensor, block: Tensor, part: slice) -> Tensor:
        """Inner products of a part of the anchors, (r, d), with their rows: (r, width), the caller's to change."""
        ...

    def pull(self, weight: Tensor, block: Tensor, part: slice) -> Tensor:
        """Weighted sums of their rows: (r, width) → (r, d)."""
        ...


class Drawn:
    """Rows of its own for each anchor: `index` (B, K) out of n.

    Up to n = 40·K the product with the whole bank costs less than gathering K rows of d numbers for every anchor. All
    such products are made in one piece of memory: fresh pages would cost as much again as what is written to them.
    """

    def __init__(self, index: Tensor, num_samples: int) -> None:
        self.index, self.width, self.num_samples = index, index.shape[1], num_samples
        self.product = num_samples <= GATHER_BEYOND * self.width
        self.kept = index.new_full((index.shape[0],), self.width)
        self._whole: Tensor | None = None

    def cost(self, dim: int) -> int:
        """The products with all rows, or the gathered rows."""
        return self.num_samples if self.product else self.width * dim

    def block(self, bank: Tensor) -> Tensor:
        """All of it."""
        return bank

    def scores(self, anchor: Tensor, block: Tensor, part: slice) -> Tensor:
        """Picked out of the products with all rows, or made from gathered ones."""
        index, a = self.index[part], anchor.to(block.dtype)
        if self.product:
            x = torch.mm(a, block.T, out=self._room(block, len(a))).gather(1, index)
        else:
            x = torch.bmm(self._gathered(block, index), a[:, :, None])[:, :, 0]
        return x.to(anchor.dtype)

    def pull(self, weight: Tensor, block: Tensor, part: slice) -> Tensor:
        """The product of the weights, written out as a sparse (r, n), with the bank, or with gathered rows."""
        index, w = self.index[part], weight.to(block.dtype)
        if self.product:
            x = self._room(block, len(w)).zero_().scatter_add_(1, index, w) @ block
        else:
            x = torch.bmm(w[:, None], self._gathered(block, index))[:, 0]
        return x.to(weight.dtype)

    @staticmethod
    def _gathered(block: Tensor, index: Tensor) -> Tensor:
        """`block[index]`, (r, K, d), in a quarter of its time."""
        return block.index_select(0, index.flatten()).view(*index.shape, -1)

    def _room(self, like: Tensor, rows: int) -> Tensor:
        """Numbers for `rows` anchors and the whole bank, which the next call may overwrite."""
        if self._whole is None or len(self._whole) < rows:
            self._whole = like.new_empty(rows, self.num_samples)
        return self._whole[:rows]


class Common:
    """The same rows for all anchors, less those of an anchor's own class.

    Args:
        rows: (m,) of the bank, or `None` for the whole bank.
        row_label: their classes (m,).
        label: the anchors' classes (B,).
        kept: how many rows each anchor is left with (B,).
    """

    def __init__(self, rows: Tensor | None, row_label: Tensor, label: Tensor, kept: Tensor) -> None:
        self.rows, self.row_label, self.label, self.kept = rows, row_label, label, kept
        self.width = row_label.shape[0]

    def cost(self, dim: int) -> int:
        """The products with all rows."""
        return self.width

    def block(self, bank: Tensor) -> Tensor:
        """The rows."""
        return bank if self.rows is None else bank.index_select(0, self.rows)

    def scores(self, anchor: Tensor, block: Tensor, part: slice) -> Tensor:
        """Products with all rows, the own class's at −∞."""
        x = (anchor.to(block.dtype) @ block.T).to(anchor.dtype)
        return x.masked_fill_(self.label[part][:, None] == self.row_label, -torch.inf)

    def pull(self, weight: Tensor, block: Tensor, part: slice) -> Tensor:
        """The product of the weights with the rows."""
        return (weight.to(block.dtype) @ block).to(weight.dtype)
