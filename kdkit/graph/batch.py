"""What flows into a graph: a batch, and the facts about the data that losses ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.graph.node import Node
from kdkit.registry import KdkitError


@dataclass(frozen=True)
class Batch:
    """`x`, and where the data has them the labels (B,) and the samples' ids (B,).

    `rows` are the places (B,) of these views in the cache of each model that has one.
    """

    x: Any
    labels: Tensor | None = None
    index: Tensor | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """Read `x`, `(x, y)` or `(x, y, index)`; y = −1 throughout means that there are no labels."""
        if isinstance(batch, Sequence) and not isinstance(batch, str) and 1 <= len(batch) <= 3:
            return cls(*batch)
        if isinstance(batch, Tensor):
            return cls(batch)
        raise KdkitError(
            f"a batch must be x, (x, y) or (x, y, index), got {type(batch).__name__}; let the loader's "
            "collate_fn make one of it"
        )

    def first(self, n: int) -> Batch:
        """Its first n samples."""
        labels, index = (None if part is None else part[:n] for part in (self.labels, self.index))
        return Batch(_first(self.x, n), labels, index, {name: rows[:n] for name, rows in self.rows.items()})

    def finite(self) -> Tensor | None:
        """Whether all inputs are finite, as a flag on the device; `None` where they cannot be otherwise."""
        found = [x.isfinite().all() for x in inputs(self.x) if x.is_floating_point()]
        return torch.stack(found).all() if found else None


def _first(x: Any, n: int) -> Any:
    if isinstance(x, Mapping):
        return {name: _first(part, n) for name, part in x.items()}
    return [_first(part, n) for part in x] if isinstance(x, (list, tuple)) else x[:n]


def inputs(x: Any) -> Iterator[Tensor]:
    """The tensors of a batch's x."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (Mapping, list, tuple)):
        for part in x.values() if isinstance(x, Mapping) else x:
            yield from inputs(part)


@dataclass(frozen=True)
class Facts:
    """What is known of the data: taken from a data module's attributes of the same names where it has them."""

    num_classes: int | None = None
    num_samples: int | None = None
    sample_labels: Tensor | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, datamodule: Any) -> Facts:
        """Read the attributes that a data module has."""
        return cls(**{name: getattr(datamodule, name, None) for name in cls.__dataclass_fields__})


class Adapter(nn.Module):
    """Gives a node its own input: the one it reads, in its own normalisation, at its own resolution.

    x' = (x·σ_data + μ_data − μ_node) / σ_node, then a bilinear resize to `image_size`.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, node: Node, facts: Facts) -> None:
        super().__init__()
        self.input, self.image_size = node.input, node.image_size
        scale = shift = None
        if node.mean is not None and (facts.mean is None or facts.std is None):
            raise KdkitError(
                "a model brings its own input normalisation, but the data do not tell theirs; give the data module "
                "attributes `mean` and `std`, or leave the model's out and feed it what it expects"
            )
        if node.mean is not None:
            mine, data = (
                [torch.tensor(v).view(-1, 1, 1) for v in pair]
                for pair in ((node.mean, node.std), (facts.mean, facts.std))
            )
            if mine[0].shape != data[0].shape:
                raise KdkitError(
                    f"a model's mean and std have {len(mine[0])} channels, the data {len(data[0])}; give one number "
                    f"for each channel of the data, or the data as many channels (digits: data.channels={len(mine[0])})"
                )
            if not (torch.equal(mine[0], data[0]) and torch.equal(mine[1], data[1])):
                scale, shift = data[1] / mine[1], (data[0] - mine[0]) / mine[1]
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def _chosen(self, x: Any) -> Any:
        """The input it reads; in evaluation there may be one image for all."""
        if isinstance(x, Tensor):
            if self.training:
                raise KdkitError(f"`input: {self.input}` names one of several, and a batch holds one; leave it out")
            return x
        if isinstance(x, Mapping) and self.input not in x:
            raise KdkitError(f"`input: {self.input}`: a batch holds {', '.join(map(str, x))}")
        if isinstance(x, (list, tuple)) and self.input not in range(len(x)):
            known = " or ".join(map(str, range(len(x))))
            raise KdkitError(f"`input: {self.input}`: a batch holds {len(x)} inputs by number; say input: {known}")
        return x[self.input]

    def forward(self, x: Any) -> Any:
        """The node's view of a batch's x."""
        if self.input is not None:
            x = self._chosen(x)
        elif isinstance(x, (Mapping, list, tuple)):
            raise KdkitError(
                "the batch's x holds several inputs; say which one each model reads (`input:`, in Python "
                "kdkit.Node(net, input=…)); for a model that reads several, stack them into one tensor"
            )
        if self.scale is not None:
            x = x * self.scale + self.shift
        if self.image_size is not None and tuple(x.shape[-2:]) != (self.image_size, self.image_size):
            shrinks = max(x.shape[-2:]) > self.image_size
            x = F.interpolate(x, size=(self.image_size,) * 2, mode="bilinear", antialias=shrinks)
        return x
