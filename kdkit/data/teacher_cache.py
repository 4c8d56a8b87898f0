"""What a frozen model says of every view of every image: computed once, kept in a file, read ever after."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.data.row_file import CHECK, RowFile, aligned
from kdkit.registry import KdkitError

DTYPES = {"float16": torch.float16, "float32": torch.float32}
Values = Mapping[str, Tensor]
READ = 1 << 16
"""Rows that are read at once."""
ROWS, TOLD = "rows.bin", "cache.json"
MOST = 1 << 16
"""Classes that a word can number."""


@dataclass(frozen=True)
class Layout:
    """How the values at several taps lie in one row.

    Attributes:
        shapes: of each tap, without the batch.
        dtype: `float16`, exact for a teacher that runs in fp16, and for one in bf16 where a value is between 6e-5
            and 65504 in size (smaller ones are rounded to a multiple of 6e-8), or `float32`.
        top_k: keep only so many of the logits, as log-probabilities; the rest of the mass is spread evenly over the
            other classes (Shen, Xing, ECCV 2022, arXiv 2112.01528), for losses that read them at temperature 1. `None`:
            all of them, as they are.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str = "float16"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise KdkitError(f"cache: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.top_k is None:
            return
        if "logits" not in self.shapes:
            raise KdkitError("cache: top_k is of logits, and no loss reads this model's; leave it out")
        if (classes := prod(self.shapes["logits"])) > MOST:
            raise KdkitError(f"cache: top_k takes at most {MOST} classes, got {classes}; leave it out")
        if not 1 <= self.top_k < classes:
            raise KdkitError(f"cache: top_k must lie in [1, {classes}), the number of classes, got {self.top_k}")

    def words(self, tap: str) -> int:
        """16-bit words that a tap takes in a row."""
        each = DTYPES[self.dtype].itemsize // 2
        if tap == "logits" and self.top_k is not None:
            return self.top_k * (each + 1)
        return prod(self.shapes[tap]) * each

    @property
    def width(self) -> int:
        """Words in a row."""
        return sum(self.words(tap) for tap in self.shapes)

    def encode(self, values: Values) -> Tensor:
        """Values (m, …) of each tap → rows (m, width) of int16."""
        return torch.cat([self._pack(tap, values[tap].detach()) for tap in self.shapes], 1)

    def decode(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (m, width) → values (m, …) of each tap, in fp32."""
        parts = rows.split([self.words(tap) for tap in self.shapes], 1)
        return {tap: self._unpack(tap, aligned(part)) for tap, part in zip(self.shapes, parts, strict=True)}

    def _pack(self, tap: str, value: Tensor) -> Tensor:
        kept = DTYPES[self.dtype]
        if tap != "logits" or self.top_k is None:
            return value.reshape(len(value), -1).to(kept).view(torch.int16)
        best = value.float().log_softmax(1).topk(self.top_k, 1)
        return torch.cat([best.values.to(kept).view(torch.int16), best.indices.to(torch.int16)], 1)

    def _unpack(self, tap: str, words: Tensor) -> Tensor:
        kept = DTYPES[self.dtype]
        if tap != "logits" or self.top_k is None:
            return words.view(kept).float().view(-1, *self.shapes[tap])
        best, classes = aligned(words[:, : -self.top_k]).view(kept).float(), self.shapes[tap][0]
        rest = (1 - best.exp().sum(1, keepdim=True)).clamp_min(1e-7) / (classes - self.top_k)
        return rest.log().repeat(1, classes).scatter(1, words[:, -self.top_k :].long() % MOST, best)


class TeacherCache:
    """A teacher's values, row by row: those that are there are read, all others computed and written.

    Args:
        folder: where caches lie; each has its own folder in it, named by what its numbers depend on.
        name: what the teacher is called.
        depends: all that the numbers follow from: weights, images, views, precision, … Anything else is another cache.
        layout: of a row.
        rows: number of rows.
        near: how far what was kept may lie from what the model says now: ‖kept − said‖ / ‖said‖.

    Raises:
        KdkitError: the disk has no room for it.
    """

    def __init__(
        self, folder: Path, name: str, depends: Mapping[str, Any], layout: Layout, rows: int, *, near: float = 0.005
    ) -> None:
        taps = {tap: list(shape) for tap, shape in layout.shapes.items()}
        words = {**depends, "taps": taps, "dtype": layout.dtype, "top_k": layout.top_k}
        text = json.dumps(words, sort_keys=True, indent=1)
        self.layout, self.near, self.trusted = layout, near, False
        self.folder = folder / f"{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
        check_room(self.folder, layout, rows, [self.folder])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (told := self.folder / TOLD).exists() or told.read_bytes() != f"{text}\n".encode():
                told.write_bytes(f"{text}\n".encode())
            self.file = RowFile(self.folder / ROWS, rows, layout.width)
        except OSError as problem:
            raise KdkitError(
                f"cache: {self.folder} cannot be written ({problem.strerror}); set KDKIT_HOME"
            ) from problem
        self._device_rows: Tensor | None = None

    def __call__(self, rows: Tensor, live: Callable[[], Values]) -> dict[str, Tensor]:
        """Values of the given rows (m,); `live` computes them where one is missing.

        What was just computed is handed out as it will be read later, so that it does not matter who filled the cache.
        """
        if self._device_rows is not None:
            return self.layout.decode(self._device_rows.index_select(0, rows))
        words, there = self.file.read(rows.cpu())
        if bool(there.any()) and not self.trusted:
            self.compare(
                rows[there.to(rows.device)], {tap: value[there.to(value.device)] for tap, value in live().items()}
            )
        if not bool(there.all()):
            words = self.write(rows, live())
        return {tap: value.to(rows.device) for tap, value in self.layout.decode(words).items()}

    def compare(self, rows: Tensor, values: Values) -> None:
        """Before any kept row is believed: see whether some say what the model says now.

        `depends` cannot tell everything: a line of the model's code, say.

        Raises:
            KdkitError: they do not.
        """
        kept, said = (self.layout.decode(w) for w in (self.file.read(rows.cpu())[0], self.layout.encode(values).cpu()))
        for tap in kept:
            pair = [kept[tap], said[tap]]
            old, new = [v.exp() for v in pair] if tap == "logits" and self.layout.top_k is not None else pair
            apart = float((old - new).norm() / new.norm().clamp_min(1e-12))
            if not apart <= self.near:  # nor where it is no number
                raise KdkitError(
                    f"cache: {self.folder} does not hold what this model says now ({tap} is {apart:.1%} off): its "
                    "code, or what reads the images, has changed; remove the folder"
                )
        self.trusted = True

    def write(self, rows: Tensor, values: Values) -> Tensor:
        """Keep values of the given rows; returns them as words.

        Raises:
            KdkitError: a value is no number, or beyond the range of the kept type.
        """
        for tap, value in values.items():
            if not bool(value.isfinite().all()):
                raise KdkitError(
                    f"cache: this model's {tap} has values that are infinite or no number; look at it live"
                )
            if bool((value.detach().abs() > torch.finfo(DTYPES[self.layout.dtype]).max).any()):
                other = "say cache: {dtype: float32}" if self.layout.dtype == "float16" else "leave `cache` out"
                raise KdkitError(f"cache: {tap} has values beyond the range of {self.layout.dtype}; {other}")
        words = self.layout.encode(values).cpu()
        try:
            self.file.write(rows.cpu(), words)
        except OSError as problem:
            raise self._unwritable(problem) from problem
        return words

    def _unwritable(self, problem: OSError) -> KdkitError:
        return KdkitError(f"cache: {self.folder} cannot be written ({problem.strerror}); set KDKIT_HOME elsewhere")

    def live_on(self, device: torch.device) -> None:
        """Hold all rows on an accelerator, from where they are read without a wait.

        Raises:
            KdkitError: a row is not there, or is spoilt.
        """
        held = torch.empty(self.file.rows, self.layout.width, dtype=torch.int16, device=device)
        missing = 0
        for ids in torch.arange(self.file.rows).split(READ):
            words, there = self.file.read(ids)
            missing += int((~there).sum())
            held[ids[0] : ids[-1] + 1] = words.to(device)
        if missing:
            raise KdkitError(
                f"cache: {missing} of {self.file.rows} rows in {self.folder} are not there, or are spoilt; start again "
                "to compute them, and remove the folder where that does not help"
            )
        self._device_rows = held


def check_room(place: Path, layout: Layout, rows: int, begun: Iterable[Path]) -> None:
    """Refuse what the disk cannot hold beside what is written already, telling what takes the room.

    Args:
        place: on that disk; need not be there.
        layout: of a row.
        rows: number of rows.
        begun: folders of caches in which some of the rows may be.

    Raises:
        KdkitError: it cannot.
    """
    size = 2 * rows * (layout.width + CHECK)
    for folder in begun:
        with suppress(OSError, AttributeError):  # Windows does not tell blocks
            size -= 512 * (folder / ROWS).stat().st_blocks
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    if size > (free := shutil.disk_usage(there).free):
        parts = ", ".join(f"{tap} {2 * rows * layout.words(tap) / 1e9:.1f} GB" for tap in layout.shapes)
        raise KdkitError(
            f"cache: {size / 1e9:.1f} GB ({parts}) do not fit into the {free / 1e9:.1f} GB left at {there}; "
            "let this model run live (leave `cache` out), or tap it at its logits and embedding"
        )
