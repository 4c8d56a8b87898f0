"""A logger beside metrics.csv that costs no run: what its service does not take is kept, and given to it later."""

from __future__ import annotations

import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from kdkit.console import tell
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, read_json, write_json
from kdkit.runs.rows import MetricRows

PATIENCE = 20  # a service that was away is asked again after so many times as long as it kept the run waiting
LONGEST, MOST = 250, 1000  # name, and numbers at once, that MLflow takes


class Beside(Logger):
    """A logger that is made with the run's first numbers: by then the run has begun, and its folder is its own.

    It gets what metrics.csv gets, with epochs that are over as steps, and at the end the run's pictures. Epochs that
    it was not told of before are given to it first.

    Args:
        kind: its name in a recipe.
        make: makes Lightning's logger.
        show: gives it a picture.
        words: the recipe, which it gets first.
        folder: where its id is kept, so that a run that goes on is the same one there, and what it did not take.
    """

    def __init__(
        self,
        kind: str,
        make: Callable[[RunFolder], Any],
        show: Callable[[Any, Path], None],
        words: Mapping[str, Any],
        folder: RunFolder,
    ) -> None:
        super().__init__()
        self.kind, self.make, self.show, self.words, self.folder = kind, make, show, words, folder
        self.inner: Any = None
        self.knows: bool | None = None  # the run, so that it can go on with it; None: not looked up
        self.begun = self.warned = False
        self.waiting: dict[int, dict[str, float]] = {}
        self.again = 0.0

    @property
    def name(self) -> str:
        """Its name in a recipe."""
        return self.kind

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass them on."""
        if "epoch" not in metrics:
            return
        self.hold(metrics, int(metrics["epoch"]) + 1)
        self._keep()  # the checkpoint is past this epoch: who is killed now, or before it is asked again, has no other
        if time.monotonic() >= self.again and (why := self._give()) and not self.warned:
            self.warned = True
            _warn(f"{self.kind} takes nothing now ({why}); training goes on, and it gets later what it lacks")

    def hold(self, metrics: Mapping[str, float], epochs: int) -> None:
        """Let numbers after so many epochs wait until others are passed on, or the end."""
        if self.knows is None:
            self.knows = self.kind in logged_as(self.folder) and not (self.kind == "wandb" and offline(self.folder))
            self.waiting = self._before(epochs)
        told = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        self.waiting.setdefault(epochs, {}).update(told)

    def _before(self, epochs: int) -> dict[int, dict[str, float]]:
        """What it was not told of the first `epochs`, and what it once did not take."""
        rows = MetricRows(self.folder.metrics)
        if not self.knows:
            rows.restore(epochs)
        found = {epoch: _numbers(row) for epoch, row in rows.rows.items()}
        for epoch, row in unlogged(self.folder).get(self.kind, {}).items():
            found.setdefault(int(epoch), {}).update(_numbers(row))
        return found

    def _keep(self) -> bool:
        """Leave what waits in the run's folder, for whoever goes on; whether it could be written."""
        try:
            kept: dict[str, Any] = {**unlogged(self.folder), self.kind: self.waiting}
            if left := {kind: waiting for kind, waiting in kept.items() if waiting}:
                write_json(self.folder.unlogged, left)
            else:
                self.folder.unlogged.unlink(missing_ok=True)
        except (OSError, KdkitError):  # a full disk ends a run where its own numbers are written, and no run for this
            return False
        return True

    def _give(self, pictures: Sequence[Path] = ()) -> str:
        """Give it all that waits; why it did not take that, or nothing."""
        began = time.monotonic()
        try:
            self._begin()
            for epoch in sorted(self.waiting):
                told = [(_name(self.kind, key), value) for key, value in self.waiting[epoch].items()]
                for i in range(0, len(told), MOST):
                    self.inner.log_metrics(dict(told[i : i + MOST]), step=epoch)
                del self.waiting[epoch]
            for picture in pictures:
                self.show(self.inner, picture)
        except KdkitError:
            raise
        except Exception as error:  # each service has its own
            self.again = time.monotonic() + PATIENCE * (time.monotonic() - began)
            return _told(error)
        finally:
            self._keep()
        return ""

    def _begin(self) -> None:
        if self.inner is None:
            self.inner = self.make(self.folder)
        if not self.begun and not self.knows:
            self.inner.log_hyperparams(dict(self.words))
            name = str(getattr(self.inner, "version", "") or "")
            write_json(self.folder.logged, {**logged_as(self.folder), self.kind: name})
        self.begun = True

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """It gets the recipe."""

    @rank_zero_only
    def save(self) -> None:
        """Write what it holds back."""
        if self.begun:
            self._try(self.inner.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """A run that failed ends here; of one that did not the pictures are still to come."""
        self.save()
        if status != "success":
            self._end(status)

    def close(self, pictures: Sequence[Path]) -> None:
        """Give it the pictures and what it did not take before, and end."""
        if self.knows is None:
            return
        if why := self._give(pictures):
            left = f"{', '.join(path.name for path in pictures)} lie in {self.folder.path}"
            if self.waiting:
                left = f"it is kept, and the next `kdkit eval {self.folder.path}` gives it"
                left = left if self._keep() else f"nor could it be kept, for {self.folder.path} cannot be written"
            _warn(f"{self.kind} did not take what was found ({why}); {left}")
        self._end("success")

    def _end(self, status: str) -> None:
        """W&B, too, which else took what the next run in this process logs for a part of this one."""
        if self.begun:
            self._try(lambda: self.inner.finalize(status))
            self._try(lambda: getattr(getattr(self.inner, "experiment", None), "finish", lambda: None)())

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # each service has its own
            if not self.warned:
                self.warned = True
                _warn(f"{self.kind} did not take everything ({_told(error)})")


def offline(folder: RunFolder) -> bool:
    """Whether W&B would write another run of the same id, which replaces the first where both are uploaded."""
    waiting = (part for part in folder.path.glob("wandb/offline-run-*") if not any(part.glob("*.synced")))
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun") or any(waiting)


def logged_as(folder: RunFolder) -> dict[str, str]:
    """The run's ids at whom it logs to, by the logger's name.

    Raises:
        KdkitError: the file is damaged.
    """
    if not folder.logged.is_file():
        return {}
    return dict(read_json(folder.logged, "delete it, and the run is logged as another one from here on"))


def unlogged(folder: RunFolder) -> dict[str, dict[str, dict[str, float | None]]]:
    """The run's numbers that were not taken where it logs to: by the logger's name, and by epoch.

    Raises:
        KdkitError: the file is damaged.
    """
    if not folder.unlogged.is_file():
        return {}
    return dict(read_json(folder.unlogged, "delete it: metrics.csv holds the numbers"))


def _name(kind: str, key: str) -> str:
    """As this one takes it: MLflow has few characters, and refuses all of an epoch's numbers for one odd name."""
    if kind != "mlflow":
        return key
    plain = re.sub(r"[^\w/. -]", lambda found: f"_{ord(found[0]):x}_", key.replace("=", " "), flags=re.ASCII)
    plain = "/".join(part if part.strip(".") else "_" * max(1, len(part)) for part in plain.split("/"))
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 9]}_{zlib.crc32(plain.encode()):08x}"


def _numbers(row: Mapping[str, float | None]) -> dict[str, float]:
    """JSON has no word for what is not finite."""
    return {k: float("nan") if v is None else float(v) for k, v in row.items() if k not in ("epoch", "step")}


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _warn(text: str) -> None:
    tell(text, sys.stderr, "warning:", "bold yellow")
