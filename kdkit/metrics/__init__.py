"""Metrics that stand alone, each a plain `torchmetrics.Metric` or a function over plain tensors.

They stay on the device and are right under DDP; `kdkit eval` and `kdkit compare` are made of them. Accuracy and the
calibration error over bins of equal width are torchmetrics' own.
"""

from kdkit.metrics.calibration import NLL, AdaptiveCalibrationError, Brier, certainty, fit_temperature, reliability
from kdkit.metrics.cka import LinearCKA, hsic
from kdkit.metrics.cohort import KAR, MCI, Disagreement, PairwiseJS
from kdkit.metrics.fidelity import Agreement, JSDivergence, KLDivergence
from kdkit.metrics.logit_correlation import LogitCorrelation, correlation_difference
from kdkit.metrics.transfer import Transfer, transfer_ratio

__all__ = [
    "KAR",
    "MCI",
    "NLL",
    "AdaptiveCalibrationError",
    "Agreement",
    "Brier",
    "Disagreement",
    "JSDivergence",
    "KLDivergence",
    "LinearCKA",
    "LogitCorrelation",
    "PairwiseJS",
    "Transfer",
    "certainty",
    "correlation_difference",
    "fit_temperature",
    "hsic",
    "reliability",
    "transfer_ratio",
]
