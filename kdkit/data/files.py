"""Finding images in folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from kdkit import draws
from kdkit.registry import KdkitError

log = logging.getLogger(__name__)

UNREAD = (".gif", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tga", ".svg", ".psd")  # pictures all the same
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


def halves(folder: Path) -> list[Path]:
    """Its `train` and `val`, of which there may be both, one or none."""
    return [half for half in (folder / "train", folder / "val") if os.path.isdir(half)]


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


def listing(folder: Path, *, labels: bool = True) -> str:
    """A digest of the names and sizes of the images that `data.folder` reads there, the same wherever the folder lies.

    A process looks again where one of the folders in which it found them has been written since.

    Args:
        folder: has class folders, or `train`, `val` or both with such.
        labels: whether images count in class folders alone.

    Raises:
        KdkitError: of `find_images` and `find_unlabelled`.
    """
    written, digest = _listed.get((folder, labels), ({}, ""))
    if not written or written != _written(written):
        find, start = find_images if labels else find_unlabelled, len(str(folder)) + 1
        paths = [path for half in halves(folder) or [folder] for path in find(half).paths()]
        told = sorted((path[start:].replace(os.sep, "/"), _size(path)) for path in paths)
        digest = blake2b(repr(told).encode(), digest_size=8).hexdigest()
        holding = [Path(name) for name in {os.path.dirname(path) for path in paths}]
        above = {str(way) for name in holding for way in (name, *name.parents) if way.is_relative_to(folder)}
        _listed[folder, labels] = _written(above), digest
    return digest


_listed: dict[tuple[Path, bool], tuple[dict[str, int], str]] = {}


def _written(folders: Iterable[str]) -> dict[str, int]:
    """When each of those that are there was."""
    return {name: os.stat(name).st_mtime_ns for name in folders if os.path.isdir(name)}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing, which is told where it is read
        return -1


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
        if odd := [f for f in files if f.lower().endswith(UNREAD)]:
            _tell_unread(where, len(odd), os.path.splitext(odd[0])[1])
    return sorted(found)


@cache
def _tell_unread(folder: str, count: int, ending: str) -> None:
    told = "warning: data: %s holds pictures of a kind that is not read (%d %s); they are left out: convert them to PNG"
    log.warning(told, printable(folder), count, ending)


@cache
def tell_untested(folder: Path, count: int, first: str) -> None:
    """Warn, once, of so many classes without a test image."""
    told = "warning: data: %s has no test image of %d class%s (such as %s): accuracies are of the others"
    log.warning(told, printable(folder), count, "es" * (count > 1), printable(first))
