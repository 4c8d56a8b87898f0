"""Parts of a training set, drawn by hash: a function of (seed, sample), the same whoever asks."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit import draws
from kdkit.registry import KdkitError


def part_size(name: str, size: int | float, total: int) -> int:
    """A count as it is, a share in (0, 1) as the rounded count; raises `KdkitError` unless 0 ≤ count < `total`."""
    count = round(size * total) if 0 < size < 1 else int(size)
    if (count != size and not 0 < size < 1) or not 0 <= count < total:
        raise KdkitError(f"data: {name} must be a share below 1 or a count below {total}, got {size}")
    return count


def stratified(labels: Tensor, size: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    """`size` samples spread over the classes in proportion, and the rest; both ascending.

    Within its class each sample is ranked by its key, and the samples at the lowest quantiles are taken: a smaller part
    lies within a larger one.

    Args:
        labels: (n,) int64, 0 or more; all equal where there are none.
        size: how many, in all.
        keys: (n,) random bits, one per sample.

    Returns:
        (size,) and (n − size,) int64.
    """
    shuffled = torch.argsort(keys, stable=True)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    quantile = torch.empty(len(labels), dtype=torch.float64)
    quantile[by_class] = (rank.double() + 0.5) / counts[labels[by_class]]
    chosen = shuffled[torch.argsort(quantile[shuffled], stable=True)]
    return chosen[:size].sort().values, chosen[size:].sort().values


def noisy(labels: Tensor, share: float, num_classes: int, seed: int, ids: Tensor) -> Tensor:
    """Symmetric label noise: each label is wrong with probability `share`, uniformly over the other classes.

    Which are, and what they become, is a function of (seed, sample): a larger share keeps what a smaller one has wrong,
    and a subset has wrong what the whole set has.

    Args:
        labels: (n,) int64.
        share: in [0, 1].
        num_classes: at least 2, unless `share` is 0.
        seed: of the draws.
        ids: (n,) the samples' places in the whole set.
    """
    if not share:
        return labels
    wrong = draws.below(draws.key(seed, "noise"), ids, 1 << 24) < share * (1 << 24)
    shift = 1 + draws.below(draws.key(seed, "noise label"), ids, num_classes - 1)
    return torch.where(wrong, (labels + shift) % num_classes, labels)
