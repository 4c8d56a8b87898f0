"""Whether a model's probabilities mean what they say."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from kdkit.metrics.sample_mean import SampleMean, exact, widest


class NLL(SampleMean):
    """Mean negative log-likelihood of the labels: `update(logits (B, C), labels (B,))`."""

    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """−log p(label)."""
        return -exact(logits).log_softmax(-1).gather(-1, labels[:, None])[:, 0]


class Brier(SampleMean):
    """Brier's score Σ_c (p_c − [c = label])², in [0, 2]: `update(logits (B, C), labels (B,))`."""

    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared distance from the label's corner of the simplex."""
        p = exact(logits).softmax(-1)
        return p.square().sum(-1) - 2 * p.gather(-1, labels[:, None])[:, 0] + 1


class AdaptiveCalibrationError(Metric):
    """Expected calibration error over bins that hold equally many samples: `update(logits (B, C), labels (B,))`.

    Σ_b (n_b / n) |accuracy_b − confidence_b|. Samples of one confidence share a bin, so that their order changes
    nothing. Equal-width bins are torchmetrics' `MulticlassCalibrationError`.

    Args:
        bins: how many.
    """

    full_state_update = False
    confidence: list[Tensor]
    right: list[Tensor]

    def __init__(self, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.bins = bins
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep one batch's confidences."""
        confidence, right = certainty(logits, labels)
        self.confidence.append(confidence)
        self.right.append(right)

    def compute(self) -> Tensor:
        """The error, in [0, 1]; NaN where nothing was counted."""
        if not len(self.confidence) or not len(confidence := dim_zero_cat(self.confidence)):
            return torch.tensor(math.nan, device=self.device)
        right = dim_zero_cat(self.right)
        ranks = torch.arange(1, self.bins, device=confidence.device) * len(confidence) // self.bins
        return reliability(confidence, right, confidence.sort().values[ranks]).error


class Reliability(NamedTuple):
    """By bin: how many samples, and their mean confidence and accuracy; 0 where a bin is empty."""

    number: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> Tensor:
        """Σ_b (n_b / n) |accuracy_b − confidence_b|."""
        return (self.number / self.number.sum() * (self.accuracy - self.confidence).abs()).sum()


def certainty(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample: the greatest probability, and whether that class is the label (1.0 or 0.0)."""
    confidence, predicted = exact(logits).softmax(-1).max(-1)
    return confidence, (predicted == labels).to(confidence.dtype)


def reliability(confidence: Tensor, right: Tensor, bins: int | Tensor = 15) -> Reliability:
    """Sort samples into bins: that many of equal width, or those between ascending edges."""
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)[1:-1] if isinstance(bins, int) else bins
    bin_of = torch.bucketize(confidence, edges.to(confidence.dtype), right=not isinstance(bins, int))
    known = widest(confidence), widest(right)
    sums = [torch.zeros(len(edges) + 1, device=confidence.device, dtype=known[0].dtype) for _ in range(3)]
    for total, values in zip(sums, (torch.ones_like(known[0]), *known), strict=True):
        total.scatter_add_(0, bin_of, values)
    return Reliability(sums[0], sums[1] / sums[0].clamp(min=1), sums[2] / sums[0].clamp(min=1))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) has the least NLL: temperature scaling.

    Guo, Pleiss, Sun, Weinberger, ICML 2017, arXiv 1706.04599. Fit it on samples that neither trained the model nor will
    be scored with it. The NLL is convex in 1 / T; bisection finds the zero of its derivative, the same everywhere.

    Args:
        logits: (n, C).
        labels: (n,).

    Raises:
        ValueError: no samples, or logits that are not finite.
    """
    if not len(logits) or not bool(logits.isfinite().all()):
        raise ValueError(
            f"fit_temperature: needs finite logits of at least one sample, got shape {tuple(logits.shape)}"
        )
    z = logits.detach().cpu().double()
    if bool((z == z[:, :1]).all()):  # no temperature changes anything
        return 1.0
    z = z - z.gather(-1, labels.cpu()[:, None])  # d NLL / d(1/T) = mean of Σ_c p_c (z_c − z_label)
    low, high = -7.0, 7.0  # of log(1 / T)
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((z * math.exp(middle)).softmax(-1) * z).sum(-1).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
