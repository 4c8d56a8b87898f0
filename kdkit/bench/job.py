"""One run of a suite, wherever it runs: trained, or gone on with, and made a row."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kdkit.bench.expand import Cell
from kdkit.bench.rows import make_row
from kdkit.bench.suite import TEACHER
from kdkit.bench.trial import worst_row
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """What an engine is given.

    Attributes:
        cell: the run.
        suite: its name, and where it lies.
        out: folder of the suite's runs.
        threads: of the CPU.
        width: how many may run side by side.
    """

    cell: Cell
    suite: str
    beside: Path
    out: Path
    threads: int
    width: int = 1

    @property
    def folder(self) -> RunFolder:
        """Where the run lies; a teacher's is kept for every suite that asks for it."""
        from kdkit.runs.teacher import teacher_folder

        if self.cell.method == TEACHER:
            return teacher_folder(self.cell.recipe)
        name = f"{self.cell.pair}-{self.cell.method}-seed{self.cell.seed}-{self.cell.content[:8]}"
        return RunFolder(self.out / name)

    @property
    def log(self) -> Path:
        """What the run says while it trains."""
        return self.out / "logs" / f"{self.folder.path.name}.txt"


def alone(job: Job) -> tuple[str, Any]:
    """The run as all that a process does: what it says goes into its log, and whatever happens is its answer.

    Returns:
        `done` and its row; `failed` or `stopped` and a sentence.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    said = job.log.open("a", encoding="utf-8", buffering=1)  # open to the end of the process, whose last words it takes
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout = sys.stderr = said
    signal.signal(signal.SIGINT, _Once())
    try:
        return "done", run(job)
    except KeyboardInterrupt as stop:
        print(f"stopped: {stop}")
        return "stopped", str(stop)
    except BaseException as error:
        return "failed", sentence(error, said)


def sentence(error: BaseException, log: TextIO) -> str:
    """An error in a line; the traceback of one that is not the user's to mend goes into the log."""
    if isinstance(error, KdkitError):
        print(f"error: {error}", file=log)
        return str(error)
    traceback.print_exception(error, file=log)
    return f"{type(error).__name__}: {error}"


class _Once:
    """The first Ctrl-C ends the run; the terminal's and the suite's are often two of them."""

    pressed = False

    def __call__(self, *_: Any) -> None:
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt


def run(job: Job) -> dict[str, Any]:
    """Train what is not trained yet, and make its row."""
    import torch

    from kdkit.runs.fit import fit, fit_teacher
    from kdkit.runs.lock import BusyError, only_here
    from kdkit.runs.teacher import trained_weights
    from kdkit.train.meters import NonFiniteLossError

    torch.set_num_threads(job.threads)
    forget_peak()
    folder = job.folder
    while True:
        there, resumed = folder.complete, folder.begun and not folder.complete
        try:
            if job.cell.method == TEACHER:  # who asks for one waits
                trained_weights(job.cell.recipe, fit_teacher)
            else:
                fit(job.cell.recipe, out=folder.path, resume=True)
            break
        except BusyError:  # another suite's, or a run that was lost with its machine and holds it for a while
            with only_here(folder, waiting=lambda who: print(f"waiting for another process that trains it ({who})")):
                pass
        except KdkitError as error:  # a recipe's blame is put on whatever stops its run
            if not (job.cell.trial and isinstance(error.__cause__, NonFiniteLossError)):
                raise
            return worst_row(job.cell, job.suite, folder, str(error.__cause__))
    peak = None if there else peak_gigabytes()
    extra: dict[str, Any] = {"peak_gb": peak, "resumed": resumed, "side_by_side": job.width}
    hidden = (job.beside.resolve(), job.out.resolve(), Path.cwd())
    return make_row(job.cell, job.suite, folder, extra, hidden)


def forget_peak() -> None:
    """From here on `peak_gigabytes` counts; of a process only where the system can forget, which Linux can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_gigabytes() -> float | None:
    """Largest memory since `forget_peak`: the accelerator's where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / (1e9 if sys.platform == "darwin" else 1e6), 3)
