"""Nodes: the models of a graph. Trained, frozen, or a slow copy of another (EMA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from kdkit.graph.schedule import Spec
from kdkit.graph.span import Span
from kdkit.graph.wrapped import check_bare
from kdkit.registry import KdkitError

Kind = Literal["trained", "frozen", "ema"]


@dataclass
class Node:
    """One model of the graph.

    Attributes:
        module: any `nn.Module`; `None` for an EMA node, which is copied from the node it follows.
        kind: `trained`; `frozen` (eval mode for ever, no gradient, outside the module tree); `ema`.
        of: the node that an EMA node follows.
        decay: the EMA's decay per step, a number or a schedule.
        optimizer: `{"name": "sgd", …}`; `None` takes the run's.
        lr: a number or a schedule; `None` takes the run's.
        mean: per-channel mean of the images it expects, on the scale [0, 1]; `None` takes the data's.
        std: per-channel standard deviation, likewise.
        image_size: side to which its images are resized (bilinear); `None` takes them as they come.
        input: which input it reads where a batch's x is a mapping or a tuple (cross-modal distillation).
        when: the time in which it trains.
        cache: keep on disk what this frozen model says of every view of every image, and read it from there: `True`, or
            words of `kdkit.train.caching.CacheWords` such as `{"by": "epochs"}`.
        spec: what built it (arch and options), kept for provenance and for the weights file.
    """

    module: nn.Module | None
    kind: Kind = "trained"
    of: str | None = None
    decay: Spec = 0.999
    optimizer: Mapping[str, Any] | None = None
    lr: Spec | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    input: str | int | None = None
    when: Span = field(default_factory=Span)
    cache: bool | Mapping[str, Any] = False
    spec: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        given: Any = self.module
        if not isinstance(given, (nn.Module, type(None))):
            made = "; kdkit.models.build(name, num_classes=…) makes one" if isinstance(given, str) else ""
            raise KdkitError(f"node: a model must be an nn.Module, got {given!r}{made}")
        if isinstance(given, nn.Module):
            check_bare(given)
        if (self.module is None) != (self.kind == "ema"):
            raise KdkitError(f"node: a {self.kind} node {'copies' if self.kind == 'ema' else 'must be given'} a module")
        if self.kind == "ema" and self.of is None:
            raise KdkitError("node: an ema node must name the node it follows; give `of`")
        if (self.mean is None) != (self.std is None):
            raise KdkitError("node: mean and std go together")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise KdkitError(f"node: std must be above 0 for every channel, got {tuple(self.std)}")
        if isinstance(given, nn.Module) and (lazy := [n for n, p in given.named_parameters() if is_lazy(p)]):
            raise KdkitError(
                f"node: {', '.join(lazy)} would get a size from a first batch (Lazy…); give it, or call the model once"
            )
        if self.cache is not False and self.kind != "frozen":
            raise KdkitError(f"node: a {self.kind} node changes, so nothing of it can be cached; leave `cache` out")
        self.when = Span.parse(self.when)
        if self.kind != "trained" and self.when != Span():
            raise KdkitError(f"node: a {self.kind} node does not train, so it has no time to; leave `when` out")

    def reading_as(self, whom: Node) -> Node:
        """This node with the input of another one wherever it says nothing of its own."""
        return replace(
            self,
            mean=self.mean or whom.mean,
            std=self.std or whom.std,
            image_size=self.image_size or whom.image_size,
            input=whom.input if self.input is None else self.input,
        )


def frozen(module: nn.Module, **options: Any) -> Node:
    """A teacher: eval mode for ever, under `no_grad`, absent from optimiser, checkpoint and DDP.

    Args:
        module: any `nn.Module`.
        options: other words of `kdkit.Node`, such as `mean` and `std`, `image_size`, `input`, `cache`.
    """
    return Node(module, "frozen", **options)


def ema(of: str, decay: Spec = 0.999, **options: Any) -> Node:
    """A slow copy of the node `of`: θ ← decay·θ + (1 − decay)·θ_of after every step.

    Its buffers (running statistics) are copies of the other's; it is in the checkpoint.

    Args:
        of: name of the node.
        decay: a number or a schedule.
        options: other words of `kdkit.Node`, such as `image_size`.
    """
    return Node(None, "ema", of=of, decay=decay, **options)
