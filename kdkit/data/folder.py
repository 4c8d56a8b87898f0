"""Any folder of images: one folder per class, ImageNet's layout, or no classes at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kdkit.data.data_facts import IMAGENET_MEAN, IMAGENET_STD, DataFacts
from kdkit.data.files import FileList, data_root, find_images, find_unlabelled, halves, listing, tell_untested
from kdkit.data.module import DataModule
from kdkit.data.order import Order
from kdkit.data.photos import ResizedCrop
from kdkit.data.splits import part_size, stratified
from kdkit.data.worker_loader import ImageFiles, WorkerLoader
from kdkit.registry import KdkitError

POLICIES = {"autoaugment": "AutoAugment", "randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}


@dataclass(kw_only=True, eq=False, repr=False)
class Folder(DataModule):
    """`root`/<class>/*.jpg with `holdout`, or `root`/train/<class>/*.jpg and `root`/val/<class>/*.jpg.

    Trained on with random crops and mirror (`ResizedCrop`), evaluated on the centre crop; normalised as ImageNet.
    A relative `root` that is not here is looked for under KDKIT_DATA.

    Attributes:
        holdout: share or count of the images that are the test set, class by class, chosen by a hash of the path
            (`split_seed`); 0: no test set; `all`: every image, to evaluate on. Must be given where `root` has no `val`.
        image_size: pixels a side.
        resize: shorter side before the centre crop; default `image_size` · 256/224.
        crop_scale: smallest and largest share of the area in a random crop.
        flip: mirror every second training image.
        policy: `randaugment`, `trivialaugment` or `autoaugment` on top.
        labels: False for images without classes, anywhere below `root` (or its `train` and `val`): y is −1.
        classes: number of classes where `labels` is False.
        means: per channel.
        stds: per channel.
        num_workers: decoding processes; default one per core, at most 8.
    """

    holdout: float | Literal["all"] | None = None
    image_size: int = 224
    resize: int | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    policy: Literal["autoaugment", "randaugment", "trivialaugment"] | None = None
    labels: bool = True
    classes: int = 0
    means: tuple[float, ...] = IMAGENET_MEAN
    stds: tuple[float, ...] = IMAGENET_STD
    num_workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy is not None and self.policy not in POLICIES:
            raise KdkitError(f"data: policy must be one of {', '.join(sorted(POLICIES))}, got {self.policy!r}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise KdkitError(f"data: crop_scale must be two shares 0 < smallest ≤ largest ≤ 1, got {low}, {high}")
        if self.image_size < 1 or (self.resize or self.image_size) < self.image_size:
            raise KdkitError(
                f"data: image_size must be at least 1 and at most resize, got {self.image_size}, {self.resize}"
            )
        if self.classes and self.labels:
            raise KdkitError(f"data: classes goes with labels: false, as folders tell them else, got {self.classes}")
        if self.label_noise and not self.labels:
            raise KdkitError(f"data: label_noise must be 0 where labels is false, got {self.label_noise}")

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        if self.root is None:
            raise KdkitError("data: root must be a folder of images, got nothing; set data.root=FOLDER")
        return data_root(self.root)

    @cached_property
    def sets(self) -> tuple[FileList, FileList]:
        """The files of the training and the test set."""
        train, val = self.folder / "train", self.folder / "val"
        if halves(self.folder):
            if self.holdout:
                raise KdkitError(
                    f"data: holdout must be left out, as {self.folder} has train/ or val/, got {self.holdout}"
                )
            return self._two_folders(train, val)
        whole = find_images(self.folder) if self.labels else find_unlabelled(self.folder)
        if self.holdout is None:
            raise KdkitError(
                f"data: holdout must be a share or a count, as {self.folder} has no val/, got nothing; "
                "set data.holdout=0.1, or 0 for no test set, or all to evaluate only"
            )
        if self.holdout == "all":
            return whole.take(torch.arange(0)), whole
        size = part_size("holdout", self.holdout, len(whole.names))
        test, rest = stratified(whole.labels.clamp(min=0), size, whole.keys("holdout", self.split_seed))
        return whole.take(rest), whole.take(test)

    def _two_folders(self, train: Path, val: Path) -> tuple[FileList, FileList]:
        none = FileList(train, [], torch.arange(0), [])
        if not self.labels:
            return find_unlabelled(train), find_unlabelled(val) if val.is_dir() else none
        first = find_images(train) if train.is_dir() else none
        return first, find_images(val, first.classes or None) if val.is_dir() else none

    def own_images(self) -> str | None:
        """Of their names and sizes, wherever they lie."""
        return listing(self.folder, labels=self.labels)

    def describe(self) -> DataFacts:
        """Counts the files; raises `KdkitError` where there is no such folder."""
        train, test = self.sets
        count = len(train.classes or test.classes) if self.labels else self.classes
        return self._facts(count, len(train.names))

    def _facts(self, classes: int, samples: int) -> DataFacts:
        size = (3, self.image_size, self.image_size)
        return DataFacts(classes, samples, size, tuple(self.means), tuple(self.stds))

    @property
    def class_names(self) -> list[str]:
        """The classes' folder names, by label."""
        return next((files.classes for files in self.sets if files.classes), [])

    def sample_keys(self) -> Tensor:
        """By path."""
        return self.sets[0].keys("split", self.split_seed)

    def read_labels(self, train: bool) -> Tensor:
        """By folder; −1 without labels."""
        if train and not self.sets[0].names:
            if self.holdout == "all":
                raise KdkitError("data: holdout must leave images to train on, got all")
            raise KdkitError(f"data: {self.folder / 'train'} must hold the training images, got nothing")
        if not train and self.labels:
            self._tell_untested()
        return self.sets[0 if train else 1].labels

    def _tell_untested(self) -> None:
        tested = set(self.sets[1].labels.tolist())
        if tested and (lacking := [name for i, name in enumerate(self.class_names) if i not in tested]):
            tell_untested(self.folder.resolve(), len(lacking), lacking[0])

    def checksum(self, train: bool = True) -> str:
        """Of the files' names, sizes and times of writing, and of what decodes and resizes them."""
        import PIL
        import torchvision

        files = self.sets[0 if train else 1]
        ids = self.parts[0] if train else torch.arange(len(files.names))
        names = [files.names[i] for i in ids.tolist()]
        found = [os.stat(path) for path in files.paths(ids)]
        told = (
            *["crops by draws.uniforms"] * self.augment,
            torch.__version__,
            torchvision.__version__,
            PIL.__version__,
            names,
            [(f.st_size, f.st_mtime_ns) for f in found],
        )
        return blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def image_files(self) -> list[str]:
        """Of the training and the test set."""
        return [path for files in self.sets for path in files.paths()]

    def loader(self, train: bool, ids: Tensor | None, labels: Tensor, order: Order, views: bool) -> WorkerLoader:
        """See `DataModule.loader`."""
        augment = views and self.augment
        paths = self.sets[0 if train else 1].paths(ids)
        workers = min(8, os.cpu_count() or 1) if self.num_workers is None else self.num_workers
        return WorkerLoader(
            ImageFiles(paths, self.transform(augment), self.seed if augment else None),
            labels,
            order,
            mean=self.mean,
            std=self.std,
            with_index=views,
            num_workers=workers,
            device=self.target_device(),
        )

    @property
    def shorter_side(self) -> int:
        """Of an image, in pixels, before the centre crop of an evaluation."""
        return self.resize or round(self.image_size * 256 / 224)

    def transform(self, augment: bool) -> Callable[..., Tensor]:
        """(3, height, width) uint8 → (3, image_size, image_size) uint8; of random views see `ResizedCrop`."""
        from torchvision.transforms import v2

        if not augment:
            return v2.Compose([v2.Resize(self.shorter_side), v2.CenterCrop(self.image_size)])  # type: ignore[no-any-return]
        policy = None if self.policy is None else getattr(v2, POLICIES[self.policy])()
        return ResizedCrop(self.image_size, self.crop_scale, self.flip, policy)


@dataclass(kw_only=True, eq=False, repr=False)
class ImageNet(Folder):
    """ImageNet-1k in `root`/train and `root`/val; default root: `imagenet`, also under KDKIT_DATA."""

    root: str | Path | None = "imagenet"

    def __post_init__(self) -> None:
        self.root = self.root or "imagenet"
        super().__post_init__()

    def own_images(self) -> None:
        """Nothing: the name says which they are."""

    @property
    def missing(self) -> str:
        """Its folder, where there is none."""
        return "" if self.folder.is_dir() else f"{self.folder} was not found; set data.root=FOLDER or KDKIT_DATA"

    def describe(self) -> DataFacts:
        """What is there, or else the 1,000 classes and 1,281,167 training images of ILSVRC 2012."""
        return super().describe() if self.folder.is_dir() else self._facts(1000, 1_281_167)
