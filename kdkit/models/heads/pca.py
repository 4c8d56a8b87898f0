"""The teacher's principal components: the only head on the teacher's side, fitted once and then frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit import ranks
from kdkit.registry import KdkitError


class PCA(nn.Module):
    """Coordinates of features along their directions of largest variance.

    Formula: y = (x − mean)·V·diag(mask), V the eigenvectors of the covariance by falling eigenvalue λ, `mask` one for
    the first r of them, r the smallest number with Σ_{i≤r} λ_i ≥ keep·Σ λ_i.

    The width is known before any data is: a component that is not kept is a column of zeros, here and (by the head) in
    the student. Mean and covariance are gathered over the first `batches` batches in training mode, on all ranks; until
    then the mask is zero, so that both sides are zero and the edge is silent. All of it is in the `state_dict`.

    Args:
        inputs: channels D of the features.
        keep: share of the variance that is kept, in (0, 1].
        dim: width of the output, the most components that may be kept; default all D.
        batches: how many batches it is fitted on.

    Raises:
        KdkitError: a value outside its range.
    """

    mean: Tensor
    components: Tensor
    mask: Tensor
    seen: Tensor
    rows: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, inputs: int, keep: float = 0.9, dim: int | None = None, batches: int = 16) -> None:
        super().__init__()
        width = inputs if dim is None else dim
        if not isinstance(keep, (int, float)) or not 0 < keep <= 1:
            raise KdkitError(f"pca: keep must be in (0, 1], got {keep!r}")
        if not isinstance(width, int) or not 1 <= width <= inputs:
            raise KdkitError(f"pca: dim must be 1 to {inputs}, the width of the features, got {dim!r}")
        if not isinstance(batches, int) or batches < 1:
            raise KdkitError(f"pca: batches must be a whole number of at least 1, got {batches!r}")
        self.keep, self.dim, self.batches = float(keep), width, batches
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("components", torch.zeros(inputs, width))
        self.register_buffer("mask", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("total", torch.zeros(inputs))
        self.register_buffer("products", torch.zeros(inputs, inputs))
        self.fitted = False

    def forward(self, x: Tensor) -> Tensor:
        """Features (…, D) → (…, dim), in at least fp32."""
        if self.training and not self.fitted:
            self.observe(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.kept((x - self.mean) @ self.components.to(x.dtype))

    def kept(self, y: Tensor) -> Tensor:
        """(…, dim) with zeros where no component is kept."""
        return y * self.mask.to(y.dtype)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # an eigendecomposition and a host synchronisation, in the first batches alone
    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take in one batch (…, D); the last one ends the fit."""
        self._add(x)
        if int(self.seen) >= self.batches:
            self._finish()

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Fit at once on these features (…, D), instead of on the first batches."""
        for buffer in (self.seen, self.rows, self.total, self.products):
            buffer.zero_()
        self._add(features)
        self._finish()

    def train(self, mode: bool = True) -> PCA:
        """As usual; and a fit whose buffers were put back since (after a rehearsal) begins anew."""
        self.fitted = bool(self.mask.any())
        return super().train(mode)

    def _add(self, x: Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1]).to(self.total.dtype)
        if not self.seen:  # moments about a point near the mean lose no digits to a common offset
            self.mean.copy_(flat.mean(0))
            if ranks.speak():
                torch.distributed.broadcast(self.mean, 0)
        flat = flat - self.mean
        self.seen += 1
        self.rows += len(flat)
        self.total += flat.sum(0)
        self.products += flat.T @ flat

    def _finish(self) -> None:
        moments = [moment.double() for moment in (self.rows, self.total, self.products)]
        if ranks.speak():
            for moment in moments:
                torch.distributed.all_reduce(moment)
        rows, total, products = moments
        mean = total / rows
        values, vectors = torch.linalg.eigh(products / rows - mean.outer(mean))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, : self.dim]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        reached = values.cumsum(0) >= (self.keep - 1e-9) * values.sum()
        kept = int(reached.int().argmax()) + 1
        self.mean.add_(mean)
        self.components.copy_(vectors * largest.sign())  # the sign of an eigenvector is arbitrary
        self.mask.copy_(torch.arange(self.dim, device=self.mask.device) < kept)
        self.fitted = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.fitted = bool(self.mask.any())
