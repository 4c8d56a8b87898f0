"""Runs in processes of their own, side by side on this machine: whatever becomes of one, the others go on."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

from kdkit.bench.engines import engine
from kdkit.bench.engines.engine import GRACE, Answer, Engine
from kdkit.bench.job import Job, alone

GPUS = "CUDA_VISIBLE_DEVICES"


class Processes(Engine):
    """Processes that share this machine's threads; where it has several GPUs, each run is given one of them.

    Args:
        width: how many side by side.
    """

    def __init__(self, width: int = 1) -> None:
        import torch

        self.width = width
        self.threads = max(1, torch.get_num_threads() // width)
        self.gpus = _gpus()
        self.busy: dict[Connection, tuple[BaseProcess, Job, int]] = {}
        self.stopping = False
        self.context = context()

    def room(self) -> int:
        """What is not taken."""
        return self.width - len(self.busy)

    def begin(self, job: Job) -> None:
        """Start a process."""
        ours, theirs = self.context.Pipe(duplex=False)
        place = min(set(range(self.width)) - {place for _, _, place in self.busy.values()})
        words = (job, self.environment(job, place), str(Path.cwd()), mp.get_start_method(allow_none=True), theirs)
        process: BaseProcess = self.context.Process(target=_work, args=words)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        self.busy[ours] = (process, job, place)

    def environment(self, job: Job, place: int) -> dict[str, str]:
        """This process's; a run that does not say how many GPUs it wants sees one."""
        if len(self.gpus) < 2 or job.cell.recipe.trainer.devices != "auto":
            return dict(os.environ)
        return {**os.environ, GPUS: self.gpus[place % len(self.gpus)]}

    def answers(self, until: float | None) -> list[Answer]:
        """What came through the pipes; a pipe that breaks is a process that died."""
        return [self._end(pipe) for pipe in wait(list(self.busy), timeout=engine.LOOK)]  # type: ignore[arg-type]

    def stop(self) -> list[Answer]:
        """SIGINT, patience, SIGKILL."""
        self.stopping, told = True, []
        for process, _, _ in self.busy.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        end = monotonic() + GRACE
        while self.busy and (ready := wait(list(self.busy), timeout=max(0.0, end - monotonic()))):
            told += [self._end(pipe) for pipe in ready]  # type: ignore[arg-type]
        for process, _, _ in self.busy.values():
            process.kill()
        return told

    def _end(self, pipe: Connection) -> Answer:
        process, job, _ = self.busy.pop(pipe)
        try:
            word, what = pipe.recv()
        except EOFError:
            process.join()
            word, what = "stopped" if self.stopping else "failed", f"its process died ({why_it_died(process.exitcode)})"
        process.join()
        return Answer(job, "failed" if word == "stopped" and not self.stopping else word, what)


def _work(job: Job, environment: dict[str, str], here: str, method: str | None, answer: Connection) -> None:
    """The process: the answer is `(word, row or sentence)`."""
    mp.set_start_method(method, force=True)  # workers that decode images start as in `kdkit fit`, with what is imported
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    Thread(target=_die_with_parent, daemon=True).start()
    told = alone(job)
    with suppress(BrokenPipeError):  # who asked is gone
        answer.send(told)


def _die_with_parent() -> None:
    """A suite that is killed leaves no run behind that would hold its folder."""
    if (parent := mp.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)
        sleep(GRACE)
        os._exit(1)


def _gpus() -> list[str]:
    import torch

    if GPUS in os.environ:
        return [name for name in os.environ[GPUS].split(",") if name]
    return [str(i) for i in range(torch.cuda.device_count())]


def context() -> BaseContext:
    """Processes forked from one that has imported everything, where there are such."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["kdkit.bench.job", "kdkit.runs.fit", "kdkit.runs.evaluate", "kdkit.runs.dry_run"])
    return context


def why_it_died(code: int | None) -> str:
    """What a process's exit code says, in words."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}; out of memory?" if code == -9 else signal.Signals(-code).name
    return f"exit code {code}"
