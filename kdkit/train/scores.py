"""How good each node is: torchmetrics' accuracies and the mean negative log-likelihood."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kdkit.graph.labels import check_labels

log = logging.getLogger(__name__)

UNSCORED = "%s: %s, so it is not scored"
OTHER_CLASSES = "its logits have %d classes and the data %d"


class Scores(nn.Module):
    """Metrics by node; sized by the first logits that each node gives.

    Args:
        nodes: every node.
        once: nodes that do not change and are scored only once.
        num_classes: of the labels; a node with another number is left out, and told. `None` where it is not known.

    Nor are nodes scored whose outputs are not one row of logits a sample, or whose labels are no class numbers.
    """

    def __init__(self, nodes: Sequence[str], once: Sequence[str], num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.wanted, self.once = list(nodes), set(once)
        self.accuracy = nn.ModuleDict()
        self.nll = nn.ModuleDict()

    def leave_out(self, name: str, why: str) -> None:
        """Score a node no longer, and tell why."""
        self.wanted.remove(name)
        log.warning("warning: " + UNSCORED, name, why)

    def update(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """Count one batch; raises `KdkitError` where a label is none of the logits' classes."""
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
            got = f"{tuple(logits.shape)} and {labels.dtype} of {tuple(labels.shape)}"
            self.leave_out(name, f"scores are of logits (B, C) by class numbers (B,), got {got}")
            return
        if self.num_classes and logits.shape[-1] != self.num_classes:
            self.leave_out(name, OTHER_CLASSES % (logits.shape[-1], self.num_classes))
            return
        check_labels(labels, logits.shape[-1])
        if name not in self.accuracy:
            self._make(name, logits)
        logits, labels = logits.float(), labels.long()
        self.accuracy[name].update(logits, labels)  # type: ignore[operator]
        self.nll[name].update(F.cross_entropy(logits, labels, reduction="none"))  # type: ignore[operator]

    def _make(self, name: str, logits: Tensor) -> None:
        classes = logits.shape[-1]
        top = {"top1": 1, **({"top5": 5} if classes > 5 else {})}
        metrics = {
            k: MulticlassAccuracy(classes, top_k=n, average="micro", validate_args=False) for k, n in top.items()
        }
        self.accuracy[name] = MetricCollection(metrics).to(logits.device)  # type: ignore[arg-type]
        self.nll[name] = MeanMetric(nan_strategy="disable").to(logits.device)

    def compute(self, keep: bool = False) -> dict[str, Tensor]:
        """`{"student/top1": …}` since the last call; with `keep`, what is scored once is scored again next time."""
        found: dict[str, Tensor] = {}
        for name in self.accuracy:
            if name in self.wanted:
                found |= {f"{name}/{k}": v for k, v in self.accuracy[name].compute().items()}  # type: ignore[operator]
                found[f"{name}/nll"] = self.nll[name].compute()  # type: ignore[operator]
                self.accuracy[name].reset()  # type: ignore[operator]
                self.nll[name].reset()  # type: ignore[operator]
        if not keep:
            self.wanted = [name for name in self.wanted if name not in self.once]
        return found
