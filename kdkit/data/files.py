"""Finding images in folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from kdkit import draws
from kdkit.registry import KdkitError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def data_root(root: str | Path | None) -> Path:
    """The folder of a data set.

    Without `root` it is the variable KDKIT_DATA, else kdkit's own folder under ~/.cache; a relative `root` that is not
    here is looked for there.
    """
    if root is None:
        return Path(os.path.expanduser(os.environ.get("KDKIT_DATA") or "~/.cache/kdkit/data"))
    here = Path(os.path.expanduser(root))
    there = data_root(None) / here
    return there if os.path.isdir(there) and not os.path.isdir(here) else here


@dataclass(frozen=True)
class FileList:
    """Image files, each with a label.

    Attributes:
        folder: what `names` are relative to.
        names: relative paths, sorted.
        labels: (n,) int64; −1 without labels.
        classes: class names, by label.
    """

    folder: Path
    names: list[str]
    labels: Tensor
    classes: list[str]

    def paths(self, ids: Tensor | None = None) -> list[str]:
        """Full paths of the given files, by default of all."""
        chosen = self.names if ids is None else [self.names[i] for i in ids.tolist()]
        return [os.path.join(self.folder, name) for name in chosen]

    def take(self, ids: Tensor) -> FileList:
        """The given files alone."""
        return FileList(self.folder, [self.names[i] for i in ids.tolist()], self.labels[ids], self.classes)

    def keys(self, purpose: str, seed: int) -> Tensor:
        """32 bits per file out of its relative path: adding a file moves (almost) no other file to another part."""
        return torch.tensor([draws.key(seed, purpose, name) for name in self.names], dtype=torch.int32)


def find_images(folder: Path, classes: list[str] | None = None) -> FileList:
    """`folder`/<class>/**/*.jpg, labelled by the sorted class names.

    Args:
        folder: has one folder per class.
        classes: those of the training set, which this test set's must be among.

    Raises:
        KdkitError: no folder, no class in it, a class without an image, a class that training does not know.
    """
    found = sorted(entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise KdkitError(
            f"data: {folder} must hold one folder of images per class, got none; "
            "for images without classes set data.labels=false"
        )
    if odd := next((name for name in found if any("\ud800" <= c <= "\udfff" for c in name)), None):
        raise KdkitError(f"data: {printable(folder / odd)} must be a name in UTF-8; rename it")
    known = found if classes is None else classes
    if strange := sorted(set(found) - set(known)):
        raise KdkitError(f"data: {folder} must hold the training set's classes only, got {', '.join(strange[:5])}")
    names: list[str] = []
    labels: list[int] = []
    for name in found:
        images = [os.path.join(name, image) for image in _images(folder / name)]
        if not images:
            raise KdkitError(f"data: {folder / name} must hold images ({' '.join(SUFFIXES)}), got none; remove it")
        names += images
        labels += [known.index(name)] * len(images)
    return FileList(folder, names, torch.tensor(labels), known)


def find_unlabelled(folder: Path) -> FileList:
    """All images below `folder`, labelled −1; raises `KdkitError` where there is none."""
    names = _images(folder) if _entries(folder) else []
    if not names:
        raise KdkitError(f"data: {folder} must hold images ({' '.join(SUFFIXES)}), got none")
    return FileList(folder, names, torch.full((len(names),), -1), [])


def listing(folder: Path) -> str:
    """A digest of the names and sizes of all images below `folder`, the same wherever it lies; "" where there is none.

    A process looks again where the folder, or that of a class, has been written since.
    """
    if not os.path.isdir(folder):
        return ""
    parts = [part for part in ("train", "val") if os.path.isdir(folder / part)]
    folders = [str(folder), *_folders(folder), *(name for part in parts for name in _folders(folder / part))]
    return _digest(folder, tuple((name, os.stat(name).st_mtime_ns) for name in folders))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())


@lru_cache(maxsize=16)
def _digest(folder: Path, _: tuple[tuple[str, int], ...]) -> str:
    told = [(name.replace(os.sep, "/"), os.stat(os.path.join(folder, name)).st_size) for name in _images(folder)]
    return blake2b(repr(told).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest() if told else ""


def printable(name: str | Path) -> str:
    """A name as one word of one line, whatever is in it."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _refuse(problem: OSError) -> None:
    raise KdkitError(f"data: {printable(problem.filename)} must be a readable folder ({problem.strerror})") from None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError as problem:
        raise KdkitError(
            f"data: root must be a readable folder, got {folder} ({problem.strerror}); set data.root=FOLDER"
        ) from None


def _images(folder: Path) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()
    for where, _, files in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(where)) in seen:
            raise KdkitError(f"data: {printable(where)} is a link to a folder that is there already; remove it")
        seen.add(real)
        below = os.path.relpath(where, folder)
        found += [os.path.normpath(os.path.join(below, f)) for f in files if f.lower().endswith(SUFFIXES)]
    return sorted(found)
