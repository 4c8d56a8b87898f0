"""What every data module shares: the parts of the training set, and which loader is asked for what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from kdkit import draws
from kdkit.data.data_facts import DataFacts
from kdkit.data.order import Order
from kdkit.data.splits import noisy, part_size, stratified
from kdkit.registry import KdkitError


@dataclass(kw_only=True, eq=False, repr=False)
class DataModule(LightningDataModule, ABC):
    """A Lightning data module whose order and views are functions of (seed, epoch, sample).

    Train batches are `(x, y, index)`, all others `(x, y)`: x float32 (B, C, H, W), normalised; y int64 (B,); index
    int64 (B,), the sample's place in the training set as trained on. `train_dataloader()` makes a new loader at every
    call, so that reading one for another purpose leaves the training's place alone.

    Every rank evaluates everything, so that a test accuracy is exact and needs no gathering.

    Attributes:
        root: folder of the data set.
        batch_size: over all ranks; a multiple of their number.
        seed: of order, views and label noise.
        val_split: share or count held out of the training set, class by class, for whoever selects anything by it.
            Without it `val_dataloader` gives the test set, to report and never to select (`selects` says which).
        subset: train on this many samples only, class by class; a smaller subset lies in a larger one.
        label_noise: share of training labels replaced by another class, uniformly; a function of (seed, sample).
        split_seed: of `val_split` and `subset`; not `seed`, so that teacher and student hold out the same images.
        drop_last: leave out an epoch's last batch where it is not full.
        augment: random views in training.
        eval_batch_size: images per batch in evaluation, on each rank.
        folderless: whether the data lie in no folder.
        whole_batches: every rank takes whole batches in training, instead of its share of each.
    """

    folderless: ClassVar[bool] = False
    root: str | Path | None = None
    batch_size: int = 64
    seed: int = 0
    val_split: float = 0
    subset: int | None = None
    label_noise: float = 0.0
    split_seed: int = 0
    drop_last: bool = False
    augment: bool = True
    eval_batch_size: int = 256
    sample_labels: Tensor | None = field(default=None, init=False)
    device: torch.device | None = field(default=None, init=False)
    whole_batches: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        if self.folderless and self.root is not None:  # which would silently not be looked at
            raise KdkitError(
                f"data: root must be left out, as these data lie in no folder, got {str(self.root)!r}; "
                f"a folder of images is data={{name: folder, root: {self.root}}}"
            )
        for name in ("batch_size", "eval_batch_size"):
            if (size := getattr(self, name)) < 1:
                raise KdkitError(f"data: {name} must be at least 1, got {size}")
        if not 0 <= self.label_noise <= 1:
            raise KdkitError(f"data: label_noise must be a share in [0, 1], got {self.label_noise}")
        self._parts: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def describe(self) -> DataFacts:
        """The facts of the whole training set."""

    @abstractmethod
    def read_labels(self, train: bool) -> Tensor:
        """All labels of the training or the test set, (n,) int64; −1 where there are none."""

    @abstractmethod
    def loader(self, train: bool, ids: Tensor | None, labels: Tensor, order: Order, views: bool) -> Any:
        """Batches of the samples `ids` (None: all) with `labels`; `views`: augmented, and with the index."""

    def sample_keys(self) -> Tensor:
        """32 bits for each training sample, by which `val_split` and `subset` choose."""
        return draws.bits(draws.key(self.split_seed, "split"), torch.arange(self.describe().num_samples))

    @cached_property
    def facts(self) -> DataFacts:
        """The facts after `val_split` and `subset`, read without the data where that is possible."""
        whole = self.describe()
        if not whole.num_samples:  # only a test set
            return whole
        kept = whole.num_samples - part_size("val_split", self.val_split, whole.num_samples)
        if self.subset is not None:
            if not 0 < self.subset <= kept:
                raise KdkitError(f"data: subset must be a count of at most {kept} training samples, got {self.subset}")
            kept = self.subset
        return replace(whole, num_samples=kept)

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return self.facts.num_classes

    @property
    def num_samples(self) -> int:
        """Training samples; every `index` lies below it."""
        return self.facts.num_samples

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.facts.input_shape

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]."""
        return self.facts.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]."""
        return self.facts.std

    @property
    def missing(self) -> str:
        """What is not on this machine yet, and what will become of it; empty where everything is there."""
        return ""

    def own_images(self) -> str | None:
        """A digest of the images, where the data set's name does not say which they are."""
        return None

    @property
    def class_names(self) -> list[str]:
        """The classes, by label; empty where they have no names."""
        return []

    @property
    def selects(self) -> bool:
        """Whether one may select by `val_dataloader`: it gives held-out training images and not the test set."""
        return bool(self.val_split)

    def setup(self, stage: str | None = None) -> None:
        """Read what `stage` needs and carve the training set; a second call does nothing."""
        needs_train = stage in (None, "fit") or (stage == "validate" and self.selects)
        if needs_train and self._parts is None:
            self._parts = self._carve(labels := self.read_labels(train=True))
            labels = labels[self._parts[0]]
            if self.num_classes == 1 and labels.min() >= 0:
                raise KdkitError("data: must have two classes or more, got one; whatever a model says is right")
            self._train_labels = noisy(labels, self.label_noise, self.num_classes, self.seed, self._parts[0])
            self.sample_labels = self._train_labels if self.num_classes and labels.min() >= 0 else None

    def train_dataloader(self) -> Any:
        """`(x, y, index)`, shuffled; a new loader at every call."""
        train, _ = self.parts
        order = Order(len(train), self.batch_size, seed=self.seed, drop_last=self.drop_last, whole=self.whole_batches)
        return self.loader(True, train, self._train_labels, order, views=True)

    def val_dataloader(self) -> Any:
        """`(x, y)`: the held-out part of the training set, or else the test set."""
        if not self.selects:
            return self.test_dataloader()
        _, val = self.parts
        labels = self.read_labels(train=True)[val]
        return self.loader(True, val, labels, Order(len(val), self.eval_batch_size), views=False)

    def test_dataloader(self) -> Any:
        """`(x, y)`: always the test set; `[]` where there is none."""
        labels = self.read_labels(train=False)
        if not len(labels):
            return []
        return self.loader(False, None, labels, Order(len(labels), self.eval_batch_size), views=False)

    @property
    def shorter_side(self) -> int | None:
        """Of a photograph, in pixels, before the centre crop of an evaluation; `None`: images are taken whole."""
        return None

    def image_files(self) -> list[str]:
        """Paths of the images that are read one by one, as they are needed; none where all lie in memory."""
        return []

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The places in the whole training set of what is trained on and of what is held out by `val_split`."""
        self.setup("fit")
        assert self._parts is not None
        return self._parts

    def _carve(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.val_split and self.subset is None:
            return torch.arange(len(labels)), torch.arange(0)
        keys, strata = self.sample_keys(), labels.clamp(min=0)
        val, train = stratified(strata, part_size("val_split", self.val_split, len(labels)), keys)
        first, _ = stratified(strata[train], self.num_samples, keys[train])
        return train[first], val

    @property
    def num_views(self) -> int | None:
        """How many views each training image has, or `None` where they cannot be counted."""
        return None if self.augment else 1

    def view_number(self, epoch: int | Tensor, index: Tensor) -> Tensor:
        """Which of its views each sample has in one epoch, told as to `CropFlip.draw`: (B,) in [0, num_views)."""
        return torch.zeros_like(index)

    def identity(self) -> dict[str, Any]:
        """All that the training images and their views follow from; not where, and in what batches, they are read."""
        without = {"root", "batch_size", "eval_batch_size", "drop_last", "label_noise", "num_workers", "download"}
        without |= {"two_views"}  # which no cache takes
        words = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in without}
        return {"data": type(self).__name__, **words, "content": self.checksum()}

    @abstractmethod
    def checksum(self, train: bool = True) -> str:
        """Of the training images, in the order of `index`, or of the test images."""

    def target_device(self) -> torch.device:
        """`device` where it is set, else the Trainer's, else the CPU."""
        if self.device is not None:
            return torch.device(self.device)
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
