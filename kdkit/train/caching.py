"""What a frozen model says, kept on disk: opened when a graph is bound to its data, filled, verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.home import home
from kdkit.data.teacher_cache import Layout, TeacherCache
from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError, nearest

CHUNK = 1024
"""Views that are computed at once."""


@dataclass(frozen=True)
class CacheWords:
    """How a model's values are kept.

    Attributes:
        by: `views`: a row for every view of every image, which serves any seed and any number of epochs; for views that
            can be counted, such as CIFAR's 162. `epochs`: a row for every image in every epoch of one seed, which
            serves every method under any augmentation.
        dtype: `float16`, exact where the model runs in bf16, or `float32`.
        top_k: keep this many logits and spread the rest of the mass.
        folder: where caches lie; left out: `KDKIT_HOME`.
    """

    by: str = "views"
    dtype: str = "float16"
    top_k: int | None = None
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if self.by not in ("views", "epochs"):
            raise KdkitError(f"cache: by must be 'views' or 'epochs', got {self.by!r}")

    @classmethod
    def of(cls, given: bool | Mapping[str, Any]) -> CacheWords:
        """`True`, or a mapping of the words."""
        words = {} if given is True else dict(given or {})
        for word in words:
            if word not in (known := [f.name for f in fields(cls)]):
                raise KdkitError(f"cache: unknown word {word!r}{nearest(word, known)}")
        return cls(**words)


class Memory:
    """One frozen node's cache, as its graph and its data use it.

    Args:
        graph: bound.
        name: of the node.
        datamodule: kdkit's, whose views follow from (seed, epoch, sample).
        precision: of the run, in Lightning's words.
        layout: puts images into the models' memory format.

    Raises:
        KdkitError: these data, or this disk, do not allow it.
    """

    def __init__(
        self, graph: Graph, name: str, datamodule: Any, precision: str, layout: Callable[[Tensor], Tensor]
    ) -> None:
        node = graph.nodes[name]
        words = CacheWords.of(node.cache)
        if not hasattr(datamodule, "view_number"):
            raise KdkitError(
                f"cache of {name!r}: the views must follow from (seed, epoch, sample), as in kdkit's data modules; "
                "take one of them, or leave `cache` out"
            )
        if words.by == "views" and datamodule.num_views is None:
            raise KdkitError(
                f"cache of {name!r}: the random views of these images cannot be counted; keep what it says of each "
                "epoch instead: cache: {by: epochs}"
            )
        self.graph, self.name, self.datamodule, self.by, self.layout = graph, name, datamodule, words.by, layout
        self.samples = int(datamodule.num_samples)
        self.groups = int(datamodule.num_views) if words.by == "views" else math.ceil(graph.epochs)
        taps = graph.whole[name]
        kept = Layout({tap: taps.shapes[tap] for tap in taps.names}, words.dtype, words.top_k)
        data = datamodule.identity()
        if words.by == "views":
            del data["seed"], data["augment"]
        input_of = {word: getattr(node, word) for word in ("mean", "std", "image_size", "input")}
        depends = {"model": _digest(graph.model(name)), "by": words.by, "precision": precision, **input_of, **data}
        folder = home() / "caches" if words.folder is None else Path(words.folder)
        self.cache = TeacherCache(folder, name, depends, kept, self.samples * self.groups)

    def rows(self, epoch: int, index: Tensor) -> Tensor:
        """The row of each sample's view in an epoch: (B,)."""
        if self.by == "epochs":
            return index + epoch * self.samples
        number: Tensor = self.datamodule.view_number(epoch, index)
        return index * self.groups + number

    @property
    def chunks(self) -> int:
        """In how many parts `fill` goes through the rows."""
        if self.by == "views":
            return -(-self.samples * self.groups // CHUNK)
        return self.groups * len(self.datamodule.train_dataloader())

    def answer(self, x: Tensor) -> dict[str, Tensor]:
        """What the model says of images (B, C, H, W)."""
        return self.graph.answer(self.name, self.layout(x))

    def prepare(self, device: torch.device, runs_in: Callable[[], AbstractContextManager[Any]]) -> None:
        """On an accelerator, compute what is missing and hold it all there: no step then waits for the host.

        Elsewhere, and where the rows are epochs, what is missing is computed when it is asked for.
        """
        if device.type == "cuda" and self.by == "views":
            for _ in self.fill(runs_in):
                pass
            self.cache.live_on(device)

    def fill(self, runs_in: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[int]:
        """Compute every row that is not there; yields how many rows have been gone through.

        Args:
            runs_in: the context in which the model runs, such as autocast.
        """
        for rows, views in self._all():
            missing = ~self.cache.file.there(rows.cpu())
            if bool(missing.any()):
                missing = missing.to(rows.device)
                with runs_in():
                    self.cache.write(rows[missing], self.answer(views()[missing]))
            yield len(rows)

    def verify(self, runs_in: Callable[[], AbstractContextManager[Any]] = nullcontext) -> tuple[int, int, float]:
        """Compute again what is there: (rows gone through, rows there, largest difference between any two values)."""
        seen, found, worst = 0, 0, 0.0
        for rows, views in self._all():
            words, there = self.cache.file.read(rows.cpu())
            seen, found = seen + len(rows), found + int(there.sum())
            if bool(there.any()):
                there = there.to(rows.device)
                with runs_in():
                    live = self.cache.layout.encode(self.answer(views()[there]))
                kept, made = (self.cache.layout.decode(w.cpu()) for w in (words[there.cpu()], live))
                worst = max(worst, *(float((kept[tap] - made[tap]).abs().max()) for tap in kept))
        return seen, found, worst

    def _all(self) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Every row with what makes its images, some at a time."""
        loader = self.datamodule.train_dataloader()
        if self.by == "views":
            for ids in torch.arange(self.samples * self.groups, device=loader.device).split(CHUNK):
                yield ids, partial(loader.numbered, ids // self.groups, ids % self.groups)
            return
        for epoch in range(self.groups):
            loader.set_epoch(epoch)
            for x, _, index in loader:
                yield self.rows(epoch, index), partial(_given, x)


def _given(x: Tensor) -> Tensor:
    return x


def _digest(model: nn.Module) -> str:
    """Of what a model computes: its layers and all that they hold."""
    digest = blake2b(repr(model).encode(), digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
