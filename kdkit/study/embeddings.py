"""Embeddings of some images of some classes, brought to the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CLASSES, EACH = 10, 60
EXTRA = "the picture of embeddings needs scikit-learn: pip install 'kdkit[study]'"


class Sample:
    """The first images of some classes, evenly spaced among all.

    Args:
        classes: how many there are.
        chosen: how many are looked at.
        each: images of each; left out: 60.
    """

    def __init__(self, classes: int, chosen: int = CLASSES, each: int | None = None) -> None:
        chosen = min(chosen, classes)
        self.classes = [i * classes // chosen for i in range(chosen)]
        self.each = each or EACH
        self.labels: list[int] = []
        self.values: dict[str, list[Tensor]] = {}

    def add(self, labels: Tensor, embeddings: Mapping[str, Tensor]) -> None:
        """Take what is wanted of one batch."""
        rows = []
        for i, label in enumerate(labels.tolist()):
            if label in self.classes and self.labels.count(label) < self.each:
                self.labels.append(label)
                rows.append(i)
        for name, values in embeddings.items():
            self.values.setdefault(name, []).append(values[rows].flatten(1).float().cpu())


def planar(sample: Sample, names: Sequence[str]) -> dict[str, Any] | None:
    """t-SNE of each model's embeddings (van der Maaten, Hinton, JMLR 2008), as in `compare.json`.

    Each begins at its own principal components, scaled alike, with one seed; `None` where scikit-learn is missing or
    there is too little to look at.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    n = len(sample.labels)
    if n < 5 or not sample.values:
        return None
    points = {}
    for name, parts in sample.values.items():
        x = torch.cat(parts)
        x = x / x.square().sum(1).mean().sqrt().clamp(min=1e-12)
        init = "pca" if min(x.shape) > 1 else "random"
        made = TSNE(2, perplexity=min(30.0, (n - 1) / 3), init=init, random_state=0).fit_transform(x.numpy())
        points[name] = made.round(2).tolist()
    return {
        "classes": [names[i] for i in sample.classes],
        "labels": [names[i] for i in sample.labels],
        "points": points,
    }
