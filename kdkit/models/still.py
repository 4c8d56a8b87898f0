"""A forward pass in training mode that BatchNorm does not count."""

from __future__ import annotations

from torch import nn


class still:  # noqa: N801  a context manager, as in contextlib
    """BatchNorm inside takes the batch's statistics and leaves its running ones alone."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __enter__(self) -> None:
        self.momenta = [norm.momentum for norm in self.norms]
        self.counts = [None if (count := norm.num_batches_tracked) is None else count.clone() for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in zip(self.norms, self.momenta, self.counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
