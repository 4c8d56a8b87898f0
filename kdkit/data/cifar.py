"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and downloaded by torchvision."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.data.data_facts import DataFacts
from kdkit.data.device_data import DeviceData
from kdkit.data.download import FAILURES, fetch, may_download, told_missing
from kdkit.data.files import data_root
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
        return told_missing(data_root(self.root) / self._theirs().base_folder, self._downloads())

    @property
    def class_names(self) -> list[str]:
        """The classes, by label."""
        return list(self._open(train=False, download=False).classes)

    def prepare_data(self) -> None:
        """Download where that is wanted; Lightning calls it in one process per machine."""
        self._open(train=False, download=self._downloads())

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images, (n, 3, 32, 32) uint8, and labels."""
        samples = self._open(train, download=self._downloads())
        images = torch.from_numpy(samples.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(samples.targets)

    def _downloads(self) -> bool:
        return may_download(self.root, self.download)

    def _theirs(self) -> Any:
        import torchvision

        return getattr(torchvision.datasets, type(self).__name__)

    def _open(self, train: bool, download: bool) -> Any:
        theirs, folder = self._theirs(), data_root(self.root)
        state = "is corrupted" if (folder / theirs.base_folder).is_dir() else "was not found"
        with suppress(*FAILURES):
            return theirs(str(folder), train=train, download=False)
        problem: Exception | None = None
        if download:
            try:
                fetch(folder, theirs.base_folder, lambda part: theirs(part, train=train, download=True))
                return theirs(str(folder), train=train, download=False)
            except FAILURES as error:
                problem = error
        failed = f" and its download failed ({problem})" if download else ""
        other = "" if download else ", or download it there with data.download=true"
        raise KdkitError(
            f"data: root must be a folder that holds {theirs.base_folder}/ whole; it {state} in {folder}{failed}; "
            f"set data.root=FOLDER or KDKIT_DATA{other}"
        ) from problem


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10(CIFAR100):
    """CIFAR-10: 50,000 + 10,000 images of 32×32, 10 classes; normalised by its training pixels."""

    def describe(self) -> DataFacts:
        """CIFAR-10's facts."""
        return DataFacts(10, 50_000, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
