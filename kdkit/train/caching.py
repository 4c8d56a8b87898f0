"""What a frozen model says, kept on disk: opened when a graph is bound to its data, filled, verified."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.home import home
from kdkit.data.teacher_cache import Layout, TeacherCache, check_room
from kdkit.graph.batch import Batch
from kdkit.graph.graph import Graph
from kdkit.graph.links import End
from kdkit.registry import KdkitError, nearest

CHUNK = 1024
"""Views that are computed at once."""

SOME = 64
"""Rows that are looked at before any is believed."""

EXACT, ROUNDED = 0.005, 0.05
"""How far what is kept may lie from what the model says, relative to its size, in full and in half precision."""


@dataclass(frozen=True)
class CacheWords:
    """How a model's values are kept.

    Attributes:
        by: `views`: a row for every view of every image, which serves any seed and any number of epochs; for views that
            can be counted, such as CIFAR's 162. `epochs`: a row for every image in every epoch of one seed, which
            serves every method under any augmentation; filled by the first run, each rank its own part, and looked up
            on the host.
        dtype: `float16` or `float32`; see `Layout`.
        top_k: keep this many logits and spread the rest of the mass, for losses that say `of_probabilities`, at
            temperature 1.
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


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold, known before the model or an image is.

    Attributes:
        name: of the node.
        folder: where caches lie.
        by: as in `CacheWords`.
        samples: training images.
        groups: rows of each.
        layout: of a row.
    """

    name: str
    folder: Path
    by: str
    samples: int
    groups: int
    layout: Layout

    @property
    def rows(self) -> int:
        """Of the whole cache."""
        return self.samples * self.groups

    @classmethod
    def of(cls, graph: Graph, name: str, datamodule: Any) -> CachePlan:
        """Of a node of a bound graph.

        Raises:
            KdkitError: these data, or these losses, do not allow it.
        """
        words = CacheWords.of(graph.nodes[name].cache)
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
        if getattr(datamodule, "two_views", False):
            raise KdkitError(f"cache of {name!r}: data.two_views has two images for each row; leave one of both out")
        taps = graph.whole[name]
        if not taps.names:
            raise KdkitError(f"cache of {name!r}: no loss reads it, so there is nothing to keep; leave `cache` out")
        layout = Layout({tap: taps.shapes[tap] for tap in taps.names}, words.dtype, words.top_k)
        if words.top_k is not None:
            _check_readers(graph, name)
        groups = int(datamodule.num_views) if words.by == "views" else math.ceil(graph.epochs)
        folder = home() / "caches" if words.folder is None else Path(words.folder)
        return cls(name, folder, words.by, int(datamodule.num_samples), groups, layout)

    def check_room(self) -> None:
        """Refuse what the disk cannot hold, whichever of the caches there begins it.

        Raises:
            KdkitError: it cannot.
        """
        check_room(self.folder, self.layout, self.rows, self.folder.glob(f"{self.name}-*"))


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
        node, plan = graph.nodes[name], CachePlan.of(graph, name, datamodule)
        self.graph, self.name, self.datamodule, self.by, self.layout = graph, name, datamodule, plan.by, layout
        self.samples, self.groups = plan.samples, plan.groups
        data = datamodule.identity()
        if plan.by == "views":
            del data["seed"]
        input_of = {word: getattr(node, word) for word in ("mean", "std", "image_size", "input")}
        depends = {"model": _fingerprint(graph.model(name)), "by": plan.by, "precision": precision, **input_of, **data}
        self.double = precision.startswith("64")
        near = EXACT if precision.startswith(("32", "64")) else ROUNDED
        self.cache = TeacherCache(plan.folder, name, depends, plan.layout, plan.rows, near=near)

    def rows(self, epoch: int | Tensor, index: Tensor) -> Tensor:
        """The row of each sample's view in an epoch, which `by: views` may be told as to `CropFlip.draw`: (B,)."""
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
        return self.graph.answer(self.name, self.layout(x.double() if self.double else x))

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
            there = self.cache.file.there(rows.cpu()).to(rows.device)
            if bool(there.any()) and not self.cache.trusted:
                some = there.nonzero()[:SOME, 0]
                with runs_in():
                    self.cache.compare(rows[some], self.answer(views()[some]))
            if not bool(there.all()):
                with runs_in():
                    self.cache.write(rows[~there], self.answer(views()[~there]))
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


def located(memories: Mapping[str, Memory], epoch: int | Tensor, data: Batch) -> Batch:
    """A batch with its rows in every cache.

    Raises:
        KdkitError: there are caches, and the batch does not say which samples it holds.
    """
    if not memories:
        return data
    if data.index is None:
        raise KdkitError("a cache needs to know which samples a batch holds; give batches (x, y, index)")
    return replace(data, rows={name: memory.rows(epoch, data.index) for name, memory in memories.items()})


def _given(x: Tensor) -> Tensor:
    return x


def _fingerprint(model: nn.Module) -> str:
    """Of a model's layers and all the tensors that they hold; `TeacherCache.compare` sees what else has changed."""
    made = blake2b(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)).encode(), digest_size=16)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        made.update(name.encode())
        made.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def _check_readers(graph: Graph, name: str) -> None:
    """Of probabilities with their rest spread evenly no logits can be made, and none of another temperature."""
    for edge in graph.bound:
        moving = {word for _, word, _ in edge.curves}
        for call, loss in zip(edge.calls, edge.losses, strict=True):
            sources = [source for link in call.links for source in link.sources if source.node == name]
            if not (sources and "teacher_logits" in edge.reads) and End(name, "logits") not in sources:
                continue
            if not getattr(loss, "of_probabilities", False):
                own = f", or say `of_probabilities = True` in {type(loss).__name__} where it takes their softmax alone"
                raise KdkitError(
                    f"cache of {name!r}: top_k keeps probabilities, and {edge.name} reads the logits themselves; leave "
                    f"top_k out{'' if edge.edge.info else own}"
                )
            if "temperature" in moving or float(getattr(loss, "temperature", 1.0)) != 1.0:
                raise KdkitError(
                    f"cache of {name!r}: top_k spreads the rest of the mass as it is at temperature 1, and "
                    f"{edge.name} reads it at another; say losses.{edge.name}.temperature=1, or leave top_k out"
                )
