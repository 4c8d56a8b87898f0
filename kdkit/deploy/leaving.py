"""A trained model and all that its files and its card are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kdkit.data import DataModule
from kdkit.recipe import Recipe
from kdkit.runs.folder import RunFolder
from kdkit.runs.portable import without_folders
from kdkit.runs.trained import Trained


@dataclass(frozen=True)
class Leaving:
    """A trained model, about to be exported.

    Attributes:
        name: in its run.
        arch: its architecture.
        options: of it; `backbone` may name more of one's own code.
        net: the model and its input's adapter, on the CPU.
        data: what it is checked on.
        images: some test images as the model gets them.
        logits: what it says of them.
        mean: of its input per channel, of pixels in [0, 1].
        std: likewise.
        noise: whether the images are none.
        run: its run's folder; `None` for a weights file by itself.
        recipe: of an evaluation on `test` or `train`.
    """

    name: str
    arch: str
    options: dict[str, Any]
    net: Trained
    data: DataModule
    images: Tensor
    logits: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise: bool
    run: RunFolder | None
    recipe: Callable[[str], Recipe]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.net.classes)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return int(self.logits.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def shorter_side(self) -> int | None:
        """Of a photograph, in pixels, before its centre crop; `None` where images are taken whole."""
        side = self.data.shorter_side
        return side and round(side * self.shape[-1] / self.data.input_shape[-1])  # the net may have a size of its own

    @property
    def source(self) -> str:
        """Where the architecture comes from: timm, torchvision, file, package or kdkit."""
        if _is_code(self.arch):
            return "file"
        head = self.arch.partition("/")[0]
        return head if head in ("timm", "torchvision") else "package" if ":" in self.arch else "kdkit"

    @property
    def code(self) -> list[Path]:
        """One's own files that it is built by: its own, and those of the nets inside it."""
        files = (Path(word.rpartition(":")[0]) for word in _named([self.arch, self.options]))
        return list(dict.fromkeys(file for file in files if file.is_file()))

    @property
    def public_arch(self) -> str:
        """Without this machine's folders."""
        return str(without_folders(self.arch))

    @property
    def public_options(self) -> dict[str, Any]:
        """Likewise."""
        return dict(without_folders(self.options))


def _named(value: Any) -> Iterator[str]:
    """Every `FILE:NAME` in it."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _named(part)
    elif _is_code(value):
        yield value


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and value.rpartition(":")[0].endswith(".py")
