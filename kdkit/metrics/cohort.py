"""How far the models of a cohort are apart on the same samples, pair by pair, and what each gains from the others.

Put the same fixed probe samples in after every epoch. Random nets agree too, for all of them are near uniform: a small
number alone is no sign of health.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from kdkit.metrics.fidelity import Agreement, JSDivergence, KLDivergence
from kdkit.metrics.sample_mean import SampleMean


class Pairwise(Metric):
    """A metric of two models for every pair of K: `update([logits (B, C), …])`; `compute()` is (K, K), zero on itself.

    Args:
        peers: K, at least 2.
        kwargs: torchmetrics' own words.
    """

    full_state_update = False
    of: ClassVar[type[SampleMean]]
    total: Tensor
    count: Tensor

    def __init__(self, peers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if peers < 2:
            raise ValueError(f"peers must be at least 2, got {peers}")
        self.peers, self.pair = peers, self.of()
        self.add_state("total", torch.zeros(peers, peers), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Sequence[Tensor]) -> None:
        """Count one batch: the logits of every peer for the same samples."""
        if len(logits) != self.peers or len({tuple(one.shape) for one in logits}) != 1:
            told = ", ".join(str(tuple(one.shape)) for one in logits)
            raise ValueError(f"needs logits of one shape from {self.peers} peers, got {told}")
        for i, one in enumerate(logits):
            for j, other in enumerate(logits):
                if i != j:
                    self.total[i, j] += self.pair.values(other, one).sum()
        self.count += len(logits[0])

    def compute(self) -> Tensor:
        """The means; NaN where nothing was counted."""
        return self.total / self.count


class MCI(Pairwise):
    """Mutual consistency: entry (i, j) is the mean KL(p_i ‖ p_j) in nats at T = 1. Larger is *less* consistent."""

    of = KLDivergence


class PairwiseJS(Pairwise):
    """Mean Jensen-Shannon divergence in nats, symmetric, in [0, ln 2]."""

    of = JSDivergence


class Disagreement(Pairwise):
    """Share of samples that two peers put into different classes."""

    of = Agreement

    def compute(self) -> Tensor:
        """One less the agreement."""
        return (1 - torch.eye(self.peers, device=self.total.device)) * (1 - super().compute())


class KAR(Metric):
    """Accuracy gained per epoch over a reference, in percentage points: `update(logits (B, C), labels (B,), epoch)`.

    KAR = 100 · (accuracy − reference) / epochs. Against the start it mostly measures how fast a model learns anyway;
    what the others add shows against the same model trained alone, at equal epochs.

    Args:
        baseline: accuracies of the same model trained alone, by epochs done ({1: 0.31, 2: 0.38, …}); epochs then count
            from 0. Left out: the first value that is computed, from whose epoch on they count; there KAR is 0.
        kwargs: torchmetrics' own words.
    """

    full_state_update = False
    right: Tensor
    count: Tensor
    epoch: Tensor

    def __init__(self, baseline: Mapping[int, float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.baseline = baseline
        self.start: tuple[int, float] | None = None
        self.add_state("right", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("epoch", torch.zeros((), dtype=torch.long), dist_reduce_fx="max")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of this batch; what KAR counts from is the value of an epoch, not of its first batch."""
        start = self.start
        found = super().forward(*args, **kwargs)
        self.start = start
        return found

    def update(self, logits: Tensor, labels: Tensor, epoch: int) -> None:
        """Count one batch after so many epochs."""
        self.right += (logits.argmax(-1) == labels).sum()
        self.count += labels.numel()
        self.epoch.fill_(epoch)

    def compute(self) -> Tensor:
        """Points per epoch; `ValueError` where the baseline knows nothing of this epoch."""
        accuracy, epoch = self.right / self.count, int(self.epoch)
        if self.baseline is not None:
            if epoch not in self.baseline:
                raise ValueError(f"the baseline must tell the accuracy after epoch {epoch}, got {list(self.baseline)}")
            return 100 * (accuracy - self.baseline[epoch]) / max(epoch, 1)
        if self.start is None:
            self.start = epoch, float(accuracy)
        since, before = self.start
        return 100 * (accuracy - before) / max(epoch - since, 1)
