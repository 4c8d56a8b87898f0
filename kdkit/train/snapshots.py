"""Snapshots of the models of a cohort: the last good ones of each, in memory and, where there is a folder, on disk."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kdkit.registry import KdkitError
from kdkit.storage import whole

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

    A file is whole or not there, and is deleted only when no checkpoint that one may go on from knows it any more.

    Args:
        keep: how many.
        folder: where they lie; `None`: in memory, and in checkpoints.
    """

    def __init__(self, keep: int, folder: Path | None) -> None:
        self.keep, self.folder = keep, folder
        self.first: dict[str, Snapshot] = {}
        self.last: dict[str, list[Snapshot]] = {}
        self._known: list[set[str]] = []

    def start(self, name: str, content: Any) -> None:
        """Keep a first state; it is written with the first of the others, when the run's folder is its own."""
        self.first[name] = Snapshot(FIRST, "", _kept(content))

    def put(self, name: str, epoch: int, content: Any) -> None:
        """Keep a state after so many epochs; the oldest one is given up."""
        for other, snapshot in self.first.items():
            if not snapshot.digest:
                self._write(other, snapshot)
        mine = self.last.setdefault(name, [])
        mine.append(Snapshot(epoch, "", _kept(content)))
        self._write(name, mine[-1])
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

    def _write(self, name: str, snapshot: Snapshot) -> None:
        if self.folder is not None:
            data = io.BytesIO()
            torch.save(snapshot.content, data)
            snapshot.digest = _digest(data.getvalue())
            _put(self._path(name, snapshot.epoch), data.getvalue())

    def _names(self) -> set[str]:
        found = {name: [*self.last.get(name, []), *([first] if first else [])] for name, first in self.first.items()}
        return {self._path(name, snapshot.epoch).name for name, several in found.items() for snapshot in several}

    @rank_zero_only
    def _tidy(self) -> None:
        """Delete the files that neither the ring nor the last checkpoint knows."""
        if self.folder is not None:
            for path in self.folder.glob("*.pt"):
                if path.name not in self._names().union(*self._known):
                    path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What there is; with its content where no file holds that."""
        self._remember()

        def told(s: Snapshot) -> tuple[int, str, Any]:
            return s.epoch, s.digest, None if s.digest else s.content

        last = {name: [told(s) for s in several] for name, several in self.last.items()}
        return {"first": {name: told(s) for name, s in self.first.items()}, "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.first = {name: Snapshot(*told) for name, told in state["first"].items()}
        self.last = {name: [Snapshot(*told) for told in several] for name, several in state["last"].items()}
        self._remember()

    def _remember(self) -> None:
        """The names that this checkpoint and the two before it know."""
        if not self._known or self._known[-1] != self._names():
            self._known = [*self._known[-2:], self._names()]


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
def _put(path: Path, data: bytes) -> None:
    with whole(path) as file:
        file.write(data)
