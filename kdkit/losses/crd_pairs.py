"""Whom CRD contrasts a sample with: a positive of its own class, negatives of all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit import draws
from kdkit.losses.crd_negatives import CHUNK, Common, Drawn, Negatives


class Pairs(nn.Module):
    """Draws of bank rows, each a hash of (seed, step, sample id, k).

    All samples stand in one row sorted by class, twice over, so that those of other classes are the n − count that come
    after a class where it first stands. Without labels each sample is a class of its own.

    Args:
        num_samples: n.
        sample_labels: class of each of the n training samples, or `None`.
        num_negatives: K.
        replace: whether a negative may be drawn twice.
        seed: any integer.
    """

    label: Tensor
    order: Tensor
    start: Tensor
    count: Tensor

    def __init__(
        self,
        num_samples: int,
        sample_labels: Tensor | Sequence[int] | None,
        num_negatives: int,
        replace: bool,
        seed: int,
    ) -> None:
        super().__init__()
        label = _checked(num_samples, sample_labels)
        count = label.bincount()
        pool = num_samples - int(count.max())
        if pool == 0:
            raise ValueError(
                "crd: sample_labels must hold two classes or more, got one; there is nothing to contrast with"
            )
        if not replace and num_negatives > pool:
            raise ValueError(
                f"crd: num_negatives must be at most {pool}, the samples outside the largest class, when replace is "
                f"false, got {num_negatives}; take fewer, or replace: true"
            )
        self.num_samples, self.num_negatives, self.replace = num_samples, num_negatives, replace
        self.negative_key, self.positive_key = draws.key(seed, "crd negatives"), draws.key(seed, "crd positives")
        order = label if sample_labels is None else label.argsort(stable=True)
        for name, value in {
            "label": label,
            "order": torch.cat([order, order]),
            "start": count.cumsum(0) - count,
            "count": count,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def same_class(self, step: Tensor, index: Tensor, label: Tensor) -> Tensor:
        """One sample of the class of each: (B,) of their labels → (B,) bank rows. It may be the sample itself."""
        key = draws.bits(self.positive_key, step)
        return self.order[self.start[label] + draws.below(key, index, self.count[label])]

    def sampled(self, step: Tensor, index: Tensor, label: Tensor) -> Negatives:
        """K draws for each sample."""
        row_key = draws.bits(draws.bits(self.negative_key, step), index)[:, None]
        start, count = self.start[label][:, None], self.count[label][:, None]
        if self.replace:
            ids = torch.arange(self.num_negatives, device=index.device)
            place = draws.below(row_key, ids, self.num_samples - count).add_(start + count)
        else:
            place = torch.cat([self._distinct(*part) for part in _parts(self.num_samples, row_key, start, count)])
        return Drawn(self.order.index_select(0, place.flatten()).view_as(place), self.num_samples)

    def shared(self, step: Tensor, label: Tensor) -> Negatives:
        """K draws for the whole batch, of which each sample leaves out its own class."""
        key = draws.bits(self.negative_key, step)
        if self.replace:
            rows = draws.below(key, torch.arange(self.num_negatives, device=label.device), self.num_samples)
        else:
            rows = draws.permutation(key, self.num_samples, label.device)[: self.num_negatives]
        drawn = self.label[rows]
        of_class = torch.zeros_like(self.count).index_add_(0, drawn, torch.ones_like(drawn))
        return Common(rows, drawn, label, (len(rows) - of_class[label]).clamp(min=1))

    def all(self, label: Tensor) -> Negatives:
        """Every sample of another class."""
        return Common(None, self.label, label, self.num_samples - self.count[label])

    def _distinct(self, row_key: Tensor, start: Tensor, count: Tensor) -> Tensor:
        """The K places outside the gap whose random bits are smallest."""
        place = torch.arange(self.num_samples, device=row_key.device)
        words = draws.bits(row_key, place).long()
        words.masked_fill_((place >= start) & (place < start + count), 2**32)
        return words.topk(self.num_negatives, largest=False).indices


def _parts(width: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Rows of several tensors in parts that make no more than `CHUNK` numbers at `width` a row."""
    size = max(1, CHUNK // width)
    return list(zip(*(torch.split(t, size) for t in tensors), strict=True))


def _checked(num_samples: int, sample_labels: Tensor | Sequence[int] | None) -> Tensor:
    if sample_labels is None:
        return torch.arange(num_samples, device="cpu")
    label = torch.as_tensor(sample_labels, dtype=torch.int64, device="cpu")
    if label.shape != (num_samples,):
        raise ValueError(
            f"crd: sample_labels must hold one label for each of the {num_samples} samples, got shape "
            f"{tuple(label.shape)}; give the labels of the whole training set in the order of `index`"
        )
    if int(label.min()) < 0:
        raise ValueError(
            f"crd: sample_labels must be at least 0, got {int(label.min())}; leave them out where samples have no label"
        )
    return label
