"""Tiny-ImageNet (Le, Yang, Stanford CS231N 2015): 200 classes of ImageNet at 64×64, as its archive unpacks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from kdkit.data.data_facts import DataFacts
from kdkit.data.download import FAILURES, fetch, may_download, told_missing
from kdkit.data.files import FileList, data_root, find_images
from kdkit.data.folder import Folder
from kdkit.registry import KdkitError

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(kw_only=True, eq=False, repr=False)
class TinyImageNet(Folder):
    """Tiny-ImageNet: 100,000 + 10,000 images of 64×64, 200 classes, in `root`/tiny-imagenet-200 as its archive unpacks.

    Its `val` is the test set, by `val_annotations.txt` or, where somebody has sorted it, by one folder for each class.

    Attributes:
        resize: shorter side before the centre crop; default `image_size`, so that whole images are seen.
        download: fetch the set where it is missing; by default into kdkit's own cache folder only.
    """

    image_size: int = 64
    download: bool | None = None
    holdout: float | Literal["all"] | None = field(default=None, init=False)
    labels: bool = field(default=True, init=False)
    classes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.resize = self.resize or self.image_size
        super().__post_init__()

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        return data_root(self.root) / NAME

    def own_images(self) -> None:
        """Nothing: the name says which they are."""

    @property
    def missing(self) -> str:
        """Its folder, where there is none."""
        return told_missing(self.folder, self._downloads())

    @cached_property
    def sets(self) -> tuple[FileList, FileList]:
        """The files of the training and the test set."""
        self.prepare_data()
        if not self.folder.is_dir():
            raise self._broken("was not found")
        for part in ("train", "val"):
            if not (self.folder / part).is_dir():
                raise self._broken(f"has no {part}/")
        train = find_images(self.folder / "train")
        listed = self.folder / "wnids.txt"
        if listed.is_file() and (lost := sorted({*_text(listed).split()} - {*train.classes})):
            raise self._broken(f"has no train/{lost[0]}, which wnids.txt lists")
        sorted_by_class = not (self.folder / "val" / "images").is_dir()
        return train, find_images(self.folder / "val", train.classes) if sorted_by_class else self._annotated(train)

    def _annotated(self, train: FileList) -> FileList:
        """The images of val/images, labelled by lines of `val_annotations.txt`: name, class, and a box."""
        told = self.folder / "val" / "val_annotations.txt"
        if not told.is_file():
            raise self._broken("has no val/val_annotations.txt")
        pairs = dict(line.split("\t")[:2] for line in _text(told).splitlines() if line.count("\t"))
        there = {name for name in os.listdir(told.parent / "images") if not name.startswith(".")}
        if odd := sorted(there ^ pairs.keys()):
            where = "val_annotations.txt does not name" if odd[0] in there else "val_annotations.txt names"
            raise self._broken(f"{'has' if odd[0] in there else 'lacks'} val/images/{odd[0]}, which {where}")
        if strange := sorted({*pairs.values()} - {*train.classes}):
            raise self._broken(f"has no train/{strange[0]}, which val_annotations.txt names")
        names = sorted(pairs)
        labels = torch.tensor([train.classes.index(pairs[name]) for name in names], dtype=torch.long)
        return FileList(told.parent / "images", names, labels, train.classes)

    def describe(self) -> DataFacts:
        """What is there, or else the 200 classes and 100,000 training images."""
        return super().describe() if self.folder.is_dir() else self._facts(200, 100_000)

    def prepare_data(self) -> None:
        """Download where that is wanted; Lightning calls it in one process per machine."""
        if self.folder.is_dir() or not self._downloads():
            return
        from torchvision.datasets.utils import download_and_extract_archive

        try:
            fetch(self.folder.parent, NAME, lambda part: download_and_extract_archive(URL, part, md5=MD5))
        except FAILURES as problem:
            raise self._broken(f"was not found, and its download failed ({problem})") from problem

    def _downloads(self) -> bool:
        return may_download(self.root, self.download)

    def _broken(self, how: str) -> KdkitError:
        other = "" if self._downloads() else ", or data.download=true"
        return KdkitError(
            f"data: root must be a folder that holds {NAME}/ as {URL} unpacks; {self.folder} {how}; "
            f"set data.root=FOLDER or KDKIT_DATA{other}"
        )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
