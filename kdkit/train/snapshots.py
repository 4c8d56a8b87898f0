"""Snapshots of the models of a cohort: the last good ones of each, in memory and, where there is a folder, on disk."""

from __future__ import annotations

import copy
import io
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kdkit.registry import KdkitError

log = logging.getLogger(__name__)
FIRST = 0
"""The epoch of what a model was at the beginning, which is always kept."""


@dataclass
class Snapshot:
    """One of them; `content` is read from its file where it is not in memory."""

    epoch: int
    digest: str
    content: Any = None


class Ring:
    """For each model its first state and the last `keep` good ones.

    A file is whole or not there, and is deleted only when the checkpoint that knows it is not the last one any more.

    Args:
        keep: how many.
        folder: where they lie; `None`: in memory, and in checkpoints.
    """

    def __init__(self, keep: int, folder: Path | None) -> None:
        self.keep, self.folder = keep, folder
        self.first: dict[str, Snapshot] = {}
        self.last: dict[str, list[Snapshot]] = {}
        self._known: set[str] = set()

    def put(self, name: str, epoch: int, content: Any) -> None:
        """Keep a state after so many epochs; the oldest one is given up."""
        content = _kept(content)
        digest = "" if self.folder is None else self._write(self._path(name, epoch), content)
        if epoch == FIRST:
            self.first[name] = Snapshot(epoch, digest, content)
            return
        mine = self.last.setdefault(name, [])
        mine.append(Snapshot(epoch, digest, content))
        del mine[: -self.keep]
        self._tidy()

    def take(self, name: str) -> tuple[int, Any] | None:
        """The last good state, which is given up with that, and its epoch; `None` where there is none."""
        while mine := self.last.get(name, []):
            snapshot = mine.pop()
            try:
                return snapshot.epoch, self._content(name, snapshot)
            except KdkitError as error:
                log.warning("%s; the one before it is taken", error)
        return None

    def begin(self, name: str) -> Any:
        """The state at the beginning."""
        return self._content(name, self.first[name])

    def _path(self, name: str, epoch: int) -> Path:
        return (self.folder or Path()) / f"{name}-{epoch:04}.pt"

    def _content(self, name: str, snapshot: Snapshot) -> Any:
        if snapshot.content is None:
            path = self._path(name, snapshot.epoch)
            data = path.read_bytes() if path.is_file() else b""
            if _digest(data) != snapshot.digest:
                raise KdkitError(f"{path} is damaged or gone")
            snapshot.content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return copy.deepcopy(snapshot.content)

    def _write(self, path: Path, content: Any) -> str:
        file = io.BytesIO()
        torch.save(content, file)
        _replace(path, file.getvalue())
        return _digest(file.getvalue())

    def _names(self) -> set[str]:
        found = {name: [*self.last.get(name, []), *([first] if first else [])] for name, first in self.first.items()}
        return {self._path(name, snapshot.epoch).name for name, several in found.items() for snapshot in several}

    @rank_zero_only
    def _tidy(self) -> None:
        """Delete the files that neither the ring nor the last checkpoint knows."""
        if self.folder is not None:
            for path in self.folder.glob("*.pt"):
                if path.name not in self._names() | self._known:
                    path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What there is; with its content where no folder holds that."""
        self._known = self._names()

        def told(s: Snapshot) -> tuple[int, str, Any]:
            return s.epoch, s.digest, s.content if self.folder is None else None

        last = {name: [told(s) for s in several] for name, several in self.last.items()}
        return {"first": {name: told(s) for name, s in self.first.items()}, "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.first = {name: Snapshot(*told) for name, told in state["first"].items()}
        self.last = {name: [Snapshot(*told) for told in several] for name, several in state["last"].items()}
        self._known = self._names()


def _kept(value: Any) -> Any:
    """A copy on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _kept(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(part) for part in value]
    return value


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@rank_zero_only
def _replace(path: Path, data: bytes) -> None:
    """A temporary name, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".kdkit.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
