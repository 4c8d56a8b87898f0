"""A run's folder: where everything lies, and what may be written where."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.registry import KdkitError


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, as it ran."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, commit, seed, machine, fingerprint."""
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
    def curves(self) -> Path:
        """The picture of `metrics`."""
        return self.path / "curves.png"

    def weights(self, node: str) -> Path:
        """A node's final weights."""
        return self.path / f"{node}.safetensors"

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.result.exists()

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder.

        Raises:
            KdkitError: it holds another run and nothing was said about that, or it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise KdkitError(f"{self.path} is a file; give a folder with --out")
        used = self.provenance.exists() or self.checkpoint.exists() or self.complete
        if used and not (resume or overwrite):
            state = "is complete" if self.complete else "was interrupted"
            raise KdkitError(
                f"{self.path} already holds a run, which {state}; --resume continues it, --overwrite starts it anew, "
                "--out DIR writes elsewhere"
            )
        if used and overwrite:
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KdkitError(f"{self.path} cannot be made: {error.strerror}; give another folder with --out") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary name, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
