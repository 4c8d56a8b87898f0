"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and downloaded by torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data.data_facts import DataFacts
from kdkit.data.files import data_root
from kdkit.data.module import DeviceData
from kdkit.registry import KdkitError


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR100(DeviceData):
    """CIFAR-100: 50,000 + 10,000 images of 32×32, 100 classes; normalised as RepDistiller does.

    Attributes:
        download: fetch the set where it is missing; by default into kdkit's own cache folder only.
    """

    download: bool | None = None

    def describe(self) -> DataFacts:
        """CIFAR-100's facts."""
        return DataFacts(100, 50_000, (3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

    @property
    def missing(self) -> str:
        """Its folder, where there is none."""
        import torchvision

        folder = data_root(self.root) / getattr(torchvision.datasets, type(self).__name__).base_folder
        if folder.is_dir():
            return ""
        if self._downloads():
            return f"{folder} will be downloaded"
        return f"{folder} was not found; set data.root=FOLDER or KDKIT_DATA, or data.download=true"

    @property
    def class_names(self) -> list[str]:
        """The classes, by label."""
        return list(self._open(train=False).classes)

    def prepare_data(self) -> None:
        """Download where that is wanted; Lightning calls it in one process per machine."""
        self._open(train=False, download=self._downloads())

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images, (n, 3, 32, 32) uint8, and labels."""
        samples = self._open(train, download=self._downloads())
        images = torch.from_numpy(samples.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(samples.targets)

    def _downloads(self) -> bool:
        own = self.root is None and not os.environ.get("KDKIT_DATA")
        return own if self.download is None else self.download

    def _open(self, train: bool, download: bool = False):  # type: ignore[no-untyped-def]  # torchvision has no types
        import torchvision

        cls = getattr(torchvision.datasets, type(self).__name__)
        folder = data_root(self.root)
        try:
            return cls(str(folder), train=train, download=download)
        except (RuntimeError, OSError, EOFError) as problem:
            state = "is corrupted" if (folder / cls.base_folder).is_dir() else "was not found"
            failed = f" and its download failed ({problem})" if download else ""
            fetch = "" if download else ", or download it there with data.download=true"
            raise KdkitError(
                f"data: root must be a folder that holds {cls.base_folder}/ whole; it {state} in {folder}{failed}; "
                f"set data.root=FOLDER or KDKIT_DATA{fetch}"
            ) from problem


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10(CIFAR100):
    """CIFAR-10: 50,000 + 10,000 images of 32×32, 10 classes; normalised by its training pixels."""

    def describe(self) -> DataFacts:
        """CIFAR-10's facts."""
        return DataFacts(10, 50_000, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
