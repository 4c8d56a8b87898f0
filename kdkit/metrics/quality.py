"""How good one model's probabilities are: all that is said of one beside its accuracy by class."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from kdkit.metrics.calibration import NLL, AdaptiveCalibrationError, Brier
from kdkit.metrics.sample_mean import exact, widest

BINS = 15


class CalibrationError(MulticlassCalibrationError):
    """torchmetrics' expected calibration error, of logits: by itself it guesses what it is given from their range."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch."""
        super().update(exact(logits).softmax(-1), labels)

    def compute(self) -> Tensor:
        """In fp64: a bin of many samples would else lose their last digits."""
        kept = self.confidences
        self.confidences = [widest(dim_zero_cat(kept))]
        try:
            return super().compute()
        finally:
            self.confidences = kept


def quality(num_classes: int) -> MetricCollection:
    """`top1`, `top5` (above five classes), `nll`, `brier`, `ece` (15 equal widths), `ece_adaptive` (equal counts)."""
    top = {"top1": 1, **({"top5": 5} if num_classes > 5 else {})}
    accuracy = {
        name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False) for name, k in top.items()
    }
    error = CalibrationError(num_classes, n_bins=BINS, validate_args=False)
    return MetricCollection(
        {**accuracy, "nll": NLL(), "brier": Brier(), "ece": error, "ece_adaptive": AdaptiveCalibrationError(BINS)},
        compute_groups=False,
    )
