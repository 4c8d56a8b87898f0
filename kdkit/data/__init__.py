"""Data modules: `build` makes one by name, `facts` asks what it will be without reading it.

Each is a plain `LightningDataModule` and works in anybody's Trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.data.cifar import CIFAR10, CIFAR100
from kdkit.data.device_loader import DeviceLoader
from kdkit.data.facts import DataFacts
from kdkit.data.module import DataModule
from kdkit.registry import KdkitError, Registry, constructor, nearest

DATA: Registry[type[DataModule]] = Registry("data set")
DATA.add("cifar10", CIFAR10)
DATA.add("cifar100", CIFAR100)

__all__ = ["CIFAR10", "CIFAR100", "DATA", "DataFacts", "DataModule", "DeviceLoader", "build", "facts"]


def build(
    name: str, *, root: str | Path | None = None, batch_size: int = 64, seed: int = 0, **options: Any
) -> DataModule:
    """The data module of that name; its class lists the options.

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
    return cls(root=root, batch_size=batch_size, seed=seed, **options)


def facts(name: str, **options: Any) -> DataFacts:
    """What `build(name, **options)` will be, without reading the data where that is possible."""
    return build(name, **options).facts
