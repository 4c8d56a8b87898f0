"""One side of CRD: its value and its gradient in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdkit.losses.crd_negatives import CHUNK, Negatives


class Side:
    """Anchors of one model, (B, d), against the other one's bank (n, d); nothing in here is for autograd.

    Args:
        anchor: embeddings of length 1.
        bank: fp32 or fp64; with a bf16 bank the products are made in bf16.
        positive: the bank's row that belongs to each anchor (B,).
        negatives: its other rows.
        num_negatives: K, which a sum over the negatives is scaled to.
        temperature: τ.
    """

    def __init__(
        self,
        anchor: Tensor,
        bank: Tensor,
        positive: Tensor,
        negatives: Negatives,
        num_negatives: int,
        temperature: float | Tensor,
    ) -> None:
        self.block = negatives.block(bank if bank.dtype == torch.bfloat16 else bank.to(anchor.dtype))
        self.negatives, self.temperature = negatives, temperature
        self.anchor, self.own = anchor / temperature, bank[positive].to(anchor.dtype)
        self.score = (self.anchor * self.own).sum(1)
        self.scale = num_negatives / negatives.kept.to(anchor.dtype)
        batch, dim = anchor.shape
        size = max(1, CHUNK // negatives.cost(dim))
        self.parts = [slice(i, min(i + size, batch)) for i in range(0, batch, size)]
        small = batch * negatives.width <= CHUNK
        self.memory = [self._compute(part) for part in self.parts] if small else None

    def log_sums(self) -> Tensor:
        """Log Σ e^score over the 1 + K pairs of each anchor: (B,)."""
        others = torch.cat([self._scores(i).logsumexp(1) for i in range(len(self.parts))])
        return torch.logaddexp(self.score, others + self.scale.log())

    def close(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of softplus with `shift` = log(K·Z), mean over B, and its gradient with respect to the anchors."""
        values, pulls = [], []
        for i, part in enumerate(self.parts):
            x = self._scores(i).sub_(shift)
            values.append(functional.softplus(x).sum(1))
            pulls.append(self.negatives.pull(x.sigmoid_(), self.block, part))
        missing = shift - self.score
        value = functional.softplus(missing) + self.scale * torch.cat(values)
        gradient = self.scale[:, None] * torch.cat(pulls) - missing.sigmoid()[:, None] * self.own
        return value.mean(), gradient / (self.temperature * len(gradient))

    def _scores(self, i: int) -> Tensor:
        """Of one part of the batch; computed anew for each use where all parts are too much to keep."""
        return self._compute(self.parts[i]) if self.memory is None else self.memory[i]

    def _compute(self, part: slice) -> Tensor:
        return self.negatives.scores(self.anchor[part], self.block, part)
