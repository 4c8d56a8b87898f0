"""Labels that stand for no class."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kdkit.graph.batch import Facts
from kdkit.graph.links import End
from kdkit.registry import KdkitError


def check_labels(labels: Tensor | None, classes: int | None) -> None:
    """Raise `KdkitError` where a class number is none of 0 … `classes` − 1, naming it.

    −1 throughout, or no labels at all, means that there are none; what is no class number is not judged.
    """
    if labels is None or not classes or labels.is_floating_point() or not labels.numel():
        return
    least, most = int(labels.min()), int(labels.max())
    if most >= classes or (least < 0 and (least, most) != (-1, -1)):
        raise KdkitError(
            f"label {least if least < 0 else most} stands for no class: there are {classes}, numbered from 0 to "
            f"{classes - 1}; mend the labels, or give the model as many classes as there are"
        )


def classes(outputs: Mapping[End, Tensor], facts: Facts) -> int | None:
    """How many classes a step's labels may stand for: the width of its logits, else what the data say."""
    widths = [value.shape[-1] for end, value in outputs.items() if end.tap == "logits"]
    return min(widths, default=facts.num_classes)
