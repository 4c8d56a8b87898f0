"""Data modules: `build` makes one by name, `facts` asks what it will be without reading it.

Each is a plain `LightningDataModule` and works in anybody's Trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.data.cifar import CIFAR10, CIFAR100
from kdkit.data.data_facts import DataFacts
from kdkit.data.device_loader import DeviceLoader
from kdkit.data.digits import Digits
from kdkit.data.fake import FakeData
from kdkit.data.files import data_root
from kdkit.data.folder import Folder, ImageNet
from kdkit.data.module import DataModule
from kdkit.data.stl10 import STL10
from kdkit.data.tiny_imagenet import TinyImageNet
from kdkit.data.worker_loader import WorkerLoader
from kdkit.registry import KdkitError, Registry, constructor, nearest

DATA: Registry[type[DataModule]] = Registry("data set")
DATA.add("cifar10", CIFAR10)
DATA.add("cifar100", CIFAR100)
DATA.add("digits", Digits)
DATA.add("fake", FakeData)
DATA.add("folder", Folder)
DATA.add("imagenet", ImageNet)
DATA.add("stl10", STL10)
DATA.add("tinyimagenet", TinyImageNet)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATA",
    "STL10",
    "DataFacts",
    "DataModule",
    "DeviceLoader",
    "Digits",
    "FakeData",
    "Folder",
    "ImageNet",
    "TinyImageNet",
    "WorkerLoader",
    "build",
    "data_root",
    "facts",
]


def build(
    name: str,
    *,
    root: str | Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    fake: bool = False,
    **options: Any,
) -> DataModule:
    """The data module of that name; its class lists the options.

    Args:
        name: a key of `DATA`.
        root: folder of the data set.
        batch_size: over all ranks.
        seed: of order, views and label noise.
        fake: noise of the same shape and classes instead, four batches of it: to try a recipe without its data.
        options: the data module's own.

    Raises:
        UnknownNameError: no such data set.
        KdkitError: an option that it does not have, or a value that it cannot take.
    """
    cls = DATA[name]
    known = list(constructor(cls))
    for word in options:
        if word not in known:
            hint = nearest(word, known) or f"; known: {', '.join(known)}"
            raise KdkitError(f"data: {name} has no option {word!r}{hint}")
    module = cls(root=root, batch_size=batch_size, seed=seed, **options)
    return FakeData.like(module) if fake else module


def facts(name: str, **options: Any) -> DataFacts:
    """What `build(name, **options)` will be, without reading the data where that is possible."""
    return build(name, **options).facts
