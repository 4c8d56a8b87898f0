"""A run's folder: where everything lies, and what may be written where."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.registry import KdkitError
from kdkit.storage import OURS, whole


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run.

    Attributes:
        path: the folder itself.
        teacher: whether it is kept under `KDKIT_HOME`, and not named by the user.
    """

    path: Path
    teacher: bool = False

    @property
    def recipe(self) -> Path:
        """The resolved recipe, as it ran."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, commit, seed, machine, fingerprint; it makes the folder a run's."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        """The figures at the end; it exists once the run is complete."""
        return self.path / "result.json"

    @property
    def checkpoint(self) -> Path:
        """The newest complete checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The one before it."""
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def kept(self) -> Path | None:
        """The newest of both that is there."""
        return next((path for path in (self.checkpoint, self.previous) if path.exists()), None)

    @property
    def curves(self) -> Path:
        """The picture of `metrics`."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """What `kdkit eval` found."""
        return self.path / "eval.json"

    @property
    def tensorboard(self) -> Path:
        """What TensorBoard reads, where that was asked for."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.path / "report.html"

    @property
    def gradients(self) -> Path:
        """Each loss's share of the gradient by epoch, where that was asked for."""
        return self.path / "gradients.csv"

    @property
    def probes(self) -> Path:
        """What `kdkit probe` found."""
        return self.path / "probe.json"

    @property
    def comparison(self) -> Path:
        """The folder of what `kdkit compare` found."""
        return self.path / "compare"

    @property
    def beliefs(self) -> Path:
        """The picture of what modules tell of themselves by depth, where a loss has them tell."""
        return self.path / "beliefs.png"

    @property
    def cohort(self) -> Path:
        """Who joined, left and was treated when, where a cohort trained."""
        return self.path / "cohort.csv"

    @property
    def snapshots(self) -> Path:
        """The folder of the last good states of a cohort's models."""
        return self.path / "snapshots"

    @property
    def nonfinite(self) -> Path:
        """The folder of batches whose loss was not finite."""
        return self.path / "nonfinite"

    @property
    def trace(self) -> Path:
        """A Chrome trace of some steps, where that was asked for."""
        return self.path / "trace.json.gz"

    @property
    def logged(self) -> Path:
        """What the run is called at whom it logs to beside `metrics`: its id there, by the logger's name."""
        return self.path / f"{OURS}logged.json"

    @property
    def unlogged(self) -> Path:
        """Numbers that it did not take yet."""
        return self.path / f"{OURS}unlogged.json"

    @property
    def lock(self) -> Path:
        """Held while somebody trains here."""
        return self.path / f"{OURS}lock"

    def weights(self, node: str) -> Path:
        """A node's final weights."""
        return self.path / f"{node}.safetensors"

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.result.exists()

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with, or to lose."""
        return self.complete or self.kept is not None

    @property
    def elsewhere(self) -> str:
        """How another place is named."""
        return "set KDKIT_HOME to a folder that can be written" if self.teacher else "give another folder with --out"

    @property
    def anew(self) -> str:
        """How the run is begun anew."""
        return f"delete {self.path}, and it is trained anew" if self.teacher else "--overwrite begins anew"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether a run may be written here; nothing is.

        Raises:
            KdkitError: the folder holds another run and nothing was said about that, or what is no run, or it cannot
                be written; or both words are given.
        """
        if resume and overwrite:
            raise KdkitError("--resume goes on with the run, --overwrite deletes it; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise KdkitError(f"{self.path} is a file; {self.elsewhere}")
        there = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            why = "is no folder" if not there.is_dir() else "cannot be written"
            raise KdkitError(f"{self.path} cannot be made, for {there} {why}; {self.elsewhere}")
        if self.path.exists() and (alien := self._alien()):
            raise KdkitError(f"{self.path} is not a run's folder, and not empty ({alien}, …); {self.elsewhere}")
        if self.begun and not (resume or overwrite):
            state = "is complete" if self.complete else "was interrupted"
            raise KdkitError(
                f"{self.path} already holds a run, which {state}; --resume continues it, --overwrite starts it anew, "
                "--out DIR writes elsewhere"
            )

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """`check`, and make way for a run that begins anew: kdkit's own files go, whatever else lies there stays."""
        self.check(resume=resume, overwrite=overwrite)
        if not (resume and self.begun):
            for path in list(self._own()):
                path.unlink(missing_ok=True)
            for empty in (self.checkpoint.parent, self.snapshots, self.nonfinite):
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()

    def _own(self) -> Iterator[Path]:
        """What kdkit writes; the provenance last, for without it the rest would be nobody's."""
        from kdkit.models import read_metadata

        for path in self.path.glob("*.safetensors"):
            try:
                told = read_metadata(path)
            except KdkitError:  # damaged: not known to be ours
                continue
            if "recipe" in told and told.get("node") == path.stem:
                yield path
        yield from (path for kind in ("*.png", "compare.json") for path in self.comparison.glob(kind))
        yield from (path for path in self.path.glob(f"{OURS}*") if path != self.lock)
        yield from self.tensorboard.glob("events.out.tfevents.*")
        yield from (self.previous, *self.checkpoint.parent.glob(f"{OURS}*"))
        for where in (self.snapshots, self.nonfinite):
            yield from (path for kind in ("*.pt", f"{OURS}*") for path in where.glob(kind))
        yield from (
            self.result,
            self.evaluation,
            self.report,
            self.path / "latency.json",
            self.probes,
            self.gradients,
            self.checkpoint,
            self.curves,
            self.beliefs,
            self.trace,
            self.metrics,
            self.cohort,
            self.recipe,
            self.provenance,
        )

    def _alien(self) -> str | None:
        """A file in a folder that no run began in."""
        try:
            if "content" in json.loads(self.provenance.read_text(encoding="utf-8")):
                return None
        except (OSError, ValueError, TypeError, RecursionError):  # no provenance, or somebody else's
            pass
        return next((name for name in sorted(os.listdir(self.path)) if not name.startswith(OURS)), None)


def first_rank() -> bool:
    """Whether this process is the one that writes: Lightning, torchrun and SLURM say so in the environment."""
    ranks = (os.environ.get(word) for word in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def unwritable(folder: RunFolder, path: Path, error: Exception) -> KdkitError:
    """What is said where a run's file cannot be written, and what there is to go on with."""
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    there = folder.kept
    kept = f"{there} is whole: make room, and go on with --resume" if there else "there is no checkpoint yet"
    return KdkitError(f"{path} cannot be written ({why}); training has stopped; {kept}")


@contextmanager
def writing(folder: RunFolder) -> Iterator[None]:
    """Only files of the run are written inside; a refusal is one error."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, Path(error.filename or folder.path), error) from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary name, flushed, then renamed."""
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; a number that is not finite, which JSON has no word for, becomes null."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """As JSON has it: a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, mend: str = "--overwrite begins the run anew") -> Any:
    """What `write_json` wrote; `mend` is what there is to do where it is damaged.

    Raises:
        KdkitError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no figures by name")
    except (OSError, ValueError, RecursionError) as error:
        raise KdkitError(f"{path} cannot be read ({error}); {mend}") from None
    return found
